"""Recipes with gaps: ${strength}, ${1 - strength}, and ${NAME} for one of the sweep's models.

A gap that is a whole text becomes a number, or the model's reference; within a longer text it becomes text. Knows
no method: whether the recipe is one shows when it is planned.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, cast

from safegraft.recipe.model import At
from safegraft_trainers.sweep.rules import tidy

_GAP = re.compile(r"\$\{([^{}]*)\}")
STRENGTH, REST = "strength", "1 - strength"


@dataclass(frozen=True, slots=True)
class Template:
    recipe: Mapping[str, Any]

    @property
    def has_strength(self) -> bool:
        return any(gap in (STRENGTH, REST) for _, gap in _gaps(self.recipe, ()))

    def problems(self, models: Mapping[str, str]) -> Iterator[tuple[At, str]]:
        """Gaps that nothing fills."""
        for at, gap in _gaps(self.recipe, ()):
            if gap not in (STRENGTH, REST) and gap not in models:
                yield at, f"${{{gap}}} is none of ${{strength}}, ${{1 - strength}} and the names of `models`"

    def filled(self, strength: float | None, models: Mapping[str, str]) -> dict[str, Any]:
        """The recipe. strength: None only when it has no gap for one."""
        known: dict[str, Any] = dict(models)
        if strength is not None:
            known |= {STRENGTH: strength, REST: tidy(1 - strength)}
        return cast(dict[str, Any], _filled(dict(self.recipe), known))


def _gaps(value: Any, at: At) -> Iterator[tuple[At, str]]:
    if isinstance(value, str):
        yield from ((at, gap.strip()) for gap in _GAP.findall(value))
    elif isinstance(value, Mapping):
        for key, item in cast(Mapping[str, Any], value).items():
            yield from ((at, gap.strip()) for gap in _GAP.findall(str(key)))
            yield from _gaps(item, (*at, key))
    elif isinstance(value, list):
        for index, item in enumerate(cast(list[Any], value)):
            yield from _gaps(item, (*at, index))


def _filled(value: Any, known: Mapping[str, Any]) -> Any:
    if isinstance(value, str):
        whole = _GAP.fullmatch(value)
        return known[whole[1].strip()] if whole else _text(value, known)
    if isinstance(value, Mapping):
        items = cast(Mapping[str, Any], value).items()
        return {_text(str(key), known): _filled(item, known) for key, item in items}
    if isinstance(value, list):
        return [_filled(item, known) for item in cast(list[Any], value)]
    return value


def _text(value: str, known: Mapping[str, Any]) -> str:
    def fill(match: "re.Match[str]") -> str:
        found = known[match[1].strip()]
        return f"{found:.12g}" if isinstance(found, float) else str(found)

    return _GAP.sub(fill, value)
