"""The weighted mean of models (model soups, arXiv 2203.05482)."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict, Field

from safegraft import hookimpl
from safegraft.methods import Context, Granularity, Input, MergeMethod, Requirements
from safegraft_plugins.compiled import is_available
from safegraft_plugins.weights import check_range, check_sum

if TYPE_CHECKING:
    import torch

    from safegraft.methods.compiled import Compiled


class LinearParameters(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    normalize: bool = Field(True, description="Divide by the sum of the weights.")


class LinearInputParameters(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    weight: float = Field(description="The model's share.", allow_inf_nan=False)


class Linear(MergeMethod):
    """result = sum_i w_i x_i / sum_i w_i (without the division if not `normalize`).

    Summed in the inputs' order in float32 (float64 where an input is), bit-equal to mergekit 0.1.5.
    """

    name = "linear"
    summary = "Weighted mean of the models."
    reference = "https://arxiv.org/abs/2203.05482"
    requires = Requirements(base="ignored", min_inputs=1)
    granularity = Granularity.ELEMENT
    Parameters = LinearParameters
    InputParameters = LinearInputParameters

    def check(self, inputs: Sequence[LinearInputParameters], parameters: LinearParameters) -> Iterator[str]:
        weights = [one.weight for one in inputs]
        yield from check_range(weights)
        if parameters.normalize:
            yield from check_sum(weights)

    def merge(self, inputs: Sequence[Input], base: "torch.Tensor | None", context: Context) -> "torch.Tensor":
        import torch

        first, *others = inputs
        weights = first.tensor.new_tensor([one.parameters.weight for one in inputs])
        # 0 + w x, because mergekit sums from zero: no result is -0. And addcmul_, as there: on processors that
        # fuse it, a product is not rounded before it is added.
        zero = first.tensor.new_zeros(())
        result = torch.add(zero, first.tensor, alpha=first.parameters.weight, out=first.tensor)
        for one, weight in zip(others, weights[1:], strict=True):
            result.addcmul_(one.tensor, weight)
        return result.div_(weights.sum()) if context.parameters.normalize else result

    def compiled(self) -> "Compiled | None":
        if not is_available():
            return None
        from safegraft_plugins.compiled.weighted import CompiledLinear

        return CompiledLinear()


@hookimpl
def merge_methods() -> list[type[MergeMethod]]:
    return [Linear]
