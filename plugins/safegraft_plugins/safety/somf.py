"""SOMF: subspace-oriented model fusion (arXiv 2405.09055)."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, Field

from safegraft import hookimpl
from safegraft.methods import Calibration, Context, Granularity, Input, MergeMethod, Requirements, Statistic
from safegraft_plugins.weights import check_range

if TYPE_CHECKING:
    import torch

MASK = "mask"
KEPT = 0.5  # an element is kept where the mask is likelier than not to keep it


class SomfInputParameters(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)

    scale: float = Field(0.3, alias="lambda", allow_inf_nan=False, description="Factor on the model's masked update.")


class Somf(MergeMethod):
    """result = a + sum_i lambda_i m_i (f_i - a): of each update, the part that its mask keeps.

    f_i are fine-tuned models, `aligned` a what they were fine-tuned from. m_i is 1 where a relaxed Bernoulli mask,
    learned by DPO on the recipe's calibration set `preferences` (prompts with a safe and an unsafe answer), keeps the
    element with a probability above one half. Of a tensor without the statistic nothing of the update is kept: that
    may be a vocabulary, where f_i has other tokens than a.

    In the authors' code one mask is learned for all f_i together, is drawn once more at the end, and what it keeps is
    divided by its mean. Here each f_i has its own, the likelier value counts, and nothing is rescaled.
    """

    name = "somf"
    summary = "The aligned model plus those parts of the updates that masks learned from preferences keep."
    reference = "https://arxiv.org/abs/2405.09055"
    requires = Requirements(
        base="forbidden",
        min_inputs=1,
        roles=("aligned",),
        calibration=(Calibration(MASK, Statistic.PREFERENCE_MASK, data=("preferences",)),),
    )
    granularity = Granularity.ELEMENT
    InputParameters = SomfInputParameters

    def check(self, inputs: Sequence[SomfInputParameters], parameters: Any) -> Iterator[str]:
        yield from check_range([one.scale for one in inputs])

    def merge(self, inputs: Sequence[Input], base: "torch.Tensor | None", context: Context) -> "torch.Tensor":
        *models, aligned = inputs
        merged = aligned.tensor.clone()
        for one in models:
            mask = one.statistics[MASK]
            if mask is not None:
                update = one.tensor.sub_(aligned.tensor).masked_fill_(mask <= KEPT, 0)
                merged.add_(update.mul_(one.parameters.scale))
        return merged


@hookimpl
def merge_methods() -> list[type[MergeMethod]]:
    return [Somf]
