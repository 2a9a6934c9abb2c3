"""The best low-rank factors of a matrix, and how much of it they hold."""

from dataclasses import dataclass

import torch

# Where the rank is small beside the matrix, its largest singular vectors are found by subspace iteration (Halko,
# Martinsson and Tropp 2011, algorithm 4.4), which takes a hundredth of a decomposition's time.
OVERSAMPLING = 16
ITERATIONS = 6
SMALL = 4  # a rank is small when the matrix has at least so many times as many rows and columns

Svd = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


@dataclass(frozen=True, slots=True)
class Factors:
    """B [out, r] and A [r, in]. energy: the share of the matrix's squared norm that B A holds, 0 to 1."""

    b: torch.Tensor
    a: torch.Tensor
    energy: float

    @property
    def rank(self) -> int:
        return self.a.shape[0]


def factorise(matrix: torch.Tensor, *, rank: int | None = None, energy: float | None = None) -> Factors | None:
    """Factors of a float32 matrix [out, in] by its singular value decomposition (Eckart and Young 1936).

    Keeps the `rank` largest singular values, or the fewest that hold the share `energy`; both sides get the square
    root of them. Of a small rank the result is the best to within what six iterations leave, and `energy` is what it
    holds itself. None for a matrix of zeros. Raises ValueError when a value is not finite.
    """
    if not bool(torch.isfinite(matrix).all()):
        raise ValueError("holds NaN or inf")
    if not bool(matrix.any()):
        return None
    small = rank is not None and energy is None and SMALL * (rank + OVERSAMPLING) <= min(matrix.shape)
    u, s, v = _largest(matrix, rank + OVERSAMPLING) if small and rank is not None else _svd(matrix)
    held = s.double().square_().cumsum(0)
    total = float(matrix.square().sum(dtype=torch.float64)) if small else float(held[-1])
    keep = int((s > s[0] * max(matrix.shape) * torch.finfo(s.dtype).eps).sum())  # below that is rounding
    if energy is not None:
        keep = min(keep, int((held < energy * total).sum()) + 1)
    if rank is not None:
        keep = min(keep, rank)
    root = s[:keep].sqrt()
    b, a = (u[:, :keep] * root).contiguous(), (root[:, None] * v[:keep]).contiguous()
    return Factors(b, a, min(1.0, float(held[keep - 1]) / total))


def _largest(matrix: torch.Tensor, count: int) -> Svd:
    """The `count` largest singular values and their vectors. Begins with the same random subspace every time."""
    start = torch.randn(matrix.shape[1], count, generator=torch.Generator().manual_seed(0))
    span = _orthonormal(matrix @ start)
    for _ in range(ITERATIONS):
        span = _orthonormal(matrix @ _orthonormal(matrix.T @ span))
    u, s, v = _svd(span.T @ matrix)
    return span @ u, s, v


def _orthonormal(columns: torch.Tensor) -> torch.Tensor:
    return torch.linalg.qr(columns)[0]  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType] (no stubs)


def _svd(matrix: torch.Tensor) -> Svd:
    return torch.linalg.svd(matrix, full_matrices=False)  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType] (no stubs)
