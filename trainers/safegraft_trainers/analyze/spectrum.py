"""Of a matrix's singular values s: the spectral norm, the effective rank and the stable rank.

    spectral norm    max s
    effective rank   exp(-sum p log p), p = s / sum s       (Roy and Vetterli, EUSIPCO 2007)
    stable rank      sum s^2 / max s^2                      (Rudelson and Vershynin, arXiv math/0503442)

Knows no models.
"""

# torch types its own functions in part.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

import math
from dataclasses import dataclass

import torch

_CHUNK = 1 << 22  # elements taken into float64 at a time


@dataclass(frozen=True, slots=True)
class Spectrum:
    """rank: the most that the shape allows. Of a zero matrix both ranks are 0.

    Of a stack of matrices (experts) the norm is the largest, the ranks are means.
    """

    spectral_norm: float
    effective_rank: float
    stable_rank: float
    rank: int


def spectrum_of(tensor: torch.Tensor, device: str = "cpu") -> Spectrum | None:
    """Of a tensor [rows, columns], or [experts, rows, columns]; more dimensions (convolutions) count as columns.

    None for vectors. Singular values below 1e-7 of the largest are rounding and count as 0. Memory beyond the
    tensor: a square matrix of its shorter side, in float64.
    """
    if tensor.dim() < 2 or not tensor.numel():
        return None
    matrices = tensor if tensor.dim() == 3 else tensor.flatten(1)[None]
    found = [_of_values(_singular_values(one.to(device))) for one in matrices]
    norms, effective, stable = (list(column) for column in zip(*found, strict=True))
    count = len(found)
    return Spectrum(max(norms), sum(effective) / count, sum(stable) / count, min(matrices.shape[1:]))


def _singular_values(matrix: torch.Tensor) -> torch.Tensor:
    """From the eigenvalues of the Gram matrix over the shorter side: a fraction of a decomposition's time, and in
    float64 more exact than float32 weights are."""
    tall = matrix if matrix.shape[0] >= matrix.shape[1] else matrix.T
    gram = torch.zeros(tall.shape[1], tall.shape[1], dtype=torch.float64, device=matrix.device)
    for chunk in tall.split(max(1, _CHUNK // tall.shape[1])):
        rows = chunk.double()
        gram.addmm_(rows.T, rows)
    values = torch.linalg.eigvalsh(gram)
    largest = values[-1]
    values = torch.where(values > largest * 1e-14, values, 0)  # 1e-7 squared
    return values.sqrt().cpu()


def _of_values(values: torch.Tensor) -> tuple[float, float, float]:
    largest = float(values.max())
    if largest == 0:
        return 0.0, 0.0, 0.0
    scaled = values[values > 0] / largest
    shares = scaled / scaled.sum()
    entropy = -float((shares * shares.log()).sum())
    return largest, math.exp(entropy), float(scaled.square().sum())
