"""What of an update is accepted, and how the rest makes up for it: by hand, and against plain double-precision code."""

from collections.abc import Callable

import pytest
import torch
from pydantic import ValidationError

from safegraft.testing import check_method
from safegraft_plugins.safety.safe_delta import BLOCK, UNIT, SafeDelta, accept, compensate, inverse_factor

Merge = Callable[..., torch.Tensor]

A = torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]])
F = A + torch.tensor([[1.0, 2.0, 4.0], [-1.0, 0.0, 1.0]])


def drawn(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def gram(seed: int, width: int) -> torch.Tensor:
    x = drawn(seed, 2 * width, width)
    return x.T @ x / len(x)


def known(matrix: torch.Tensor | None) -> list[dict[str, torch.Tensor | None]]:
    return [{"gram": matrix}]


@pytest.mark.parametrize("s", [0.11, 1e6])
def test_contract(s: float) -> None:
    check_method(SafeDelta, parameters={"s": s})


@pytest.mark.parametrize(
    ("budget", "expected"),
    [
        # H = diag(4, 1, 2): costs 4, 1, 2 (each plus the damping), so the columns' order is second, third, first.
        # Losses d^2 cost, column by column: 4 0 | 32 2 | 4 4; summed 4 4 36 38 42 46. Nothing is compensated.
        (3.0, [[0.0, 0.0, 0.0], [0.0, 0.0, 0.0]]),
        (5.0, [[0.0, 2.0, 0.0], [0.0, 0.0, 0.0]]),
        (37.0, [[0.0, 2.0, 4.0], [0.0, 0.0, 0.0]]),
        (40.0, [[0.0, 2.0, 4.0], [0.0, 0.0, 1.0]]),
        (44.0, [[1.0, 2.0, 4.0], [0.0, 0.0, 1.0]]),
        (48.0, [[1.0, 2.0, 4.0], [-1.0, 0.0, 1.0]]),
    ],
)
def test_independent_inputs_by_hand(merged: Merge, budget: float, expected: list[list[float]]) -> None:
    # The budget is s mean(cost) out in / 4096^2, with mean(cost) = 7/3 and six elements: 14 s / 4096^2
    statistics = known(torch.diag(torch.tensor([4.0, 1.0, 2.0])))
    result = merged(SafeDelta, [F], roles=[A], statistics=statistics, s=budget * UNIT / 14, exempt=0)
    torch.testing.assert_close(result - A, torch.tensor(expected), rtol=0, atol=1e-6)


def test_the_costliest_are_exempt(merged: Merge) -> None:
    # 40% of six are two: the first column
    statistics = known(torch.diag(torch.tensor([4.0, 1.0, 2.0])))
    result = merged(SafeDelta, [F], roles=[A], statistics=statistics, s=1e9, exempt=0.4)
    torch.testing.assert_close(result - A, torch.tensor([[0.0, 2.0, 4.0], [0.0, 0.0, 1.0]]), rtol=0, atol=1e-6)


def test_the_factor() -> None:
    h = gram(1, 7)
    factor = inverse_factor(h)
    h += 0.01 * h.diagonal().mean() * torch.eye(7, dtype=torch.float64)
    torch.testing.assert_close(factor.T @ factor, torch.linalg.inv(h))
    assert torch.equal(factor, factor.triu())
    for first in range(7):
        remaining = torch.linalg.inv(h[first:, first:])
        torch.testing.assert_close(factor[first, first] ** 2, remaining[0, 0])


def test_compensation_is_the_least_loss() -> None:
    """With accepted columns on the left, the others' optimum has a closed form: e_free = -e_fixed H_cf H_ff^-1."""
    h, weight, target = gram(2, 9), drawn(3, 4, 9), drawn(4, 4, 9)
    fixed = 5
    accepted = torch.zeros(4, 9, dtype=torch.bool)
    accepted[:, :fixed] = True
    factor = torch.linalg.cholesky(torch.linalg.inv(h), upper=True)
    change = target[:, :fixed] - weight[:, :fixed]
    best = weight[:, fixed:] - change @ h[:fixed, fixed:] @ torch.linalg.inv(h[fixed:, fixed:])
    result = compensate(weight.clone(), target, accepted, factor)
    torch.testing.assert_close(result, torch.cat([target[:, :fixed], best], dim=1))


def test_compensation_column_by_column() -> None:
    """Optimal Brain Surgeon with an inverse for each column, over more columns than a block holds."""
    width = BLOCK + 22
    h, weight, target = gram(5, width), drawn(6, 3, width), drawn(7, 3, width)
    accepted = drawn(8, 3, width) > 0
    expected = weight.clone()
    for column in range(width):
        inverse = torch.linalg.inv(h[column:, column:])
        now = torch.where(accepted[:, column], target[:, column], expected[:, column])
        error = (expected[:, column] - now) / inverse[0, 0]
        expected[:, column:] -= error[:, None] * inverse[0][None]
        torch.testing.assert_close(expected[:, column], now)
    factor = torch.linalg.cholesky(torch.linalg.inv(h), upper=True)
    torch.testing.assert_close(compensate(weight, target, accepted, factor), expected)


@pytest.mark.parametrize("s", [0.0, 1e5, 1e6, 3e6, 1e9])
def test_acceptance_one_by_one(s: float) -> None:
    delta, freedom = drawn(9, 5, 6), drawn(10, 6).abs() + 0.1
    freedom[3] = freedom[1]
    parameters = SafeDelta.Parameters(s=s)
    order = sorted(((column, row) for column in range(6) for row in range(5)), key=lambda at: (-freedom[at[0]], at))
    budget = s * float((1 / freedom).mean()) * 30 / UNIT
    expected, spent = torch.zeros(5, 6, dtype=torch.bool), 0.0
    for column, row in order[: 30 - int(0.15 * 30)]:
        spent += float(delta[row, column] ** 2 / freedom[column])
        expected[row, column] = spent <= budget
    assert torch.equal(accept(delta, freedom, parameters), expected)


def test_limits(merged: Merge) -> None:
    a, f = drawn(11, 6, 5).float(), drawn(12, 6, 5).float()
    statistics = known(gram(13, 5).float())
    assert torch.equal(merged(SafeDelta, [f], roles=[a], statistics=statistics, s=0), a)
    assert torch.equal(merged(SafeDelta, [f], roles=[a], statistics=statistics, s=1e9, exempt=0), f)
    assert torch.equal(merged(SafeDelta, [a], roles=[a], statistics=statistics), a)
    assert torch.equal(merged(SafeDelta, [f], roles=[a], statistics=known(None), s=1e9), a)


@pytest.mark.parametrize("never", [[], [2]])
def test_the_statistics_scale_does_not_matter(merged: Merge, never: list[int]) -> None:
    a, f, h = drawn(14, 6, 5), drawn(15, 6, 5), gram(16, 5)
    h[never] = h[:, never] = 0
    one = merged(SafeDelta, [f], roles=[a], statistics=known(h), s=1e6)
    assert not torch.equal(one, a)
    torch.testing.assert_close(merged(SafeDelta, [f], roles=[a], statistics=known(h * 1e-6), s=1e6), one)


def test_inputs_that_are_never_excited(merged: Merge) -> None:
    h = torch.diag(torch.tensor([0.0, 1.0, 0.0]))
    # Damped, H = diag(1, 301, 1) / 300. The first and third column cost (1 + 1) / 300 and (16 + 1) / 300, the second
    # 4 * 301 / 300 more. The budget is 0.1: mean(cost) is 303 / 900.
    within = 0.1 * UNIT / (303 / 900 * 6)
    result = merged(SafeDelta, [F], roles=[A], statistics=known(h), s=within, exempt=0)
    torch.testing.assert_close(result - A, torch.tensor([[1.0, 0.0, 4.0], [-1.0, 0.0, 1.0]]))
    result = merged(SafeDelta, [F], roles=[A], statistics=known(h), s=1e9, exempt=0)
    assert torch.equal(result, F)
    assert bool(torch.isfinite(merged(SafeDelta, [F], roles=[A], statistics=known(h * 0))).all())


@pytest.mark.parametrize("asked", [{"s": -1}, {"exempt": 1.1}, {"s": float("inf")}])
def test_parameters_have_ranges(asked: dict[str, float]) -> None:
    with pytest.raises(ValidationError):
        SafeDelta.Parameters.model_validate(asked)
