"""One model's tensors as they are, optionally scaled."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict, Field

from safegraft import hookimpl
from safegraft.methods import Context, Granularity, Input, MergeMethod, Requirements

if TYPE_CHECKING:
    import torch


class PassthroughInputParameters(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    scale: float | None = Field(
        None, description="Factor on the weights; none leaves them as they are.", allow_inf_nan=False
    )


class Passthrough(MergeMethod):
    """result = x, or s x. With an LVLM as host and an LLM as the model: the LLM's weights put into the LVLM."""

    name = "passthrough"
    summary = "One model's tensors, optionally scaled."
    reference = "https://github.com/arcee-ai/mergekit#passthrough"
    requires = Requirements(base="ignored", min_inputs=1, max_inputs=1)
    granularity = Granularity.ELEMENT
    InputParameters = PassthroughInputParameters

    def merge(self, inputs: Sequence[Input], base: "torch.Tensor | None", context: Context) -> "torch.Tensor":
        (one,) = inputs
        return one.tensor if one.parameters.scale is None else one.tensor.mul_(one.parameters.scale)


@hookimpl
def merge_methods() -> list[type[MergeMethod]]:
    return [Passthrough]
