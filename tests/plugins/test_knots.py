"""KnOTS: by hand, against the paper's equations, and what alignment must obey."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from safegraft.testing import check_method
from safegraft_plugins.knots import Knots, align, ties, trimmed
from safegraft_plugins.task_arithmetic import TaskArithmetic

Merge = Callable[..., torch.Tensor]

# Side by side, the task vectors' rows (4, 0, -1, 2, 0, 3) and (0, 1.5, 0, 0, -3, 0) are orthogonal and of different
# length: their directions in output space are the axes, and the aligned task vectors are the task vectors.
BASE = torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]])
X = BASE + torch.tensor([[4.0, 0.0, -1.0], [0.0, 1.5, 0.0]])
Y = BASE + torch.tensor([[2.0, 0.0, 3.0], [0.0, -3.0, 0.0]])


def draw(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def close(one: torch.Tensor, other: torch.Tensor, atol: float = 1e-9) -> None:
    torch.testing.assert_close(one, other, rtol=0, atol=atol)


def reference(taus: list[torch.Tensor], density: float) -> torch.Tensor:
    """The paper's steps: one SVD, the parts S V_i of each model, TIES on them element by element, back by U."""
    u, s, vh = torch.linalg.svd(torch.cat(taus, dim=1), full_matrices=False)
    parts = [torch.diag(s) @ part for part in vh.split(taus[0].shape[1], dim=1)]
    kept = []
    for part in parts:
        order = part.flatten().abs().argsort(descending=True)[: int(part.numel() * density)]
        mask = torch.zeros(part.numel(), dtype=torch.bool)
        mask[order] = True
        kept.append(torch.where(mask.view_as(part), part, 0))
    merged = torch.zeros_like(parts[0])
    for row in range(merged.shape[0]):
        for column in range(merged.shape[1]):
            values = [float(part[row, column]) for part in kept]
            agreeing = [value for value in values if value * sum(values) > 0]
            merged[row, column] = sum(agreeing) / len(agreeing) if agreeing else 0
    return u @ merged


def test_contract() -> None:
    check_method(Knots)
    check_method(Knots, parameters={"density": 0.3, "lambda": 0.5}, input_parameters={"weight": -2}, inputs=3)
    check_method(Knots, parameters={"density": 0})
    check_method(Knots, parameters={"merging": "sum"})


@pytest.mark.parametrize(
    ("shared", "each", "expected"),
    [
        # sums 6, 2 and -1.5: 4 and 2 agree with +, 3 does, -3 agrees with -
        ({}, [{}, {}], [[3.0, 0.0, 3.0], [0.0, -3.0, 0.0]]),
        ({"lambda": 0.5}, [{}, {}], [[1.5, 0.0, 1.5], [0.0, -1.5, 0.0]]),
        # of 6 elements 2 are kept: 4 and 1.5, 3 and -3. Alone in its place each but 1.5 - 3 = -1.5
        ({"density": 0.34}, [{}, {}], [[4.0, 0.0, 3.0], [0.0, -3.0, 0.0]]),
        # 4 - 2, -1 - 3 and 1.5 + 3
        ({}, [{}, {"weight": -1}], [[4.0, 0.0, -2.0], [0.0, 2.25, 0.0]]),
        # 12 + 2, -3 + 3 = 0: nothing is elected, 4.5 - 3
        ({}, [{"weight": 3}, {}], [[7.0, 0.0, 0.0], [0.0, 4.5, 0.0]]),
        ({"density": 0}, [{}, {}], [[0.0, 0.0, 0.0], [0.0, 0.0, 0.0]]),
        ({"merging": "sum"}, [{}, {"weight": 2}], [[8.0, 0.0, 5.0], [0.0, -4.5, 0.0]]),
    ],
)
def test_by_hand(
    merged: Merge, shared: dict[str, Any], each: list[dict[str, float]], expected: list[list[float]]
) -> None:
    close(merged(Knots, [X, Y], each, BASE, **shared), BASE + torch.tensor(expected), 2e-6)


