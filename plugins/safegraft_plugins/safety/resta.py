"""RESTA: restoring safety through task arithmetic (arXiv 2402.11746)."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, Field

from safegraft import hookimpl
from safegraft.methods import Context, Granularity, Input, MergeMethod, Requirements
from safegraft_plugins.safety.dropping import drop
from safegraft_plugins.weights import check_range

if TYPE_CHECKING:
    import torch


class RestaParameters(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    gamma: float = Field(0.5, ge=0, allow_inf_nan=False, description="Factor on the safety vector.")
    drop_rate: float = Field(
        0.0, ge=0, lt=1, description="Share of the fine-tuned model's update that is dropped; the rest is scaled up."
    )


class Resta(MergeMethod):
    """result = f + gamma (a - u): a - u is the safety vector.

    f is the fine-tuned model; `aligned` a is what it was fine-tuned from; `unaligned` u is a after a short
    fine-tuning on harmful data, which the user makes. With `drop_rate` p it is the variant with DARE:
    result = a + drop(f - a) + gamma (a - u), where drop zeroes each element with probability p, drawn from the
    seed and the element's position, and divides the others by 1 - p. The paper fine-tunes f from a, so that f's
    update is its difference from a.
    """

    name = "resta"
    summary = "Adds what an aligned model has and an unaligned copy of it lacks."
    reference = "https://arxiv.org/abs/2402.11746"
    requires = Requirements(base="forbidden", min_inputs=1, max_inputs=1, roles=("aligned", "unaligned"))
    granularity = Granularity.ELEMENT
    Parameters = RestaParameters

    def check(self, inputs: Sequence[Any], parameters: RestaParameters) -> Iterator[str]:
        yield from check_range([parameters.gamma])

    def merge(self, inputs: Sequence[Input], base: "torch.Tensor | None", context: Context) -> "torch.Tensor":
        fine_tuned, aligned, unaligned = (one.tensor for one in inputs)
        gamma, drop_rate = context.parameters.gamma, context.parameters.drop_rate
        if drop_rate:
            update = drop(fine_tuned.sub_(aligned), drop_rate, context.seed, 0, context.position)
            fine_tuned = update.add_(aligned)
        return fine_tuned.add_(aligned.sub_(unaligned).mul_(gamma))


@hookimpl
def merge_methods() -> list[type[MergeMethod]]:
    return [Resta]
