"""Pairing x method x strength becomes a recipe.

An arm is a pairing and a method, or a recipe of the user's own; with a strength it is a candidate. Pure data: knows
neither checkpoints nor how a search picks.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from safegraft_trainers.sweep.parts import Method, Pairing, RecipeTemplate, Strengths
from safegraft_trainers.sweep.rules import Base, Rule, Strength, parse_strength, rule_of, tidy
from safegraft_trainers.sweep.spec import SweepSpec

RecipeDict = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Candidate:
    """A recipe to try. name: unique in a sweep, made of what follows."""

    pairing: str
    method: str
    strength: float | None
    recipe: Mapping[str, Any] = field(compare=False, repr=False)

    @property
    def name(self) -> str:
        arm = f"{self.pairing}/{self.method}" if self.method else self.pairing
        return arm if self.strength is None else f"{arm}@{self.strength:g}"


@dataclass(frozen=True, slots=True)
class Arm:
    """What can be had at several strengths. strengths: None when there is only one recipe."""

    spec: SweepSpec
    part: Pairing | RecipeTemplate
    method: Method | None
    strengths: Strengths | None

    @property
    def name(self) -> str:
        return self.part.name if self.method is None else f"{self.part.name}/{self.method.name}"

    def at(self, strength: float | None) -> Candidate:
        if isinstance(self.part, RecipeTemplate):
            filled = self.part.template.filled(strength, self.spec.models)
            return Candidate(self.part.name, "", strength, filled)
        assert self.method is not None
        recipe = recipe_of(self.spec, self.part, self.method, strength)
        return Candidate(self.part.name, self.method.name, strength, recipe)

    def grid(self) -> list[Candidate]:
        if self.strengths is None:
            return [self.at(None)]
        return [self.at(strength) for strength in self.strengths.grid()]


def arms_of(spec: SweepSpec) -> list[Arm]:
    """In the order of the file: pairings, of each its methods, then recipes."""
    pairs = [
        Arm(spec, pairing, method, (method.strengths or spec.strengths) if _how(method)[0] else None)
        for pairing in spec.pairings
        for method in spec.methods
        if method.pairings is None or pairing.name in method.pairings
    ]
    own = [
        Arm(spec, one, None, (one.strengths or spec.strengths) if one.template.has_strength else None)
        for one in spec.recipes
    ]
    return [*pairs, *own]


def recipe_of(spec: SweepSpec, pairing: Pairing, method: Method, strength: float | None) -> RecipeDict:
    """The recipe of a pairing merged by a method. strength: None for methods that have none."""
    place, rule = _how(method)
    first, *others = pairing.models
    base, inputs = _base_and_inputs(pairing, rule.base, others if rule.first != "input" else pairing.models)
    parameters = {**rule.parameters, **method.parameters}
    entries: list[RecipeDict] = []
    for index, name in enumerate(inputs):
        entry: RecipeDict = {"model": spec.models[name]}
        own = _input_setting(place, strength, index, len(inputs))
        if own:
            entry["parameters"] = own
        entries.append(entry)
    roles = {} if rule.first == "input" else {rule.first: first}
    roles |= {role: name for role, name in pairing.roles.items() if role in rule.roles} | method.roles
    entries += [{"model": spec.models[name], "role": role} for role, name in roles.items()]
    if place is not None and place.place == "parameters" and strength is not None:
        parameters[place.name] = place.value(strength)
    recipe: RecipeDict = {"merge_method": method.method, "models": entries}
    if base is not None:
        recipe["base_model"] = spec.models[base]
    if pairing.host is not None:
        recipe["host_model"] = spec.models[pairing.host]
    if parameters:
        recipe["parameters"] = parameters
    return recipe | method.recipe


def _how(method: Method) -> tuple[Strength | None, Rule]:
    """Where the strength goes and how the pairing is taken: the table's rule, before it what the sweep says."""
    known = rule_of(method.method) or Rule(None)
    parameter = method.strength or known.parameter
    rule = Rule(parameter, method.first or known.first, method.base or known.base, known.roles, known.parameters)
    return (None if parameter is None else parse_strength(parameter)), rule


def _base_and_inputs(pairing: Pairing, base: Base, models: list[str]) -> tuple[str | None, list[str]]:
    """The base model, and what is merged: a pairing's last model is no input where it is the base."""
    if base == "none":
        return None, list(models)
    if base == "last":
        # These methods start from the last model, and a base that the pairing names for others says nothing to them.
        return models[-1], list(models[:-1])
    if pairing.base is not None:
        return pairing.base, [name for name in models if name != pairing.base]
    return (models[-1], list(models[:-1])) if base == "needed" else (None, list(models))


def _input_setting(place: Strength | None, strength: float | None, index: int, inputs: int) -> RecipeDict:
    if place is None or strength is None or place.place == "parameters":
        return {}
    if place.place == "share":
        return {place.name: strength if index == 0 else tidy((1 - strength) / (inputs - 1))}
    if place.place == "each" or index == 0:
        return {place.name: place.value(strength)}
    return {}
