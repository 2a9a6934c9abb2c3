"""NuSLERP: spherical interpolation by weights, of models or of task vectors, whole or vector by vector."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict, Field

from safegraft import hookimpl
from safegraft.methods import Context, Granularity, Input, MergeMethod, Requirements, TensorView
from safegraft_plugins.span import Along, cosine, gram
from safegraft_plugins.weights import check_range

if TYPE_CHECKING:
    import torch

ZERO = 1e-14  # the least product of two norms: below it a vector has no direction
CANCELLED = 1e-6  # weights whose sum is smaller are taken to be equal

# The square of an angle's sine, below which there is no arc. mergekit asks for 1e-16 in float32, which is to say that
# the cosine rounds to 1; that happens below about 1e-7.
COLLINEAR = 1e-7


class NuslerpParameters(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    nuslerp_flatten: bool = Field(True, description="One angle for the whole tensor.")
    nuslerp_row_wise: bool = Field(
        False, description="Without flattening: vectors run along the first dimension, not the last."
    )


class NuslerpInputParameters(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    weight: float = Field(description="The model's share.", allow_inf_nan=False)


@dataclass(frozen=True, slots=True)
class Shares:
    """How much of each model every vector takes: float64, of a shape that lies over a cut's rows or broadcasts."""

    first: "torch.Tensor"
    second: "torch.Tensor"
    by_row: bool  # whether the first dimension is the tensor's own


class Nuslerp(MergeMethod):
    """result = sin((1-t) a)/sin(a) x + sin(t a)/sin(a) y, with t = w_y / (w_x + w_y) and a the angle between x and y.

    With a base, x and y are the models' differences from it, and the base is added again. The angle is the
    whole tensors' (`nuslerp_flatten`, the default), or that of each pair of vectors along the last dimension
    (a matrix's rows) or, with `nuslerp_row_wise`, along the first (its columns), mergekit's names notwithstanding.

    As in mergekit: weights that sum to less than 1e-6 count as equal; vectors of the same or of opposite
    direction are interpolated in a line; a zero vector counts as orthogonal to everything. Equal models
    give the model to an ulp. Angles come from one pass over the tensor in double precision, where mergekit's
    are float32: in fp32 the two agree to about 1e-6 of the tensors' size, and less well near opposite directions,
    where the arc's coefficients grow without bound.
    """

    name = "nuslerp"
    summary = "Spherical interpolation between two models, or two task vectors."
    reference = "https://github.com/arcee-ai/mergekit#nuslerp"
    requires = Requirements(base="optional", min_inputs=2, max_inputs=2)
    granularity = Granularity.ROW  # whole rows make it easy to give each vector its coefficients
    Parameters = NuslerpParameters
    InputParameters = NuslerpInputParameters

    def check(self, inputs: Sequence[NuslerpInputParameters], parameters: NuslerpParameters) -> Iterator[str]:
        yield from check_range([one.weight for one in inputs])

    def prepare(self, view: TensorView, parameters: NuslerpParameters) -> Shares:
        along = Along.ALL
        if not parameters.nuslerp_flatten and len(view.shape) > 1:
            along = Along.FIRST if parameters.nuslerp_row_wise else Along.LAST
        first, second = shares(interpolant(view), cosine(gram(view, along), 0, 1, ZERO))
        shape = {
            Along.ALL: (1,) * len(view.shape),
            Along.LAST: (*view.shape[:-1], 1),
            Along.FIRST: (1, *view.shape[1:]),
        }[along]
        return Shares(first.view(shape), second.view(shape), along is Along.LAST)

    def merge(self, inputs: Sequence[Input], base: "torch.Tensor | None", context: Context) -> "torch.Tensor":
        x, y = (one.tensor if base is None else one.tensor.sub_(base) for one in inputs)
        state: Shares = context.state
        first, second = state.first, state.second
        if state.by_row:
            row = context.position // math.prod(context.shape[1:])
            first, second = (share[row : row + len(x)] for share in (first, second))
        result = x.mul_(first.to(x)).add_(y.mul_(second.to(y)))
        return result if base is None else result.add_(base)


def interpolant(view: TensorView) -> float:
    """t, from the models' weights."""
    inputs, _ = next(iter(view.blocks()))
    x, y = (one.parameters.weight for one in inputs)
    return 0.5 if abs(x + y) < CANCELLED else y / (x + y)


def shares(t: float, cosines: "torch.Tensor") -> tuple["torch.Tensor", "torch.Tensor"]:
    """The coefficients of both vectors, for each cosine between two."""
    import torch

    straight = 1 - cosines.square() <= COLLINEAR
    angle = torch.where(straight, 0.5 * math.pi, cosines.acos())  # any angle with a sine, where it is not used
    first = torch.where(straight, 1 - t, torch.sin((1 - t) * angle) / torch.sin(angle))
    second = torch.where(straight, t, torch.sin(t * angle) / torch.sin(angle))
    return first, second


@hookimpl
def merge_methods() -> list[type[MergeMethod]]:
    return [Nuslerp]
