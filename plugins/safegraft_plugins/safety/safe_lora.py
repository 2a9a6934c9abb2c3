"""Safe LoRA (arXiv 2405.16833)."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from pydantic import BaseModel, ConfigDict, Field

from safegraft import hookimpl
from safegraft.methods import Context, Granularity, Input, MergeMethod, Prepared, Requirements, TensorView
from safegraft_plugins.safety.alignment import matrices, project, scratch

if TYPE_CHECKING:
    import torch

Cosines = tuple[float | None, ...]  # of a tensor's matrices; None where the angle is not defined


class SafeLoraParameters(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    threshold: float = Field(0.5, ge=-1, le=1, description="Updates whose cosine is not above it are projected.")
    num_proj_layers: int = Field(
        0, ge=0, description="Project so many matrices instead, those of the smallest cosines; 0 goes by the threshold."
    )
    length: Literal["paper", "fitted"] = Field(
        "paper", description="paper: C d as it is; fitted: the multiple of C d that is nearest to d."
    )


class SafeLora(MergeMethod):
    """result = a + C d where cos(C d, d) <= threshold, else f; d = f - a, V = a - b, C = V V^T / |V|_F.

    f is the fine-tuned model, `aligned` a what it was fine-tuned from, the base b the unaligned model that a was made
    of. Where f is a LoRA, d is exactly its scaled product B A, and C d is the product with B replaced by C B. Each
    matrix of a full fine-tuning is treated alike. `num_proj_layers` goes by rank over all matrices that the method
    merges, as in the authors' code, and takes a pass over the models first; equal cosines are projected together.

    C is no projector: C d is proportional to |a - b| as well as to |d|, so that the result depends on how far
    alignment moved the weights. `length: fitted`, our addition, keeps the direction of C d and gives it the length
    of d's orthogonal projection on it.

    Matrices are tensors [out, in] and stacked experts [experts, out, in]. Everything else (norms, biases,
    vocabularies) stays the fine-tuned model's; so does a matrix that alignment has not changed, since V = 0
    leaves no direction.

    C acts on outputs, the rows here. Llama 4 and gpt-oss store experts [experts, in, out], and gpt-oss their biases as
    [experts, out], which is taken for a matrix: give these another method by the recipe's overrides.
    """

    name = "safe_lora"
    summary = "Projects updates that point away from the alignment onto its directions."
    reference = "https://arxiv.org/abs/2405.16833"
    requires = Requirements(base="required", min_inputs=1, max_inputs=1, roles=("aligned",))
    granularity = Granularity.TENSOR
    Parameters = SafeLoraParameters

    def prepare(self, view: TensorView, parameters: SafeLoraParameters) -> Cosines | None:
        if parameters.num_proj_layers == 0:
            return None  # the threshold needs no cosines but the tensor's own
        delta, alignment = whole_differences(view)
        vocabulary = view.context.vocabulary
        pairs = zip(matrices(delta, vocabulary), matrices(alignment, vocabulary), strict=True)
        found = [project(d, v) for d, v in pairs]
        return tuple(None if one is None else one.cosine for one in found)

    def survey(self, tensors: Sequence[Prepared]) -> dict[int, float]:
        """For each `num_proj_layers` that recipes' filters may give: the largest cosine that is projected."""
        cosines: dict[int, list[float]] = {}
        for one in tensors:
            known = [cosine for cosine in one.state or () if cosine is not None]
            cosines.setdefault(one.parameters.num_proj_layers, []).extend(known)
        return {count: sorted(known)[:count][-1] for count, known in cosines.items() if count and known}

    def scratch(self, shape: tuple[int, ...], inputs: int, itemsize: int) -> int:
        return scratch(shape, itemsize)

    def merge(self, inputs: Sequence[Input], base: "torch.Tensor | None", context: Context) -> "torch.Tensor":
        assert base is not None  # the engine hands over what `requires` asks for
        fine_tuned, aligned = (one.tensor for one in inputs)
        parameters: SafeLoraParameters = context.parameters
        cutoffs: dict[int, float] = context.survey or {}
        limit = cutoffs.get(parameters.num_proj_layers, parameters.threshold)
        parts = [matrices(one, context.vocabulary) for one in (fine_tuned, aligned, base)]
        for index, (f, a, b) in enumerate(zip(*parts, strict=True)):
            # V and -V have the same C.
            found = project(f - a, b.sub_(a), fitted=parameters.length == "fitted")
            if found is None:
                continue
            # The survey's own cosine: another number of threads may round the same product differently.
            cosine = context.state[index] if context.state else found.cosine
            if cosine <= limit:
                f.copy_(found.delta.add_(a))
        return fine_tuned


def whole_differences(view: TensorView) -> tuple["torch.Tensor", "torch.Tensor"]:
    """The update f - a and the alignment a - b, each as a whole tensor."""
    import torch

    pairs: list[tuple[torch.Tensor, torch.Tensor]] = []
    for (fine_tuned, aligned), base in view.blocks():
        assert base is not None
        pairs.append((fine_tuned.tensor - aligned.tensor, aligned.tensor - base))
    delta, alignment = (torch.cat(parts).view(view.shape) for parts in zip(*pairs, strict=True))
    return delta, alignment


@hookimpl
def merge_methods() -> list[type[MergeMethod]]:
    return [SafeLora]
