"""NearSwap: distances worked by hand."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from safegraft.testing import check_method
from safegraft_plugins.nearswap import Nearswap

Merge = Callable[..., torch.Tensor]

FIXED = settings(derandomize=True, deadline=None)

values = st.floats(-1024, 1024, width=32)


@st.composite
def pairs(draw: st.DrawFn) -> tuple[torch.Tensor, torch.Tensor]:
    size = draw(st.integers(1, 9))
    rows = st.lists(values, min_size=size, max_size=size)
    return torch.tensor(draw(rows)), torch.tensor(draw(rows))


def test_contract() -> None:
    check_method(Nearswap, parameters={"t": 0.3})


def test_by_hand(merged: Merge) -> None:
    base = torch.tensor([[1.0, 1.0, 1.0], [2.0, 2.0, -2.0]])
    other = torch.tensor([[1.125, 0.75, 1.0], [4.0, -2.0, -1.0]])
    # within 1/4 the other; beyond it, 1/4 towards it: shares 1, 1, 1; 1/8, 1/16, 1/4
    expected = [[1.125, 0.75, 1.0], [2.25, 1.75, -1.75]]
    assert merged(Nearswap, [other], base=base, t=0.25).tolist() == expected


def test_the_least_distance(merged: Merge) -> None:
    """Smaller distances count as 1e-6: with t = 1e-7 the result goes a tenth of the way to a model that is nearer."""
    base, other = torch.tensor([1.0, 0.0]), torch.tensor([1.0, 1e-8])
    result = merged(Nearswap, [other], base=base, t=1e-7)
    torch.testing.assert_close(result, torch.tensor([1.0, 1e-9]), rtol=1e-6, atol=0)


@FIXED
@given(pairs())
def test_the_ends_are_the_models(merged: Merge, pair: tuple[torch.Tensor, torch.Tensor]) -> None:
    base, other = pair
    assert torch.equal(merged(Nearswap, [other], base=base, t=0), base)
    assert torch.equal(merged(Nearswap, [other], base=base, t=4096), other)


@FIXED
@given(pairs(), st.floats(0, 100))
def test_it_leaves_the_base_by_t_at_most(
    merged: Merge, ulps_apart: Callable[..., int], pair: tuple[torch.Tensor, torch.Tensor], t: float
) -> None:
    base, other = pair
    moved = (merged(Nearswap, [other], base=base, t=t) - base).abs()
    nearest = torch.minimum((other - base).abs(), torch.tensor(t))
    assert bool(((moved - nearest).abs() <= 1e-6 * (base.abs() + other.abs() + 1e-6)).all())
    assert ulps_apart(merged(Nearswap, [base], base=base, t=t), base) <= 1


@pytest.mark.parametrize("asked", [{}, {"t": -0.1}, {"t": float("nan")}, {"t": 1, "weight": 1}])
def test_t_is_needed_and_not_negative(asked: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Nearswap.Parameters.model_validate(asked)
