"""Antidote (arXiv 2408.09600)."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict, Field

from safegraft import hookimpl
from safegraft.methods import Calibration, Context, Granularity, Input, MergeMethod, Requirements, Statistic

if TYPE_CHECKING:
    import torch

NORM = "input_norm"
ROUNDING = 1e-9  # 0.1 of 10 elements is one, not the two that ceil(0.1 * 10 + rounding) might give


class AntidoteParameters(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    fraction: float = Field(0.1, ge=0, le=1, description="Share of each row's weights that is set to zero.")


class Antidote(MergeMethod):
    """result = f, with zero where the score |f_ij| |x_j| is among the largest of its row.

    f is the fine-tuned model, x_j the j-th input of the linear layer on harmful data: the recipe's calibration set
    `harmful`, prompts with harmful answers. |x_j| is the norm over all tokens: Wanda's score. Of a row's n weights the
    ceil(fraction n) with the largest scores are zeroed, of equal ones those with the lowest index (of equal ones the
    authors' code takes the highest); a weight whose score is zero stays.

    As in the authors' code, the layers' matrices alone are pruned: norms, biases, embeddings, an output head and a
    vision tower stay the fine-tuned model's.
    """

    name = "antidote"
    summary = "Zeroes the weights that matter most to harmful answers."
    reference = "https://arxiv.org/abs/2408.09600"
    requires = Requirements(
        base="forbidden",
        min_inputs=1,
        max_inputs=1,
        calibration=(Calibration(NORM, Statistic.INPUT_NORM, data=("harmful",)),),
    )
    granularity = Granularity.ROW
    Parameters = AntidoteParameters

    def merge(self, inputs: Sequence[Input], base: "torch.Tensor | None", context: Context) -> "torch.Tensor":
        (one,) = inputs
        norms = one.statistics[NORM]
        if norms is None or context.vocabulary or not context.language:
            return one.tensor
        scores = one.tensor.abs().mul_(norms)
        count = math.ceil(context.parameters.fraction * scores.shape[-1] - ROUNDING)
        return one.tensor.masked_fill_(largest_of_rows(scores, count), 0) if count > 0 else one.tensor


def largest_of_rows(scores: "torch.Tensor", count: int) -> "torch.Tensor":
    """Where a row's `count` largest positive scores lie, of equal ones the first: bool, of the scores' shape."""
    import torch

    least = scores.topk(count, sorted=True).values[..., -1:]
    above = scores > least
    equal = scores == least
    wanted = count - above.sum(-1, keepdim=True)
    first = equal.cumsum(-1, dtype=torch.int32) <= wanted
    return (above | (equal & first)) & (scores > 0)


@hookimpl
def merge_methods() -> list[type[MergeMethod]]:
    return [Antidote]
