"""Consensus task arithmetic with TALL masks (arXiv 2405.07813)."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict, Field

from safegraft import hookimpl
from safegraft.methods import Context, Granularity, Input, MergeMethod, Requirements
from safegraft_plugins.float_bits import integers, keep, negative, sign_bit_mask
from safegraft_plugins.task_vectors import task_vectors
from safegraft_plugins.weights import check_range

if TYPE_CHECKING:
    import torch


class ConsensusParameters(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)

    scale: float = Field(
        1.0, alias="lambda", description="Factor on the merged task vector: the paper's alpha.", allow_inf_nan=False
    )
    k: int = Field(2, description="How many models must need an element for it to be kept.", ge=0)


class ConsensusInputParameters(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    weight: float = Field(1.0, description="Factor on the model's task vector.", allow_inf_nan=False)
    tall_mask_lambda: float = Field(
        0.4, description="The larger, the fewer elements does the model need.", ge=0, allow_inf_nan=False
    )


class ConsensusTaskArithmetic(MergeMethod):
    """result = b + lambda m t, t = sum_i t_i, t_i = w_i (x_i - b), m = 1 where at least k of the TALL masks m_i are 1.

    m_i = 1 where |t_i| > tall_mask_lambda_i |t - t_i|, as in the authors' code. k = 2 removes elements that no
    model or one model needs ("catastrophic" and "selfish" ones), k = 1 the former, k = 0 none. The authors pick each
    task's tall_mask_lambda from 0.2, 0.3, ..., 0.6 on validation data.
    """

    name = "consensus_ta"
    summary = "Task arithmetic without the elements that fewer than k models need."
    reference = "https://arxiv.org/abs/2405.07813"
    requires = Requirements(base="required", min_inputs=2)
    granularity = Granularity.ELEMENT
    Parameters = ConsensusParameters
    InputParameters = ConsensusInputParameters

    def check(self, inputs: Sequence[ConsensusInputParameters], parameters: ConsensusParameters) -> Iterator[str]:
        yield from check_range([*(one.weight for one in inputs), parameters.scale])
        weighty = sum(one.weight != 0 for one in inputs)
        if parameters.k > weighty:
            yield (
                f"k is {parameters.k}, and {weighty} models have a nonzero weight: no element would be kept; lower k"
            )

    def merge(self, inputs: Sequence[Input], base: "torch.Tensor | None", context: Context) -> "torch.Tensor":
        import torch

        vectors = task_vectors(inputs, base)
        assert base is not None  # the engine hands over what `requires` asks for
        for vector in vectors:
            vector.delta.mul_(vector.parameters.weight)
        total = torch.zeros_like(base)
        for vector in vectors:
            total.add_(vector.delta)
        votes = torch.zeros_like(integers(total))  # minus one for each model that needs the element
        for vector in vectors:
            rest = torch.sub(total, vector.delta).abs_().mul_(vector.parameters.tall_mask_lambda)
            votes.add_(negative(rest.sub_(vector.delta.abs_())))
        keep(total, sign_bit_mask(votes.add_(context.parameters.k - 1)))
        if context.parameters.scale != 1:
            total.mul_(context.parameters.scale)
        return total.add_(base)


@hookimpl
def merge_methods() -> list[type[MergeMethod]]:
    return [ConsensusTaskArithmetic]
