"""Task singular vectors: by hand, against the paper's equations, and the interference that must go."""

from collections.abc import Callable

import pytest
import torch

from safegraft.testing import check_method
from safegraft_plugins.spectrum import polar, thin_svd
from safegraft_plugins.tsv import TsvMerge

Merge = Callable[..., torch.Tensor]

BASE = torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]])


def draw(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def close(one: torch.Tensor, other: torch.Tensor, atol: float = 1e-9) -> None:
    torch.testing.assert_close(one, other, rtol=0, atol=atol)


def reference(taus: list[torch.Tensor]) -> torch.Tensor:
    """The paper's steps: truncate to r / N, concatenate, solve both Procrustes problems, multiply."""
    rank = min(taus[0].shape) // len(taus)
    parts = [torch.linalg.svd(tau, full_matrices=False) for tau in taus]
    u_hat = torch.cat([u[:, :rank] for u, _, _ in parts], dim=1)
    s_hat = torch.diag(torch.cat([s[:rank] for _, s, _ in parts]))
    v_hat = torch.cat([vh[:rank] for _, _, vh in parts])
    p_u, _, q_u = torch.linalg.svd(u_hat, full_matrices=False)
    p_v, _, q_v = torch.linalg.svd(v_hat, full_matrices=False)
    return p_u @ q_u @ s_hat @ p_v @ q_v


def test_contract() -> None:
    check_method(TsvMerge)
    check_method(TsvMerge, parameters={"lambda": 0.5}, input_parameters={"weight": -2}, inputs=3)


def test_orthogonal_tasks_by_hand(merged: Merge) -> None:
    """r = 2 and N = 2, so each gives its first triplet: 2 e_1 f_1^T and 3 e_2 f_3^T, orthogonal already."""
    one = BASE + torch.tensor([[2.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
    other = BASE + torch.tensor([[0.0, 1.0, 0.0], [0.0, 0.0, 3.0]])
    expected = BASE + torch.tensor([[2.0, 0.0, 0.0], [0.0, 0.0, 3.0]])
    close(merged(TsvMerge, [one, other], base=BASE), expected, 1e-6)


def test_overlapping_tasks_by_hand(merged: Merge) -> None:
    """2 e_1 f_1^T and 3 u f_3^T with u = (0.6, 0.8).

    U^T U = [[1, 0.6], [0.6, 1]] has the eigenvalues 1.6 and 0.4, so its inverse root has (1/sqrt 1.6 + 1/sqrt 0.4) / 2
    = 1.185854 on the diagonal and -0.395285 beside it. U' = [1.185854 e_1 - 0.395285 u, 1.185854 u - 0.395285 e_1]
    = [(3, -1), (1, 3)] / sqrt 10. V is orthonormal. U' S V'^T = [[2*3, 0, 3*1], [2*-1, 0, 3*3]] / sqrt 10.
    """
    one = BASE + torch.tensor([[2.0, 0.0, 0.0], [0.0, 0.0, 0.0]])
    other = BASE + torch.tensor([[0.0, 0.0, 1.8], [0.0, 0.0, 2.4]])
    expected = BASE + torch.tensor([[6.0, 0.0, 3.0], [-2.0, 0.0, 9.0]]) / 10**0.5
    close(merged(TsvMerge, [one, other], base=BASE), expected, 2e-6)


@pytest.mark.parametrize(("shape", "count"), [((8, 12), 2), ((12, 8), 3), ((9, 9), 4), ((7, 10), 2)])
def test_against_the_equations(merged: Merge, shape: tuple[int, int], count: int) -> None:
    taus = [draw(*shape, seed=seed) for seed in range(count)]
    base = draw(*shape, seed=9)
    result = merged(TsvMerge, [base + tau for tau in taus], base=base, **{"lambda": 0.7})
    close(result, base + 0.7 * reference(taus))


def test_one_model_is_kept_whole(merged: Merge) -> None:
    base, tau = draw(5, 7, seed=1), draw(5, 7, seed=2)
    close(merged(TsvMerge, [base + tau], base=base, **{"lambda": 0.5}), base + 0.5 * tau, 1e-14)


def test_equal_models_give_their_leading_directions(merged: Merge) -> None:
    """Both columns of [u u] become u / sqrt 2: s/2 u v^T + s/2 u v^T."""
    tau = draw(6, 9, seed=1)
    u, s, vh = torch.linalg.svd(tau, full_matrices=False)
    leading = (u[:, :3] * s[:3]) @ vh[:3]
    close(merged(TsvMerge, [tau, tau], base=torch.zeros_like(tau)), leading)


def test_a_model_that_learned_nothing_takes_room_but_no_part(merged: Merge) -> None:
    tau = draw(6, 9, seed=1)
    zero = torch.zeros_like(tau)
    u, s, vh = torch.linalg.svd(tau, full_matrices=False)
    close(merged(TsvMerge, [tau, zero], base=zero), (u[:, :3] * s[:3]) @ vh[:3])


def test_low_rank_tasks_are_not_mixed_with_arbitrary_directions(merged: Merge) -> None:
    """Two of rank 1 in orthogonal spaces: the sum, though r / N = 4 leaves room for three more each."""
    basis, other = (torch.linalg.qr(draw(8, 8, seed=seed)).Q for seed in (1, 2))
    taus = [2 * torch.outer(basis[0], other[0]), 5 * torch.outer(basis[1], other[1])]
    close(merged(TsvMerge, taus, base=torch.zeros_like(basis)), taus[0] + taus[1])


@pytest.mark.parametrize("shape", [(2, 9), (9, 1)])
def test_more_models_than_directions_take_the_mean(merged: Merge, shape: tuple[int, int]) -> None:
    taus = [draw(*shape, seed=seed) for seed in range(3)]
    close(merged(TsvMerge, taus, base=torch.zeros(shape, dtype=torch.float64)), sum(taus, torch.zeros(1)) / 3)


def test_interference_is_gone() -> None:
    """The paper's measure, the 1-norm of (U^T U - I) S (V^T V - I), before and after."""
    taus = [draw(12, 15, seed=seed) for seed in range(3)]
    parts = [thin_svd(tau, rank=4) for tau in taus]
    u, s, v = (
        torch.cat([part.u for part in parts], dim=1),
        torch.cat([part.s for part in parts]),
        torch.cat([part.vh for part in parts]).mT,
    )
    eye = torch.eye(12, dtype=torch.float64)

    def interference(left: torch.Tensor, right: torch.Tensor) -> float:
        return float(((left.mT @ left - eye) @ torch.diag(s) @ (right.mT @ right - eye)).abs().sum())

    assert interference(u, v) > 10
    assert interference(polar(u), polar(v)) < 1e-12


def test_each_task_acts_in_its_own_directions(merged: Merge) -> None:
    """The merged spectrum is that of all tasks together; that of the sum is not."""
    taus = [draw(12, 15, seed=seed) for seed in range(3)]
    kept = torch.cat([torch.linalg.svdvals(tau)[:4] for tau in taus]).sort(descending=True).values
    result = merged(TsvMerge, taus, base=torch.zeros_like(taus[0]))
    close(torch.linalg.svdvals(result), kept)
    assert float((torch.linalg.svdvals(taus[0] + taus[1] + taus[2]) - kept).abs().max()) > 1
