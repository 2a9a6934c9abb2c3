"""Typed access to plain data: each method reads one kind of value, and reports what is wrong with it.

What a method returns after a problem only lets the reading go on; the findings keep the result from
being used. Knows no recipe.
"""

import difflib
from collections.abc import Mapping, Sequence
from typing import Any, cast

from safegraft.recipe.document import Findings, brief, unsafe_character
from safegraft.recipe.model import At


class Values:
    """Reads values at their places, and adds problems to `findings`."""

    def __init__(self, findings: Findings) -> None:
        self.findings = findings
        self._meant: set[At] = set()  # keys that are there, misspelt

    def choice(self, at: At, value: Any, choices: Sequence[str]) -> str | None:
        """One of `choices`; None when nothing is given."""
        if value is None or value in choices:
            return value
        meant = closest(value, choices) if isinstance(value, str) else None
        hint = f"; did you mean {meant!r}?" if meant else ""
        self.findings.add(at, f"expected {', '.join(choices[:-1])} or {choices[-1]}, got {shown(value)}{hint}")
        return None

    def text(self, at: At, value: Any, empty: bool = False) -> str | None:
        """Text without control characters; None when nothing is given."""
        if value is None:
            return None
        if not isinstance(value, str):
            hint = "" if isinstance(value, list | dict) else "; if it is meant as text, put it in quotes"
            self.findings.add(at, f"expected text, got {shown(value)}{hint}")
            return None
        character = unsafe_character(value)
        if character is not None:
            self.findings.add(at, f"holds the character {character!r}, which no name can hold")
            return None
        if not value and not empty:
            self.findings.add(at, "is empty")
        return value

    def whole(self, at: At, value: Any, default: int, least: int, most: int) -> int:
        """A whole number within bounds; the default when nothing is given."""
        if value is None:
            return default
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
            self.findings.add(at, f"expected a whole number from {least} to {most}, got {shown(value)}")
            return default
        return value

    def items(self, at: At, value: Any) -> list[Any]:
        """A list; an empty one when nothing is given."""
        if value is None:
            return []
        if not isinstance(value, list):
            self.findings.add(at, f"expected a list, got {shown(value)}")
            return []
        return cast(list[Any], value)

    def mapping(
        self, at: At, value: Any, known: Sequence[str] | None, not_yet: Mapping[str, str] | None = None
    ) -> dict[str, Any]:
        """A mapping; an empty one when nothing is given, unless it is an item of a list.

        known: the keys it may have; others are reported and left out. None: any.
        not_yet: keys that are understood and refused -> what to do instead.
        """
        if value is None and not (at and isinstance(at[-1], int)):
            return {}
        if not isinstance(value, dict):
            self.findings.add(at, f"expected a mapping of keys to values, got {shown(value)}")
            return {}
        not_yet = not_yet or {}
        kept: dict[str, Any] = {}
        for key, item in cast(dict[str, Any], value).items():
            if unsafe_character(key) is not None:
                self.findings.add((*at, key), f"the key holds the character {unsafe_character(key)!r}")
            elif key in not_yet:
                kept[key] = item
                if item is not None:
                    self.findings.add((*at, key), f"not supported yet: {not_yet[key]}")
            elif known is None or key in known:
                kept[key] = item
            else:
                self._unknown(at, key, known)
        return kept

    def missing(self, at: At, key: str, message: str) -> None:
        """Report that a mapping lacks `key`, unless it stands there misspelt, which is reported already."""
        if (*at, key) not in self._meant:
            self.findings.add(at, message)

    def _unknown(self, at: At, key: str, known: Sequence[str]) -> None:
        meant = closest(key, known)
        hint = f"; did you mean {meant!r}?" if meant else f"; the keys here are {', '.join(known)}"
        self.findings.add((*at, key), f"unknown key{hint}")
        if meant:
            self._meant.add((*at, meant))


def closest(word: str, known: Sequence[str]) -> str | None:
    """The known word that was probably meant. Only for short words and lists: comparing is slow, and there
    may be a problem a word."""
    close = difflib.get_close_matches(word, known, n=1) if len(word) <= 100 and len(known) <= 100 else []
    return close[0] if close else None


def shown(value: Any) -> str:
    """A value as a message quotes it: scalars themselves, lists and mappings by kind."""
    if isinstance(value, str):
        return brief(value)
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | float):
        return f"the number {value}" if abs(value) < 10**20 else "a number"
    if isinstance(value, list):
        return "a list"
    return "nothing" if value is None else "a mapping"
