"""WUDI in closed form: by hand, against the flow that it solves, and against the formula written out."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from safegraft.methods import MergeMethod
from safegraft.testing import check_method
from safegraft_plugins.wudi import Aswudi, Swudi, participating, share

Merge = Callable[..., torch.Tensor]

BASE = torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]])
HALF = math.log(2) / 2  # the time in which an eigenvalue of 2 has moved half the way


def draw(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def close(one: torch.Tensor, other: torch.Tensor, atol: float = 1e-9) -> None:
    torch.testing.assert_close(one, other, rtol=0, atol=atol)


def operators(taus: list[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    squares = [float((tau * tau).sum()) for tau in taus]
    c = sum((tau.mT @ tau / square for tau, square in zip(taus, squares, strict=True)), torch.zeros(1))
    d = sum((tau @ tau.mT @ tau / square for tau, square in zip(taus, squares, strict=True)), torch.zeros(1))
    return c, d


def closed_form(taus: list[torch.Tensor], start: torch.Tensor, t: float, kept: int) -> torch.Tensor:
    """tau_0 - tau_0 V f V^T + D V (f / L) V^T over all in x in eigenvalues."""
    c, d = operators(taus)
    values, v = torch.linalg.eigh(c)
    values = values.clamp(min=1e-12)
    f = 1 - torch.exp(-values * t)
    f[: len(f) - kept] = 0
    return start - start @ v @ torch.diag(f) @ v.mT + d @ v @ torch.diag(f / values) @ v.mT


def steps(taus: list[torch.Tensor], start: torch.Tensor, t: float, count: int = 4000) -> torch.Tensor:
    """Gradient descent on the loss itself, by autograd, in small steps."""
    merged = start.clone().requires_grad_()
    squares = [float((tau * tau).sum()) for tau in taus]
    for _ in range(count):
        parts = [((merged - tau) @ tau.mT).square().sum() / square for tau, square in zip(taus, squares, strict=True)]
        (gradient,) = torch.autograd.grad(torch.stack(parts).sum() / 2, merged)
        merged = (merged - t / count * gradient).detach().requires_grad_()
    return merged.detach()


def test_contract() -> None:
    for shared in ({}, {"t": 2, "lambda": 0.5}, {"t": 0, "rank_ratio": 1e-9}, {"start": "mean"}):
        check_method(Swudi, parameters=shared, input_parameters={"weight": -2}, inputs=3)
    check_method(Swudi)
    check_method(Aswudi)
    check_method(Aswudi, parameters={"lambda": 0.5}, input_parameters={"weight": -2}, inputs=3)


@pytest.mark.parametrize(
    ("method", "shared", "expected"),
    [
        # t_1 = 2 e_1 f_1^T, t_2 = 4 e_1 f_1^T. C = f_1 f_1^T (1 + 1), D = (2 + 4) e_1 f_1^T: the goal is 6 / 2 = 3.
        # Half the way from the sum 6 to 3 is 4.5, times 1/2; from the mean 3, it is there already
        (Swudi, {"t": HALF}, 2.25),
        (Swudi, {"t": HALF, "lambda": 1}, 4.5),
        (Swudi, {"t": 0, "lambda": 1}, 6.0),
        (Swudi, {"t": 300, "lambda": 1}, 3.0),
        (Swudi, {"t": HALF, "start": "mean"}, 3.0),
        (Swudi, {"t": 0, "lambda": 2, "start": "mean"}, 6.0),
        # At its end, from the sum: the goal, times 1/2
        (Aswudi, {}, 1.5),
        (Aswudi, {"lambda": 1}, 3.0),
    ],
)
def test_one_direction_by_hand(
    merged: Merge, method: type[MergeMethod], shared: dict[str, Any], expected: float
) -> None:
    direction = torch.tensor([[1.0, 0.0, 0.0], [0.0, 0.0, 0.0]])
    result = merged(method, [BASE + 2 * direction, BASE + 4 * direction], base=BASE, **shared)
    close(result, BASE + expected * direction, 1e-6)


def test_tasks_with_different_inputs_add_up_by_hand(merged: Merge) -> None:
    """t_1 = 2 e_1 f_1^T and t_2 = 3 e_2 f_3^T share no inputs: D C^+ is their sum. So is the start of swudi."""
    one = torch.tensor([[2.0, 0.0, 0.0], [0.0, 0.0, 0.0]])
    other = torch.tensor([[0.0, 0.0, 0.0], [0.0, 0.0, 3.0]])
    inputs = [BASE + one, BASE + other]
    close(merged(Swudi, inputs, base=BASE, **{"lambda": 1}), BASE + one + other, 1e-6)
    close(merged(Aswudi, inputs, base=BASE, **{"lambda": 1}), BASE + one + other, 1e-6)
    close(merged(Swudi, inputs, base=BASE, start="mean"), BASE + one + other, 1e-6)  # C's eigenvalues are 1
    # K = 1 of 3 leaves one of the two where it starts; which, the solver says, as both eigenvalues are 1
    cut = merged(Swudi, inputs, base=BASE, rank_ratio=0.2, start="mean") - BASE
    both = sorted([float(cut[0, 0]) / 2, float(cut[1, 2]) / 3])
    assert both == pytest.approx([0.5, 1], abs=1e-6)


@pytest.mark.parametrize(("name", "factor"), [("sum", 1), ("mean", 1 / 3)])
@pytest.mark.parametrize("shape", [(6, 9), (9, 6), (2, 12)])  # in the last, C has 6 of 12 eigenvalues
def test_against_the_formula(merged: Merge, name: str, factor: float, shape: tuple[int, int]) -> None:
    taus = [draw(*shape, seed=seed) for seed in range(3)]
    start = factor * torch.stack(taus).sum(dim=0)
    base = draw(*shape, seed=9)
    for t, ratio in ((0.5, 1.0), (300.0, 0.85), (5.0, 0.3)):
        shared = {"t": t, "rank_ratio": ratio, "lambda": 0.7, "start": name}
        result = merged(Swudi, [base + tau for tau in taus], base=base, **shared)
        kept = math.ceil(shape[1] * ratio)
        close(result, base + 0.7 * closed_form(taus, start, t, kept), 1e-8)


@pytest.mark.parametrize("shape", [(6, 9), (4, 11)])
def test_adaptive_against_the_formula(merged: Merge, shape: tuple[int, int]) -> None:
    taus = [draw(*shape, seed=seed) for seed in range(3)]
    base = draw(*shape, seed=9)
    values = torch.linalg.eigvalsh(operators(taus)[0]).clamp(min=0)
    kept = math.ceil(float(values.sqrt().sum() ** 2 / values.sum()))
    assert 1 < kept < shape[1]
    result = merged(Aswudi, [base + tau for tau in taus], base=base)
    close(result, base + closed_form(taus, torch.stack(taus).sum(dim=0), 1e9, kept) / 3, 1e-8)


@pytest.mark.parametrize("shape", [(40, 40), (60, 30), (20, 60)])  # in the last, A A^T is the smaller problem
def test_equal_models_of_any_spectrum_are_their_own_goal(merged: Merge, shape: tuple[int, int]) -> None:
    """Singular values from 1 to 1e-4. At the flow's end all directions but the last have gone from 2 t to t."""
    left, right = (torch.linalg.qr(draw(side, min(shape), seed=side)).Q for side in shape)
    values = torch.logspace(0, -4, min(shape), dtype=torch.float64)
    tau, zero = (left * values) @ right.mT, torch.zeros(shape, dtype=torch.float64)
    ratio = (min(shape) - 1) / shape[1]
    expected = tau + values[-1] * torch.outer(left[:, -1], right[:, -1])
    close(merged(Swudi, [tau, tau], base=zero, t=1e12, rank_ratio=ratio, **{"lambda": 1}), expected, 1e-9)


