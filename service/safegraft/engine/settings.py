"""Parameters for one tensor: which of a recipe's settings counts, and what it comes to there.

For an input's parameter the scopes are, first to last: the override's for that model, the override's,
the model's own, the slice's, the module's, the recipe's; then the method's default. A shared parameter has
these without the model's. Within a scope the first condition whose filter is part of the tensor's name counts; without
one the next scope is asked. Gradients run over the layers. All this is mergekit's, overrides aside.

`resolve` works tensor by tensor. The `check_` functions look at the recipe alone, so that every wrong
name and value is told at once, also where no tensor would meet it.
"""

import difflib
import fnmatch
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel

from safegraft.engine.anatomy import split_layer
from safegraft.engine.parameters import ParameterSet, parameter_set
from safegraft.engine.sections import Section, sections_of
from safegraft.errors import Problem, RecipeError
from safegraft.methods.contract import MergeMethod, Modifier
from safegraft.recipe.model import At, Condition, ModifierEntry, Override, Recipe, Scalar, Setting, Settings


@dataclass(frozen=True, slots=True)
class Resolved:
    """A tensor's parameters: instances of the method's Parameters, and of its InputParameters per input."""

    parameters: BaseModel
    inputs: tuple[BaseModel, ...]


def resolve(
    recipe: Recipe,
    method: MergeMethod,
    override: Override | None,
    tensor: str,
    inputs: Sequence[tuple[str, str]],
    t: float,
    section: Section | None = None,
) -> Resolved:
    """The parameters for one tensor.

    Args:
        override: the one that applies to this tensor.
        tensor: the host's name for it, which filters of shared parameters look at.
        inputs: (model, the model's own name for the tensor), in the method's order. Filters of an
            input's parameters look at that name and at the host's.
        t: the tensor's place among the layers, 0 to 1, where gradients are read.
        section: of the recipe, whose settings count for this tensor; default: its first.

    Raises RecipeError with every problem, each at the place of the setting it comes from.
    """
    section = section or next(sections_of(recipe))
    builder = _Builder(recipe, method.name, t)

    def scopes(model: str | None) -> list[_Scope]:
        return list(_scopes_of(section, override, model))

    parameters = builder.build(method.Parameters, scopes(None), None, (tensor,))
    each = [
        builder.build(method.InputParameters, scopes(model), model, (own, _named_as_there(own, tensor, section)))
        for model, own in inputs
    ]
    if builder.problems or parameters is None:
        raise RecipeError(list(dict.fromkeys(builder.problems)))
    return Resolved(parameters, tuple(one for one in each if one is not None))


def resolve_modifier(recipe: Recipe, entry: ModifierEntry, modifier: Modifier, tensor: str, t: float) -> BaseModel:
    """A modifier's parameters for one tensor. Raises RecipeError with every problem."""
    builder = _Builder(recipe, modifier.name, t)
    parameters = builder.build(modifier.Parameters, [_modifier_scope(entry)], None, (tensor,))
    if builder.problems or parameters is None:
        raise RecipeError(list(dict.fromkeys(builder.problems)))
    return parameters


def _named_as_there(own: str, tensor: str, section: Section) -> str:
    """The host's name with the layer's number in the input: filters of an input's parameters mean its own layers."""
    there, here = split_layer(own), split_layer(tensor)
    if not section.is_slice or there is None or here is None:
        return tensor
    return f"{here[0]}.{there[1]}.{here[2]}"


@dataclass(frozen=True, slots=True)
class _Scope:
    settings: Settings
    at: At


def _scopes_of(section: Section, override: Override | None, model: str | None) -> Iterator[_Scope]:
    """First to last, for one model's parameters, or for the shared ones (None)."""
    if override is not None:
        if model is not None and model in override.models:
            yield _override_scope(override, model)
        yield _Scope(override.parameters, (*override.at, "parameters"))
    own = None if model is None else section.own.get(model)
    yield from (_Scope(one.settings, one.at) for one in ((own,) if own else ()))
    yield from (_Scope(one.settings, one.at) for one in section.shared)


