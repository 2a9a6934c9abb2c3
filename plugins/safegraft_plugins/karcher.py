"""The Karcher mean of models on the unit hypersphere (arXiv 2603.04972)."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict, Field

from safegraft import hookimpl
from safegraft.methods import Context, Granularity, Input, MergeMethod, Requirements, TensorView
from safegraft_plugins.compiled import is_available
from safegraft_plugins.span import gram_of_wholes, weighted_sum

if TYPE_CHECKING:
    import torch

    from safegraft.methods.compiled import Compiled

Gram = Sequence[Sequence[float]]

RESOLUTION = 1e-7  # lengths and angles that come from inner products in double precision say nothing below this


class KarcherParameters(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    max_iter: int = Field(10, ge=0, description="Steps towards the mean, at most.")
    tol: float = Field(1e-5, ge=0, allow_inf_nan=False, description="Norms, angles and steps below it count as zero.")


class Karcher(MergeMethod):
    """result = n m, with n the mean of the norms and m the unit vector of the least sum of squared angles to the x_i.

    m starts as the normalised mean of the unit vectors u_i; a step follows the geodesic along the mean of
    log_m(u_i) = a_i / sin(a_i) (u_i - cos(a_i) m), a_i being the angle between u_i and m. A tensor is one vector.

    m is a sum of the inputs at every step, so the steps are taken on its coefficients, from the inputs'
    inner products in double precision: one pass over the tensor, whatever the number of steps. As in mergekit:
    inputs of a norm up to `tol` have no direction, and count in n alone; where the unit vectors cancel, m starts as
    the first of them; if no input has a direction, the result is zero. An input opposite to m within `tol` is left
    out of a step, because there is no one way to it; mergekit follows whatever direction rounding leaves. One
    model is given back as it is; equal models give the model to the bit. In fp32 the two agree to about 1e-5 of
    the tensors' size.
    """

    name = "karcher"
    summary = "Karcher mean of the models' directions, at their mean length."
    reference = "https://arxiv.org/abs/2603.04972"
    requires = Requirements(base="ignored", min_inputs=1)
    granularity = Granularity.ELEMENT
    Parameters = KarcherParameters

    def prepare(self, view: TensorView, parameters: KarcherParameters) -> list[float]:
        return coefficients(gram_of_wholes(view), parameters.max_iter, parameters.tol)

    def merge(self, inputs: Sequence[Input], base: "torch.Tensor | None", context: Context) -> "torch.Tensor":
        tensors = [one.tensor for one in inputs]
        return tensors[0] if len(tensors) == 1 else weighted_sum(tensors, context.state)

    def compiled(self) -> "Compiled | None":
        if not is_available():
            return None
        from safegraft_plugins.compiled.weighted import CompiledKarcher

        return CompiledKarcher()


def coefficients(gram: Gram, max_iter: int, tol: float) -> list[float]:
    """Of the inputs in the result."""
    norms = [math.sqrt(row[index]) for index, row in enumerate(gram)]
    directed = [index for index, norm in enumerate(norms) if norm > tol]
    found = [0.0] * len(norms)
    if not directed:
        return found
    # sqrt of the product, not product of the roots: equal vectors then have exactly 1.
    cosines = [[gram[i][j] / math.sqrt(gram[i][i] * gram[j][j]) for j in directed] for i in directed]
    mean_norm = sum(norms) / len(norms)
    for index, coefficient in zip(directed, mean(cosines, max_iter, tol), strict=True):
        found[index] = mean_norm * coefficient / norms[index]
    return found


def mean(cosines: Gram, max_iter: int, tol: float) -> list[float]:
    """The coefficients of unit vectors in their Karcher mean, from the cosines between them."""
    tol = max(tol, RESOLUTION)
    count = len(cosines)
    start = [1 / count] * count
    length = norm(start, cosines)
    at = [1.0, *[0.0] * (count - 1)] if length <= tol else [one / length for one in start]
    for _ in range(max_iter):
        step = tangent(at, cosines, tol)
        length = norm(step, cosines)
        if length < tol:
            break
        at = [math.cos(length) * one + math.sin(length) / length * other for one, other in zip(at, step, strict=True)]
        length = norm(at, cosines)
        at = [one / length for one in at]
    return at


def tangent(at: Sequence[float], cosines: Gram, tol: float) -> list[float]:
    """The mean of the logarithms of the unit vectors at the vector with coefficients `at`."""
    step = [0.0] * len(at)
    for index, row in enumerate(cosines):
        cosine = max(-1.0, min(1.0, sum(one * other for one, other in zip(at, row, strict=True))))
        angle = math.acos(cosine)
        if angle <= tol or angle >= math.pi - tol:
            continue
        scale = angle / math.sin(angle) / len(at)
        step = [one - scale * cosine * other for one, other in zip(step, at, strict=True)]
        step[index] += scale
    return step


def norm(coefficients: Sequence[float], cosines: Gram) -> float:
    square = sum(a * b * cosines[i][j] for i, a in enumerate(coefficients) for j, b in enumerate(coefficients))
    return math.sqrt(max(square, 0.0))


@hookimpl
def merge_methods() -> list[type[MergeMethod]]:
    return [Karcher]
