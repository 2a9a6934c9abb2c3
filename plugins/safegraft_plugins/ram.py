"""Reinforced Agent Merging, RAM and the tensor-local RAM+ (arXiv 2601.13572)."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict, Field

from safegraft import hookimpl
from safegraft.methods import Context, Granularity, Input, MergeMethod, Requirements, TensorView

if TYPE_CHECKING:
    import torch

EPSILON = "A difference from the base up to this counts as none."


class RamParameters(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    epsilon: float = Field(1e-5, ge=0, allow_inf_nan=False, description=EPSILON)


class Ram(MergeMethod):
    """result = b + (sum of the changed d_i) / (how many changed), element by element, with d_i = x_i - b.

    A model has changed an element if |d_i| > epsilon. What one model alone has changed is kept in full, what
    several have changed is averaged over these, and what none has changed stays the base's. In fp32 bit-equal to
    mergekit 0.1.5.
    """

    name = "ram"
    summary = "Each weight's mean change, over the models that changed it."
    reference = "https://arxiv.org/abs/2601.13572"
    requires = Requirements(base="required", min_inputs=1)
    granularity = Granularity.ELEMENT
    Parameters = RamParameters

    def merge(self, inputs: Sequence[Input], base: "torch.Tensor | None", context: Context) -> "torch.Tensor":
        assert base is not None  # the engine hands over what `requires` asks for
        deltas = differences(inputs, base)
        changed = [delta.abs() > context.parameters.epsilon for delta in deltas]
        divisor = total([mask.to(base.dtype) for mask in changed]).clamp_(min=1)
        return total([delta.mul_(mask).div_(divisor) for delta, mask in zip(deltas, changed, strict=True)]).add_(base)


class RamPlusParameters(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    r: float = Field(0.1, allow_inf_nan=False, description="How much a model's shared changes strengthen its own.")
    alpha: float = Field(0.2, ge=0, allow_inf_nan=False, description="The largest ratio of shared to own that counts.")
    epsilon: float = Field(1e-5, gt=0, allow_inf_nan=False, description=EPSILON)


class RamPlus(MergeMethod):
    """RAM, with what model i alone has changed multiplied by 1 + r min(alpha, s_i / u_i).

    s_i is the number of elements that model i and others have changed, u_i that of elements that it alone has,
    counted in one tensor (in the paper, over the whole model); a u_i of 0 counts as epsilon, as in mergekit.
    """

    name = "ramplus_tl"
    summary = "RAM with a model's own changes strengthened, by counts within each tensor."
    reference = "https://arxiv.org/abs/2601.13572"
    requires = Requirements(base="required", min_inputs=1)
    granularity = Granularity.ELEMENT
    Parameters = RamPlusParameters

    def prepare(self, view: TensorView, parameters: RamPlusParameters) -> list[float]:
        shared: list[int] = []
        own: list[int] = []
        for inputs, base in view.blocks():
            assert base is not None
            changed = [delta.abs() > parameters.epsilon for delta in differences(inputs, base)]
            counts = total([mask.int() for mask in changed])
            alone = [int((mask & (counts == 1)).sum()) for mask in changed]
            together = [int((mask & (counts > 1)).sum()) for mask in changed]
            own = [one + more for one, more in zip(own or [0] * len(alone), alone, strict=True)]
            shared = [one + more for one, more in zip(shared or [0] * len(together), together, strict=True)]
        ratios = [one / max(other, parameters.epsilon) for one, other in zip(shared, own, strict=True)]
        return [1 + parameters.r * min(ratio, parameters.alpha) for ratio in ratios]

    def merge(self, inputs: Sequence[Input], base: "torch.Tensor | None", context: Context) -> "torch.Tensor":
        import torch

        assert base is not None
        deltas = differences(inputs, base)
        changed = [delta.abs() > context.parameters.epsilon for delta in deltas]
        counts = total([mask.to(base.dtype) for mask in changed])
        alone, divisor = counts == 1, counts.clamp(min=1)
        for delta, mask, factor in zip(deltas, changed, context.state, strict=True):
            delta.mul_(mask).div_(divisor)
            torch.where(alone, delta * factor, delta, out=delta)
        return total(deltas).add_(base)


def differences(inputs: Sequence[Input], base: "torch.Tensor") -> list["torch.Tensor"]:
    """The models' differences from the base. Overwrites the inputs."""
    return [one.tensor.sub_(base) for one in inputs]


def total(tensors: Sequence["torch.Tensor"]) -> "torch.Tensor":
    first, *others = tensors
    for one in others:
        first.add_(one)
    return first


@hookimpl
def merge_methods() -> list[type[MergeMethod]]:
    return [Ram, RamPlus]
