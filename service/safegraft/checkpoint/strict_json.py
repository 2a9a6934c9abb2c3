"""JSON from strangers: valid UTF-8, no key twice; every failure is a CheckpointError.

NaN and Infinity are let through: configs written by older libraries hold them.
"""

import json
from collections.abc import Callable
from typing import Any, cast

from safegraft.checkpoint.findings import shown
from safegraft.errors import CheckpointError, Problem

MAX_DEPTH = 50
MAX_DIGITS = 1_000


def parse_json(content: bytes, where: str, *, parse_int: Callable[[str], int] | None = None) -> Any:
    """Parse a whole file. `where` names it in the CheckpointError that anything wrong with it raises."""
    try:
        return json.loads(content.decode("utf-8"), object_pairs_hook=_unique, parse_int=parse_int or _integer)
    except ValueError as error:  # JSONDecodeError and UnicodeDecodeError are kinds of it
        raise CheckpointError(Problem(where, f"is not valid JSON: {error}")) from error
    except RecursionError as error:
        raise CheckpointError(Problem(where, "is not sound JSON: it is nested too deeply")) from error


def parse_object(content: bytes, where: str) -> dict[str, Any]:
    """Parse a config: an object, shallow enough to be walked through recursively."""
    found = as_object(parse_json(content, where))
    if found is None:
        raise CheckpointError(Problem(where, "must hold a JSON object ({...})"))
    level: list[Any] = [found]
    for _ in range(MAX_DEPTH):
        level = [inner for value in level for inner in (as_object(value) or {}).values()] + [
            inner for value in level for inner in as_list(value) or []
        ]
        if not level:
            return found
    raise CheckpointError(Problem(where, f"is nested more than {MAX_DEPTH} levels deep"))


def as_object(value: Any) -> dict[str, Any] | None:
    """The value typed as a JSON object, or None when it is something else."""
    return cast("dict[str, Any]", value) if isinstance(value, dict) else None


def as_list(value: Any) -> list[Any] | None:
    """The value typed as a JSON array, or None when it is something else."""
    return cast("list[Any]", value) if isinstance(value, list) else None


def is_natural(value: Any) -> bool:
    """Whether a parsed value is an integer from 0 up; `true` is none."""
    return type(value) is int and value >= 0


def _integer(text: str) -> int:
    """Python's own refusal of endless numbers speaks of Python."""
    if len(text) > MAX_DIGITS:
        raise ValueError(f"an integer of {len(text):,} digits")
    return int(text)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise ValueError(f"the key {shown(key)} stands twice in one object")
            seen.add(key)
    return found
