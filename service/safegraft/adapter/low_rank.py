"""The best low-rank factors of a matrix, and how much of it they hold."""

from dataclasses import dataclass

import torch


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
    root of them. None for a matrix of zeros. Raises ValueError when a value is not finite.
    """
    if not bool(torch.isfinite(matrix).all()):
        raise ValueError("holds NaN or inf")
    if not bool(matrix.any()):
        return None
    u, s, v = _svd(matrix)
    held = s.double().square_().cumsum(0)
    total = float(held[-1])
    keep = int((s > s[0] * max(matrix.shape) * torch.finfo(s.dtype).eps).sum())  # below that is rounding
    if energy is not None:
        keep = min(keep, int((held < energy * total).sum()) + 1)
    if rank is not None:
        keep = min(keep, rank)
    root = s[:keep].sqrt()
    return Factors(
        (u[:, :keep] * root).contiguous(), (root[:, None] * v[:keep]).contiguous(), float(held[keep - 1]) / total
    )


def _svd(matrix: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    return torch.linalg.svd(matrix, full_matrices=False)  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType] (no stubs)
