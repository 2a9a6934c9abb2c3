"""Spectral truncation and rescaling: by hand, against the paper's equations, and the nuclear norm that stays."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from safegraft.testing import check_method
from safegraft_plugins.star import Star, truncated

Merge = Callable[..., torch.Tensor]

FIXED = settings(derandomize=True, deadline=None)

BASE = torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]])
X = BASE + torch.tensor([[3.0, 0.0, 0.0], [0.0, 1.0, 0.0]])  # singular values 3 and 1: nuclear norm 4
Y = BASE + torch.tensor([[0.0, 0.0, 2.0], [-4.0, 0.0, 0.0]])  # 4 and 2: 6


def draw(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def close(one: torch.Tensor, other: torch.Tensor, atol: float = 1e-9) -> None:
    torch.testing.assert_close(one, other, rtol=0, atol=atol)


def reference(tau: torch.Tensor, eta: float) -> torch.Tensor:
    """The least rank that reaches eta per cent of the nuclear norm, which is then restored."""
    u, s, vh = torch.linalg.svd(tau, full_matrices=False)
    total = float(s.sum())
    rank = next(k for k in range(1, len(s) + 1) if float(s[:k].sum()) >= total * eta / 100)
    return u[:, :rank] @ torch.diag(s[:rank] * total / s[:rank].sum()) @ vh[:rank]


def test_contract() -> None:
    for eta in (0, 40, 100):
        check_method(Star, parameters={"eta": eta})
    check_method(Star, parameters={"lambda": 0.5}, input_parameters={"weight": -2}, inputs=3)


@pytest.mark.parametrize(
    ("shared", "expected"),
    [
        # 40 %: 1.6 of 4 and 2.4 of 6, reached by the first value. 3 -> 4 and 4 -> 6, then the mean
        ({}, [[2.0, 0.0, 0.0], [-3.0, 0.0, 0.0]]),
        ({"lambda": 2}, [[4.0, 0.0, 0.0], [-6.0, 0.0, 0.0]]),
        # 70 %: 2.8 of 4, reached by 3; 4.2 of 6, reached by 4 and 2 together
        ({"eta": 70}, [[2.0, 0.0, 1.0], [-2.0, 0.0, 0.0]]),
        # 75 % is 3 of 4 exactly, and that is enough
        ({"eta": 75}, [[2.0, 0.0, 1.0], [-2.0, 0.0, 0.0]]),
        # 76 % and all: nothing is cut
        ({"eta": 76}, [[1.5, 0.0, 1.0], [-2.0, 0.5, 0.0]]),
        ({"eta": 100}, [[1.5, 0.0, 1.0], [-2.0, 0.5, 0.0]]),
        # the first value is always kept
        ({"eta": 0}, [[2.0, 0.0, 0.0], [-3.0, 0.0, 0.0]]),
    ],
)
def test_by_hand(merged: Merge, shared: dict[str, Any], expected: list[list[float]]) -> None:
    close(merged(Star, [X, Y], base=BASE, **shared), BASE + torch.tensor(expected), 2e-6)


@FIXED
@given(st.sampled_from([(6, 9), (9, 6), (5, 5), (1, 4)]), st.integers(0, 99), st.floats(0.1, 99.9))
def test_against_the_equations(shape: tuple[int, int], seed: int, eta: float) -> None:
    tau = draw(*shape, seed=seed)
    close(truncated(tau, eta), reference(tau, eta))


@FIXED
@given(st.integers(0, 99), st.floats(0, 100))
def test_the_nuclear_norm_stays(seed: int, eta: float) -> None:
    tau = draw(6, 9, seed=seed)
    norms = [float(torch.linalg.matrix_norm(one, "nuc")) for one in (truncated(tau, eta), tau)]
    assert norms[0] == pytest.approx(norms[1], rel=1e-9)


def test_the_mean_of_models_that_are_truncated_alone(merged: Merge) -> None:
    base, taus = draw(6, 9, seed=9), [draw(6, 9, seed=seed) for seed in range(3)]
    result = merged(Star, [base + tau for tau in taus], [{}, {"weight": -2}, {}], base, **{"lambda": 0.7})
    mean = (reference(taus[0], 40) + reference(-2 * taus[1], 40) + reference(taus[2], 40)) / 3
    close(result, base + 0.7 * mean)


def test_low_rank_is_kept_whole_or_cut_but_never_padded() -> None:
    low = draw(8, 1, seed=1) @ draw(1, 9, seed=2)
    for eta in (0.0, 40.0, 99.9):
        close(truncated(low, eta), low)
    assert not truncated(torch.zeros(8, 9), 40).any()


def test_equal_models_give_their_truncation(merged: Merge) -> None:
    tau = draw(6, 9, seed=1)
    close(merged(Star, [tau, tau, tau], base=torch.zeros_like(tau)), reference(tau, 40))


@pytest.mark.parametrize("eta", [-1, 100.1, float("nan"), None])
def test_eta_is_a_percentage(eta: Any) -> None:
    with pytest.raises(ValidationError):
        Star.Parameters.model_validate({"eta": eta})
    assert Star.Parameters.model_validate({}).model_dump()["eta"] == 40
