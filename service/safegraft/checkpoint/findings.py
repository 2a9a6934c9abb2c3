"""Collects everything that is wrong with files made by strangers, and shows their strings safely.

Knows nothing of what is checked.
"""

from collections.abc import Generator, Iterable
from contextlib import contextmanager

from safegraft.errors import CheckpointError, Problem

# More than this about one file tells the reader nothing new; the rest is counted.
MAX_FINDINGS = 20
MAX_SHOWN = 100


def shown(text: str) -> str:
    """Quote `text` for a message: control characters escaped, long strings cut."""
    return repr(text if len(text) <= MAX_SHOWN else f"{text[: MAX_SHOWN - 3]}...")


def listed(names: Iterable[str], most: int = 3) -> str:
    """'a', 'b', 'c' and 5 more."""
    names = list(names)
    rest = f" and {len(names) - most:,} more" if len(names) > most else ""
    return ", ".join(shown(name) for name in names[:most]) + rest


class Findings:
    """Problems of one file (or, through `catching`, of several), to be raised together."""

    def __init__(self, where: str) -> None:
        self.where = where
        self._problems: list[Problem] = []
        self._own = 0

    def add(self, message: str) -> None:
        self._own += 1
        if self._own <= MAX_FINDINGS:
            self._problems.append(Problem(self.where, message))

    @contextmanager
    def catching(self) -> Generator[None, None, None]:
        """Keep the problems of a CheckpointError raised inside, and go on after the block."""
        try:
            yield
        except CheckpointError as error:
            self._problems.extend(error.problems)

    def raise_if_any(self) -> None:
        """Raise one CheckpointError with every problem found so far."""
        if self._own > MAX_FINDINGS:
            more = Problem(self.where, f"{self._own - MAX_FINDINGS:,} more problems of this file")
            raise CheckpointError([*self._problems, more])
        if self._problems:
            raise CheckpointError(self._problems)
