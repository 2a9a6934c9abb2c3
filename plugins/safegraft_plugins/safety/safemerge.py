"""SafeMERGE (arXiv 2503.17239)."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from pydantic import BaseModel, ConfigDict, Field

from safegraft import hookimpl
from safegraft.methods import Context, Granularity, Input, MergeMethod, Requirements
from safegraft_plugins.safety.alignment import matrices, project, scratch
from safegraft_plugins.safety.dropping import drop
from safegraft_plugins.safety.interpolation import between

if TYPE_CHECKING:
    import torch


class SafeMergeParameters(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    threshold: float = Field(0.35, ge=-1, le=1, description="Matrices whose cosine is below it are merged.")
    safe_weight: float = Field(0.2, ge=0, le=1, description="The safety-tuned model's share in them.")
    merge_type: Literal["linear", "dare_linear"] = Field("linear", description="dare_linear drops and rescales first.")
    density: float = Field(
        0.5, gt=0, le=1, description="Share of both updates that dare_linear keeps; the rest is scaled up."
    )


class SafeMerge(MergeMethod):
    """result = (1 - w) f + w s where rho < threshold, else f; rho = cos(C d, d), w the safe weight.

    d = f - a and C = V V^T / |V|_F with V = a - b, as in `safe_lora`. f is the fine-tuned model, `aligned` a what it
    was fine-tuned from, `safety_tuned` s the same a fine-tuned on safety data, the base b the unaligned model behind
    a. rho is decided for each matrix: a tensor [out, in], or each of stacked experts [experts, out, in]. It counts as 0
    where d or V is zero, as in the authors' code. `dare_linear` drops and rescales f - a and s - a, and
    adds them to a with the same weights; its random numbers depend on seed and position.

    The authors merge the factors of LoRAs, which PEFT's "linear" weighs separately: that is not linear in the
    update. Here updates themselves are merged. Their dare_linear drops and rescales f's factors in the other matrices
    as well, at weights 1 and 0; here these are f. Everything that is no matrix (norms, biases, vocabularies)
    stays the fine-tuned model's. Of experts stored [experts, in, out] and their biases see `safe_lora`.
    """

    name = "safemerge"
    summary = "Mixes a safety-tuned model into those matrices whose update points away from the alignment."
    reference = "https://arxiv.org/abs/2503.17239"
    requires = Requirements(base="required", min_inputs=1, max_inputs=1, roles=("aligned", "safety_tuned"))
    granularity = Granularity.TENSOR
    Parameters = SafeMergeParameters

    def scratch(self, shape: tuple[int, ...], inputs: int, itemsize: int) -> int:
        return scratch(shape, itemsize)

    def merge(self, inputs: Sequence[Input], base: "torch.Tensor | None", context: Context) -> "torch.Tensor":
        assert base is not None  # the engine hands over what `requires` asks for
        fine_tuned, aligned, safety_tuned = (one.tensor for one in inputs)
        parts = [matrices(one, context.vocabulary) for one in (fine_tuned, aligned, safety_tuned, base)]
        for index, (f, a, s, b) in enumerate(zip(*parts, strict=True)):
            # V and -V have the same C.
            found = project(f - a, b.sub_(a))
            if (0.0 if found is None else found.cosine) < context.parameters.threshold:
                f.copy_(mixed(f, a, s, context, index * f.numel()))
        return fine_tuned


def mixed(f: "torch.Tensor", a: "torch.Tensor", s: "torch.Tensor", context: Context, position: int) -> "torch.Tensor":
    """The fine-tuned matrix with the safety-tuned one mixed in. Overwrites all."""
    parameters: SafeMergeParameters = context.parameters
    if parameters.merge_type == "linear":
        return between(f, s, parameters.safe_weight)
    for stream, one in enumerate((f, s)):
        drop(one.sub_(a), 1 - parameters.density, context.seed, stream, position)
    return between(f, s, parameters.safe_weight).add_(a)


@hookimpl
def merge_methods() -> list[type[MergeMethod]]:
    return [SafeMerge]
