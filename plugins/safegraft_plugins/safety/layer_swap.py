"""Layers swapped between an LVLM and its LLM: perception sits early, reasoning late (arXiv 2505.05464)."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict, Field

from safegraft import hookimpl
from safegraft.methods import Context, Granularity, Input, MergeMethod, Requirements
from safegraft_plugins.safety.interpolation import between

if TYPE_CHECKING:
    import torch


class LayerSwapParameters(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    k: int = Field(5, ge=0, description="How many of the first layers stay the LVLM's.")
    t: float = Field(1.0, ge=0, le=1, description="The aligned LLM's share in the layers after them.")


class LayerSwap(MergeMethod):
    """result = f in the first k layers, (1 - t) f + t a in the others.

    f is the LVLM, `aligned` a its LLM. That the first layers hold perception and the later ones reasoning is what
    the paper finds; cutting there is our reading of it, since its own merges are weighted means over all
    layers. Tensors outside the language model's layers (embeddings, final norm, head, a vision tower) stay the LVLM's.
    At t = 1 later layers are the LLM's as they are; lower t for a gentler merge.
    """

    name = "layer_swap"
    summary = "Early layers from the LVLM, later ones from the aligned LLM."
    reference = "https://arxiv.org/abs/2505.05464"
    requires = Requirements(base="forbidden", min_inputs=1, max_inputs=1, roles=("aligned",))
    granularity = Granularity.ELEMENT
    Parameters = LayerSwapParameters

    def merge(self, inputs: Sequence[Input], base: "torch.Tensor | None", context: Context) -> "torch.Tensor":
        lvlm, aligned = (one.tensor for one in inputs)
        if context.layer is None or not context.language or context.layer < context.parameters.k:
            return lvlm
        return between(lvlm, aligned, context.parameters.t)


@hookimpl
def merge_methods() -> list[type[MergeMethod]]:
    return [LayerSwap]