def _modifier_scope(entry: ModifierEntry) -> _Scope:
    return _Scope(entry.parameters, (*entry.at, "parameters"))


def _override_scope(override: Override, model: str) -> _Scope:
    index = list(override.models).index(model)
    return _Scope(override.models[model], (*override.at, "models", index, "parameters"))


class _Builder:
    """Builds the parameter objects of one tensor and gathers what is wrong with them."""

    def __init__(self, recipe: Recipe, name: str, t: float) -> None:
        self.recipe = recipe
        self.name = name  # of the method or modifier
        self.t = t
        self.problems: list[Problem] = []

    def build(
        self, kind: type[BaseModel], scopes: Sequence[_Scope], model: str | None, tensors: Sequence[str]
    ) -> BaseModel | None:
        """One object, or None and a problem. `tensors`: the names that filters look at; the last is the host's."""
        known = parameter_set(kind)
        values: dict[str, Any] = {}
        given: dict[str, _Found] = {}
        before = len(self.problems)
        for name in known.names:
            found = _find(self.recipe, name, scopes, tensors)
            if found is not None:
                given[name] = found
                self._evaluate(known, name, found, values)
            elif name in known.required:
                self._missing(name, scopes, model, tensors[-1])
        if len(self.problems) > before:
            return None
        built = known.build(values)
        if isinstance(built, BaseModel):
            return built
        for name, words in built:
            interpolated = name is not None and isinstance(given[name].value, tuple)
            where = scopes[-1].at if name is None else given[name].at
            self._add(where, f"{self.t:.3g} of the way through the layers, {words}" if interpolated else words)
        return None

    def _evaluate(self, known: ParameterSet, name: str, found: "_Found", values: dict[str, Any]) -> None:
        if not isinstance(found.value, tuple):
            values[name] = found.value
            return
        points: list[Any] = []
        for index, point in enumerate(found.value):
            try:
                points.append(known.convert(name, point))
            except ValueError as error:
                self._add((*found.at, index), str(error))
        if len(points) == len(found.value):
            values[name] = at_depth(points, self.t)

    def _missing(self, name: str, scopes: Sequence[_Scope], model: str | None, tensor: str) -> None:
        filtered = next((scope for scope in scopes if name in scope.settings), None)
        if filtered is not None:
            self._add(
                (*filtered.at, name),
                f"{self.name} needs a value for every tensor, and no filter matches {tensor}; "
                "end the list with a value without a filter",
            )
            return
        places = " or ".join(dict.fromkeys(self.recipe.path(*scope.at) for scope in scopes))
        whose = "" if model is None else f" for {model}"
        self._add(scopes[0].at[:-1], f"{self.name} needs `{name}`{whose}: give it under {places}")

    def _add(self, at: At, message: str) -> None:
        self.problems.append(Problem(self.recipe.where(*at), message))


@dataclass(frozen=True, slots=True)
class _Found:
    value: Scalar | tuple[Scalar, ...]
    at: At


def _find(recipe: Recipe, name: str, scopes: Sequence[_Scope], tensors: Sequence[str]) -> _Found | None:
    for scope in scopes:
        if name not in scope.settings:
            continue
        for found, filter in _alternatives(recipe, scope.settings[name], (*scope.at, name)):
            if filter is None or any(filter in tensor for tensor in tensors):
                return found
    return None


def _alternatives(recipe: Recipe, setting: Setting, at: At) -> Iterator[tuple[_Found, str | None]]:
    """A setting's values, each with its place and the filter it waits for (None: every tensor)."""
    conditions = [item for item in setting if isinstance(item, Condition)] if isinstance(setting, tuple) else []
    if not conditions:
        yield _Found(setting, at), None  # pyright: ignore[reportArgumentType] (no condition in it: see `Setting`)
    for index, condition in enumerate(conditions):
        # One condition may stand without a list around it; only a list's items have lines of their own.
        single = len(conditions) == 1 and (*at, index) not in recipe.lines
        here = at if single else (*at, index)
        every = condition.filter is None or condition.filter == "*"
        yield _Found(condition.value, (*here, "value")), None if every else condition.filter