def test_it_is_where_gradient_descent_goes(merged: Merge) -> None:
    """Euler's method is off by about the step; here 2 / 4000."""
    taus = [draw(3, 4, seed=seed) for seed in range(2)]
    result = merged(Swudi, taus, base=torch.zeros_like(taus[0]), t=2, rank_ratio=1, **{"lambda": 1})
    close(result, steps(taus, taus[0] + taus[1], 2), 3e-3)
    assert float((result - taus[0] - taus[1]).abs().max()) > 0.1  # it has gone somewhere


def test_a_weight_scales_what_is_asked_of_a_task_but_not_how_loudly(merged: Merge) -> None:
    """|t_i|^2 divides the loss: C stays, D and the start change as for a task vector that is twice as long."""
    taus = [draw(6, 9, seed=seed) for seed in range(2)]
    result = merged(Swudi, taus, [{"weight": 2}, {}], torch.zeros_like(taus[0]), t=3, start="mean")
    close(result, closed_form([2 * taus[0], taus[1]], taus[0] + taus[1] / 2, 3, 8))


@pytest.mark.parametrize("method", [Swudi, Aswudi])
def test_one_model_is_kept(merged: Merge, method: type[MergeMethod]) -> None:
    base, tau = draw(5, 7, seed=1), draw(5, 7, seed=2)
    close(merged(method, [base + tau], base=base), base + tau, 1e-14)
    close(closed_form([tau], tau, 3, 7), tau)  # what the formula says, too


