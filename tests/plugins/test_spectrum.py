"""Singular values through Gram matrices: as exact as promised, and no arbitrary directions."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from safegraft_plugins.spectrum import (
    RESOLUTION,
    STRIP,
    gram,
    norm,
    polar,
    polar_of_blocks,
    polar_with_basis,
    split,
    thin_svd,
)


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def orthonormal(rows: int, columns: int, seed: int = 0) -> torch.Tensor:
    return torch.linalg.qr(draw(rows, columns, seed=seed)).Q


@pytest.mark.parametrize("shape", [(6, 9), (9, 6), (7, 7), (1, 5), (5, 1), (1, 1)])
def test_it_is_the_singular_value_decomposition(shape: tuple[int, int]) -> None:
    matrix = draw(*shape)
    parts = thin_svd(matrix)
    eye = torch.eye(min(shape), dtype=torch.float64)
    torch.testing.assert_close(parts.s, torch.linalg.svdvals(matrix), rtol=1e-10, atol=0)
    torch.testing.assert_close((parts.u * parts.s) @ parts.vh, matrix, rtol=0, atol=1e-12)
    torch.testing.assert_close(parts.u.mT @ parts.u, eye, rtol=0, atol=1e-10)
    torch.testing.assert_close(parts.vh @ parts.vh.mT, eye, rtol=0, atol=1e-10)


def test_by_hand() -> None:
    """[[0, 0, 2], [3, 0, 0]] = 3 e_2 f_1^T + 2 e_1 f_3^T; the sign of each pair is free."""
    parts = thin_svd(torch.tensor([[0.0, 0.0, 2.0], [3.0, 0.0, 0.0]]))
    assert parts.s.tolist() == [3.0, 2.0]
    assert parts.u.abs().tolist() == [[0.0, 1.0], [1.0, 0.0]]
    assert parts.vh.abs().tolist() == [[1.0, 0.0, 0.0], [0.0, 0.0, 1.0]]


@pytest.mark.parametrize("shape", [(8, 12), (12, 8)])
def test_directions_of_zero_are_left_out(shape: tuple[int, int]) -> None:
    low = draw(shape[0], 3, seed=1) @ draw(3, shape[1], seed=2)
    parts = thin_svd(low)
    assert parts.s.shape == (3,)
    torch.testing.assert_close((parts.u * parts.s) @ parts.vh, low, rtol=0, atol=1e-12)
    nothing = thin_svd(torch.zeros(shape))
    assert (nothing.u.shape, nothing.s.shape, nothing.vh.shape) == ((shape[0], 0), (0,), (0, shape[1]))


def test_the_largest_are_kept() -> None:
    matrix = draw(6, 9)
    parts, all_of_them = thin_svd(matrix, rank=2), thin_svd(matrix)
    assert torch.equal(parts.s, all_of_them.s[:2])
    assert torch.equal(all_of_them.first(2).vh, all_of_them.vh[:2])
    assert thin_svd(matrix, rank=0).s.shape == (0,)


def test_rounding_of_what_was_subtracted_is_left_out() -> None:
    noise = draw(4, 5) * 1e-9
    assert thin_svd(noise).s.shape == (4,)
    assert thin_svd(noise, size=1.0).s.shape == (0,)


def test_the_error_of_small_directions_is_as_stated() -> None:
    """Singular values from 1 down to the cut: an angle of some 1e-15 (s_1 / s)^2, times a little for the size."""
    values = torch.logspace(0, -5.5, 12, dtype=torch.float64)
    u, v = orthonormal(20, 12, seed=1), orthonormal(30, 12, seed=2)
    parts = thin_svd((u * values) @ v.mT)
    assert len(parts.s) == 12
    for found, true in ((parts.u, u), (parts.vh.mT, v)):
        sines = (found - true * (true * found).sum(dim=0)).square().sum(dim=0).sqrt()
        assert bool((sines <= 1e-13 + 2e-15 * values**-2).all()), sines
    assert values[-1] > RESOLUTION


@pytest.mark.parametrize("shape", [(9, 4), (4, 9), (5, 5)])
def test_polar_is_the_nearest_orthonormal_matrix(shape: tuple[int, int]) -> None:
    matrix = draw(*shape)
    u, _, vh = torch.linalg.svd(matrix, full_matrices=False)
    torch.testing.assert_close(polar(matrix), u @ vh, rtol=0, atol=1e-10)


def test_polar_of_equal_columns_shares_them() -> None:
    """Q [1 1] has the singular value sqrt 2 on Q and none elsewhere, so the factor is Q [1 1] / sqrt 2."""
    basis = orthonormal(8, 3)
    torch.testing.assert_close(
        polar(torch.cat([basis, basis], dim=1)), torch.cat([basis, basis], dim=1) / 2**0.5, rtol=0, atol=1e-12
    )
    assert not polar(torch.zeros(3, 2)).any()


def test_norm() -> None:
    assert norm(torch.tensor([[3.0, 0.0], [0.0, -4.0]])) == 5
    assert norm(torch.full((1, 1), 1e30)) == pytest.approx(1e30)  # float32 cannot hold its square


def test_threads_get_the_same_bits() -> None:
    matrix = draw(40, 60)
    alone = polar(matrix)
    with ThreadPoolExecutor(4) as threads:
        assert all(torch.equal(alone, other) for other in threads.map(polar, [matrix.clone() for _ in range(8)]))


def overlapping(rows: int, first: int, second: int, cosines: list[float]) -> list[torch.Tensor]:
    """Two blocks with orthonormal columns, at these cosines to each other; the rest of them are orthogonal."""
    basis = orthonormal(rows, first + second, seed=3)
    one, other = basis[:, :first], basis[:, first:].clone()
    for index, cosine in enumerate(cosines):
        other[:, index] = cosine * one[:, index] + (1 - cosine**2) ** 0.5 * other[:, index]
    return [one @ orthonormal(first, first, seed=4), other @ orthonormal(second, second, seed=5)]


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize(
    "cosines", [[], [0.0, 1e-9, 1e-4], [9.9e-4, 1.01e-3, 0.5], [0.3, 0.9, 0.999], [1.0, 0.2], [1.0, 1.0, 1.0]]
)
def test_polar_of_two_blocks(cosines: list[float], turned: bool) -> None:
    blocks = overlapping(20, 7, 5, cosines)[:: -1 if turned else 1]
    matrix = torch.cat(blocks, dim=1)
    u, s, vh = torch.linalg.svd(matrix, full_matrices=False)
    kept = s > RESOLUTION * s[0]
    expected = u[:, kept] @ vh[kept]
    assert torch.linalg.matrix_rank(expected) == 12 - cosines.count(1.0)
    torch.testing.assert_close(polar_of_blocks(blocks), expected, rtol=0, atol=1e-11)


@pytest.mark.parametrize("seed", range(3))
def test_polar_of_random_blocks_is_the_polar_factor(seed: int) -> None:
    """Side by side they are square: some directions almost coincide."""
    blocks = [orthonormal(60, 30, seed=2 * seed), orthonormal(60, 30, seed=2 * seed + 1)]
    expected = polar(torch.cat(blocks, dim=1))
    torch.testing.assert_close(polar_of_blocks(blocks), expected, rtol=0, atol=1e-9)


def test_polar_of_other_numbers_of_blocks() -> None:
    one, other, third = (orthonormal(9, 3, seed=seed) for seed in range(3))
    empty = one[:, :0]
    assert torch.equal(polar_of_blocks([one]), one)
    assert torch.equal(polar_of_blocks([empty, one, empty]), one)
    assert polar_of_blocks([empty]).shape == (9, 0)
    torch.testing.assert_close(polar_of_blocks([one, other, third]), polar(torch.cat([one, other, third], dim=1)))


@pytest.mark.parametrize("rank", [None, 0, 3, 6])
def test_what_the_left_vectors_leave_out_has_a_basis(rank: int | None) -> None:
    low = draw(8, 5, seed=1) @ draw(5, 9, seed=2)
    parts, beside = split(low, rank=rank)
    assert beside is not None
    whole = torch.cat([parts.u, beside], dim=1)
    torch.testing.assert_close(whole.mT @ whole, torch.eye(8, dtype=torch.float64), rtol=0, atol=1e-14)
    assert parts.u.shape[1] == min(5, 5 if rank is None else rank)
    assert split(low.mT, rank=rank)[1] is None


def svd_polar(matrix: torch.Tensor) -> torch.Tensor:
    """By torch's singular value decomposition, without the directions of zero."""
    u, s, vh = torch.linalg.svd(matrix, full_matrices=False)
    kept = s > RESOLUTION * s[0]
    return u[:, kept] @ vh[kept]