def at_depth(points: Sequence[Any], t: float) -> Any:
    """A gradient at `t`, 0 to 1: numbers are interpolated, of anything else the point before `t` counts."""
    position = t * (len(points) - 1)
    below = int(position)
    if not all(isinstance(point, int | float) and not isinstance(point, bool) for point in points):
        return points[below]
    above = min(len(points) - 1, below + 1)
    share = position - below
    return (1 - share) * points[below] + share * points[above]


# -- the recipe alone ---------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Territory:
    """A scope, who reads it by name, and the parameters that have an effect there or would elsewhere."""

    scope: _Scope
    who: tuple[str, ...]
    active: tuple[ParameterSet, ...]
    shared: tuple[ParameterSet, ...] = ()  # have an effect for all models at once
    idle: tuple[ParameterSet, ...] = ()

    def reading(self, name: str) -> list[ParameterSet]:
        return [one for one in self.active if name in one.names]

    def only_idle(self, name: str) -> bool:
        return not self.reading(name) and any(name in one.names for one in (*self.shared, *self.idle))


def _territories(
    recipe: Recipe, methods: Mapping[str, MergeMethod], modifiers: Mapping[str, Modifier]
) -> Iterator[_Territory]:
    everyone = tuple(methods.values())
    sections = list(sections_of(recipe))
    for at, settings in _shared_of(sections).items():
        yield _shared_territory(_Scope(settings, at), everyone)
    for section in sections:
        for model, own in section.own.items():
            yield _model_territory(_Scope(own.settings, own.at), everyone, model == section.base_model, False)
    for entry in recipe.all_entries():
        if entry.role is not None:
            yield _model_territory(_Scope(entry.parameters, (*entry.at, "parameters")), everyone, False, True)
    for override in recipe.overrides:
        own = (methods[override.method or recipe.merge_method],)
        yield _shared_territory(_Scope(override.parameters, (*override.at, "parameters")), own)
        roles = {entry.model for entry in recipe.all_entries() if entry.role is not None}
        for model in override.models:
            yield _model_territory(_override_scope(override, model), own, model == recipe.base_model, model in roles)
    for entry in (one for one in recipe.modifiers if one.name in modifiers):
        yield _Territory(_modifier_scope(entry), (entry.name,), (parameter_set(modifiers[entry.name].Parameters),))


def _shared_of(sections: Sequence[Section]) -> dict[At, Settings]:
    """What sections share, from the recipe's settings inwards, each once."""
    return {one.at: one.settings for section in sections for one in reversed(section.shared)}


def _shared_territory(scope: _Scope, methods: tuple[MergeMethod, ...]) -> _Territory:
    sets = [parameter_set(kind) for method in methods for kind in (method.Parameters, method.InputParameters)]
    return _Territory(scope, tuple(method.name for method in methods), tuple(sets))


def _model_territory(scope: _Scope, methods: tuple[MergeMethod, ...], is_base: bool, has_role: bool) -> _Territory:
    active: list[ParameterSet] = []
    idle: list[ParameterSet] = []
    for method in methods:
        apart = has_role or (is_base and method.requires.base in ("required", "optional"))
        (idle if apart else active).append(parameter_set(method.InputParameters))
    shared = tuple(parameter_set(method.Parameters) for method in methods)
    return _Territory(scope, tuple(method.name for method in methods), tuple(active), shared, tuple(idle))


def check_names(recipe: Recipe, methods: Mapping[str, MergeMethod], modifiers: Mapping[str, Modifier]) -> list[Problem]:
    """Every parameter name must be known to a method that its scope reaches.

    methods: all that the recipe names, by name. modifiers: those that there are.
    """
    problems: list[Problem] = []
    for territory in _territories(recipe, methods, modifiers):
        known = list(
            dict.fromkeys(name for one in (*territory.active, *territory.shared, *territory.idle) for name in one.names)
        )
        for name in territory.scope.settings:
            if name not in known:
                where = recipe.where(*territory.scope.at, name)
                problems.append(Problem(where, _unknown(name, territory.who, known)))
    return problems


