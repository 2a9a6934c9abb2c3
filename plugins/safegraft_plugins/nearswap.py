"""NearSwap: towards a second model where it is near the base."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict, Field

from safegraft import hookimpl
from safegraft.methods import Context, Granularity, Input, MergeMethod, Requirements

if TYPE_CHECKING:
    import torch

NEAREST = 1e-6  # stands for a smaller distance, as in mergekit


class NearswapParameters(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    t: float = Field(
        ge=0, allow_inf_nan=False, description="Weights that differ by less are taken from the other model."
    )


class Nearswap(MergeMethod):
    """result = s x + (1 - s) b, element by element, with s = min(1, t / max(|b - x|, 1e-6)).

    b is the base, x the other model: within a distance of t the result is x; farther away it leaves the base by t,
    towards x. With t = 0 it is the base. Computed in mergekit's order: in fp32 the two are equal to the bit.
    """

    name = "nearswap"
    summary = "The other model's weights where they are near the base's; elsewhere a step towards them."
    reference = "https://huggingface.co/alchemonaut/QuartetAnemoi-70B-t0.0001"
    requires = Requirements(base="required", min_inputs=1, max_inputs=1)
    granularity = Granularity.ELEMENT
    Parameters = NearswapParameters

    def merge(self, inputs: Sequence[Input], base: "torch.Tensor | None", context: Context) -> "torch.Tensor":
        assert base is not None  # the engine hands over what `requires` asks for
        (other,) = inputs
        share = (base - other.tensor).abs_().clamp_(min=NEAREST).reciprocal_().mul_(context.parameters.t)
        share.clamp_(max=1)
        return other.tensor.mul_(share).add_(base.mul_(1 - share))


@hookimpl
def merge_methods() -> list[type[MergeMethod]]:
    return [Nearswap]
