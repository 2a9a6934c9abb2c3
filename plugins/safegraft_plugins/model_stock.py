"""Model Stock (arXiv 2403.19522)."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict, Field

from safegraft import hookimpl
from safegraft.methods import Context, Granularity, Input, MergeMethod, Requirements, TensorView
from safegraft_plugins.compiled import is_available
from safegraft_plugins.span import Along, gram

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray

    from safegraft.methods.compiled import Compiled

SMALLEST = 1e-6  # stands for a smaller product of two norms, as in mergekit
SINGULAR = 1e-6  # a smaller denominator leaves the base as it is, as in mergekit


class ModelStockParameters(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    filter_wise: bool = Field(False, description="One ratio for each vector along the last dimension.")


@dataclass(frozen=True, slots=True)
class Ratio:
    """t: of a shape that broadcasts, or lies over a cut's rows."""

    t: "NDArray[np.float64]"
    by_row: bool


class ModelStock(MergeMethod):
    """result = t m + (1 - t) b, with m the mean of the N models, b the base and t = N c / (1 + (N - 1) c).

    c is the cosine between two models' differences from the base, over the whole tensor or, `filter_wise`, over each
    of its vectors along the last dimension. This is the paper's closed form, for two models and its extension to N.
    The paper has two angles equal where there are more pairs; as in mergekit, c is the mean over all pairs.

    As in mergekit: a product of two norms counts as at least 1e-6, so that smaller differences draw c to 0 and the
    result to the base; and where the denominator is below 1e-6 (the differences oppose each other), the
    result is the base. A negative c takes the result beyond the base. Equal models give the model to the bit, models
    equal to the base give the base. Inner products come from one pass over the tensor in double precision; in
    fp32 the two agree to about 1e-6 of the tensors' size, less well near that denominator's zero.
    """

    name = "model_stock"
    summary = "The models' mean, drawn towards the base by how much the models differ."
    reference = "https://arxiv.org/abs/2403.19522"
    requires = Requirements(base="required", min_inputs=2)
    granularity = Granularity.ROW
    Parameters = ModelStockParameters

    def prepare(self, view: TensorView, parameters: ModelStockParameters) -> Ratio:
        by_row = parameters.filter_wise and len(view.shape) > 1
        t = ratio(gram(view, Along.LAST if by_row else Along.ALL).numpy())
        return Ratio(t.reshape((*view.shape[:-1], 1) if by_row else (1,) * len(view.shape)), by_row)

    def merge(self, inputs: Sequence[Input], base: "torch.Tensor | None", context: Context) -> "torch.Tensor":
        assert base is not None  # the engine hands over what `requires` asks for
        import torch

        state: Ratio = context.state
        t = torch.as_tensor(state.t)
        if state.by_row:
            row = context.position // math.prod(context.shape[1:])
            t = t[row : row + len(base)]
        return mean([one.tensor for one in inputs]).mul_(t.to(base)).add_(base.mul_((1 - t).to(base)))

    def compiled(self) -> "Compiled | None":
        if not is_available():
            return None
        from safegraft_plugins.compiled.weighted import CompiledModelStock

        return CompiledModelStock()


def ratio(gram: "NDArray[np.float64]") -> "NDArray[np.float64]":
    """t for each vector, from the inner products of the differences [models, models, vectors]."""
    import numpy as np

    count = len(gram)
    pairs = [cosine(gram, i, j) for i in range(count) for j in range(i)]
    mean_cosine = np.stack(pairs).mean(0)
    denominator = 1 + (count - 1) * mean_cosine
    singular = np.abs(denominator) < SINGULAR
    return np.where(singular, 0, count * mean_cosine / np.where(singular, 1, denominator))


def cosine(gram: "NDArray[np.float64]", i: int, j: int) -> "NDArray[np.float64]":
    import numpy as np

    return np.clip(gram[i, j] / np.maximum(np.sqrt(gram[i, i] * gram[j, j]), SMALLEST), -1, 1)


def mean(tensors: Sequence["torch.Tensor"]) -> "torch.Tensor":
    """Overwrites `tensors`. By way of differences, so that the mean of equal tensors is the tensor to the bit."""
    first, second, *others = tensors
    sum_of_differences = second.sub_(first)
    for tensor in others:
        sum_of_differences.add_(tensor.sub_(first))
    return sum_of_differences.div_(len(tensors)).add_(first)


@hookimpl
def merge_methods() -> list[type[MergeMethod]]:
    return [ModelStock]
