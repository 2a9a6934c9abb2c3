"""The largest difference wins: worked by hand, and against the definition."""

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from safegraft.testing import check_method
from safegraft_plugins.magmax import MagMax

Merge = Callable[..., torch.Tensor]

FIXED = settings(derandomize=True, deadline=None)
values = st.integers(-3, 3).map(float)

BASE = torch.tensor([[1.0, 1.0, 1.0], [2.0, 2.0, 2.0]])


def test_by_hand(merged: Merge) -> None:
    # differences [[2, 0, -1], [0, 2, 4]] and [[-3, 0, 1], [-1, 1, -4]]: of equal ones the second's
    x, y = BASE + torch.tensor([[2.0, 0, -1], [0, 2, 4]]), BASE + torch.tensor([[-3.0, 0, 1], [-1, 1, -4]])
    assert merged(MagMax, [x, y], base=BASE).tolist() == [[-2.0, 1.0, 2.0], [1.0, 4.0, -2.0]]
    assert merged(MagMax, [y, x], base=BASE).tolist() == [[-2.0, 1.0, 0.0], [1.0, 4.0, 6.0]]
    assert merged(MagMax, [x, y], base=BASE, **{"lambda": 0.5}).tolist() == [[-0.5, 1.0, 1.5], [1.5, 3.0, 0.0]]


def test_contract() -> None:
    check_method(MagMax)
    check_method(MagMax, parameters={"lambda": -0.5}, inputs=4)


@FIXED
@given(st.lists(st.lists(values, min_size=4, max_size=4), min_size=2, max_size=5))
def test_is_the_last_of_the_largest(merged: Merge, rows: list[list[float]]) -> None:
    base, *tensors = rows
    expected = [at + max(((one[index] - at) for one in reversed(tensors)), key=abs) for index, at in enumerate(base)]
    assert merged(MagMax, [torch.tensor(one) for one in tensors], base=torch.tensor(base)).tolist() == expected


@FIXED
@given(st.lists(values, min_size=1, max_size=6), st.integers(1, 4))
def test_equal_models_and_the_base(merged: Merge, row: list[float], count: int) -> None:
    base, one = torch.zeros(len(row)), torch.tensor(row)
    assert torch.equal(merged(MagMax, [one] * count, base=base), one)
    assert torch.equal(merged(MagMax, [base, one, base], base=base), one)
    assert torch.equal(merged(MagMax, [one] * count, base=one), one)


def test_lambda_is_finite() -> None:
    with pytest.raises(ValidationError):
        MagMax.Parameters.model_validate({"lambda": float("inf")})
