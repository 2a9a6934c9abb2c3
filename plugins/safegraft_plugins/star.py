"""Spectral truncation and rescaling (Lee et al., arXiv 2502.10339)."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from pydantic import Field

from safegraft import hookimpl
from safegraft.methods import MergeMethod
from safegraft_plugins.matrixwise import Matrixwise, MatrixwiseParameters, total

if TYPE_CHECKING:
    import torch


class StarParameters(MatrixwiseParameters):
    eta: float = Field(40.0, ge=0, le=100, description="Percentage of the nuclear norm that is kept before rescaling.")


class Star(Matrixwise):
    """result = b + lambda mean_i T(t_i), with T(t) = (sum_j s_j / sum_{j<=k} s_j) sum_{j<=k} s_j u_j v_j^T.

    s_j, u_j, v_j are the singular triplets of t, and k is the least number that reaches eta per cent of the
    nuclear norm: sum_{j<=k} s_j >= eta / 100 sum_j s_j. The factor restores the nuclear norm. k is at least 1;
    eta = 100 leaves task vectors as they are; a zero task vector stays zero.

    Tensors other than matrices of linear layers: b + lambda mean_i t_i. The paper merges LoRA only.
    """

    name = "star"
    summary = "The mean of task vectors cut to few singular values at their old nuclear norm."
    reference = "https://arxiv.org/abs/2502.10339"
    Parameters = StarParameters

    def merge_matrices(self, taus: "Sequence[torch.Tensor]", parameters: StarParameters) -> "torch.Tensor":
        return total([truncated(tau, parameters.eta) for tau in taus]).div_(len(taus))


def truncated(tau: "torch.Tensor", eta: float) -> "torch.Tensor":
    """T of the equation, in float64."""
    from safegraft_plugins.spectrum import thin_svd

    if eta == 100:
        return tau.double()
    parts = thin_svd(tau)
    reached = parts.s.cumsum(0)
    if not len(reached):
        return tau.double().zero_()
    nuclear = reached[-1]
    kept = int((reached < nuclear * (eta / 100)).sum()) + 1
    largest = parts.first(kept)
    return (largest.u * (largest.s * (nuclear / reached[kept - 1]))) @ largest.vh


@hookimpl
def merge_methods() -> list[type[MergeMethod]]:
    return [Star]
