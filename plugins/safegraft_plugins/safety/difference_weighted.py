"""An aligned LLM merged with LVLMs that are weighted by how far they have moved (arXiv 2506.01872)."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict, Field

from safegraft import hookimpl
from safegraft.methods import Context, Granularity, Input, MergeMethod, Requirements, TensorView
from safegraft_plugins.safety.interpolation import between
from safegraft_plugins.span import weighted_sum
from safegraft_plugins.task_vectors import elements_of

if TYPE_CHECKING:
    import torch


class DifferenceWeightedParameters(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    alpha0: float = Field(0.2, ge=0, le=1, description="The aligned LLM's share.")
    temperature: float = Field(
        1.0,
        gt=0,
        allow_inf_nan=False,
        description="Divides the differences: the smaller, the more the furthest counts.",
    )


class DifferenceWeighted(MergeMethod):
    """result = alpha0 a + (1 - alpha0) sum_i alpha_i x_i, with alpha = softmax_i(mean |a - x_i| / temperature).

    x_i are the LVLMs, `aligned` a their LLM; the mean is over the tensor's elements, in float64. The paper has
    temperature 1. Since weights differ by thousandths, alpha is then close to equal shares; a temperature
    of that size makes it tell models apart. The paper sweeps alpha0; the default is low-strength. With one LVLM the
    result is the line between it and the LLM.
    """

    name = "difference_weighted"
    summary = "The aligned LLM and a mean of LVLMs, these weighted by their distance from it."
    reference = "https://arxiv.org/abs/2506.01872"
    requires = Requirements(base="forbidden", min_inputs=1, roles=("aligned",))
    granularity = Granularity.ELEMENT
    Parameters = DifferenceWeightedParameters

    def prepare(self, view: TensorView, parameters: DifferenceWeightedParameters) -> tuple[float, ...]:
        """The shares alpha_i."""
        import torch

        sums: list[float] = []
        for inputs, _ in view.blocks():
            *models, aligned = (one.tensor for one in inputs)
            sums = sums or [0.0] * len(models)
            for index, model in enumerate(models):
                sums[index] += float(model.sub_(aligned).abs_().sum(dtype=torch.float64))
        scale = elements_of(view) * parameters.temperature
        return softmax(sums, scale)

    def merge(self, inputs: Sequence[Input], base: "torch.Tensor | None", context: Context) -> "torch.Tensor":
        *models, aligned = (one.tensor for one in inputs)
        return between(weighted_sum(models, context.state), aligned, context.parameters.alpha0)


def softmax(numbers: Sequence[float], scale: float) -> tuple[float, ...]:
    """Of the numbers over `scale`, above 0: divided last, so that even the smallest scale makes no inf - inf."""
    largest = max(numbers, default=0.0)
    powers = [math.exp((one - largest) / scale) for one in numbers]
    return tuple(power / math.fsum(powers) for power in powers)


@hookimpl
def merge_methods() -> list[type[MergeMethod]]:
    return [DifferenceWeighted]
