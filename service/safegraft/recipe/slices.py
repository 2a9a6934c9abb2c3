"""Reads `slices:` and `modules:`, mergekit's ways to put a result together from layers and from parts.

Ranges are checked against each other here; whether models have such layers is the planner's business.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, cast

from safegraft.recipe.document import brief
from safegraft.recipe.model import At, ModelEntry, Module, OutputSlice, Setting, SliceSource
from safegraft.recipe.values import Values, shown

MAX_LAYER = 100_000


@dataclass(frozen=True, slots=True)
class Pieces:
    """How a recipe's smaller parts are read: at, value -> part."""

    required_reference: Callable[[At, Any, Mapping[str, Any]], str]
    optional_reference: Callable[[At, Any], str | None]
    settings: Callable[[At, Any], dict[str, Setting]]
    models: Callable[[At, Any], tuple[ModelEntry, ...]]


def read_slices(values: Values, pieces: Pieces, at: At, value: Any) -> tuple[OutputSlice, ...]:
    """The slices in a list, in the order of the result's layers."""
    items = values.items(at, value)
    if value == []:
        values.findings.add(at, "is empty: list slices, each with its `sources`")
    return tuple(_slice(values, pieces, (*at, index), item) for index, item in enumerate(items))


def read_modules(values: Values, pieces: Pieces, at: At, value: Any) -> tuple[Module, ...]:
    """The modules in a mapping from their names, in the order of the names."""
    items = values.mapping(at, value, known=None)
    if value == {}:
        values.findings.add(at, "is empty: name the parts of the model, such as `text_decoder`")
    return tuple(_module(values, pieces, (*at, name), name, items[name]) for name in sorted(items))


def _slice(values: Values, pieces: Pieces, at: At, value: Any) -> OutputSlice:
    ignored = {"residual_weight": "mergekit reads it and does nothing with it; remove it"}
    item = values.mapping(at, value, ("sources", "base_model", "parameters"), ignored)
    sources_at = (*at, "sources")
    listed = item.get("sources")
    if isinstance(value, dict) and not listed and (listed is None or listed == []):
        message = "`sources` is missing or empty: list models, each with its `layer_range`"
        values.missing(at, "sources", message)
    sources = [
        _source(values, pieces, (*sources_at, index), source)
        for index, source in enumerate(values.items(sources_at, listed))
    ]
    _check_together(values, sources)
    return OutputSlice(
        sources=tuple(sources),
        base_model=pieces.optional_reference((*at, "base_model"), item.get("base_model")),
        parameters=pieces.settings((*at, "parameters"), item.get("parameters")),
        at=at,
    )


def _source(values: Values, pieces: Pieces, at: At, value: Any) -> SliceSource:
    item = values.mapping(at, value, ("model", "layer_range", "parameters"))
    if isinstance(value, dict) and item.get("layer_range") is None:
        message = "`layer_range` is missing: give the first layer and the one after the last, such as [0, 16]"
        values.missing(at, "layer_range", message)
    first, stop = _range(values, (*at, "layer_range"), item.get("layer_range"))
    return SliceSource(
        model=pieces.required_reference(at, value, item),
        first=first,
        stop=stop,
        parameters=pieces.settings((*at, "parameters"), item.get("parameters")),
        at=at,
    )


def _range(values: Values, at: At, value: Any) -> tuple[int, int]:
    """[first, one after the last]; (0, 0) when it cannot be read, which is reported."""
    if value is None:
        return 0, 0
    ends = cast(list[Any], value) if isinstance(value, list) else []
    whole = [end for end in ends if isinstance(end, int) and not isinstance(end, bool) and 0 <= end <= MAX_LAYER]
    if len(whole) != 2 or len(ends) != 2:
        values.findings.add(
            at, f"expected the first layer and the one after the last, such as [0, 16], got {_told(value)}"
        )
        return 0, 0
    first, stop = whole
    if first >= stop:
        values.findings.add(at, f"has no layers: [{first}, {stop}] begins at {first} and ends before {stop}")
        return 0, 0
    return first, stop


def _told(value: Any) -> str:
    return brief(str(cast(list[Any], value)))[1:-1] if isinstance(value, list) else shown(value)


def _check_together(values: Values, sources: list[SliceSource]) -> None:
    known = [source for source in sources if source.count]
    for source in known[1:]:
        if source.count != known[0].count:
            values.findings.add(
                (*source.at, "layer_range"),
                f"has {source.count} layers, the slice's first source has {known[0].count}: they are merged one with "
                "one, so all sources of a slice have as many",
            )
    seen: set[str] = set()
    for source in sources:
        if source.model and source.model in seen:
            values.findings.add((*source.at, "model"), f"{brief(source.model)} is twice in this slice")
        seen.add(source.model)


def _module(values: Values, pieces: Pieces, at: At, name: str, value: Any) -> Module:
    item = values.mapping(at, value, ("models", "slices", "parameters")) if value is not None else {}
    given = [key for key in ("models", "slices") if item.get(key) is not None]
    if len(given) != 1 and (isinstance(value, dict) or value is None):
        values.findings.add(at, "a module has either `models` or `slices`" + ("; it has both" if given else ""))
    return Module(
        name=name,
        models=pieces.models((*at, "models"), item["models"]) if "models" in given else (),
        slices=read_slices(values, pieces, (*at, "slices"), item.get("slices")),
        parameters=pieces.settings((*at, "parameters"), item.get("parameters")),
        at=at,
    )
