"""LVLMs weighted by their distance from the LLM: by hand, symmetry, limits."""

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from safegraft.testing import check_method
from safegraft_plugins.safety.difference_weighted import DifferenceWeighted
from safegraft_plugins.safety.pre_post import PrePost

Merge = Callable[..., torch.Tensor]

FIXED = settings(derandomize=True, deadline=None)
A = torch.tensor([[0.0, 1.0, 2.0], [0.0, 1.0, 2.0]])
X = torch.tensor([[6.0, 1.0, 2.0], [0.0, 1.0, 2.0]])  # mean |A - X| = 6 / 6 = 1
Y = torch.tensor([[0.0, 1.0, 2.0], [0.0, -11.0, 2.0]])  # mean |A - Y| = 12 / 6 = 2

rows = st.lists(st.floats(-8, 8, width=32), min_size=7, max_size=7).map(torch.tensor)


def test_contract() -> None:
    check_method(DifferenceWeighted)
    check_method(DifferenceWeighted, parameters={"alpha0": 0.7, "temperature": 0.01}, inputs=4)


def test_by_hand(merged: Merge) -> None:
    # alpha = softmax(1, 2) = 1 / (1 + e), e / (1 + e). A + (1 - 0.2) (alpha_1 (X - A) + alpha_2 (Y - A))
    first, second = 1 / (1 + math.e), math.e / (1 + math.e)
    expected = [[0.8 * first * 6, 1.0, 2.0], [0.0, 1 - 0.8 * second * 12, 2.0]]
    result = merged(DifferenceWeighted, [X, Y], roles=[A])
    torch.testing.assert_close(result, torch.tensor(expected), rtol=1e-6, atol=0)


def test_temperature_tells_models_apart(merged: Merge) -> None:
    # softmax(1 / ln 2, 2 / ln 2) = 1/3, 2/3 with temperature 1 / ln 2
    result = merged(DifferenceWeighted, [X, Y], roles=[A], alpha0=0, temperature=1 / math.log(2))
    torch.testing.assert_close(result, torch.tensor([[2.0, 1.0, 2.0], [0.0, -7.0, 2.0]]), rtol=1e-6, atol=0)
    # close to 0, the furthest is all that counts
    cold = merged(DifferenceWeighted, [X, Y], roles=[A], alpha0=0, temperature=1e-3)
    assert torch.equal(cold, Y)


@FIXED
@given(rows, rows, st.floats(0, 1))
def test_one_lvlm_is_the_line(merged: Merge, x: torch.Tensor, a: torch.Tensor, alpha0: float) -> None:
    line = merged(PrePost, [x], roles=[a], **{"lambda": 1 - alpha0})
    torch.testing.assert_close(merged(DifferenceWeighted, [x], roles=[a], alpha0=alpha0), line, rtol=0, atol=4e-6)
    assert torch.equal(merged(DifferenceWeighted, [x], roles=[a], alpha0=0), x)


@FIXED
@given(st.lists(rows, min_size=2, max_size=4), rows, st.floats(0, 1), st.data())
def test_symmetry_and_equal_models(
    merged: Merge, models: list[torch.Tensor], a: torch.Tensor, alpha0: float, data: st.DataObject
) -> None:
    result = merged(DifferenceWeighted, models, roles=[a], alpha0=alpha0)
    other = merged(DifferenceWeighted, data.draw(st.permutations(models)), roles=[a], alpha0=alpha0)
    torch.testing.assert_close(result, other, rtol=0, atol=2e-5)
    assert torch.equal(merged(DifferenceWeighted, models, roles=[a], alpha0=1), a)
    assert torch.equal(merged(DifferenceWeighted, [a] * len(models), roles=[a], alpha0=alpha0), a)


@pytest.mark.parametrize("asked", [{"alpha0": -0.1}, {"alpha0": 1.1}, {"temperature": 0}])
def test_parameters_have_ranges(asked: dict[str, float]) -> None:
    with pytest.raises(ValidationError):
        DifferenceWeighted.Parameters.model_validate(asked)


@pytest.mark.parametrize("temperature", [1e-300, 1e-310, 5e-324])
def test_the_smallest_temperatures_choose_the_furthest(merged: Merge, temperature: float) -> None:
    # 6 and 12 over 6 * 5e-324 are both inf
    assert torch.equal(merged(DifferenceWeighted, [X, Y], roles=[A], alpha0=0, temperature=temperature), Y)
    # of two that are equally far, half of each: A + 1/2 (X - A) + 1/2 (A - X)
    mirrored = 2 * A - X
    assert torch.equal(merged(DifferenceWeighted, [X, mirrored], roles=[A], temperature=temperature), A)
