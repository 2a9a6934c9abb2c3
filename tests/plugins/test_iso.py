"""Isotropic merging: by hand, against the paper's equations, and flat spectra."""

from collections.abc import Callable

import pytest
import torch
from pydantic import ValidationError

from safegraft.testing import check_method
from safegraft_plugins.iso import IsoC, IsoCts, own_directions

Merge = Callable[..., torch.Tensor]

BASE = torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]])


def draw(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def close(one: torch.Tensor, other: torch.Tensor, atol: float = 1e-9) -> None:
    torch.testing.assert_close(one, other, rtol=0, atol=atol)


def procrustes(matrix: torch.Tensor) -> torch.Tensor:
    u, _, vh = torch.linalg.svd(matrix, full_matrices=False)
    return u @ vh


def iso_c(taus: list[torch.Tensor]) -> torch.Tensor:
    u, s, vh = torch.linalg.svd(torch.stack(taus).sum(dim=0), full_matrices=False)
    return u @ torch.diag(torch.full_like(s, float(s.mean()))) @ vh


def iso_cts(taus: list[torch.Tensor], own: int) -> torch.Tensor:
    """The paper's steps with `own` directions for each task, written for matrices of full rank."""
    u, s, vh = torch.linalg.svd(torch.stack(taus).sum(dim=0), full_matrices=False)
    common = len(s) - own * len(taus)
    left, values, right = [u[:, :common]], [s[:common]], [vh[:common]]
    project = torch.eye(u.shape[0], dtype=u.dtype) - u[:, :common] @ u[:, :common].mT
    for tau in taus:
        p, t, qh = torch.linalg.svd(project @ tau, full_matrices=False)
        left.append(p[:, :own])
        values.append(t[:own])
        right.append(qh[:own])
    scale = float(torch.cat(values).mean())
    return scale * procrustes(torch.cat(left, dim=1)) @ procrustes(torch.cat(right))


def test_contract() -> None:
    check_method(IsoC)
    check_method(IsoC, parameters={"lambda": 1.3}, input_parameters={"weight": -2}, inputs=3)
    for fraction in (0, 0.5, 0.8, 1):
        check_method(IsoCts, parameters={"common_space_fraction": fraction}, inputs=3)
    check_method(IsoCts)


def test_iso_c_by_hand(merged: Merge) -> None:
    """The sum 3 e_1 f_1^T - e_2 f_2^T has the singular values 3 and 1; both become 2."""
    one = BASE + torch.tensor([[3.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
    other = BASE + torch.tensor([[0.0, 0.0, 0.0], [0.0, -2.0, 0.0]])
    close(merged(IsoC, [one, other], base=BASE), BASE + torch.tensor([[2.0, 0.0, 0.0], [0.0, -2.0, 0.0]]), 2e-6)


def test_iso_cts_without_a_common_space_by_hand(merged: Merge) -> None:
    """Fraction 0: each model's first direction, 2 e_1 f_1^T and 3 (0.6, 0.8) f_3^T; the mean of 2 and 3 is 2.5.

    (1, 0) and (0.6, 0.8) are turned apart into (3, -1) / sqrt 10 and (1, 3) / sqrt 10, as for tsv_m.
    """
    one = BASE + torch.tensor([[2.0, 0.0, 0.0], [0.0, 0.0, 0.0]])
    other = BASE + torch.tensor([[0.0, 0.0, 1.8], [0.0, 0.0, 2.4]])
    expected = BASE + 2.5 * torch.tensor([[3.0, 0.0, 1.0], [-1.0, 0.0, 3.0]]) / 10**0.5
    close(merged(IsoCts, [one, other], base=BASE, common_space_fraction=0), expected, 2e-6)


@pytest.mark.parametrize(("shape", "count"), [((6, 9), 2), ((9, 6), 3), ((7, 7), 1)])
def test_iso_c_against_the_equations(merged: Merge, shape: tuple[int, int], count: int) -> None:
    taus = [draw(*shape, seed=seed) for seed in range(count)]
    base = draw(*shape, seed=9)
    result = merged(IsoC, [base + tau for tau in taus], base=base, **{"lambda": 0.7})
    close(result, base + 0.7 * iso_c(taus))


@pytest.mark.parametrize(
    ("shape", "count", "fraction", "own"),
    [
        ((10, 14), 2, 0.8, 1),  # 10 - 8 = 2 directions beside the common ones, 1 each
        ((14, 10), 3, 0.5, 2),  # 5 / 3 rounds to 2 each: 4 are common
        ((30, 30), 2, 0.8, 3),  # square, with 24 of 30 in common, as in a model
        ((10, 10), 3, 0.0, 3),  # 10 / 3 rounds to 3 each: 1 is common
    ],
)
def test_iso_cts_against_the_equations(
    merged: Merge, shape: tuple[int, int], count: int, fraction: float, own: int
) -> None:
    taus = [draw(*shape, seed=seed) for seed in range(count)]
    base = draw(*shape, seed=9)
    result = merged(IsoCts, [base + tau for tau in taus], base=base, common_space_fraction=fraction)
    close(result, base + iso_cts(taus, own))


@pytest.mark.parametrize("method", [IsoC, IsoCts])
@pytest.mark.parametrize("shape", [(10, 14), (14, 10)])
def test_spectra_are_flat(merged: Merge, method: type[IsoC], shape: tuple[int, int]) -> None:
    taus = [draw(*shape, seed=seed) for seed in range(2)]
    values = torch.linalg.svdvals(merged(method, taus, base=torch.zeros_like(taus[0])))
    assert float(values[0]) > 1
    close(values, values[:1].expand_as(values))


def test_where_the_sum_is_not_of_full_rank_its_own_directions_are_flat(merged: Merge) -> None:
    """Two of rank 1, with the singular values 6 and 2 in orthogonal spaces: 4 and 4, and zeros."""
    basis, other = (torch.linalg.qr(draw(8, 8, seed=seed)).Q for seed in (1, 2))
    first, second = torch.outer(basis[0], other[0]), torch.outer(basis[1], other[1])
    result = merged(IsoC, [6 * first, 2 * second], base=torch.zeros_like(basis))
    close(result, 4 * (first + second))


def test_one_model_has_nothing_beside_the_common_space(merged: Merge) -> None:
    tau = draw(8, 11, seed=1)
    zero = torch.zeros_like(tau)
    close(merged(IsoCts, [tau], base=zero, common_space_fraction=0.5), merged(IsoC, [tau], base=zero))


def test_a_full_common_space_is_iso_c(merged: Merge) -> None:
    taus = [draw(8, 11, seed=seed) for seed in range(2)]
    zero = torch.zeros_like(taus[0])
    close(merged(IsoCts, taus, base=zero, common_space_fraction=1), merged(IsoC, taus, base=zero))


def test_what_lies_in_the_common_space_leaves_no_noise(merged: Merge) -> None:
    """Equal models of rank 2: the common space holds them whole, and rounding is left beside it."""
    tau = draw(8, 2, seed=1) @ draw(2, 8, seed=2)
    zero = torch.zeros_like(tau)
    close(merged(IsoCts, [tau, tau], base=zero, common_space_fraction=0.5), merged(IsoC, [tau, tau], base=zero))


@pytest.mark.parametrize(
    ("directions", "count", "fraction", "own"),
    [(4096, 2, 0.8, 410), (10, 3, 0.8, 1), (10, 5, 0.8, 0), (2, 3, 0.0, 0), (1, 1, 0.0, 1), (6, 2, 1.0, 0)],
)
def test_the_rest_is_shared_out_evenly(directions: int, count: int, fraction: float, own: int) -> None:
    """4096 - 3276 = 820, 410 each; 2 / 3 would round to 1 each, which 2 directions cannot give to 3 models."""
    assert own_directions(directions, count, fraction) == own


@pytest.mark.parametrize("fraction", [-0.1, 1.1, float("nan")])
def test_the_fraction_is_from_0_to_1(fraction: float) -> None:
    with pytest.raises(ValidationError):
        IsoCts.Parameters.model_validate({"common_space_fraction": fraction})