@pytest.mark.parametrize("columns", [0, 1, 4, 11, 12, 15])
@pytest.mark.parametrize("size", [1.0, 1e-3, 30.0])
def test_polar_beside_a_basis(columns: int, size: float) -> None:
    """Against the decomposition, whether the small problem is taken (fewer than 12 columns) or not."""
    basis, others = orthonormal(40, 12, seed=1), size * draw(40, columns, seed=2)
    expected = svd_polar(torch.cat([basis, others], dim=1))
    torch.testing.assert_close(polar_with_basis(basis, others), expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize(
    "others",
    [
        lambda basis: basis[:, :3] @ draw(3, 3, seed=2),  # within the basis
        lambda basis: torch.cat([basis[:, :2], draw(20, 2, seed=3)], dim=1),  # partly
        lambda basis: (lambda one: torch.cat([one, one, one - basis[:, :1]], dim=1))(draw(20, 1, seed=4)),
        lambda basis: draw(20, 3, seed=5) - basis @ (basis.mT @ draw(20, 3, seed=5)),  # orthogonal to it
        lambda basis: torch.zeros(20, 2, dtype=torch.float64),
    ],
)
def test_columns_that_depend_on_a_basis_share_what_they_span(
    others: Callable[[torch.Tensor], torch.Tensor],
) -> None:
    basis = orthonormal(20, 9, seed=1)
    columns = others(basis)
    expected = svd_polar(torch.cat([basis, columns], dim=1))
    torch.testing.assert_close(polar_with_basis(basis, columns), expected, rtol=0, atol=1e-11)


@pytest.mark.parametrize("shape", [(7, 4), (STRIP, 3), (2 * STRIP + 5, 6)])
def test_gram_is_the_product(shape: tuple[int, int]) -> None:
    for matrix in (draw(*shape), draw(*shape[::-1]).mT):
        square = gram(matrix)
        torch.testing.assert_close(square, matrix @ matrix.mT, rtol=0, atol=1e-13)
        assert torch.equal(square, square.mT)
