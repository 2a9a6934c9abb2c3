"""A row whose columns are looked at with care: every fault is noted with its row and column, and none hides another.

What a format's module is written in. Knows no format.
"""

import ast
import hashlib
import json
import logging
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

from safegraft.errors import InputError, Problem
from safegraft_trainers.evaluate.example import Axis, Example, Picture, Scoring
from safegraft_trainers.evaluate.reading import RawRow, picture

log = logging.getLogger(__name__)

MOST_PROBLEMS = 20
NO_PICTURE = Picture(b"", "")


class Row:
    """One row of a public file.

    Each method returns a column's value; where that is not as it must be, it notes the fault and returns an empty
    stand-in, so that one pass finds everything. A row with a fault becomes no example (`gather`).
    """

    def __init__(self, raw: RawRow) -> None:
        self.raw = raw
        self.faults: list[Problem] = []
        self.left_out = ""

    def leave_out(self, reason: str) -> tuple[Example, ...]:
        """No example comes of this row, and that is right; the reason is told once for all such rows."""
        self.left_out = reason
        return ()

    @property
    def key(self) -> str:
        """The row's key, in a JSON object of rows."""
        return self.raw.key

    def fault(self, column: str, message: str) -> None:
        self.faults.append(Problem(f"{self.raw.where}, {column!r}", message))

    def value(self, column: str) -> Any:
        return self.raw.values.get(column)

    def has(self, column: str) -> bool:
        """Whether there is anything in it; pandas writes a missing value as an empty field or as nan."""
        value = self.value(column)
        blank = isinstance(value, str) and value.strip().lower() in ("", "nan")
        return not (value is None or blank or value != value)  # NaN is unequal to itself

    def named(self, *columns: str) -> str:
        """The first of these that the row has: for files that are public under several headers."""
        return next((column for column in columns if column in self.raw.values), columns[0])

    def text(self, column: str) -> str:
        """Not blank. Numbers are taken as their text."""
        value = self.value(column)
        if column not in self.raw.values:
            self.fault(column, f"is missing; the row has {_listed(self.raw.values)}")
        elif not self.has(column):
            self.fault(column, "is empty; fill it in, or take the row out")
        elif isinstance(value, str):
            return value.strip()
        elif isinstance(value, int | float) and not isinstance(value, bool):
            return str(value)
        else:
            self.fault(column, f"must be text, not {type(value).__name__}")
        return ""

    def optional(self, column: str) -> str:
        return self.text(column) if self.has(column) else ""

    def one_of(self, column: str, options: Sequence[str]) -> str:
        found = self.text(column)
        if found and found not in options:
            self.fault(column, f"must be one of {', '.join(options)}, not {found!r}")
            return ""
        return found

    def flag(self, column: str) -> bool | None:
        value = self.value(column)
        if isinstance(value, bool):
            return value
        self.fault(column, f"must be true or false, not {value!r}" if column in self.raw.values else "is missing")
        return None

    def index(self, column: str, size: int) -> int | None:
        """A whole number from 0 to size - 1."""
        found = self.text(column)
        if found.isdecimal() and int(found) < size:
            return int(found)
        if found:
            self.fault(column, f"must be a whole number from 0 to {size - 1}, not {found!r}")
        return None

    def letter(self, column: str, size: int) -> int | None:
        """The index of an option named A, B, ..."""
        found = self.text(column)
        options = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"[:size]
        if len(found) == 1 and found in options:
            return options.index(found)
        if found:
            self.fault(column, f"must name one of the options, {', '.join(options)}; not {found!r}")
        return None

    def strings(self, column: str) -> tuple[str, ...]:
        """A list of texts, or one written out as Python or JSON does ("['a', 'b']")."""
        value = self.value(column)
        if isinstance(value, str):
            value = _written_out(value)
        if isinstance(value, list) and all(isinstance(one, str) for one in cast("list[Any]", value)):
            return tuple(cast("list[str]", value))
        self.fault(column, "must be a list of texts" if column in self.raw.values else "is missing")
        return ()

    def record(self, column: str) -> dict[str, Any]:
        """An object."""
        value = self.value(column)
        if isinstance(value, dict):
            return cast("dict[str, Any]", value)
        self.fault(column, "must be an object" if column in self.raw.values else "is missing")
        return {}

    def picture(self, column: str, *folders: str) -> Picture:
        """An image. folders: where a relative path may start, seen from the file; its own folder always counts."""
        value = self.value(column)
        if isinstance(value, list) and len(cast("list[Any]", value)) == 1:
            value = cast("list[Any]", value)[0]  # a list of one image, as some data sets on the Hub have it
        return self.picture_of(column, value, *folders)

    def picture_of(self, column: str, value: Any, *folders: str) -> Picture:
        """The same, of a value that the row only implies."""
        places: list[Path] = [self.raw.folder, *(self.raw.folder / folder for folder in folders)]
        try:
            return picture(value, f"{self.raw.where}, {column!r}", places)
        except InputError as error:
            self.faults += error.problems
        except OSError as error:
            self.fault(column, f"the image cannot be read: {error.strerror or error}")
        return NO_PICTURE


