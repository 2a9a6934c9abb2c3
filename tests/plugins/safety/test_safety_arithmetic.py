"""The harm vector's largest elements taken out: by hand, and against a plain sort."""

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from safegraft.methods import Context, Input
from safegraft.testing import check_method
from safegraft_plugins.magnitude import Largest
from safegraft_plugins.safety.safety_arithmetic import SafetyArithmetic

Merge = Callable[..., torch.Tensor]

FIXED = settings(derandomize=True, deadline=None)
B = torch.tensor([[1.0, 1.0, 1.0], [1.0, 1.0, 1.0]])
H = torch.tensor([[2.0, -3.0, 1.5], [1.0, 4.0, -1.0]])  # B + [[1, -4, 0.5], [0, 3, -2]]
F = torch.tensor([[10.0, 20.0, 30.0], [40.0, 50.0, 60.0]])

steps = st.lists(st.integers(-8, 8), min_size=12, max_size=12).map(lambda row: torch.tensor(row) / 4)  # many ties


def test_contract() -> None:
    check_method(SafetyArithmetic)
    check_method(SafetyArithmetic, parameters={"lambda": 3, "top_k": 0.5})


@pytest.mark.parametrize(
    ("shared", "expected"),
    [
        # int(0.1 * 6) is none, but one is taken: F + 1 * 4 at the largest, -4
        ({}, [[10.0, 24.0, 30.0], [40.0, 50.0, 60.0]]),
        # three of six: -4, 3, -2; lambda 2 takes out [[0, -8, 0], [0, 6, -4]]
        ({"top_k": 0.5, "lambda": 2}, [[10.0, 28.0, 30.0], [40.0, 44.0, 64.0]]),
        # all of them: F - [[1, -4, 0.5], [0, 3, -2]]
        ({"top_k": 1}, [[9.0, 24.0, 29.5], [40.0, 47.0, 62.0]]),
        ({"top_k": 0}, F.tolist()),
        ({"lambda": 0}, F.tolist()),
    ],
)
def test_by_hand(merged: Merge, shared: dict[str, float], expected: list[list[float]]) -> None:
    assert merged(SafetyArithmetic, [F], base=B, roles=[H], **shared).tolist() == expected


def test_of_equal_magnitudes_the_first_count(merged: Merge) -> None:
    base, harmful = torch.zeros(6), torch.tensor([1.0, -2.0, 2.0, -2.0, 2.0, 1.0])
    # three of six: the first three of the four 2s
    result = merged(SafetyArithmetic, [base], base=base, roles=[harmful], top_k=0.5)
    assert result.tolist() == [0.0, 2.0, -2.0, 2.0, 0.0, 0.0]


@FIXED
@given(steps, steps, steps, st.integers(0, 12), st.floats(0, 4))
def test_against_a_stable_sort(
    merged: Merge, f: torch.Tensor, h: torch.Tensor, b: torch.Tensor, count: int, scale: float
) -> None:
    tau = h - b
    order = sorted(range(12), key=lambda index: -abs(float(tau[index])))
    kept = torch.zeros(12)
    kept[order[:count]] = tau[order[:count]]
    # (count + 1/2) / 12, so that rounding cannot take one off
    top_k = min(1.0, (count + 0.5) / 12) if count else 0.0
    result = merged(SafetyArithmetic, [f], base=b, roles=[h], top_k=top_k, **{"lambda": scale})
    assert torch.equal(result, f - kept * scale)
    assert torch.equal(merged(SafetyArithmetic, [f], base=b, roles=[b], top_k=top_k, **{"lambda": scale}), f)


@pytest.mark.parametrize("asked", [{"lambda": -1}, {"top_k": 1.5}, {"top_k": 10}, {"lambda": float("nan")}])
def test_parameters_have_ranges(asked: dict[str, float]) -> None:
    with pytest.raises(ValidationError):
        SafetyArithmetic.Parameters.model_validate(asked)


def test_ties_are_counted_over_the_whole_tensor() -> None:
    """A cut that begins at element 3, of six equal magnitudes of which the first five count."""
    state = Largest(0x40000000, 4)  # the bits of 2.0
    context = Context("x", (6,), 3, 0, SafetyArithmetic.Parameters(), state)
    inputs = [Input("f", torch.zeros(3), None), Input("harmful", torch.full((3,), 2.0), None)]
    assert SafetyArithmetic().merge(inputs, torch.zeros(3), context).tolist() == [-2.0, -2.0, 0.0]
