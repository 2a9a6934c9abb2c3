"""How far a transfer or a merge is: a bar on a terminal, a line now and then elsewhere. On stderr."""

import sys
import time
from collections.abc import Generator
from contextlib import contextmanager
from typing import Protocol

from safegraft.cli.sizes import format_size
from safegraft.cli.terminal import note, printable

SECONDS_BETWEEN_LINES = 5.0


class Meter(Protocol):
    """Told the state, not the steps, so that a continued merge starts where it stopped."""

    def __call__(self, done: int, total: int, doing: str = "") -> None:
        """`done` of `total` bytes; `doing` says at what, such as a file's name."""
        ...


@contextmanager
def meter(label: str) -> Generator[Meter]:
    """A meter for the time of a `with` block."""
    if sys.stderr.isatty():
        with _bar(label) as bar:
            yield bar
    else:
        yield Lines(label)


@contextmanager
def _bar(label: str) -> Generator[Meter]:
    from tqdm import tqdm

    with tqdm(
        desc=label, unit="B", unit_scale=True, file=sys.stderr, dynamic_ncols=True, miniters=1, leave=False
    ) as bar:

        def update(done: int, total: int, doing: str = "") -> None:
            if bar.total != total:
                # What an earlier run finished counts as done, but not towards the speed.
                bar.initial = bar.n = done
                bar.total = total
            bar.set_postfix_str(printable(doing), refresh=False)
            bar.update(done - bar.n)

        yield update


class Lines:
    """One line every few seconds while the percentage grows, and one at the end."""

    def __init__(self, label: str, seconds: float = SECONDS_BETWEEN_LINES) -> None:
        self._label = label
        self._seconds = seconds
        self._started = self._last = time.monotonic()
        self._first: int | None = None
        self._percent = -1

    def __call__(self, done: int, total: int, doing: str = "") -> None:
        if self._first is None:
            self._first = done
        percent = 100 * done // total if total else 100
        now = time.monotonic()
        finished = done >= total
        if percent == self._percent or (now - self._last < self._seconds and not finished):
            return
        self._percent, self._last = percent, now
        seconds = now - self._started
        speed = f", {format_size((done - self._first) / seconds)}/s" if seconds > 0 else ""
        note(f"{self._label}: {percent}% ({format_size(done)} of {format_size(total)}{speed})")