@pytest.mark.parametrize(("shape", "count"), [((6, 9), 2), ((9, 6), 3), ((20, 4), 2), ((5, 5), 1)])
@pytest.mark.parametrize("density", [1.0, 0.4])
def test_against_the_equations(merged: Merge, shape: tuple[int, int], count: int, density: float) -> None:
    """(20, 4) has fewer input directions of both models than output directions."""
    taus = [draw(*shape, seed=seed) for seed in range(count)]
    base = draw(*shape, seed=9)
    result = merged(Knots, [base + tau for tau in taus], base=base, density=density, **{"lambda": 0.7})
    close(result, base + 0.7 * reference(taus, density))


@pytest.mark.parametrize("shape", [(6, 9), (20, 4)])
def test_alignment_loses_nothing(shape: tuple[int, int]) -> None:
    taus = [draw(*shape, seed=seed) for seed in range(3)]
    basis, aligned = align(taus)
    close(basis.mT @ basis, torch.eye(basis.shape[1], dtype=torch.float64))
    for tau, part in zip(taus, aligned, strict=True):
        close(basis @ part, tau)
    close(basis @ (aligned[0] + 2 * aligned[1]), taus[0] + 2 * taus[1])


def test_low_rank_needs_few_directions() -> None:
    """Two LoRAs of rank 2 live in 4 directions, one shared direction less in 3."""
    left, taus = draw(10, 3, seed=1), [draw(2, 12, seed=seed) for seed in (2, 3)]
    basis, aligned = align([left[:, :2] @ taus[0], left[:, 1:] @ taus[1]])
    assert basis.shape == (10, 3)
    assert [part.shape for part in aligned] == [(3, 12), (3, 12)]


def test_a_plain_sum_is_task_arithmetic(merged: Merge) -> None:
    base, tensors = draw(6, 9, seed=9), [draw(6, 9, seed=seed) for seed in range(3)]
    each = [{"weight": weight} for weight in (0.5, -1.0, 2.0)]
    close(
        merged(Knots, tensors, each, base, merging="sum", **{"lambda": 0.7}),
        merged(TaskArithmetic, tensors, each, base, **{"lambda": 0.7}),
    )
    flat = merged(Knots, [x.flatten() for x in tensors], each, base.flatten(), merging="sum")
    close(flat, merged(TaskArithmetic, tensors, each, base).flatten())


def test_equal_models_give_themselves(merged: Merge) -> None:
    base, tau = draw(6, 9, seed=1), draw(6, 9, seed=2)
    close(merged(Knots, [base + tau] * 3, base=base), base + tau)


def test_opposite_models_cancel(merged: Merge) -> None:
    base, tau = torch.zeros(6, 9, dtype=torch.float64), draw(6, 9, seed=2)
    assert torch.equal(merged(Knots, [tau, -tau], base=base), base)


def test_conflicts_are_settled_along_common_directions(merged: Merge) -> None:
    """Turning output space turns the result with it, which TIES on the weights themselves does not do."""
    taus = [draw(6, 9, seed=seed) for seed in range(2)]
    turn = torch.linalg.qr(draw(6, 6, seed=5)).Q
    zero = torch.zeros_like(taus[0])
    close(merged(Knots, [turn @ tau for tau in taus], base=zero), turn @ merged(Knots, taus, base=zero))
    plain = ties([turn @ tau for tau in taus]) - turn @ ties(taus)
    assert float(plain.abs().max()) > 0.1


def test_trimming_keeps_the_largest_and_their_equals() -> None:
    values = [3.0, -1.0, 2.0, -2.0, 0.0]
    for density, expected in {
        1.0: [3.0, -1.0, 2.0, -2.0, 0.0],
        0.6: [3.0, 0.0, 2.0, -2.0, 0.0],
        0.4: [3.0, 0.0, 2.0, -2.0, 0.0],  # 2 of 5, and what equals the second
        0.2: [3.0, 0.0, 0.0, 0.0, 0.0],
        0.1: [0.0, 0.0, 0.0, 0.0, 0.0],  # a share of less than one element
    }.items():
        assert trimmed(torch.tensor(values), density).tolist() == expected


@pytest.mark.parametrize("asked", [{"density": 1.1}, {"density": -0.1}, {"merging": "mean"}])
def test_parameters_are_in_range(asked: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Knots.Parameters.model_validate(asked)
