"""Merging a model before and after fine-tuning (arXiv 2412.19512)."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict, Field

from safegraft import hookimpl
from safegraft.methods import Context, Granularity, Input, MergeMethod, Requirements
from safegraft_plugins.safety.interpolation import between

if TYPE_CHECKING:
    import torch


class PrePostParameters(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)

    share: float = Field(
        0.8, alias="lambda", ge=0, le=1, description="0 gives the aligned model, 1 the fine-tuned one."
    )


class PrePost(MergeMethod):
    """result = (1 - lambda) a + lambda f: the linear merge of the paper.

    f is the fine-tuned model, `aligned` a the model before fine-tuning. The paper tries lambda from 0 to 1 and takes
    what validates best; the default is low-strength.
    """

    name = "pre_post"
    summary = "The line between an aligned model and what fine-tuning has made of it."
    reference = "https://arxiv.org/abs/2412.19512"
    requires = Requirements(base="forbidden", min_inputs=1, max_inputs=1, roles=("aligned",))
    granularity = Granularity.ELEMENT
    Parameters = PrePostParameters

    def merge(self, inputs: Sequence[Input], base: "torch.Tensor | None", context: Context) -> "torch.Tensor":
        fine_tuned, aligned = (one.tensor for one in inputs)
        return between(aligned, fine_tuned, context.parameters.share)


@hookimpl
def merge_methods() -> list[type[MergeMethod]]:
    return [PrePost]
