"""A recipe's sections: models that are merged with each other under the same settings.

A recipe of `models` is one section; each slice is one, and each module of whole models. Looks at the recipe
alone: which section a tensor belongs to is `assembly.py`'s business.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from safegraft.recipe.model import At, ModelEntry, Module, OutputSlice, Recipe, Settings


@dataclass(frozen=True, slots=True)
class Given:
    """Settings and their place in the recipe."""

    settings: Settings
    at: At


@dataclass(frozen=True, slots=True)
class Section:
    """own: model that is merged -> its own settings, in the recipe's order. roles: role -> the model that has it.

    shared: settings for all that are merged, the nearest first.

    base_model: the section's. at: what messages point at. first: of a slice, model -> its first layer; count: how many.
    """

    own: Mapping[str, Given]
    shared: tuple[Given, ...]
    base_model: str | None
    at: At
    roles: Mapping[str, str] = field(default_factory=dict[str, str])
    first: Mapping[str, int] = field(default_factory=dict[str, int])
    count: int = 0

    @property
    def is_slice(self) -> bool:
        return bool(self.first)

    @property
    def models(self) -> tuple[str, ...]:
        return tuple(self.own)


def sections_of(recipe: Recipe) -> Iterator[Section]:
    """All of them, in the recipe's order."""
    top = (Given(recipe.parameters, ("parameters",)),)
    if recipe.models:
        yield whole(recipe, recipe.models, top, ())
    for one in recipe.slices:
        yield slice_section(recipe, one, top)
    for module in recipe.modules:
        yield from module_sections(recipe, module)


def module_sections(recipe: Recipe, module: Module) -> Iterator[Section]:
    """One for a module of whole models, else one a slice."""
    shared = (Given(module.parameters, (*module.at, "parameters")), Given(recipe.parameters, ("parameters",)))
    if module.models:
        yield whole(recipe, module.models, shared, module.at)
    for one in module.slices:
        yield slice_section(recipe, one, shared)


def whole(recipe: Recipe, entries: Sequence[ModelEntry], shared: tuple[Given, ...], at: At) -> Section:
    """Whole models."""
    merged = [entry for entry in entries if entry.role is None]
    own = {entry.model: Given(entry.parameters, (*entry.at, "parameters")) for entry in merged}
    roles = {entry.role: entry.model for entry in reversed(entries) if entry.role is not None}
    return Section(own, shared, recipe.base_model, at, roles)


def slice_section(recipe: Recipe, one: OutputSlice, shared: tuple[Given, ...]) -> Section:
    """A slice's sources."""
    return Section(
        own={source.model: Given(source.parameters, (*source.at, "parameters")) for source in one.sources},
        shared=(Given(one.parameters, (*one.at, "parameters")), *shared),
        base_model=one.base_model or recipe.base_model,
        at=one.at,
        first={source.model: source.first for source in one.sources},
        count=one.count,
    )
