"""What only several parts of a sweep together can get wrong: names that name nothing, missing strengths."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from safegraft.recipe.model import At
from safegraft.recipe.values import closest
from safegraft_trainers.sweep.parts import Method, Pairing, RecipeTemplate, Search, Strengths
from safegraft_trainers.sweep.rules import RULES, rule_of


def cross_problems(parts: Mapping[str, Any]) -> Iterator[tuple[At, str]]:
    """Names that name nothing, repeated names, missing strengths. parts: those of the spec's fields that are sound."""
    yield from _model_names(parts)
    yield from _repeats(parts)
    yield from _methods(parts)
    yield from _templates(parts)
    if "pairings" in parts and "methods" in parts and "recipes" in parts:
        if bool(parts["pairings"]) != bool(parts["methods"]):
            lacking, there = ("methods", "pairings") if parts["pairings"] else ("pairings", "methods")
            yield (there,), f"without `{lacking}` nothing is merged"
        elif not parts["pairings"] and not parts["recipes"]:
            yield (), "there is nothing to merge: give `pairings` and `methods`, or `recipes`"


def _model_names(parts: Mapping[str, Any]) -> Iterator[tuple[At, str]]:
    if "models" not in parts:
        return
    models: dict[str, str] = parts["models"]
    for at, name in _named_models(parts):
        if name not in models:
            yield at, f"{name!r} is not one of `models`{meant(name, list(models))}"
    known = [*models, *parts.get("baselines", ())]
    for index, one in enumerate(parts.get("constraints", ())):
        if one.model is not None and one.model not in known:
            at = ("constraints", index)
            yield at, f"{one.model!r} is not one of `models` or `baselines`{meant(one.model, known)}"


def _named_models(parts: Mapping[str, Any]) -> Iterator[tuple[At, str]]:
    pairings: Sequence[Pairing] = parts.get("pairings", ())
    for index, pairing in enumerate(pairings):
        at: At = ("pairings", index)
        yield from (((*at, "models", number), name) for number, name in enumerate(pairing.models))
        yield from (((*at, "roles", role), name) for role, name in pairing.roles.items())
        yield from (((*at, key), name) for key, name in (("base", pairing.base), ("host", pairing.host)) if name)
    methods: Sequence[Method] = parts.get("methods", ())
    for index, method in enumerate(methods):
        yield from ((("methods", index, "roles", role), name) for role, name in method.roles.items())


def _repeats(parts: Mapping[str, Any]) -> Iterator[tuple[At, str]]:
    pairings: Sequence[Pairing] = parts.get("pairings", ())
    methods: Sequence[Method] = parts.get("methods", ())
    recipes: Sequence[RecipeTemplate] = parts.get("recipes", ())
    named: list[tuple[At, str]] = [(("pairings", index), one.name) for index, one in enumerate(pairings)]
    named += [(("recipes", index), one.name) for index, one in enumerate(recipes)]
    yield from _twice(named, "the name {} is taken: give it another `name`")
    labels: list[tuple[At, str]] = [(("methods", index), one.name) for index, one in enumerate(methods)]
    yield from _twice(labels, "{} is listed twice: tell them apart by `label`")
    for index, pairing in enumerate(pairings):
        twins: list[tuple[At, str]] = [
            (("pairings", index, "models", number), name) for number, name in enumerate(pairing.models)
        ]
        yield from _twice(twins, "{} is in this pairing twice")


def _twice(named: Sequence[tuple[At, str]], message: str) -> Iterator[tuple[At, str]]:
    seen: set[str] = set()
    for at, name in named:
        if name in seen:
            yield at, message.format(repr(name))
        seen.add(name)


def _methods(parts: Mapping[str, Any]) -> Iterator[tuple[At, str]]:
    methods: Sequence[Method] = parts.get("methods", ())
    pairings: Sequence[Pairing] = parts.get("pairings", ())
    names = [one.name for one in pairings]
    for index, method in enumerate(methods):
        at: At = ("methods", index)
        rule = rule_of(method.method)
        if rule is None and method.strength is None:
            guess = closest(method.method, list(RULES))
            message = f"it is not known which parameter of {method.method} the strength is: give `strength`"
            hint = f"; did you mean {guess!r}?" if guess else ""
            yield at, f"{message}, such as parameters.t or share.weight{hint}"
        has_strength = method.strength is not None or (rule is not None and rule.parameter is not None)
        if has_strength:
            yield from _strengths(parts, method, at, f"{method.method} needs `strengths`, its own or the sweep's")
        if "pairings" in parts:
            for number, name in enumerate(method.pairings or ()):
                if name not in names:
                    yield (*at, "pairings", number), f"{name!r} is not one of `pairings`{meant(name, names)}"


def _templates(parts: Mapping[str, Any]) -> Iterator[tuple[At, str]]:
    recipes: Sequence[RecipeTemplate] = parts.get("recipes", ())
    for index, one in enumerate(recipes):
        at: At = ("recipes", index)
        template = one.template
        if "models" in parts:
            for inner, message in template.problems(parts["models"]):
                yield (*at, "recipe", *inner), message
        if template.has_strength:
            yield from _strengths(parts, one, at, "the recipe has a ${strength} and there are no `strengths`")


def _strengths(
    parts: Mapping[str, Any], part: Method | RecipeTemplate, at: At, message: str
) -> Iterator[tuple[At, str]]:
    own = part.strengths
    found: Strengths | None = own or parts.get("strengths")
    if found is None:
        if "strengths" in parts:
            yield at, message
        return
    search: Search | None = parts.get("search")
    if search is not None and search.grid is not None and found.values is None and found.steps is None:
        yield (*at, "strengths") if own else ("strengths",), "a grid needs `steps` beside `low` and `high`"


def meant(name: str, known: Sequence[str]) -> str:
    meant = closest(name, known)
    return f"; did you mean {meant!r}?" if meant else f": {', '.join(known)}" if known else ""


def dotted(at: At) -> str:
    text = "".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in at)
    return text.removeprefix(".") or "sweep"
