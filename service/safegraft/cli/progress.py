"""How far a transfer or a merge is: a bar on a terminal, a line now and then elsewhere. On stderr."""

import sys
import time
from collections.abc import Generator
from contextlib import contextmanager
from typing import TYPE_CHECKING, NoReturn, Protocol

from safegraft.cli.sizes import format_size
from safegraft.cli.terminal import note, printable

if TYPE_CHECKING:
    from tqdm import tqdm

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
    """A bar that appears with the first call and disappears with the block."""
    bars: list[tqdm[NoReturn]] = []

    def update(done: int, total: int, doing: str = "") -> None:
        if not bars:
            bars.append(_new_bar(label, done, total))
        bars[0].set_postfix_str(printable(doing), refresh=False)
        bars[0].update(done - bars[0].n)

    try:
        yield update
    finally:
        for bar in bars:
            bar.close()


def _new_bar(label: str, done: int, total: int) -> "tqdm[NoReturn]":
    """`done` is from an earlier run: it fills the bar and does not count towards the speed."""
    from tqdm import tqdm

    return tqdm(
        desc=printable(label),
        initial=done,
        total=total,
        unit="B",
        unit_scale=True,
        file=sys.stderr,
        dynamic_ncols=True,
        leave=False,
    )


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
