"""Factors of matrices whose singular values are known, since the matrices are made from them."""

import pytest
import torch

from safegraft.adapter.low_rank import factorise


def matrix_of(values: torch.Tensor, rows: int, columns: int) -> torch.Tensor:
    """A matrix with these singular values."""
    generator = torch.Generator().manual_seed(3)
    sides = [torch.linalg.qr(torch.randn(size, len(values), generator=generator))[0] for size in (rows, columns)]
    return (sides[0] * values) @ sides[1].T


@pytest.mark.parametrize(("rows", "columns"), [(300, 200), (200, 300), (40, 30)])
@pytest.mark.parametrize("rank", [1, 4, 20])
def test_the_largest_singular_values_are_kept(rows: int, columns: int, rank: int) -> None:
    """Both ways: rank 1 and 4 of the large ones are found by iteration, all else by decomposition."""
    values = 0.8 ** torch.arange(30.0)
    matrix = matrix_of(values, rows, columns)
    found = factorise(matrix, rank=rank)
    assert found is not None
    assert (tuple(found.b.shape), tuple(found.a.shape)) == ((rows, rank), (rank, columns))
    error = torch.linalg.norm(matrix - found.b @ found.a)
    torch.testing.assert_close(error, values[rank:].norm(), rtol=1e-4, atol=1e-6)
    kept = values[:rank].square().sum() / values.square().sum()
    assert found.energy == pytest.approx(float(kept), rel=1e-5)


def test_a_flat_spectrum_costs_the_iteration_little() -> None:
    """Nothing is harder for it than a random matrix; even there it finds all but a fiftieth of what could be kept."""
    matrix = torch.randn(400, 300, generator=torch.Generator().manual_seed(1))
    found = factorise(matrix, rank=8)
    assert found is not None
    values = torch.linalg.svdvals(matrix)
    best = float(values[:8].square().sum() / values.square().sum())
    assert 0.98 * best < found.energy <= best * (1 + 1e-5)
    held = 1 - float(torch.linalg.norm(matrix - found.b @ found.a) ** 2 / torch.linalg.norm(matrix) ** 2)
    assert found.energy == pytest.approx(held, rel=1e-3)


@pytest.mark.parametrize("size", [30, 300])
def test_a_rank_above_the_matrix_s_own_adds_nothing(size: int) -> None:
    found = factorise(matrix_of(torch.tensor([3.0, 1.0]), size, size), rank=20)
    assert found is not None
    assert found.rank == 2
    assert found.energy == pytest.approx(1)


def test_it_is_a_function_of_the_matrix_alone() -> None:
    matrix = torch.randn(300, 200, generator=torch.Generator().manual_seed(2))
    torch.manual_seed(1)
    before = torch.get_rng_state()
    one, two = factorise(matrix, rank=4), factorise(matrix, rank=4)
    assert one is not None
    assert two is not None
    assert torch.equal(one.a, two.a)
    assert torch.equal(one.b, two.b)
    assert torch.equal(before, torch.get_rng_state())


def test_zeros_have_no_factors_and_nan_is_refused() -> None:
    assert factorise(torch.zeros(3, 4), rank=2) is None
    with pytest.raises(ValueError, match="NaN or inf"):
        factorise(torch.tensor([[1.0, torch.nan]]), rank=1)
