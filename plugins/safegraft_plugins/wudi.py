"""WUDI merging (Cheng et al., arXiv 2503.08099) in closed form (Wei et al., arXiv 2606.07289)."""

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Literal

from pydantic import BaseModel, ConfigDict, Field

from safegraft import hookimpl
from safegraft.methods import MergeMethod
from safegraft_plugins.matrixwise import Matrixwise, total

if TYPE_CHECKING:
    import torch


class WudiParameters(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)

    scale: float | None = Field(
        None,
        alias="lambda",
        allow_inf_nan=False,
        description="Factor on the merged task vector; none is 1/models, or 1 where the flow starts at the mean.",
    )


class SwudiParameters(WudiParameters):
    t: float = Field(300.0, ge=0, allow_inf_nan=False, description="How long the flow runs; 0 gives its start.")
    rank_ratio: float = Field(0.85, gt=0, le=1, description="Share of the input directions that the flow moves in.")
    start: Literal["sum", "mean"] = Field("sum", description="Of the task vectors: where the flow starts.")


class Swudi(Matrixwise):
    """result = b + lambda t*: the gradient flow of WUDI's loss from the sum of the task vectors, after the time t.

    The loss is 1/2 sum_i |(t* - t_i) t_i^T|^2 / |t_i|^2 in Frobenius norms: a task vector [out, in] stands for
    the inputs that its linear layer was trained on. The loss's gradient is t* C - D, and so

        C = sum_i t_i^T t_i / |t_i|^2 = V L V^T  [in, in]      D = sum_i t_i t_i^T t_i / |t_i|^2  [out, in]
        t* = t_0 - t_0 V f V^T + D V (f / L) V^T               f = 1 - exp(-L t), 0 outside the K largest L

    t_0 = sum_i t_i, and K = ceil(rank_ratio * in). As the trace of C is the number of models, t does not depend
    on the size of the task vectors, and t* scales with them. Task vectors that are zero add nothing to C and D.
    `start: mean`, our addition, takes t_0 = 1/N sum_i t_i.

    lambda: directions that the flow leaves alone hold the start, so that t* is about N times a task vector where
    models agree, if that is the sum. The authors set lambda near 1/N for large models; that is the default
    here, and 1 for the mean. (With their vision models they use 1.) One model: b + lambda t_1, whatever t.

    Time grows with the cube of min(in, N out).

    Tensors other than matrices of linear layers: b + lambda t_0, the flow's start. The authors take the mean
    instead of the sum there, which is the same at the default.
    """

    name = "swudi"
    summary = "WUDI in closed form: the task vectors' sum, moved where they disagree."
    reference = "https://arxiv.org/abs/2606.07289"
    Parameters = SwudiParameters

    def factor(self, parameters: SwudiParameters, count: int) -> float:
        if parameters.scale is not None:
            return parameters.scale
        return 1 / count if parameters.start == "sum" else 1.0

    def scratch(self, shape: tuple[int, ...], inputs: int, itemsize: int) -> int:
        return super().scratch(shape, inputs, itemsize) + beyond_smaller_side(shape, inputs)

    def merge_elements(self, taus: "Sequence[torch.Tensor]", parameters: SwudiParameters) -> "torch.Tensor":
        return started(total(taus), len(taus), parameters.start)

    def merge_matrices(self, taus: "Sequence[torch.Tensor]", parameters: SwudiParameters) -> "torch.Tensor":
        start = started(total([tau.double() for tau in taus]), len(taus), parameters.start)
        return flow(taus, start, lambda _: share(start.shape[1], parameters.rank_ratio), parameters.t)


