"""The safety vector added: numbers worked by hand, limits, and the variant that drops and rescales."""

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from safegraft.testing import check_method
from safegraft_plugins.safety.resta import Resta

Merge = Callable[..., torch.Tensor]

FIXED = settings(derandomize=True, deadline=None)
F = torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]])
A = torch.tensor([[0.0, 2.0, 1.0], [2.0, 1.0, 2.0]])
U = torch.tensor([[2.0, 0.0, 1.0], [2.0, 3.0, -2.0]])

rows = st.lists(st.floats(-64, 64, width=32), min_size=6, max_size=6).map(lambda row: torch.tensor(row).view(2, 3))


def test_contract() -> None:
    check_method(Resta)
    check_method(Resta, parameters={"gamma": 2.0, "drop_rate": 0.4})


def test_by_hand(merged: Merge) -> None:
    # theta = F + gamma (A - U), A - U = [[-2, 2, 0], [0, -2, 4]], gamma = 1/2
    assert merged(Resta, [F], roles=[A, U]).tolist() == [[0.0, 3.0, 3.0], [4.0, 4.0, 8.0]]
    # and gamma = 2
    assert merged(Resta, [F], roles=[A, U], gamma=2).tolist() == [[-3.0, 6.0, 3.0], [4.0, 1.0, 14.0]]


@FIXED
@given(rows, rows, rows, st.floats(0, 4))
def test_limits(merged: Merge, f: torch.Tensor, a: torch.Tensor, u: torch.Tensor, gamma: float) -> None:
    assert torch.equal(merged(Resta, [f], roles=[a, u], gamma=0), f)
    assert torch.equal(merged(Resta, [f], roles=[a, a], gamma=gamma), f)
    # Whatever is dropped of no update at all: A + gamma (A - U)
    dropped = merged(Resta, [a], roles=[a, u], gamma=gamma, drop_rate=0.5)
    assert torch.equal(dropped, merged(Resta, [a], roles=[a, u], gamma=gamma))


def test_dropping_keeps_the_mean_of_the_update(merged: Merge) -> None:
    f, a, u = torch.full((200, 200), 3.0), torch.ones(200, 200), torch.full((200, 200), 0.5)
    # An update of 2 becomes 0 or 2 / (1 - 0.75) = 8; the safety vector 0.5 is added with gamma 1
    result = merged(Resta, [f], roles=[a, u], gamma=1, drop_rate=0.75, seed=7)
    assert result.unique().tolist() == [1.5, 9.5]
    kept = float((result == 9.5).float().mean())
    assert kept == pytest.approx(0.25, abs=4 * (0.25 * 0.75 / 40_000) ** 0.5)  # four standard deviations
    assert not torch.equal(result, merged(Resta, [f], roles=[a, u], gamma=1, drop_rate=0.75, seed=8))


@pytest.mark.parametrize("asked", [{"gamma": -1}, {"drop_rate": 1}, {"gamma": float("inf")}, {"lambda": 1}])
def test_parameters_have_ranges(asked: dict[str, float]) -> None:
    with pytest.raises(ValidationError):
        Resta.Parameters.model_validate(asked)


def test_gamma_must_fit_float32() -> None:
    (message,) = Resta().check([], Resta.Parameters(gamma=1e39))
    assert "out of float32's range" in message
