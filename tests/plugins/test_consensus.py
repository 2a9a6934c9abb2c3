"""TALL masks and their consensus: worked by hand, and against the definition."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from safegraft.testing import check_method
from safegraft_plugins.consensus import ConsensusTaskArithmetic
from safegraft_plugins.task_arithmetic import TaskArithmetic

Merge = Callable[..., torch.Tensor]

FIXED = settings(derandomize=True, deadline=None)
eighths = st.integers(-24, 24).map(lambda number: number / 8)  # so that every sum and product is exact

BASE = torch.tensor([[1.0, 1.0, 1.0], [2.0, 2.0, 2.0]])
# Differences; the sum of the three is [[4, 4, 3], [3, 0, 0.5]].
X = BASE + torch.tensor([[2.0, 4.0, 1.0], [4.0, 0.0, 2.0]])
Y = BASE + torch.tensor([[2.0, 0.0, 1.0], [-1.0, 0.0, -1.5]])
Z = BASE + torch.tensor([[0.0, 0.0, 1.0], [0.0, 0.0, 0.0]])


@pytest.mark.parametrize(
    ("shared", "threshold", "expected"),
    [
        # |t_i| > 0.5 |t - t_i|:  X: 2>1 4>0 1>=1: no, 4>0.5, 0>0: no, 2>0.75.
        # Y: 2>1, 0>2: no, 1>1: no, 1>2: no, no, 1.5>1. Z: 0>2: no, no, no, no, no, no.
        # Votes [[2, 1, 0], [1, 0, 2]].
        ({}, 0.5, [[5.0, 1.0, 1.0], [2.0, 2.0, 2.5]]),
        ({"k": 1}, 0.5, [[5.0, 5.0, 1.0], [5.0, 2.0, 2.5]]),
        ({"k": 0}, 0.5, [[5.0, 5.0, 4.0], [5.0, 2.0, 2.5]]),
        ({"lambda": 0.5}, 0.5, [[3.0, 1.0, 1.0], [2.0, 2.0, 2.25]]),
        # With 0.25: Y's 1 > 1 is still no; every model's 1 > 0.5.
        ({"k": 3}, 0.25, [[1.0, 1.0, 4.0], [2.0, 2.0, 2.0]]),
    ],
)
def test_by_hand(merged: Merge, shared: dict[str, Any], threshold: float, expected: list[list[float]]) -> None:
    own = [{"tall_mask_lambda": threshold}] * 3
    assert merged(ConsensusTaskArithmetic, [X, Y, Z], own, BASE, **shared).tolist() == expected


def test_contract() -> None:
    check_method(ConsensusTaskArithmetic)
    own = {"weight": -0.5, "tall_mask_lambda": 0.2}
    check_method(ConsensusTaskArithmetic, parameters={"k": 3, "lambda": 0.7}, input_parameters=own, inputs=4)


@st.composite
def models(draw: st.DrawFn) -> tuple[list[float], list[list[float]], list[dict[str, float]]]:
    size = draw(st.integers(1, 5))
    rows = st.lists(eighths, min_size=size, max_size=size)
    tensors = draw(st.lists(rows, min_size=2, max_size=4))
    lambdas = st.sampled_from([0.0, 0.25, 0.5, 1.0])
    weights = st.sampled_from([-1.0, 0.0, 0.5, 2.0])
    return draw(rows), tensors, [{"weight": draw(weights), "tall_mask_lambda": draw(lambdas)} for _ in tensors]


@FIXED
@given(models(), st.integers(0, 4))
def test_is_the_definition(
    merged: Merge, case: tuple[list[float], list[list[float]], list[dict[str, float]]], k: int
) -> None:
    base, tensors, own = case
    expected: list[float] = []
    for index, at in enumerate(base):
        parts = [one["weight"] * (tensor[index] - at) for one, tensor in zip(own, tensors, strict=True)]
        whole = sum(parts)
        votes = [abs(part) > one["tall_mask_lambda"] * abs(whole - part) for one, part in zip(own, parts, strict=True)]
        expected.append(at + whole if sum(votes) >= k else at)
    result = merged(ConsensusTaskArithmetic, [torch.tensor(one) for one in tensors], own, torch.tensor(base), k=k)
    assert result.tolist() == expected


@FIXED
@given(models())
def test_k_zero_is_task_arithmetic(
    merged: Merge, case: tuple[list[float], list[list[float]], list[dict[str, float]]]
) -> None:
    base, tensors, own = torch.tensor(case[0]), [torch.tensor(one) for one in case[1]], case[2]
    weights = [{"weight": one["weight"]} for one in own]
    result = merged(ConsensusTaskArithmetic, tensors, own, base, k=0)
    assert torch.equal(result, merged(TaskArithmetic, tensors, weights, base))


def test_k_is_not_more_than_there_are_models() -> None:
    method = ConsensusTaskArithmetic()
    own = [method.InputParameters(weight=weight) for weight in (1, 0, 1)]
    assert list(method.check(own, method.Parameters(k=2))) == []
    (message,) = method.check(own, method.Parameters(k=3))
    assert message == "k is 3, and 2 models have a nonzero weight: no element would be kept; lower k"


def test_mergekits_lambda_is_not_the_masks() -> None:
    """A recipe's shared `lambda` reaches every parameter of that name; the masks' has another."""
    assert "lambda" not in ConsensusTaskArithmetic.InputParameters.model_json_schema()["properties"]
    with pytest.raises(ValidationError):
        ConsensusTaskArithmetic.InputParameters.model_validate({"tall_mask_lambda": -0.1})
