"""Multi-SLERP: barycentric interpolation of any number of models on a hypersphere."""

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict, Field

from safegraft import hookimpl
from safegraft.methods import Context, Granularity, Input, MergeMethod, Requirements, TensorView
from safegraft_plugins.compiled import is_available
from safegraft_plugins.span import gram_of_wholes, weighted_sum
from safegraft_plugins.weights import CANCELLED, check_range

if TYPE_CHECKING:
    import torch

    from safegraft.methods.compiled import Compiled


class MultislerpParameters(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    normalize_weights: bool = Field(True, description="Divide the weights by their sum.")
    eps: float = Field(
        1e-8, ge=0, allow_inf_nan=False, description="Added to norms; directions that sum to less have no mean."
    )


class MultislerpInputParameters(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    weight: float = Field(description="The model's share.", allow_inf_nan=False)


class Multislerp(MergeMethod):
    """result = (sum_i w_i n_i) m / |m|, with m = sum_i w_i x_i / (n_i + eps) and n_i the norm of x_i.

    With a base, x_i are the models' differences from it, and the base is added again. This is mergekit's
    method in closed form. It maps the directions to the tangent space at m / |m|, sums them there and maps the
    sum back; but vectors sum to zero in the tangent space at their own weighted mean, so that m / |m| is what
    comes back, give or take float32's rounding.

    Where the weighted directions cancel (|m| below eps, or below a millionth of the weights' absolute sum, beyond
    which rounding would decide), and for zero tensors, the result is sum_i w_i x_i. mergekit does so with two
    models, and fails with more. One model is given back as it is, whatever its weight, as in mergekit. Equal models
    give the model: to the bit without a base, with one to the rounding of the difference and the sum, as long as
    weights are normalised and eps is small beside the norms. In fp32 the two agree to about 1e-6 of the tensors' size.
    """

    name = "multislerp"
    summary = "Weighted mean of the models' directions, at their mean length."
    reference = "https://goddard.blog/posts/multislerp-wow-what-a-cool-idea"
    requires = Requirements(base="optional", min_inputs=1)
    granularity = Granularity.ELEMENT
    Parameters = MultislerpParameters
    InputParameters = MultislerpInputParameters

    def check(self, inputs: Sequence[MultislerpInputParameters], parameters: MultislerpParameters) -> Iterator[str]:
        weights = [one.weight for one in inputs]
        yield from check_range(weights)
        if parameters.normalize_weights and abs(sum(weights)) <= CANCELLED * sum(map(abs, weights)):
            shown = ", ".join(f"{weight:g}" for weight in weights)
            yield (
                f"the weights {shown} sum to zero, and `normalize_weights` divides by their sum; change them or set "
                "`normalize_weights: false`"
            )

    def prepare(self, view: TensorView, parameters: MultislerpParameters) -> list[list[float]]:
        return gram_of_wholes(view)

    def merge(self, inputs: Sequence[Input], base: "torch.Tensor | None", context: Context) -> "torch.Tensor":
        tensors = [one.tensor for one in inputs]
        if len(tensors) == 1:
            return tensors[0]
        weights = weights_of([one.parameters for one in inputs], context.parameters)
        if base is None:
            return weighted_sum(tensors, coefficients(weights, context.state, context.parameters.eps))
        deltas = [tensor.sub_(base) for tensor in tensors]
        return weighted_sum(deltas, coefficients(weights, context.state, context.parameters.eps)).add_(base)

    def compiled(self) -> "Compiled | None":
        if not is_available():
            return None
        from safegraft_plugins.compiled.weighted import CompiledMultislerp

        return CompiledMultislerp()


def weights_of(own: Sequence[MultislerpInputParameters], parameters: MultislerpParameters) -> list[float]:
    weights = [one.weight for one in own]
    if not parameters.normalize_weights:
        return weights
    total = sum(weights)
    return [weight / total for weight in weights]


def coefficients(weights: Sequence[float], gram: Sequence[Sequence[float]], eps: float) -> list[float]:
    """Of the vectors in the result, from their weights and their inner products."""
    norms = [math.sqrt(row[index]) for index, row in enumerate(gram)]
    # A zero vector has no direction: whatever its coefficient, it adds nothing.
    scaled = [weight / (norm + eps) if norm else 0.0 for weight, norm in zip(weights, norms, strict=True)]
    square = sum(a * b * gram[i][j] for i, a in enumerate(scaled) for j, b in enumerate(scaled))
    length = math.sqrt(max(square, 0.0))
    if length <= max(eps, CANCELLED * sum(map(abs, weights))):
        return list(weights)
    mean_norm = sum(weight * norm for weight, norm in zip(weights, norms, strict=True))
    return [mean_norm * one / length for one in scaled]


@hookimpl
def merge_methods() -> list[type[MergeMethod]]:
    return [Multislerp]