def test_equal_models_give_themselves_from_the_mean(merged: Merge) -> None:
    base, tau = draw(6, 9, seed=1), draw(6, 9, seed=2)
    close(merged(Swudi, [base + tau] * 3, base=base, start="mean"), base + tau, 1e-9)


def test_a_task_vector_of_zero_asks_for_nothing(merged: Merge) -> None:
    """It counts among the N models: the start is half of the other, which is the goal where the flow is done."""
    tau = draw(4, 4, seed=1)
    zero = torch.zeros_like(tau)
    close(merged(Swudi, [tau, zero], base=zero, t=1e9, rank_ratio=1, start="mean"), tau, 1e-6)
    close(merged(Swudi, [tau, zero], base=zero, t=0, start="mean"), tau / 2)


@pytest.mark.parametrize(
    ("ratio", "inputs", "expected"),
    [(0.85, 4096, 3482), (0.55, 100, 55), (1e-9, 10, 1)],  # 3481.6; in floating point 0.55 * 100 is a little more
)
def test_how_many_directions_move(ratio: float, inputs: int, expected: int) -> None:
    assert share(inputs, ratio) == expected


def test_how_many_directions_participate() -> None:
    assert participating(torch.tensor([4.0, 2.0, 1.0])) == 3  # (4 + 2 + 1)^2 / (16 + 4 + 1) = 2.33
    assert participating(torch.full((7,), 0.3)) == 7


@pytest.mark.parametrize("asked", [{"t": -1}, {"t": float("inf")}, {"rank_ratio": 0}, {"rank_ratio": 1.1}])
def test_parameters_are_in_range(asked: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Swudi.Parameters.model_validate(asked)
    with pytest.raises(ValidationError):
        Aswudi.Parameters.model_validate(asked)  # which has neither


def test_lambda_defaults() -> None:
    assert Swudi().factor(Swudi.Parameters.model_validate({}), 4) == 0.25
    assert Swudi().factor(Swudi.Parameters.model_validate({"start": "mean"}), 4) == 1
    assert Swudi().factor(Swudi.Parameters.model_validate({"lambda": 1}), 4) == 1
    assert Aswudi().factor(Aswudi.Parameters.model_validate({}), 4) == 0.25


def test_memory_grows_with_the_side_of_the_problem() -> None:
    """Of 4 models 700 x 2800, C is 2800 x 2800: a merge of these was seen to take 432 MiB, a square one 86."""
    assert Swudi().scratch((700, 2800), 4, 4) > 432 * 2**20
    assert Swudi().scratch((1000, 1000), 2, 4) > 86 * 2**20
    assert Aswudi().scratch((7,), 2, 4) == 0
