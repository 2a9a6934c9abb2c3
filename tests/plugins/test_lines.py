"""LiNeS: factors by depth, worked by hand."""

from importlib.metadata import EntryPoint

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from safegraft.methods import Context, Registry
from safegraft_plugins.lines import Lines

FIXED = settings(derandomize=True, deadline=None)

BASE = torch.tensor([1.0, -2.0, 0.0])
MERGED = torch.tensor([3.0, 2.0, 0.5])  # BASE + (2, 4, 0.5)


def modified(
    merged: torch.Tensor, base: torch.Tensor, layer: int | None, layers: int, alpha: float, beta: float
) -> torch.Tensor:
    parameters = Lines.Parameters.model_validate({"alpha": alpha, "beta": beta})
    context = Context("weight", tuple(merged.shape), 0, 0, parameters, None, layer=layer, layers=layers)
    return Lines().modify(merged.clone(), base.clone(), context)


@pytest.mark.parametrize(
    ("layer", "layers", "expected"),
    [
        # alpha 1/2, beta 1 over five layers: factors 1/2, 3/4, 1, 5/4, 3/2
        (0, 5, [2.0, 0.0, 0.25]),
        (1, 5, [2.5, 1.0, 0.375]),
        (2, 5, [3.0, 2.0, 0.5]),
        (4, 5, [4.0, 4.0, 0.75]),
        # outside the layers, and where there is one layer: alpha
        (None, 5, [2.0, 0.0, 0.25]),
        (None, 0, [2.0, 0.0, 0.25]),
        (0, 1, [2.0, 0.0, 0.25]),
    ],
)
def test_by_hand(layer: int | None, layers: int, expected: list[float]) -> None:
    assert modified(MERGED, BASE, layer, layers, 0.5, 1.0).tolist() == expected


@FIXED
@given(
    st.lists(st.tuples(st.floats(-9, 9, width=32), st.floats(-9, 9, width=32)), min_size=1, max_size=9),
    st.integers(0, 3),
    st.floats(-2, 2),
    st.floats(-2, 2),
)
def test_what_it_leaves_alone(pairs: list[tuple[float, float]], layer: int, alpha: float, beta: float) -> None:
    """The base, whatever the factor; everything, where the factor is 1; and a factor of 0 gives the base."""
    merged, base = torch.tensor(pairs).unbind(1)
    assert torch.equal(modified(base, base, layer, 4, alpha, beta), base)
    assert torch.equal(modified(merged, base, layer, 4, 1, 0), merged)
    torch.testing.assert_close(modified(merged, base, 3, 4, alpha, 1 - alpha), merged, rtol=0, atol=4e-6)
    assert torch.equal(modified(merged, base, layer, 4, 0, 0), base)


def test_it_is_registered() -> None:
    registry = Registry.discover([EntryPoint("lines", "safegraft_plugins.lines", "safegraft")])
    assert isinstance(registry.modifiers.get("lines"), Lines)


@pytest.mark.parametrize(
    "asked", [{}, {"alpha": 1}, {"alpha": 1, "beta": float("nan")}, {"alpha": 1, "beta": 1, "c": 1}]
)
def test_both_parameters_are_needed(asked: dict[str, float]) -> None:
    with pytest.raises(ValidationError):
        Lines.Parameters.model_validate(asked)
