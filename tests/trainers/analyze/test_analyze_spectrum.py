"""Singular values of matrices whose values are known."""

import math

import pytest
import torch

from safegraft_trainers.analyze.spectrum import spectrum_of


@pytest.mark.parametrize("shape", [(6, 9), (9, 6), (40, 3), (1, 5)])
def test_a_rank_one_matrix(shape: tuple[int, int]) -> None:
    left, right = torch.arange(1.0, shape[0] + 1), torch.arange(1.0, shape[1] + 1)
    found = spectrum_of(torch.outer(left, right))
    assert found is not None
    assert found.spectral_norm == pytest.approx(float(left.norm() * right.norm()), rel=1e-6)
    assert found.effective_rank == pytest.approx(1, abs=1e-4)
    assert found.stable_rank == pytest.approx(1, abs=1e-9)
    assert found.rank == min(shape)


def test_values_by_hand() -> None:
    # Singular values 4, 3, 0: shares 4/7 and 3/7.
    found = spectrum_of(torch.tensor([[0.0, -3.0, 0.0], [4.0, 0.0, 0.0], [0.0, 0.0, 0.0]]))
    assert found is not None
    assert found.spectral_norm == pytest.approx(4)
    assert found.stable_rank == pytest.approx(25 / 16)
    assert found.effective_rank == pytest.approx((7 / 4) ** (4 / 7) * (7 / 3) ** (3 / 7))


def test_an_orthogonal_matrix_has_full_rank() -> None:
    found = spectrum_of(torch.linalg.qr(torch.randn(12, 12, generator=torch.Generator().manual_seed(1)))[0])
    assert found is not None
    assert (found.effective_rank, found.stable_rank) == pytest.approx((12, 12), rel=1e-4)


def test_agrees_with_a_decomposition() -> None:
    matrix = torch.randn(30, 17, generator=torch.Generator().manual_seed(2))
    values = torch.linalg.svdvals(matrix.double())
    shares = values / values.sum()
    found = spectrum_of(matrix)
    assert found is not None
    assert found.spectral_norm == pytest.approx(float(values[0]), rel=1e-9)
    assert found.effective_rank == pytest.approx(math.exp(-float((shares * shares.log()).sum())), rel=1e-9)


def test_zero_vectors_experts_and_convolutions() -> None:
    zero = spectrum_of(torch.zeros(3, 4))
    assert zero is not None
    assert (zero.spectral_norm, zero.effective_rank, zero.stable_rank) == (0, 0, 0)
    assert spectrum_of(torch.ones(5)) is None
    experts = spectrum_of(torch.stack([torch.eye(4), 2 * torch.ones(4, 4)]))
    assert experts is not None
    assert experts.spectral_norm == pytest.approx(8)  # of ones times two: 2 * 4
    assert experts.effective_rank == pytest.approx((4 + 1) / 2, abs=1e-4)
    convolution = spectrum_of(torch.ones(4, 2, 3, 3))
    assert convolution is not None
    assert (convolution.rank, convolution.spectral_norm) == (4, pytest.approx(math.sqrt(72)))