class Aswudi(Matrixwise):
    """result = b + lambda t*: `swudi` with an adaptive rank, the A of its name, run to its end.

    K = ceil((sum_j sqrt L_j)^2 / sum_j L_j), found for each matrix: how many directions its spectrum spreads over.
    f = 1 in these and 0 in the others: t is infinite. t_0 is the sum; lambda and other tensors are as in `swudi`.
    """

    name = "aswudi"
    summary = "SWUDI at its end, in as many directions as each matrix's spectrum spreads over."
    reference = "https://arxiv.org/abs/2606.07289"
    Parameters = WudiParameters

    def factor(self, parameters: WudiParameters, count: int) -> float:
        return 1 / count if parameters.scale is None else parameters.scale

    def scratch(self, shape: tuple[int, ...], inputs: int, itemsize: int) -> int:
        return super().scratch(shape, inputs, itemsize) + beyond_smaller_side(shape, inputs)

    def merge_elements(self, taus: "Sequence[torch.Tensor]", parameters: WudiParameters) -> "torch.Tensor":
        return total(taus)

    def merge_matrices(self, taus: "Sequence[torch.Tensor]", parameters: WudiParameters) -> "torch.Tensor":
        return flow(taus, total([tau.double() for tau in taus]), participating, math.inf)


def beyond_smaller_side(shape: tuple[int, ...], models: int) -> int:
    """Bytes that two matrices of the side min(in, N out), C's or A A^T's, take beyond two of the side min(in, out)."""
    if len(shape) not in (2, 3):
        return 0
    outputs, inputs = shape[-2:]
    return 8 * 2 * (min(inputs, models * outputs) ** 2 - min(inputs, outputs) ** 2)


def started(sum_of_taus: "torch.Tensor", models: int, start: str) -> "torch.Tensor":
    return sum_of_taus if start == "sum" else sum_of_taus.div_(models)


def share(inputs: int, ratio: float) -> int:
    """K as a share of the input directions."""
    return max(1, math.ceil(round(ratio * inputs, 6)))  # 0.55 * 100 is 55.00000000000001


def participating(singular: "torch.Tensor") -> int:
    """K from A's singular values, the roots of L: how many directions they spread over."""
    return math.ceil(round(float(singular.sum().square() / singular.square().sum()), 6))


def flow(
    taus: "Sequence[torch.Tensor]", start: "torch.Tensor", directions: "Callable[[torch.Tensor], int]", t: float
) -> "torch.Tensor":
    """t* from t_0, in float64. directions: K, from the roots of L. Overwrites `start`."""
    import torch

    from safegraft_plugins.spectrum import norm

    if len(taus) == 1:
        return start  # t_0 solves C t = D already
    sizes = [norm(tau) for tau in taus]
    units = [tau.double() / size for tau, size in zip(taus, sizes, strict=True) if size]
    if not units:
        return start
    roots, vectors, pulled = pull(units, [size for size in sizes if size], directions)
    filtered = -torch.expm1(-roots.square() * t)
    return start.add_((pulled * (filtered / roots.square()) - (start @ vectors) * filtered) @ vectors.mT)


def pull(
    units: "Sequence[torch.Tensor]", sizes: "Sequence[float]", directions: "Callable[[torch.Tensor], int]"
) -> "tuple[torch.Tensor, torch.Tensor, torch.Tensor]":
    """The roots of the K largest L, their V [in, K], and D V [out, K], of the task vectors sizes_i A_i."""
    import torch

    from safegraft_plugins.spectrum import gram, resolved, singular, thin_svd

    outputs, inputs = units[0].shape
    if inputs <= outputs * len(units):
        c, d = units[0].new_zeros(inputs, inputs), torch.zeros_like(units[0])
        for size, unit in zip(sizes, units, strict=True):
            square = gram(unit.mT)
            c.add_(square)
            d.addmm_(unit, square, alpha=size)
        values, vectors = singular(c)
        count = resolved(values)
        kept = min(count, directions(values[:count]))
        return values[:kept], vectors[:, :kept], d @ vectors[:, :kept]
    # C = A^T A, where the A_i lie below each other in A, which has fewer rows than columns: A A^T is the smaller
    # problem. The rows of A V = U S that belong to model i are A_i V.
    parts = thin_svd(torch.cat(list(units)))
    parts = parts.first(directions(parts.s))
    blocks = (parts.u * parts.s).tensor_split(len(units))
    pulled = total([size * (gram(unit) @ block) for size, unit, block in zip(sizes, units, blocks, strict=True)])
    return parts.s, parts.vh.mT, pulled


@hookimpl
def merge_methods() -> list[type[MergeMethod]]:
    return [Swudi, Aswudi]
