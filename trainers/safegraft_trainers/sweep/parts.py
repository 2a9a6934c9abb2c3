"""The parts of SWEEP.yml: pairings, methods, strengths, searches, generation; each checked by itself."""

from typing import Annotated, Any, Literal, Self, cast

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from safegraft_trainers.sweep.rules import Base, parse_strength
from safegraft_trainers.sweep.template import Template

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=100)]
Number = Annotated[float, Field(allow_inf_nan=False)]


class Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Strengths(Part):
    """A list, or a range of which a grid takes `steps` and the other searches any."""

    values: Annotated[list[Number], Field(min_length=1)] | None = None
    low: Number | None = None
    high: Number | None = None
    steps: Annotated[int, Field(ge=2, le=1000)] | None = None

    @model_validator(mode="before")
    @classmethod
    def _from_list(cls, value: Any) -> Any:
        return {"values": cast(Any, value)} if isinstance(value, list) else value

    @model_validator(mode="after")
    def _is_one_of_both(self) -> Self:
        if (self.values is None) == (self.low is None or self.high is None):
            raise ValueError("give a list of numbers, or `low` and `high`")
        if self.values is not None and (self.low is not None or self.high is not None or self.steps is not None):
            raise ValueError("give a list of numbers, or `low` and `high`")
        if self.low is not None and self.high is not None and self.low >= self.high:
            raise ValueError(f"`low` is {self.low:g} and has to be less than `high`, {self.high:g}")
        return self

    def grid(self) -> tuple[float, ...]:
        """Raises ValueError for a range without steps."""
        if self.values is not None:
            return tuple(dict.fromkeys(self.values))
        assert self.low is not None
        assert self.high is not None
        if self.steps is None:
            raise ValueError("a grid needs `steps` beside `low` and `high`")
        width = (self.high - self.low) / (self.steps - 1)
        return tuple(round(self.low + step * width, 12) for step in range(self.steps))


class Pairing(Part):
    """Models that are merged. The strength is the first one's.

    base: for methods that add task vectors to a base. roles: what methods ask for beside the models: {unaligned: NAME}.
    """

    name: Name
    models: Annotated[list[str], Field(min_length=1)]
    base: str | None = None
    host: str | None = None
    roles: dict[str, str] = Field(default_factory=dict)


class Method(Part):
    """A merge method, and how a strength becomes one of its recipes.

    strength, first, base: see rules.py; they have to be given for methods that are not in its table. label: what tells
    two entries of one method apart. parameters: fixed ones, of the method or of every input. recipe: further keys of
    the recipe, such as dtype, seed, overrides, modifiers, calibration.
    """

    method: Annotated[str, Field(min_length=1)]
    label: Name | None = None
    strength: str | None = None
    first: str | None = None
    base: Base | None = None
    parameters: dict[str, Any] = Field(default_factory=dict)
    roles: dict[str, str] = Field(default_factory=dict)
    recipe: dict[str, Any] = Field(default_factory=dict)
    strengths: Strengths | None = None
    pairings: list[str] | None = Field(None, description="Only these; default: all.")

    @model_validator(mode="before")
    @classmethod
    def _from_name(cls, value: Any) -> Any:
        return {"method": value} if isinstance(value, str) else value

    @field_validator("strength")
    @classmethod
    def _is_a_place(cls, value: str | None) -> str | None:
        if value is not None:
            parse_strength(value)
        return value

    @field_validator("recipe")
    @classmethod
    def _leaves_ours(cls, value: dict[str, Any]) -> dict[str, Any]:
        ours = [key for key in ("models", "merge_method", "base_model", "host_model", "parameters") if key in value]
        if ours:
            raise ValueError(f"{', '.join(ours)} is written by the sweep; for a recipe of your own use `recipes`")
        return value

    @property
    def name(self) -> str:
        return self.label or self.method.replace(":", "-")


class RecipeTemplate(Part):
    """A recipe of one's own; see template.py for what stands in ${}."""

    name: Name
    recipe: dict[str, Any]
    strengths: Strengths | None = None

    @property
    def template(self) -> Template:
        return Template(self.recipe)


class GridSearch(Part):
    """Every pairing x method x strength."""


class RandomSearch(Part):
    trials: Annotated[int, Field(ge=1)]
    seed: Annotated[int, Field(ge=0)] = 0


class OptunaSearch(Part):
    """NSGA-II over pairing, method and strength. pruner: stop a candidate that cannot meet a constraint any more."""

    trials: Annotated[int, Field(ge=1)]
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    population: Annotated[int, Field(ge=2)] = 20
    pruner: bool = True


class Search(Part):
    grid: GridSearch | None = None
    random: RandomSearch | None = None
    optuna: OptunaSearch | None = None

    @model_validator(mode="before")
    @classmethod
    def _from_name(cls, value: Any) -> Any:
        if value == "grid":
            return {"grid": {}}
        if value == {"grid": None}:
            return {"grid": {}}
        return value

    @model_validator(mode="after")
    def _is_one(self) -> Self:
        if sum(one is not None for one in (self.grid, self.random, self.optuna)) != 1:
            raise ValueError("give one of `grid`, `random` and `optuna`")
        return self


class Generation(Part):
    """How models answer."""

    max_new_tokens: Annotated[int, Field(ge=1)] = 256
    batch_size: Annotated[int, Field(ge=1)] = 16
    temperature: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    seed: Annotated[int, Field(ge=0)] = 0
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    device: str = "cpu"
    threads: Annotated[int, Field(ge=1)] | None = None
