"""A recipe as read: what the user asked for, each part with its place in the file.

Nothing here is checked against merge methods or models: that is the planner's work.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

Scalar = bool | int | float | str
At = tuple[str | int, ...]  # the way to a part of a recipe: ("models", 0, "parameters", "weight")

_PLAIN_KEY = re.compile(r"[A-Za-z_][A-Za-z0-9_-]*")
_LONGEST_KEY = 60


@dataclass(frozen=True, slots=True)
class Condition:
    """A value for tensors whose name contains `filter` (None or "*": every tensor)."""

    value: "Scalar | tuple[Scalar, ...]"
    filter: str | None


# A scalar, a gradient over the layers, or conditions of which the first that matches counts.
Setting = Scalar | tuple[Scalar, ...] | tuple[Condition, ...]
Settings = Mapping[str, Setting]


@dataclass(frozen=True, slots=True)
class CalibrationSet:
    """Data on which models are shown at work, under a name that methods ask for ("task", "harmful").

    data: a JSONL or parquet file, or a data set's name on the Hub. fields: what is in which column, from
    {"text", "prompt", "response", "chosen", "rejected", "image"} to the column's name.
    """

    name: str
    data: str
    fields: Mapping[str, str]
    samples: int
    seed: int  # of the draw of samples
    max_length: int  # tokens
    at: At


@dataclass(frozen=True, slots=True)
class ModelEntry:
    """One item of `models:`. `at` is its place in the recipe: ("models", 0)."""

    model: str
    parameters: Settings
    tensor_map: Mapping[str, str | None]  # name prefix -> host's name prefix; None leaves those tensors out
    at: At
    role: str | None = None  # what else it is there for than to be merged, such as "aligned"
    calibration: tuple[CalibrationSet, ...] = ()  # its own, before the recipe's of the same name


@dataclass(frozen=True, slots=True)
class ModifierEntry:
    """One item of `modifiers:`, applied in order to what the method has merged."""

    name: str
    parameters: Settings
    at: At


@dataclass(frozen=True, slots=True)
class Override:
    """A method, parameters, or both for the tensors whose host name matches the glob `tensors`.

    `parameters` and `models` (model -> parameters, in the recipe's order) come before every other scope.
    """

    tensors: str
    method: str | None
    parameters: Settings
    models: Mapping[str, Settings]
    at: At


@dataclass(frozen=True, slots=True)
class SliceSource:
    """Layers [first, stop) of a model, and its settings there."""

    model: str
    first: int
    stop: int
    parameters: Settings
    at: At

    @property
    def count(self) -> int:
        return self.stop - self.first


@dataclass(frozen=True, slots=True)
class OutputSlice:
    """The next layers of the result: the sources' layers merged with each other, first with first and so on."""

    sources: tuple[SliceSource, ...]
    base_model: str | None  # before the recipe's
    parameters: Settings
    at: At

    @property
    def count(self) -> int:
        """Layers of the result."""
        return self.sources[0].count


@dataclass(frozen=True, slots=True)
class Module:
    """A part of the host model by name, such as "text_decoder": made of whole models, or of slices."""

    name: str
    models: tuple[ModelEntry, ...]
    slices: tuple[OutputSlice, ...]
    parameters: Settings
    at: At


@dataclass(frozen=True, slots=True)
class TokenEmbedding:
    """Which row a token has in models that have none of their own; with `force`, in all.

    The row of `model`: of the same token, of the token `other`, or number `row`. Or a row of zeros. Or, where
    nothing is given, what the rule for all tokens says.
    """

    token: str
    at: At
    model: str | None = None
    other: str | None = None
    row: int | None = None
    zero: bool = False
    force: bool = False

    @property
    def says(self) -> bool:
        """Whether it names a row."""
        return self.zero or self.model is not None

    def of(
        self, *, model: str | None = None, other: str | None = None, row: int | None = None, zero: bool = False
    ) -> "TokenEmbedding":
        """The same token with a row from there."""
        return replace(self, model=model, other=other, row=row, zero=zero)


@dataclass(frozen=True, slots=True)
class TokenizerChoice:
    """The result's vocabulary: "union" of all models', "base" model's, or that of the model `source`."""

    source: str
    tokens: tuple[TokenEmbedding, ...]
    pad_to_multiple_of: int | None  # rows of the vocabulary tensors
    at: At

    @property
    def model(self) -> str | None:
        """The source where it is a model."""
        return None if self.source in ("union", "base") else self.source


@dataclass(frozen=True, slots=True)
class Recipe:
    """See `safegraft.recipe.read` for how to get one, and docs/recipe.md for what each key means.

    Recipes that ask for the same are equal, however they were written and named.
    """

    models: tuple[ModelEntry, ...]
    merge_method: str
    base_model: str | None = None
    parameters: Settings = field(default_factory=dict[str, Setting])
    dtype: str | None = None  # inputs are cast to it before merging
    out_dtype: str | None = None  # the result is cast to it; default: dtype, else the host's
    host_model: str | None = None
    embeddings: Literal["merge", "host"] = "merge"
    seed: int = 0
    on_nan: Literal["error", "host"] = "error"
    overrides: tuple[Override, ...] = ()
    modifiers: tuple[ModifierEntry, ...] = ()
    calibration: tuple[CalibrationSet, ...] = ()
    slices: tuple[OutputSlice, ...] = ()  # instead of `models`, as `modules` is
    modules: tuple[Module, ...] = ()
    tokenizer: TokenizerChoice | None = None
    chat_template: str | None = None  # "auto", the name of a known one, or Jinja; default: the host's
    text: str = field(default="", compare=False)  # the YAML it was read from, or a mapping written as YAML
    name: str = field(default="recipe", compare=False)  # of the file, for messages
    lines: Mapping[At, int] = field(default_factory=dict[At, int], compare=False)

    @classmethod
    def load(cls, source: "Path | str | Mapping[str, Any]") -> "Recipe":
        """Read a recipe from a file, from YAML text or from a mapping; raises RecipeError with every problem."""
        from safegraft.recipe.read import read_recipe  # read.py builds recipes, so it imports this module

        return read_recipe(source)

    def all_slices(self) -> tuple[OutputSlice, ...]:
        """The recipe's slices, and those of its modules."""
        return (*self.slices, *(one for module in self.modules for one in module.slices))

    def all_entries(self) -> tuple[ModelEntry, ...]:
        """The recipe's models, and those of its modules; without the sources of slices."""
        return (*self.models, *(entry for module in self.modules for entry in module.models))

    def inputs(self) -> tuple[str, ...]:
        """Every model under `models`, `slices` or `modules`, once; those with a role too."""
        sources = (source.model for one in self.all_slices() for source in one.sources)
        return tuple(dict.fromkeys((*(entry.model for entry in self.all_entries()), *sources)))

    def bases(self) -> tuple[str, ...]:
        """Every base model, the recipe's and those of single slices, once."""
        named = (self.base_model, *(one.base_model for one in self.all_slices()))
        return tuple(dict.fromkeys(one for one in named if one is not None))

    def references(self) -> tuple[str, ...]:
        """Every model that the recipe names, once: those under `models`, `slices` and `modules` first."""
        others = (self.host_model, self.tokenizer.model if self.tokenizer else None)
        return tuple(dict.fromkeys((*self.inputs(), *self.bases(), *(one for one in others if one is not None))))

    def where(self, *at: str | int) -> str:
        """The place of a key, as a message shows it: "recipe.yml:7: models[0].parameters.weight"."""
        return place(self.name, self.lines, at)

    def path(self, *at: str | int) -> str:
        """The path of a key alone: "models[0].parameters.weight"."""
        return _path(at)


def place(name: str, lines: Mapping[At, int], at: At) -> str:
    """`at` as a message shows it, with the line of the nearest part that has one."""
    line = nearest_line(lines, at)
    file = f"{name}:{line}" if line else name
    return f"{file}: {_path(at)}" if at else file


def nearest_line(lines: Mapping[At, int], at: At) -> int | None:
    """The line of `at`, or of the smallest part around it that has one."""
    probe = at
    while probe and probe not in lines:
        probe = probe[:-1]
    return lines.get(probe)


def _path(at: At) -> str:
    path = ""
    for step in at:
        if isinstance(step, int):
            path += f"[{step}]"
        elif _PLAIN_KEY.fullmatch(step) and len(step) <= _LONGEST_KEY:
            path += f".{step}" if path else step
        else:  # a tensor's name, or a stranger's text: quoted, so that dots and control characters cannot mislead
            path += f"[{step[:_LONGEST_KEY]!r}]"
    return path
