"""Fisher-weighted averaging (arXiv 2111.09832)."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict, Field

from safegraft import hookimpl
from safegraft.methods import (
    Calibration,
    Context,
    Granularity,
    Input,
    MergeMethod,
    Prepared,
    Requirements,
    Statistic,
    TensorView,
)

if TYPE_CHECKING:
    import torch

FISHER = "fisher"


class FisherParameters(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    normalize_fisher: bool = Field(
        True, description="Divide each model's Fisher information by its root mean square over the model."
    )
    epsilon: float = Field(
        1e-6, ge=1e-20, le=1, description="The least Fisher information that counts, after normalisation."
    )


class FisherInputParameters(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    weight: float = Field(1.0, ge=0, le=1e18, description="The model's share, before its Fisher information.")


@dataclass(frozen=True, slots=True)
class Squares:
    """The sum of a model's squared Fisher information in some tensors, and the number of elements."""

    total: float
    elements: int


class Fisher(MergeMethod):
    """result = sum_i w_i F_i x_i / sum_i w_i F_i, element by element.

    F_i is the diagonal of model i's Fisher information on its own data (`task`), as the mean of the loss's squared
    gradients, and at least epsilon. `normalize_fisher`, on as in the authors' code, makes models comparable whose
    losses are of different size: F_i is divided by its root mean square over all tensors that the method merges
    (the authors divide by its norm: the same ratios between models), which takes a pass over the model before
    the first byte. Two differences from that code: epsilon applies after this division, and so does not depend on
    the losses' size; and to all models, where the authors' default is the first alone.

    Where no model's F_i exceeds epsilon, and for tensors without the statistic, the result is the mean
    by the weights. Equal models give the model to the bit; a model of weight zero leaves no trace.
    """

    name = "fisher"
    summary = "Mean of the models, each weight by how much the model's own data needs it."
    reference = "https://arxiv.org/abs/2111.09832"
    requires = Requirements(base="ignored", min_inputs=1, calibration=(Calibration(FISHER, Statistic.GRADIENT_SQUARE),))
    granularity = Granularity.ELEMENT
    Parameters = FisherParameters
    InputParameters = FisherInputParameters

    def check(self, inputs: Sequence[FisherInputParameters], parameters: FisherParameters) -> Iterator[str]:
        if not any(one.weight for one in inputs):
            yield "every weight is zero; give at least one model a weight"

    def prepare(self, view: TensorView, parameters: FisherParameters) -> dict[str, Squares]:
        found: dict[str, Squares] = {}
        if not parameters.normalize_fisher:
            return found
        for inputs, _ in view.blocks():
            for one in inputs:
                fisher = one.statistics[FISHER]
                if fisher is not None:
                    exact = fisher.double()
                    add(found, one.model, Squares(float(exact.dot(exact)), exact.numel()))
        return found

    def survey(self, tensors: Sequence[Prepared]) -> dict[str, float]:
        """The root mean square of each model's Fisher information."""
        sums: dict[str, Squares] = {}
        for tensor in tensors:
            for model, squares in tensor.state.items():
                add(sums, model, squares)
        return {model: math.sqrt(squares.total / squares.elements) for model, squares in sums.items()}

    def merge(self, inputs: Sequence[Input], base: "torch.Tensor | None", context: Context) -> "torch.Tensor":
        fishers = [one.statistics[FISHER] for one in inputs]
        known = all(fisher is not None for fisher in fishers)
        scales: Mapping[str, float] = context.survey if context.parameters.normalize_fisher else {}

        def importance(one: Input) -> "torch.Tensor":
            fisher = one.statistics[FISHER] if known else None
            if fisher is None:
                return one.tensor.new_full((one.tensor.numel(),), one.parameters.weight)
            scale = scales.get(one.model, 1.0) or 1.0  # a model whose Fisher information is zero stays at zero
            return (fisher / scale).clamp_(min=context.parameters.epsilon).mul_(one.parameters.weight)

        return weighted_mean([(one, importance(one)) for one in inputs if one.parameters.weight])


def add(sums: dict[str, Squares], model: str, more: Squares) -> None:
    before = sums.get(model, Squares(0.0, 0))
    sums[model] = Squares(before.total + more.total, before.elements + more.elements)


def weighted_mean(weighted: Sequence[tuple[Input, "torch.Tensor"]]) -> "torch.Tensor":
    """sum_i c_i x_i / sum_i c_i, computed as x_0 + sum_i c_i (x_i - x_0) / sum_i c_i: equal tensors give themselves."""
    (first, total), *others = weighted
    if not others:
        return first.tensor
    moved = first.tensor.new_zeros(first.tensor.shape)
    for one, coefficient in others:
        total.add_(coefficient)
        moved.add_(one.tensor.sub_(first.tensor).mul_(coefficient))
    return moved.div_(total).add_(first.tensor)


@hookimpl
def merge_methods() -> list[type[MergeMethod]]:
    return [Fisher]