def _unknown(name: str, methods: Sequence[str], known: Sequence[str]) -> str:
    who = f"{methods[0]} has no" if len(methods) == 1 else f"none of {', '.join(methods)} has a"
    close = difflib.get_close_matches(name, known, n=1) if len(name) <= 100 else []
    if close:
        return f"{who} parameter of this name; did you mean {close[0]!r}?"
    return f"{who} parameter of this name; there are {', '.join(known) if known else 'none'}"


def check_values(
    recipe: Recipe, methods: Mapping[str, MergeMethod], modifiers: Mapping[str, Modifier]
) -> list[Problem]:
    """Every value, gradient point and conditional value must be one that a method it reaches can take.

    methods: all that the recipe names, by name. modifiers: those that there are.
    """
    problems: list[Problem] = []
    for territory in _territories(recipe, methods, modifiers):
        for name, setting in territory.scope.settings.items():
            readers = territory.reading(name)
            for value, at in _leaves(recipe, setting, (*territory.scope.at, name)):
                faults = [reader.fault(name, value) for reader in readers]
                # With several methods, one that refuses a value may never meet it; `resolve` finds out.
                if faults and faults[0] is not None and all(faults):
                    problems.append(Problem(recipe.where(*at), faults[0]))
    return problems


def _leaves(recipe: Recipe, setting: Setting, at: At) -> Iterator[tuple[Scalar, At]]:
    for found, _ in _alternatives(recipe, setting, at):
        if isinstance(found.value, tuple):
            yield from ((point, (*found.at, index)) for index, point in enumerate(found.value))
        else:
            yield found.value, found.at


def idle_settings(recipe: Recipe, methods: Mapping[str, MergeMethod], modifiers: Mapping[str, Modifier]) -> list[str]:
    """Warnings for parameters that exist and have no effect where they stand, as in mergekit.

    methods: all that the recipe names, by name. modifiers: those that there are.
    """
    warnings: list[str] = []
    for territory in _territories(recipe, methods, modifiers):
        for name in territory.scope.settings:
            if territory.only_idle(name):
                shared = any(name in one.names for one in territory.shared)
                where = recipe.where(*territory.scope.at, name)
                why = (
                    "it is shared by all models; move it to `parameters`"
                    if shared
                    else "the base, or a model with a role, has none of its own"
                )
                warnings.append(f"{where}: has no effect here: {why}")
            elif (reading := territory.reading(name)) and all(name in one.without_effect for one in reading):
                where = recipe.where(*territory.scope.at, name)
                warnings.append(f"{where}: has no effect with {', '.join(territory.who)}")
    return warnings


def unmatched(recipe: Recipe, host_names: Collection[str], input_names: Collection[str]) -> list[str]:
    """Warnings for filters and overrides that fit the name of no tensor.

    Args:
        host_names: of the tensors that are merged.
        input_names: the models' own names for them.
    """
    warnings: list[str] = []
    for override in recipe.overrides:
        if not any(fnmatch.fnmatchcase(name, override.tensors) for name in host_names):
            where = recipe.where(*override.at, "tensors")
            warnings.append(f"{where}: {override.tensors!r} matches no tensor that is merged")
    names = {*host_names, *input_names}
    for scope in _all_scopes(recipe):
        for parameter, setting in scope.settings.items():
            for found, filter in _alternatives(recipe, setting, (*scope.at, parameter)):
                if filter is not None and not any(filter in name for name in names):
                    where = recipe.where(*found.at[:-1], "filter")
                    warnings.append(f"{where}: {filter!r} is part of no name of a tensor that is merged")
    return warnings


def _all_scopes(recipe: Recipe) -> Iterator[_Scope]:
    sections = list(sections_of(recipe))
    yield from (_Scope(settings, at) for at, settings in _shared_of(sections).items())
    yield from (_Scope(own.settings, own.at) for section in sections for own in section.own.values())
    for override in recipe.overrides:
        yield _Scope(override.parameters, (*override.at, "parameters"))
        yield from (_override_scope(override, model) for model in override.models)
