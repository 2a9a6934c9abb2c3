"""One model as it is, or scaled."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from safegraft_plugins.passthrough import Passthrough

Merge = Callable[..., torch.Tensor]

FIXED = settings(derandomize=True, deadline=None)

tensors = st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1, max_size=9).map(torch.tensor)


def test_by_hand(merged: Merge) -> None:
    tensor = torch.tensor([[1.0, -2.0, 0.0], [0.5, 4.0, 100.0]])
    assert merged(Passthrough, [tensor], [{"scale": -0.5}]).tolist() == [[-0.5, 1.0, 0.0], [-0.25, -2.0, -50.0]]
    assert merged(Passthrough, [torch.tensor([3.0])], [{"scale": 2}]).tolist() == [6.0]


@FIXED
@given(tensors, st.sampled_from([{}, {"scale": None}, {"scale": 1}]))
def test_without_a_scale_every_bit_stays(merged: Merge, tensor: torch.Tensor, own: dict[str, Any]) -> None:
    result = merged(Passthrough, [tensor], [own])
    assert torch.equal(result.view(torch.int32), tensor.view(torch.int32))


@FIXED
@given(tensors, st.floats(-8, 8))
def test_scales_undo_each_other_and_zero_leaves_nothing(merged: Merge, tensor: torch.Tensor, scale: float) -> None:
    assert torch.equal(merged(Passthrough, [tensor], [{"scale": scale}]), tensor * scale)
    negative = merged(Passthrough, [tensor], [{"scale": -1}])
    assert torch.equal(merged(Passthrough, [negative], [{"scale": -1}]), tensor)
    assert not merged(Passthrough, [tensor], [{"scale": 0}]).any()


@pytest.mark.parametrize("asked", [{"scale": float("nan")}, {"scale": float("-inf")}, {"weight": 1}])
def test_scale_is_finite(asked: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Passthrough.InputParameters.model_validate(asked)


def test_takes_one_model() -> None:
    assert (Passthrough.requires.min_inputs, Passthrough.requires.max_inputs) == (1, 1)
