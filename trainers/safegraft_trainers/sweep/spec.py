"""SWEEP.yml as objects: what is merged, at which strengths, and what decides which merge is best.

Every key, type, range and name is checked here, all problems at once, each with its line. Whether a method, a model or
a suite exists shows when it is used.
"""

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Self, cast

from pydantic import BeforeValidator, Field, PlainSerializer, PlainValidator, ValidationError, model_validator

from safegraft.errors import RecipeError
from safegraft.recipe.document import Document, from_mapping, from_text
from safegraft.recipe.model import At
from safegraft_trainers.sweep.consistency import cross_problems, dotted, meant
from safegraft_trainers.sweep.constraint import Constraint, parse_constraint
from safegraft_trainers.sweep.objective import Objective
from safegraft_trainers.sweep.parts import (
    Generation,
    GridSearch,
    Method,
    Name,
    Pairing,
    Part,
    RecipeTemplate,
    Search,
    Strengths,
)


def _constraint(value: object) -> Constraint:
    if isinstance(value, Constraint):
        return value
    if not isinstance(value, str):
        raise ValueError("a constraint is text, such as `helpfulness >= 97% of lvlm`")
    return parse_constraint(value)


WrittenConstraint = Annotated[Constraint, PlainValidator(_constraint), PlainSerializer(lambda one: one.text)]


def _one_or_more(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


class Sections(Part):
    """The keys of a sweep, each checked by itself."""

    models: Annotated[dict[Name, Annotated[str, Field(min_length=1)]], Field(min_length=1)]
    pairings: list[Pairing] = Field(default_factory=list[Pairing])
    methods: list[Method] = Field(default_factory=list[Method])
    strengths: Strengths | None = None
    recipes: list[RecipeTemplate] = Field(default_factory=list[RecipeTemplate])
    suites: Annotated[list[str], BeforeValidator(_one_or_more), Field(min_length=1)]
    judges: Annotated[list[str], BeforeValidator(_one_or_more), Field(min_length=1)] = Field(
        default_factory=lambda: ["patterns"]
    )
    generation: Generation = Generation()
    objectives: Annotated[list[Objective], Field(min_length=1)]
    constraints: list[WrittenConstraint] = Field(default_factory=list[Constraint])
    baselines: list[str] = Field(default_factory=list[str])
    search: Search = Search(grid=GridSearch())
    limit: Annotated[int, Field(ge=1)] | None = None
    seed: Annotated[int, Field(ge=0)] = 0


class SweepSpec(Sections):
    """A whole sweep.

    models: name -> reference, as recipes know them. pairings: "all" is every two of `models`. baselines: names of
    `models`, or references. suites: `FORMAT=PATH`, see `safegraft evaluate`. limit: examples a suite. seed: of which
    examples those are, and of the bootstrap.
    """

    @model_validator(mode="before")
    @classmethod
    def _expand_pairings(cls, value: Any) -> Any:
        return _expanded(cast(dict[str, Any], value)) if isinstance(value, dict) else value

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        problems = [f"{dotted(at)}: {message}" for at, message in cross_problems(dict(self))]
        if problems:
            raise ValueError("; ".join(problems))
        return self

    @classmethod
    def load(cls, source: Path | str | Mapping[str, Any]) -> "SweepSpec":
        """Read a file's path, or a mapping. Raises RecipeError with every problem found."""
        if isinstance(source, Mapping):
            return _read(from_mapping(source, "sweep"))
        path = Path(source)
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise RecipeError(f"the sweep {str(path)!r} cannot be read: {error}") from error
        return _read(from_text(text, path.name))

    def reference(self, name: str) -> str:
        """What a baseline, or a model in a constraint, is: a name of `models`, or a reference itself."""
        return self.models.get(name, name)

    @property
    def measured(self) -> tuple[str, ...]:
        """The baselines, and models that constraints name: these have to be measured as well."""
        named = (one.model for one in self.constraints if one.model is not None)
        return tuple(dict.fromkeys([*self.baselines, *named]))


def _expanded(whole: dict[str, Any]) -> dict[str, Any]:
    """`pairings: all` written out: every two models, in their order."""
    if whole.get("pairings") != "all":
        return whole
    models = whole.get("models")
    names = list(map(str, cast(dict[Any, Any], models))) if isinstance(models, dict) else []
    pairs = [(one, other) for index, one in enumerate(names) for other in names[index + 1 :]]
    return whole | {"pairings": [{"name": f"{one}-x-{other}"[:100], "models": [one, other]} for one, other in pairs]}


# -- a file --------------------------------------------------------------------------------------


def _read(document: Document) -> SweepSpec:
    findings = document.findings
    data = document.data
    if not isinstance(data, dict):
        findings.add((), "a sweep is a mapping with `models`, `suites` and `objectives`; docs/sweep.md has an example")
        findings.raise_any()
    whole = _expanded(cast(dict[str, Any], data))
    sound = {name: value for name, value in _defaults().items() if name not in whole}
    for name in SweepSpec.model_fields:
        if name in whole:
            try:
                sound[name] = _field(name, whole[name])
            except ValidationError as error:
                _report(document, whole, error)
        elif name not in sound:
            findings.add((), f"`{name}` is missing")
    for name in whole:
        if name not in SweepSpec.model_fields:
            findings.add((name,), f"unknown key{meant(name, list(SweepSpec.model_fields))}")
    for at, message in dict.fromkeys(cross_problems(sound)):
        findings.add(at, message)
    findings.raise_any()
    return SweepSpec.model_validate(whole)


@functools.cache
def _defaults() -> dict[str, Any]:
    fields = SweepSpec.model_fields.items()
    return {name: one.get_default(call_default_factory=True) for name, one in fields if not one.is_required()}


def _field(name: str, value: Any) -> Any:
    """One field on its own, so that a fault in another does not hide its problems."""
    checked = Sections.__pydantic_validator__.validate_assignment(Sections.model_construct(), name, value)
    return vars(checked)[name]


def _report(document: Document, data: Any, error: ValidationError) -> None:
    for one in error.errors(include_url=False):
        at = _place_of(one["loc"], data)
        message = one["msg"].removeprefix("Value error, ")
        if one["type"] == "extra_forbidden":
            message = "unknown key"
        elif one["type"] == "missing":
            message = f"`{one['loc'][-1]}` is missing"
        document.findings.add(at, message[:1].lower() + message[1:] if message.startswith("Input") else message)


def _place_of(loc: tuple[int | str, ...], data: Any) -> At:
    """The part of pydantic's place that is there in the file: it also names the kinds that it has tried."""
    at: At = ()
    for key in loc:
        here = data
        if isinstance(here, dict) and key in here:
            data = cast(dict[Any, Any], here)[key]
        elif isinstance(here, list) and isinstance(key, int) and key < len(cast(list[Any], here)):
            data = cast(list[Any], here)[key]
        else:
            continue
        at = (*at, key)
    return at
