"""Singular values and vectors of one matrix. Knows matrices only, nothing of models.

Everything is computed in float64 from the eigenvalues of the Gram matrix of the smaller side, which takes a
third to a tenth of the time of a singular value decomposition. The price is the squared condition: a direction
with singular value s is off by about 1e-15 (s_1 / s)^2, where s_1 is the largest singular value. That is
1e-7, float32's own rounding, at s = 1e-4 s_1, and 1e-3 at the cut at RESOLUTION s_1, below which directions
are left out.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import cast

import torch

# Of the largest singular value. What is smaller is the rounding of zero: its direction is arbitrary, and methods
# that raise small singular values would make it count.
RESOLUTION = 1e-6
STRIP = 512  # rows of a Gram matrix at a time
SERIES = 1e-3  # cosines below which the Taylor series of an inverse square root is closer than its quotients


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
    return split(matrix, rank=rank, size=size)[0]


def split(matrix: torch.Tensor, *, rank: int | None = None, size: float = 0.0) -> tuple[ThinSvd, torch.Tensor | None]:
    """`thin_svd`, and an orthonormal basis [m, m - k] of what its u leaves out, where it costs nothing: m <= n."""
    if matrix.shape[0] > matrix.shape[1]:
        turned = thin_svd(matrix.mT, rank=rank, size=size)
        return ThinSvd(turned.vh.mT, turned.s, turned.u.mT), None
    matrix = matrix.double()
    values, vectors = singular(gram(matrix))
    kept = resolved(values, size)
    if rank is not None:
        kept = min(kept, rank)
    u, beside = vectors.tensor_split([kept], dim=1)
    vh = u.mT @ matrix
    s = vh.square().sum(dim=1).sqrt()  # closer than the root of an eigenvalue, which is a rounded square
    return ThinSvd(u, s, vh.div_(s.unsqueeze(1))), beside


def singular(square: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """A's singular values, falling, and its left singular vectors, in columns, from A A^T."""
    squares, vectors = eigh(square)
    return squares.flip(0).clamp_(min=0).sqrt_(), vectors.flip(1)


def resolved(values: torch.Tensor, size: float = 0.0) -> int:
    """How many of the singular values, which fall, are more than rounding: see `thin_svd`."""
    return int((values > RESOLUTION * max(float(values[0]), size)).sum())


def gram(matrix: torch.Tensor) -> torch.Tensor:
    """A A^T [m, m] of A [m, n], in a little more than half the time of a product: each pair of rows is met once."""
    rows = matrix.shape[0]
    result = matrix.new_empty(rows, rows)
    for start in range(0, rows, STRIP):
        strip = matrix[start : start + STRIP]
        stop = start + strip.shape[0]
        result[start:stop, :stop] = strip @ matrix[:stop].mT
        result[:start, start:stop] = result[start:stop, :start].mT
    return result


def polar(matrix: torch.Tensor) -> torch.Tensor:
    """The nearest matrix with orthonormal columns (rows, if there are fewer of them), in float64: A (A^T A)^(-1/2).

    Where columns depend on each other that inverse is a pseudo-inverse: the result spans what the matrix
    spans, and its singular values are 1 there and 0 elsewhere.
    """
    parts = thin_svd(matrix)
    return parts.u @ parts.vh


def polar_of_blocks(blocks: Sequence[torch.Tensor]) -> torch.Tensor:
    """`polar` of blocks [m, k_i] side by side, each of which has orthonormal columns.

    Of two blocks U and W it takes the eigenvalues of a matrix of W's columns alone, a sixth of the time. With
    C = U^T W the Gram matrix of both is [[I, C], [C^T, I]], and functions of C^T C give its inverse square root. Its
    eigenvalues are 1 + c and 1 - c, c being the cosines between the blocks: agreement with `polar` is to about 1e-15
    over the least 1 - c that is above the resolution.
    """
    wide = [block for block in blocks if block.shape[1]]
    if len(wide) < 2:
        return torch.cat(list(blocks), dim=1)  # orthonormal as it is
    if len(wide) > 2:
        return polar(torch.cat(wide, dim=1))
    larger, smaller = sorted(wide, key=lambda block: block.shape[1], reverse=True)
    cross = larger.mT @ smaller
    squares, vectors = eigh(gram(cross.mT))
    own, both, far = _inverse_square_root(squares.clamp(min=0))
    across = cross @ vectors
    image, turned = larger @ across, smaller @ vectors
    first = (image * far + turned * both) @ across.mT + larger
    second = (image * both + turned * own) @ vectors.mT
    return torch.cat([first, second] if larger is wide[0] else [second, first], dim=1)


def polar_with_basis(basis: torch.Tensor, others: torch.Tensor) -> torch.Tensor:
    """`polar` of [basis, others] side by side. The columns of basis [m, k] are orthonormal; others [m, j] are any.

    It takes the eigenvalues of a matrix of 2 j columns, if that is less than k + j. With C = basis^T others = Q R,
    whatever of the basis is orthogonal to B = basis Q is so to the others, and stays. The rest, [B, others], is
    made orthonormal by itself. Agreement with `polar` is to about 1e-15 over the least eigenvalue of the Gram matrix
    that is above the resolution.
    """
    count = others.shape[1]
    if count == 0:
        return basis
    if count >= basis.shape[1]:
        return polar(torch.cat([basis, others], dim=1))
    turn = orthonormal(basis.mT @ others)
    touched = basis @ turn
    apart = polar(torch.cat([touched, others], dim=1))
    return torch.cat([basis + (apart[:, :count] - touched) @ turn.mT, apart[:, count:]], dim=1)


def _inverse_square_root(squares: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Of [[1, c], [c, 1]], from c^2: the diagonal f(c), the other entries over c, and (f(c) - 1) / c^2.

    1 - c counts as zero where it is below the resolution, and the inverse is a pseudo-inverse there.
    """
    cosines = squares.sqrt()
    sums, differences = 1 + cosines, (1 - squares) / (1 + cosines)
    inverse = differences.clamp(min=RESOLUTION**2).rsqrt().where(differences > RESOLUTION**2 * sums, 0)
    diagonal = (sums.rsqrt() + inverse) / 2
    small = cosines < SERIES
    safe = squares.where(~small, 1)
    # Where c is small the quotients would be rounding errors: their Taylor series.
    both = ((sums.rsqrt() - inverse) / 2 / safe.sqrt()).where(~small, -0.5 - 5 / 16 * squares)
    far = ((diagonal - 1) / safe).where(~small, 3 / 8 + 35 / 128 * squares)
    return diagonal, both, far


def norm(matrix: torch.Tensor) -> float:
    """The Frobenius norm, summed in float64."""
    return float(matrix.double().square().sum().sqrt())


def orthonormal(matrix: torch.Tensor) -> torch.Tensor:
    """Orthonormal columns [m, n], n <= m, that span at least the columns of a matrix [m, n]."""
    factorise = cast(
        Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor]],
        torch.linalg.qr,  # pyright: ignore[reportUnknownMemberType] (torch's stubs lack it)
    )
    return factorise(matrix)[0]


def eigh(matrix: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Eigenvalues, rising, and eigenvectors, in columns, of a symmetric matrix."""
    solve = cast(
        Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor]],
        torch.linalg.eigh,  # pyright: ignore[reportUnknownMemberType] (torch's stubs lack it)
    )
    return solve(matrix)
