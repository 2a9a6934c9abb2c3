"""Those parts of updates that masks keep: by hand, limits."""

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from safegraft.testing import check_method
from safegraft_plugins.safety.somf import Somf

Merge = Callable[..., torch.Tensor]

FIXED = settings(derandomize=True, deadline=None)
A = torch.tensor([[1.0, 1.0, 1.0], [2.0, 2.0, 2.0]])
X = A + torch.tensor([[4.0, 8.0, 2.0], [0.0, 6.0, -2.0]])
Y = A + torch.tensor([[2.0, 2.0, 2.0], [2.0, 2.0, 2.0]])
X_MASK = torch.tensor([[0.9, 0.1, 0.51], [1.0, 0.5, 0.6]])  # keeps 4, 2, 0, -2: at one half nothing is kept
Y_MASK = torch.tensor([[0.9, 0.9, 0.0], [0.0, 0.0, 0.0]])


def each(*numbers: float) -> list[dict[str, float]]:
    return [{"lambda": number} for number in numbers]


def known(*masks: torch.Tensor | None) -> list[dict[str, torch.Tensor | None]]:
    return [{"mask": mask} for mask in masks]


def test_contract() -> None:
    check_method(Somf)
    check_method(Somf, input_parameters={"lambda": -0.5}, inputs=3)


def test_by_hand(merged: Merge) -> None:
    # A + 1/2 [[4, 0, 2], [0, 0, -2]] + 1/4 [[2, 2, 0], [0, 0, 0]]
    result = merged(Somf, [X, Y], each(0.5, 0.25), roles=[A], statistics=known(X_MASK, Y_MASK))
    assert result.tolist() == [[3.5, 1.5, 2.0], [2.0, 2.0, 1.0]]
    # lambda's default: A + 0.3 [[2, 2, 0], [0, 0, 0]]
    result = merged(Somf, [Y], roles=[A], statistics=known(Y_MASK))
    torch.testing.assert_close(result, torch.tensor([[1.6, 1.6, 1.0], [2.0, 2.0, 2.0]]))


def test_without_a_mask_the_update_is_left_out(merged: Merge) -> None:
    part = merged(Somf, [X, Y], roles=[A], statistics=known(None, Y_MASK))
    assert torch.equal(part, merged(Somf, [Y], roles=[A], statistics=known(Y_MASK)))
    assert torch.equal(merged(Somf, [X], roles=[A], statistics=known(None)), A)


rows = st.lists(st.integers(-64, 64), min_size=6, max_size=6).map(lambda row: torch.tensor(row).float())
masks = st.lists(st.floats(0, 1, width=32), min_size=6, max_size=6).map(torch.tensor)


@FIXED
@given(rows, rows, rows, masks, masks)
def test_limits(
    merged: Merge, a: torch.Tensor, x: torch.Tensor, y: torch.Tensor, one: torch.Tensor, two: torch.Tensor
) -> None:
    assert torch.equal(merged(Somf, [x], each(1), roles=[a], statistics=known(torch.ones(6))), x)
    assert torch.equal(merged(Somf, [x], each(1), roles=[a], statistics=known(torch.zeros(6))), a)
    assert torch.equal(merged(Somf, [a, a], roles=[a], statistics=known(one, two)), a)
    alone = merged(Somf, [x], each(1), roles=[a], statistics=known(one))
    assert torch.equal(merged(Somf, [x, y], each(1, 0), roles=[a], statistics=known(one, two)), alone)
    # whole numbers round nothing, so the order does not matter
    both = merged(Somf, [x, y], each(1, 2), roles=[a], statistics=known(one, two))
    assert torch.equal(merged(Somf, [y, x], each(2, 1), roles=[a], statistics=known(two, one)), both)


@pytest.mark.parametrize("asked", [{"lambda": float("inf")}, {"weight": 1}])
def test_parameters_have_ranges(asked: dict[str, float]) -> None:
    with pytest.raises(ValidationError):
        Somf.InputParameters.model_validate(asked)
