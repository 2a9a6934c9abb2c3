"""The line between the model before and after fine-tuning."""

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from safegraft.testing import check_method
from safegraft_plugins.safety.pre_post import PrePost

Merge = Callable[..., torch.Tensor]

FIXED = settings(derandomize=True, deadline=None)
EPSILON = torch.finfo(torch.float32).eps
F = torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]])
A = torch.tensor([[5.0, 2.0, -1.0], [0.0, 1.0, 2.0]])

rows = st.lists(st.floats(-64, 64, width=32), min_size=6, max_size=6).map(torch.tensor)


def test_contract() -> None:
    check_method(PrePost)
    check_method(PrePost, parameters={"lambda": 0.3})


def test_by_hand(merged: Merge) -> None:
    # lambda = 1/4: 3/4 A + 1/4 F
    assert merged(PrePost, [F], roles=[A], **{"lambda": 0.25}).tolist() == [[4.0, 2.0, 0.0], [1.0, 2.0, 3.0]]
    # lambda = 3/4: 1/4 A + 3/4 F
    assert merged(PrePost, [F], roles=[A], **{"lambda": 0.75}).tolist() == [[2.0, 2.0, 2.0], [3.0, 4.0, 5.0]]


def test_the_default_is_low_strength(merged: Merge) -> None:
    expected = 0.2 * A.double() + 0.8 * F.double()
    torch.testing.assert_close(merged(PrePost, [F], roles=[A]).double(), expected, rtol=0, atol=4 * EPSILON)


@FIXED
@given(rows, rows, st.floats(0, 1))
def test_the_equation_its_ends_and_equal_models(merged: Merge, f: torch.Tensor, a: torch.Tensor, share: float) -> None:
    assert torch.equal(merged(PrePost, [f], roles=[a], **{"lambda": 1}), f)
    assert torch.equal(merged(PrePost, [f], roles=[a], **{"lambda": 0}), a)
    assert torch.equal(merged(PrePost, [f], roles=[f], **{"lambda": share}), f)
    expected = (1 - share) * a.double() + share * f.double()
    error = (merged(PrePost, [f], roles=[a], **{"lambda": share}) - expected).abs()
    assert bool((error <= 3 * EPSILON * (a.abs() + f.abs()) + 1e-40).all())


@pytest.mark.parametrize("share", [-0.1, 1.1, float("nan")])
def test_lambda_is_from_0_to_1(share: float) -> None:
    with pytest.raises(ValidationError):
        PrePost.Parameters.model_validate({"lambda": share})
