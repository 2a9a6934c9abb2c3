"""A merge method: tensors in, one tensor out. This module is a plugin's whole contract, version 1.

A method sees neither files nor names of architectures: the engine has aligned the inputs, cast
them and checked them for NaN and inf before `merge` is called.
"""

import enum
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict

if TYPE_CHECKING:
    import torch  # plugins are imported to list and plan; torch is needed only to merge

    from safegraft.methods.compiled import Compiled


class NoParameters(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Granularity(enum.StrEnum):
    """How finely the engine may cut a tensor before it calls `merge`."""

    ELEMENT = "element"  # any range of the flattened tensor; arguments are 1-D
    ROW = "row"  # any range of rows (the first dimension); arguments keep their rank
    TENSOR = "tensor"  # never; arguments are whole tensors


class Statistic(enum.StrEnum):
    """What can be learnt of a model at work on data. Samples weigh the same, whatever their length."""

    GRADIENT_SQUARE = "gradient_square"  # mean over samples of (dL/dw)^2; the tensor's shape
    SALIENCY = "saliency"  # mean over samples of |w dL/dw|; the tensor's shape
    PREFERENCE_MASK = "preference_mask"  # probability that an element of the task vector is kept; the tensor's shape
    INPUT_NORM = "input_norm"  # of a linear layer [out, in]: square root of the tokens' summed x^2; [in]
    INPUT_GRAM = "input_gram"  # of a linear layer: mean over tokens of x x^T; [in, in]
    LAYER_COSINES = "layer_cosines"  # [layers, 2]: see safegraft.calibration.cosines

    @property
    def elementwise(self) -> bool:
        """Of the tensor's shape: cut like the tensor. The others come whole."""
        return self in (Statistic.GRADIENT_SQUARE, Statistic.SALIENCY, Statistic.PREFERENCE_MASK)


@dataclass(frozen=True, slots=True)
class Calibration:
    """A statistic of a model at work on data: `merge` finds it in `Input.statistics[name]`.

    model: whose: "input" for each input's own, "base", or a role.
    data: the sets it is gathered on, by their names under the recipe's `calibration`. A model's own
    `calibration` comes before the recipe's; the base and models with a role are shown the input's sets.
    unless: shared parameters that say what the statistic would: where all of them are given (and not None) it is not
    gathered, and None in `statistics`.
    """

    name: str
    statistic: Statistic
    model: str = "input"
    data: tuple[str, ...] = ("task",)
    unless: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Requirements:
    """What a method needs. Inputs are counted without the base, unless the base is ignored.

    base: "required" and "optional" hand the base to `merge` on its own; "ignored" treats a base
    model like any other input (as mergekit does); "forbidden" is an error when a recipe names one.
    roles: further models that a recipe must name by `role:`, such as "aligned". They come after the
    inputs, in this order, and are not counted among them.
    calibration: what must be known of models at work; the recipe names the data.
    """

    base: Literal["required", "optional", "ignored", "forbidden"] = "ignored"
    min_inputs: int = 1
    max_inputs: int | None = None
    roles: tuple[str, ...] = ()
    calibration: tuple[Calibration, ...] = ()


@dataclass(frozen=True, slots=True)
class Input:
    """One model's contribution: its cut of the tensor and its own parameters."""

    model: str
    tensor: "torch.Tensor"
    parameters: Any  # an instance of the method's InputParameters; None where the model has a role
    # By the names in `requires.calibration`, not to be changed; None where it is not defined for this tensor.
    statistics: Mapping[str, "torch.Tensor | None"] = field(default_factory=dict[str, "torch.Tensor | None"])


@dataclass(frozen=True, slots=True)
class Context:
    """Where the cut lies, and everything else the result may depend on."""

    tensor: str  # the host model's name for the tensor
    shape: tuple[int, ...]  # of the whole tensor; of a vocabulary tensor, the rows that all models share
    position: int  # index of the cut's first element in the flattened whole tensor
    seed: int  # this tensor's own: a function of the recipe's seed and the tensor's name
    parameters: Any  # an instance of the method's Parameters
    state: Any  # what `prepare` returned
    survey: Any = None  # what `survey` returned
    layer: int | None = None  # the tensor's place among the layers of its stack, from 0; None outside stacks
    layers: int = 0  # in that stack
    vocabulary: bool = False  # whether a row stands for a token
    language: bool = True  # whether it is of the language model: its layers, vocabulary, norms; not of a vision tower
    stored: str = "float32"  # the widest dtype among the contributions (the recipe's `dtype` where set) ...
    out: str = "float32"  # ... and the dtype the result is rounded to: torch's names


@dataclass(frozen=True, slots=True)
class Prepared:
    """What `prepare` found in one tensor."""

    tensor: str
    shape: tuple[int, ...]
    layer: int | None
    layers: int
    parameters: Any
    state: Any


class TensorView(ABC):
    """A whole tensor of every input, for `prepare` to walk through in bounded memory."""

    shape: tuple[int, ...]
    context: Context  # of the whole tensor: position 0, no state

    @abstractmethod
    def blocks(self) -> Iterator[tuple[Sequence[Input], "torch.Tensor | None"]]:
        """Yield flat (inputs, base) cuts in order, from the first again at every call. The cuts are always
        the same ones, whatever the engine's settings, so that sums over them come out bit-equal. They
        are scratch memory: the next step overwrites them."""


class MergeMethod(ABC):
    """Subclass it, set the class variables, write `merge`. Instances hold no state.

    Tensors arrive as float32 (float64 where an input is) on one device. They are the engine's
    scratch memory: `merge` may overwrite and return any of them, and must not keep them. The
    result has their shape and is a pure function of the arguments: no global random state, no
    time, no order of calls. Random methods draw from (context.seed, element position) alone.
    """

    name: ClassVar[str]
    summary: ClassVar[str]  # one line for `safegraft methods`
    reference: ClassVar[str]  # URL of the paper or description
    requires: ClassVar[Requirements]
    granularity: ClassVar[Granularity]
    Parameters: ClassVar[type[BaseModel]] = NoParameters  # shared by all inputs
    InputParameters: ClassVar[type[BaseModel]] = NoParameters  # one set an input
    packages: ClassVar[tuple[str, ...]] = ()  # whose version may change a bit of the result, beside torch and its own

    def check(self, inputs: Sequence[Any], parameters: Any) -> Iterator[str]:
        """Yield what is wrong with parameters that are each valid alone (weights that sum to zero).

        `inputs` are InputParameters in recipe order, without the base's. Runs when planning.
        """
        yield from ()

    def prepare(self, view: TensorView, parameters: Any) -> Any:
        """Gather statistics over the whole tensor before its first `merge`; None when not needed."""
        return None

    def survey(self, tensors: Sequence[Prepared]) -> Any:
        """Decide over all tensors that this method merges, in the result's order, from what `prepare` found
        in each; the answer is `Context.survey`. Overriding it costs a pass over the whole model before
        the first byte. None when not needed."""
        return None

    def scratch(self, shape: tuple[int, ...], inputs: int, itemsize: int) -> int:
        """How many bytes `merge` takes beside its arguments and its result, at most, for a cut of this shape.

        For a plan's estimate of memory. `inputs`: with those that have a role. `itemsize`: of an element, in bytes.
        """
        return 0

    def compiled(self) -> "Compiled | None":
        """A faster way to the same bits, where this machine has one: see safegraft.methods.compiled."""
        return None

    @abstractmethod
    def merge(self, inputs: Sequence[Input], base: "torch.Tensor | None", context: Context) -> "torch.Tensor":
        """Merge one cut."""


class Modifier(ABC):
    """Changes what a method has merged, element by element: `modifiers:` in a recipe, composed with any method.

    A modifier is written like a method; it needs the recipe's `base_model`.
    """

    name: ClassVar[str]
    summary: ClassVar[str]
    reference: ClassVar[str]
    Parameters: ClassVar[type[BaseModel]] = NoParameters

    @abstractmethod
    def modify(self, merged: "torch.Tensor", base: "torch.Tensor", context: Context) -> "torch.Tensor":
        """Change one flat cut of the merged tensor, before it is rounded. `context.parameters` are the modifier's."""