def gather(raw: Sequence[RawRow], make: Callable[[Row], Iterable[Example]]) -> tuple[Example, ...]:
    """The examples of all rows. make: a row to its examples.

    Raises InputError with the faults of all rows, ids that occur twice among them; of many, the first twenty.
    Rows left out on purpose are counted in a warning, never passed over in silence.
    """
    examples: list[Example] = []
    places: list[str] = []
    problems: list[Problem] = []
    left_out: Counter[str] = Counter()
    for one in raw:
        row = Row(one)
        made = list(make(row))
        problems += row.faults
        if row.left_out:
            left_out[row.left_out] += 1
        elif not row.faults:
            examples += made
            places += [one.where] * len(made)
    problems += _repeated(examples, places)
    if not examples and not problems:
        problems = [Problem(raw[0].where, f"all rows were left out: {', '.join(left_out) or 'there are none'}")]
    if problems:
        raise InputError(_shortened(problems))
    for reason, count in left_out.items():
        log.warning("%s: left out %d of %d rows: %s", raw[0].where.partition(",")[0], count, len(raw), reason)
    return tuple(examples)


def content_ids(examples: Iterable[Example]) -> tuple[Example, ...]:
    """Examples of a format without ids, told apart by what they ask: stable when the file is sorted or cut.

    A prompt that comes again gets "-2", "-3", ... in the order of the file.
    """
    seen: Counter[str] = Counter()
    named: list[Example] = []
    for example in examples:
        shown = example.image.sha256 if example.image else ""
        asked = "\n".join([example.prompt, shown, example.scoring, *example.choices])
        identity = hashlib.sha256(asked.encode()).hexdigest()[:16]
        seen[identity] += 1
        named.append(replace(example, id=identity if seen[identity] == 1 else f"{identity}-{seen[identity]}"))
    return tuple(named)


def attack(identity: str, prompt: str, *, image: Picture | None = None, subset: str = "") -> Example:
    """A harmful request: its axis follows from whether it shows something."""
    axis = Axis.TEXT_SAFETY if image is None else Axis.MULTIMODAL_SAFETY
    return Example(identity, axis, Scoring.ATTACK, prompt, image, subset)


def harmless(identity: str, prompt: str, *, image: Picture | None = None, subset: str = "") -> Example:
    """A request that looks harmful and is not."""
    return Example(identity, Axis.EXAGGERATED_SAFETY, Scoring.REFUSAL, prompt, image, subset)


def _repeated(examples: Sequence[Example], places: Sequence[str]) -> list[Problem]:
    first: dict[str, str] = {}
    problems: list[Problem] = []
    for example, place in zip(examples, places, strict=True):
        if not example.id:
            continue  # `content_ids` comes later
        if example.id in first:
            problems.append(Problem(place, f"its id {example.id!r} is that of {first[example.id]}; ids must differ"))
        first.setdefault(example.id, place)
    return problems


def _shortened(problems: list[Problem]) -> list[Problem]:
    more = len(problems) - MOST_PROBLEMS
    return problems if more <= 0 else [*problems[:MOST_PROBLEMS], Problem("", f"and {more} more problems of this kind")]


def _written_out(text: str) -> Any:
    for parse in (json.loads, ast.literal_eval):
        try:
            return parse(text)
        except (ValueError, SyntaxError):
            continue
    return None


def _listed(names: Iterable[str]) -> str:
    return ", ".join(repr(name) for name in names) or "no columns"
