"""Isotropic merging (Marczak et al., arXiv 2502.04959)."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from pydantic import Field

from safegraft import hookimpl
from safegraft.methods import MergeMethod
from safegraft_plugins.matrixwise import Matrixwise, MatrixwiseParameters, total

if TYPE_CHECKING:
    import torch

    from safegraft_plugins.spectrum import ThinSvd


class IsoCtsParameters(MatrixwiseParameters):
    common_space_fraction: float = Field(
        0.8, ge=0, le=1, description="Share of the directions that the models' sum has; each model adds to the rest."
    )


class IsoC(Matrixwise):
    """result = b + lambda s' U V^T, where U S V^T = sum_i t_i and s' is the mean of the singular values S.

    Iso-C of the paper, with a weight a model. Only the singular values that are not zero (but for rounding) are
    averaged and flattened: the directions of the others are arbitrary. The authors' code flattens min(out, in)
    of them, which differs where the sum has not full rank, as with LoRA.

    Tensors other than matrices of linear layers: b + lambda mean_i t_i, as in the authors' code. The paper
    tunes lambda (its alpha) on validation data; the default 1 is only a start.
    """

    name = "iso_c"
    summary = "The sum of the task vectors with all singular values made equal."
    reference = "https://arxiv.org/abs/2502.04959"

    def merge_matrices(self, taus: "Sequence[torch.Tensor]", parameters: MatrixwiseParameters) -> "torch.Tensor":
        from safegraft_plugins.spectrum import thin_svd

        common = thin_svd(total([tau.double() for tau in taus]))
        return flat(common.u, common.s, common.vh)


class IsoCts(Matrixwise):
    """result = b + lambda s' U' V'^T: Iso-CTS of the paper, with a weight a model.

    With r = min(out, in), the first c singular vectors U_c, V_c of sum_i t_i are kept as the common space,
    c = r times the fraction, adjusted so that the rest divides by N. From each model come the first
    (r - c) / N singular vectors of t_i - U_c U_c^T t_i. All of them side by side, U and V, are replaced by the
    nearest matrices with orthonormal columns, U' and V'; s' is the mean of their singular values.

    Singular values that are zero but for rounding are left out, and not averaged: see iso_c. So are they
    before U' and V' are made, and where directions coincide these are confined to what they span.
    Tensors other than matrices of linear layers: b + lambda mean_i t_i. lambda is tuned in the paper.
    """

    name = "iso_cts"
    summary = "Equal singular values in a space common to the models and in one of each model's own."
    reference = "https://arxiv.org/abs/2502.04959"
    Parameters = IsoCtsParameters

    def merge_matrices(self, taus: "Sequence[torch.Tensor]", parameters: IsoCtsParameters) -> "torch.Tensor":
        import torch

        from safegraft_plugins.spectrum import polar_of_blocks, polar_with_basis, split

        directions = min(taus[0].shape)
        own = own_directions(directions, len(taus), parameters.common_space_fraction)
        common, beside = split(total([tau.double() for tau in taus]), rank=directions - own * len(taus))
        if not own:
            return flat(common.u, common.s, common.vh)
        parts = [outside(common.u, beside, tau.double(), own) for tau in taus]
        values = torch.cat([common.s, *(part.s for part in parts)])
        # On the left the models' own directions are orthogonal to the common ones already.
        left = torch.cat([common.u, polar_of_blocks([part.u for part in parts])], dim=1)
        right = polar_with_basis(common.vh.mT, torch.cat([part.vh for part in parts]).mT)
        return flat(left, values, right.mT)


def outside(common: "torch.Tensor", beside: "torch.Tensor | None", tau: "torch.Tensor", count: int) -> "ThinSvd":
    """The first singular triplets of (I - U U^T) t, with U = common. beside: a basis B of what U leaves out, if known.

    B^T t is then decomposed instead, which is a small matrix where U is large.
    """
    from safegraft_plugins.spectrum import ThinSvd, norm, thin_svd

    if beside is None:
        return thin_svd(tau - common @ (common.mT @ tau), rank=count, size=norm(tau))
    small = thin_svd(beside.mT @ tau, rank=count, size=norm(tau))
    return ThinSvd(beside @ small.u, small.s, small.vh)


def own_directions(directions: int, models: int, common_fraction: float) -> int:
    """How many directions each model has for itself, in the authors' rounding."""
    rest = directions - int(directions * common_fraction)
    return min(round(rest / models), directions // models)


def flat(left: "torch.Tensor", values: "torch.Tensor", right: "torch.Tensor") -> "torch.Tensor":
    """left [m, k] times right [k, n] times the mean of the values [k]; zero where there are none."""
    return (left @ right).mul_(values.mean() if len(values) else 0.0)


@hookimpl
def merge_methods() -> list[type[MergeMethod]]:
    return [IsoC, IsoCts]
