"""SCE: select, calculate, erase (FuseChat, arXiv 2408.07990)."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict, Field

from safegraft import hookimpl
from safegraft.methods import Context, Granularity, Input, MergeMethod, Requirements, TensorView
from safegraft_plugins.float_bits import keep, magnitude
from safegraft_plugins.magnitude import EVERYTHING, NOTHING, Largest, belongs, largest

if TYPE_CHECKING:
    import torch

LEAST = 1e-6  # energies that sum to less weigh the same; weights that sum to less count as this: as in mergekit


class SceParameters(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    select_topk: float = Field(
        1.0, ge=0, le=1, description="The part of the elements that is merged: those in which models differ most."
    )
    int8_mask: bool = Field(
        False, description="No effect: mergekit's recipes may have it.", json_schema_extra={"no_effect": True}
    )


@dataclass(frozen=True, slots=True)
class Selection:
    """The elements by their variance, and the models' weights."""

    chosen: Largest
    weights: list[float]


class Sce(MergeMethod):
    """result = b + sum_i w_i d_i / sum_i w_i, at each element over the models that agree with its sign.

    Select: of the differences d_i = x_i - b only those int(select_topk n) elements are kept, n being the number
    of elements on which the models differ, whose variance over the models is largest; of equal variances
    those with the lowest index, where mergekit picks any. Calculate: w_i is the mean square of what is kept of d_i,
    over the sum of all models'. Erase: the elected sign is that of sum_i d_i, plus where that is zero; a model takes
    part in an element if d_i has the elected sign there.

    As in mergekit, and not in the paper: where the mean squares sum to less than 1e-6, which is common for models
    that were tuned lightly, all models weigh the same. With one model, or equal ones, no element has a variance: a
    select_topk below 1 then gives the base. Variances are float32's, mean squares double precision's: in fp32 the two
    agree to about 1e-6 of the differences' size, apart from elements on the border of the selection.
    """

    name = "sce"
    summary = "The elements in which models differ most, weighted by each model's change, without minority signs."
    reference = "https://arxiv.org/abs/2408.07990"
    requires = Requirements(base="required", min_inputs=1)
    granularity = Granularity.ELEMENT
    Parameters = SceParameters

    def prepare(self, view: TensorView, parameters: SceParameters) -> Selection:
        chosen = choose(view, parameters.select_topk)
        squares: list[float] = []
        position = 0
        for deltas in differences(view):
            select(deltas, chosen, position)
            exact = [delta.double() for delta in deltas]
            more = [float(one.dot(one)) for one in exact]
            squares = [one + other for one, other in zip(squares or [0.0] * len(more), more, strict=True)]
            position += len(deltas[0])
        return Selection(chosen, shares([square / math.prod(view.shape) for square in squares]))

    def merge(self, inputs: Sequence[Input], base: "torch.Tensor | None", context: Context) -> "torch.Tensor":
        import torch

        assert base is not None  # the engine hands over what `requires` asks for
        state: Selection = context.state
        deltas = [one.tensor.sub_(base) for one in inputs]
        select(deltas, state.chosen, context.position)
        total = torch.zeros_like(base)
        for delta in deltas:
            total.add_(delta)
        positive = total >= 0
        moved, divisor = total.zero_(), torch.zeros_like(base)
        for delta, weight in zip(deltas, state.weights, strict=True):
            share = torch.where(positive, delta > 0, delta < 0).to(base.dtype).mul_(weight)
            moved.add_(delta.mul_(share))
            divisor.add_(share)
        return moved.div_(divisor.clamp_(min=LEAST)).add_(base)


def differences(view: TensorView) -> Iterator[list["torch.Tensor"]]:
    for inputs, base in view.blocks():
        assert base is not None
        yield [one.tensor.sub_(base) for one in inputs]


def choose(view: TensorView, part: float) -> Largest:
    """The elements of largest variance."""
    import torch

    if part == 0:
        return NOTHING
    if part == 1:
        return EVERYTHING
    differing = sum(int(variance(deltas).count_nonzero()) for deltas in differences(view))
    count = int(torch.tensor(differing) * part)  # a product in float32, as in mergekit
    found = largest(lambda: ([variance(deltas)] for deltas in differences(view)), {0: [count]}, math.prod(view.shape))
    return found[0][0]


def select(deltas: Sequence["torch.Tensor"], chosen: Largest, position: int) -> None:
    """Set all other elements to 0."""
    if chosen == EVERYTHING:
        return
    mask = belongs(magnitude(variance(deltas)), chosen, position)
    for delta in deltas:
        keep(delta, mask)


def variance(deltas: Sequence["torch.Tensor"]) -> "torch.Tensor":
    """At each element, by Welford's recurrence: exactly 0 where all are equal."""
    mean, *others = deltas
    mean = mean.clone()
    squares = mean.new_zeros(mean.shape)
    for count, delta in enumerate(others, 2):
        before = delta - mean
        mean.add_(before / count)
        squares.add_(before.mul_(delta - mean))
    return squares.div_(len(deltas))


def shares(mean_squares: Sequence[float]) -> list[float]:
    total = sum(mean_squares)
    if total < LEAST:
        return [1 / len(mean_squares)] * len(mean_squares)
    return [one / total for one in mean_squares]


@hookimpl
def merge_methods() -> list[type[MergeMethod]]:
    return [Sce]
