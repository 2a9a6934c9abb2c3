"""Singular values and vectors of one matrix. Knows matrices only, nothing of models.

Everything is computed in float64 from the eigenvalues of the Gram matrix of the smaller side, which takes a
third to a tenth of the time of a singular value decomposition. The price is the squared condition: a direction
with singular value s is off by about 1e-15 (s_1 / s)^2, where s_1 is the largest singular value. That is
1e-7, float32's own rounding, at s = 1e-4 s_1, and 1e-3 at the cut at RESOLUTION s_1, below which directions
are left out.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

import torch

# Of the largest singular value. What is smaller is the rounding of zero: its direction is arbitrary, and methods
# that raise small singular values would make it count.
RESOLUTION = 1e-6


@dataclass(frozen=True, slots=True)
class ThinSvd:
    """A = u diag(s) vh with the largest singular values of A [m, n], in float64.

    u [m, k] and vh [k, n] have orthonormal columns and rows; s [k] falls, all above the resolution: k is at
    most the numerical rank, 0 for a zero matrix. The signs of pairs of vectors, and the vectors of equal
    singular values, are as the eigenvalue solver leaves them: use products in which they cancel.
    """

    u: torch.Tensor
    s: torch.Tensor
    vh: torch.Tensor

    def first(self, count: int) -> "ThinSvd":
        return ThinSvd(self.u[:, :count], self.s[:count], self.vh[:count])


def thin_svd(matrix: torch.Tensor, *, rank: int | None = None, size: float = 0.0) -> ThinSvd:
    """Decompose a matrix [m, n] of any float dtype.

    Args:
        rank: how many singular values at most; the largest are kept.
        size: a norm of the numbers whose difference the matrix is. Their rounding is then left out as well.
    """
    if matrix.shape[0] > matrix.shape[1]:
        turned = thin_svd(matrix.mT, rank=rank, size=size)
        return ThinSvd(turned.vh.mT, turned.s, turned.u.mT)
    matrix = matrix.double()
    squares, vectors = eigh(matrix @ matrix.mT)
    values = squares.flip(0).clamp(min=0).sqrt()
    kept = int((values > RESOLUTION * max(float(values[0]), size)).sum())
    if rank is not None:
        kept = min(kept, rank)
    u = vectors.flip(1)[:, :kept]
    vh = u.mT @ matrix
    s = vh.square().sum(dim=1).sqrt()  # closer than the root of an eigenvalue, which is a rounded square
    return ThinSvd(u, s, vh.div_(s.unsqueeze(1)))


def polar(matrix: torch.Tensor) -> torch.Tensor:
    """The nearest matrix with orthonormal columns (rows, if there are fewer of them), in float64: A (A^T A)^(-1/2).

    Where columns depend on each other that inverse is a pseudo-inverse: the result spans what the matrix
    spans, and its singular values are 1 there and 0 elsewhere.
    """
    parts = thin_svd(matrix)
    return parts.u @ parts.vh


def norm(matrix: torch.Tensor) -> float:
    """The Frobenius norm, summed in float64."""
    return float(matrix.double().square().sum().sqrt())


def eigh(matrix: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Eigenvalues, rising, and eigenvectors, in columns, of a symmetric matrix."""
    solve = cast(
        Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor]],
        torch.linalg.eigh,  # pyright: ignore[reportUnknownMemberType] (torch's stubs lack it)
    )
    return solve(matrix)
