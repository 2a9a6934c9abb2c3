"""Everything that is wrong with the rows of one source, reported together.

Knows nothing of what a row holds.
"""

import logging
from collections.abc import Generator
from contextlib import contextmanager

from safegraft.checkpoint.findings import shown
from safegraft.errors import InputError, Problem

SHOWN = 5  # of a kind; the reader knows by then what is wrong with the data

log = logging.getLogger(__name__)


class Unusable(Exception):
    """A row cannot be used. The message says what is wrong and what to do."""


class MissingImage(Unusable):
    """The file that a row names is not there."""

    def __init__(self, name: str) -> None:
        self.name = name
        super().__init__(f"its image {shown(name)} is missing")


class Faults:
    """Of the source `name`. With `skip`, faulty rows are left out and a warning says which."""

    def __init__(self, name: str, *, skip: bool) -> None:
        self.name = name
        self.skip = skip
        self._rows: list[Problem] = []  # the first ones
        self._row_count = 0
        self._missing: list[str] = []
        self._missing_count = 0

    @contextmanager
    def of_row(self, where: str) -> Generator[None]:
        """Keep an Unusable raised inside; the row has then given nothing."""
        try:
            yield
        except MissingImage as fault:
            self._missing_count += 1
            if len(self._missing) < SHOWN:
                self._missing.append(f"{shown(fault.name)} ({where})")
        except Unusable as fault:
            self._row_count += 1
            if len(self._rows) < SHOWN:
                self._rows.append(Problem(f"{self.name} {where}", str(fault)))

    def report(self, *, folder: str, used: int) -> None:
        """Say what was found, where images were looked for in `folder` and `used` rows are sound.

        Raises InputError; with `skip`, only when no row is left.
        """
        problems = self._problems(folder)
        if self.skip and problems and used:
            count = self._row_count + self._missing_count
            log.warning("%s: %s rows are left out:\n%s", self.name, f"{count:,}", "\n".join(map(str, problems)))
            return
        if not used and (self.skip or not problems):
            problems.append(Problem(self.name, "no row is left" if problems else "holds no rows"))
        if problems:
            raise InputError(problems)

    def _problems(self, folder: str) -> list[Problem]:
        problems = list(self._rows)
        if self._row_count > len(self._rows):
            problems.append(Problem(self.name, f"{self._row_count - len(self._rows):,} more rows cannot be used"))
        if self._missing_count:
            more = self._missing_count - len(self._missing)
            rest = f" and {more:,} more" if more else ""
            message = f"{self._missing_count:,} rows name images that are not in {folder}: {', '.join(self._missing)}"
            problems.append(
                Problem(self.name, f"{message}{rest}; image paths are relative to that folder: is it right?")
            )
        return problems
