"""MergeAlign: between domain and alignment vectors (arXiv 2411.06824)."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from pydantic import BaseModel, ConfigDict, Field

from safegraft import hookimpl
from safegraft.methods import Context, Granularity, Input, MergeMethod, Requirements, TensorView
from safegraft_plugins.safety.interpolation import between
from safegraft_plugins.slerp import Share, share
from safegraft_plugins.span import gram

if TYPE_CHECKING:
    import torch


class MergeAlignParameters(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    t: float = Field(0.5, ge=0, le=1, description="0 gives the fine-tuned model, 1 the aligned one.")
    interpolation: Literal["linear", "slerp"] = Field("linear", description="In a line, or along an arc.")


class MergeAlign(MergeMethod):
    """result = b + (1 - t) (f - b) + t (a - b): the domain vector f - b and the alignment vector a - b, interpolated.

    f is the fine-tuned model, `aligned` a an aligned one, the base b the unaligned model that both come from. In a
    line b cancels: the result is (1 - t) f + t a whatever b is. With `interpolation: slerp`, our addition, the two
    vectors are interpolated spherically, as `slerp` does it, and the angle between them is seen from b. Where they are
    almost collinear it is the line. A zero vector counts as orthogonal to the other: where fine-tuning has not changed
    a tensor, the result is b + sin(90 deg t) (a - b).
    """

    name = "mergealign"
    summary = "Interpolates a model's and an aligned model's task vectors."
    reference = "https://arxiv.org/abs/2411.06824"
    requires = Requirements(base="required", min_inputs=1, max_inputs=1, roles=("aligned",))
    granularity = Granularity.ELEMENT
    Parameters = MergeAlignParameters

    def prepare(self, view: TensorView, parameters: MergeAlignParameters) -> Share | None:
        """The share of the domain vector ("base" in `slerp`'s terms) and that of the alignment vector.

        None where they are interpolated in a line.
        """
        if parameters.interpolation == "linear":
            return None
        products = gram(view)[..., 0]
        found = share(parameters.t, float(products[0, 0]), float(products[1, 1]), float(products[0, 1]))
        # At both ends and where the vectors are collinear the arc is the line, which is exact without the base.
        return None if found == Share(1 - parameters.t, parameters.t) else found

    def merge(self, inputs: Sequence[Input], base: "torch.Tensor | None", context: Context) -> "torch.Tensor":
        assert base is not None  # the engine hands over what `requires` asks for
        fine_tuned, aligned = (one.tensor for one in inputs)
        found: Share | None = context.state
        if found is None:
            return between(fine_tuned, aligned, context.parameters.t)
        domain = fine_tuned.sub_(base).mul_(found.base)
        return domain.add_(aligned.sub_(base).mul_(found.other)).add_(base)


@hookimpl
def merge_methods() -> list[type[MergeMethod]]:
    return [MergeAlign]
