"""LiNeS: updates scaled by how deep their layer lies (arXiv 2410.17146). A modifier of whatever method has merged."""

from collections.abc import Iterable
from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict, Field

from safegraft import hookimpl
from safegraft.methods import Context, Modifier

if TYPE_CHECKING:
    import torch


class LinesParameters(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    alpha: float = Field(description="Factor on the first layer's update, and outside the layers.", allow_inf_nan=False)
    beta: float = Field(description="What the last layer's factor is larger by.", allow_inf_nan=False)


class Lines(Modifier):
    """result = b + (alpha + beta l / (L - 1)) (m - b), with m what was merged, b the base, l = 0 .. L - 1 the layer.

    The factor is the paper's lambda(l), whose layers count from 1. Tensors outside the layers, such as
    embeddings, the final norm and the head, get alpha, as in the authors' code. So does the layer of a stack
    that has no other. The layers are those of the tensor's own stack: in an LVLM the vision tower counts its own.

    The paper edits one fine-tuned model with beta = 1 - alpha. For a merge of N models it takes alpha as 1/N times
    the norm of the summed updates over the norm of the merged update, and searches beta. alpha = 1 with beta = 0
    changes nothing.
    """

    name = "lines"
    summary = "Scales the merged update of each layer, from alpha in the first to alpha + beta in the last."
    reference = "https://arxiv.org/abs/2410.17146"
    Parameters = LinesParameters

    def modify(self, merged: "torch.Tensor", base: "torch.Tensor", context: Context) -> "torch.Tensor":
        factor = factor_at(context.layer, context.layers, context.parameters)
        return merged if factor == 1 else merged.sub_(base).mul_(factor).add_(base)


def factor_at(layer: int | None, layers: int, parameters: LinesParameters) -> float:
    if layer is None or layers < 2:
        return parameters.alpha
    return parameters.alpha + parameters.beta * (layer / (layers - 1))


@hookimpl
def modifiers() -> Iterable[type[Modifier]]:
    return [Lines]
