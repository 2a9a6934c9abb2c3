"""Spherical interpolation: angles worked by hand, and what an arc must obey."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from safegraft_plugins.slerp import COLLINEAR, Slerp, share

Merge = Callable[..., torch.Tensor]

FIXED = settings(derandomize=True, deadline=None)
EPSILON = torch.finfo(torch.float32).eps

# Far enough from the smallest numbers that rounding is relative.
values = st.one_of(st.just(0.0), st.floats(2**-20, 1024, width=32), st.floats(-1024, -(2**-20), width=32))
times = st.integers(0, 64).map(lambda step: step / 64)  # so that 1 - t is exact


@st.composite
def pairs(draw: st.DrawFn) -> tuple[torch.Tensor, torch.Tensor]:
    size = draw(st.integers(1, 13))
    rows = st.lists(values, min_size=size, max_size=size)
    return torch.tensor(draw(rows)), torch.tensor(draw(rows))


def cosine(x: torch.Tensor, y: torch.Tensor) -> float:
    return float(torch.nn.functional.cosine_similarity(x.double().flatten(), y.double().flatten(), dim=0))


@pytest.mark.parametrize(
    ("base", "other", "t", "expected"),
    [
        # 90 degrees, a third of the way: cos 30 = 0.8660254 of the base, sin 30 = 0.5 of the other
        (
            [[3.0, 0.0, 0.0], [0.0, 4.0, 0.0]],
            [[0.0, 2.0, 0.0], [0.0, 0.0, 8.0]],
            1 / 3,
            [[2.5980762, 1.0, 0.0], [0.0, 3.4641016, 4.0]],
        ),
        # 60 degrees between (1, 0, ...) and (1, sqrt 3, ...), half way: sin 30 / sin 60 = 0.5773503 of both
        (
            [[1.0, 0.0, 0.0], [0.0, 0.0, 0.0]],
            [[1.0, 1.7320508, 0.0], [0.0, 0.0, 0.0]],
            0.5,
            [[1.1547005, 1.0, 0.0], [0.0, 0.0, 0.0]],
        ),
        # 120 degrees, a quarter of the way: sin 90 / sin 120 = 1.1547005 and sin 30 / sin 120 = 0.5773503
        (
            [[2.0, 0.0, 0.0], [0.0, 0.0, 0.0]],
            [[-1.0, 1.7320508, 0.0], [0.0, 0.0, 0.0]],
            0.25,
            [[1.7320508, 1.0, 0.0], [0.0, 0.0, 0.0]],
        ),
    ],
)
def test_by_hand(
    merged: Merge, base: list[list[float]], other: list[list[float]], t: float, expected: list[list[float]]
) -> None:
    result = merged(Slerp, [torch.tensor(other)], base=torch.tensor(base), t=t)
    torch.testing.assert_close(result, torch.tensor(expected), rtol=3e-7, atol=0)


@pytest.mark.parametrize(
    ("base", "other", "expected"),
    [
        # the same direction: a line. 3/4 x + 1/4 y
        ([1.0, 2.0, -4.0], [2.0, 4.0, -8.0], [1.25, 2.5, -5.0]),
        # opposite directions have no arc between them: a line
        ([1.0, 2.0, -4.0], [-1.0, -2.0, 4.0], [0.5, 1.0, -2.0]),
        # one element is always of the same or the opposite direction
        ([3.0], [7.0], [4.0]),
        ([3.0], [-5.0], [1.0]),
        # zero has no direction
        ([0.0, 0.0], [0.0, 0.0], [0.0, 0.0]),
    ],
)
def test_where_there_is_no_arc(merged: Merge, base: list[float], other: list[float], expected: list[float]) -> None:
    result = merged(Slerp, [torch.tensor(other)], base=torch.tensor(base), t=0.25)
    assert result.tolist() == expected


def test_zero_counts_as_orthogonal(merged: Merge) -> None:
    """As in mergekit: sin(t * 90 degrees) of the one that is not zero."""
    zero, other = torch.zeros(3), torch.tensor([1.0, -2.0, 4.0])
    torch.testing.assert_close(merged(Slerp, [other], base=zero, t=1 / 3), other * 0.5)
    torch.testing.assert_close(merged(Slerp, [zero], base=other, t=2 / 3), other * 0.5)


def test_the_arc_meets_the_line_where_one_replaces_the_other() -> None:
    arc, line = share(0.3, 1, 1, COLLINEAR - 1e-9), share(0.3, 1, 1, COLLINEAR + 1e-9)
    assert (line.base, line.other) == (0.7, 0.3)
    assert arc.base == pytest.approx(line.base, rel=1e-3)
    assert arc.other == pytest.approx(line.other, rel=1e-3)


@pytest.mark.parametrize("cosine_squared", [1.0000001, 1 + 1e-15])
def test_rounding_cannot_leave_the_cosines(cosine_squared: float) -> None:
    for sign in (1, -1):
        assert share(0.25, 1, 1, sign * cosine_squared).base == 0.75


@FIXED
@given(pairs(), st.floats(0, 1))
def test_close_to_the_equation_in_double_precision(
    merged: Merge, pair: tuple[torch.Tensor, torch.Tensor], t: float
) -> None:
    x, y = (one.double() for one in pair)
    norms = float(x.norm()), float(y.norm())
    assume(min(norms) > 1e-7)
    between = max(-1.0, min(1.0, float(x.dot(y)) / math.prod(norms)))
    assume(abs(abs(between) - COLLINEAR) > 1e-12)  # on the border, rounding decides
    if abs(between) > COLLINEAR:
        first, second = 1 - t, t
    else:
        angle = math.acos(between)
        first, second = math.sin((1 - t) * angle) / math.sin(angle), math.sin(t * angle) / math.sin(angle)
    error = (merged(Slerp, [pair[1]], base=pair[0], t=t) - (first * x + second * y)).abs()
    assert bool((error <= 2 * EPSILON * ((first * x).abs() + (second * y).abs()) + 1e-40).all())


@FIXED
@given(pairs())
def test_the_ends_are_the_models(merged: Merge, pair: tuple[torch.Tensor, torch.Tensor]) -> None:
    base, other = pair
    assert torch.equal(merged(Slerp, [other], base=base, t=0), base)
    assert torch.equal(merged(Slerp, [other], base=base, t=1), other)


@FIXED
@given(pairs(), st.floats(0, 1))
def test_equal_models_give_themselves(
    merged: Merge, ulps_apart: Callable[..., int], pair: tuple[torch.Tensor, torch.Tensor], t: float
) -> None:
    x, _ = pair
    assert ulps_apart(merged(Slerp, [x], base=x, t=t), x) <= 1
    rounded = x.bfloat16()
    assert torch.equal(merged(Slerp, [rounded.float()], base=rounded.float(), t=t).bfloat16(), rounded)


@FIXED
@given(pairs(), times)
def test_walking_from_the_other_end(merged: Merge, pair: tuple[torch.Tensor, torch.Tensor], t: float) -> None:
    """t from x to y is 1 - t from y to x: to the bit, since two products have one sum."""
    x, y = pair
    assert torch.equal(merged(Slerp, [y], base=x, t=t), merged(Slerp, [x], base=y, t=1 - t))


@FIXED
@given(pairs(), times)
def test_the_arc_keeps_the_length(merged: Merge, pair: tuple[torch.Tensor, torch.Tensor], t: float) -> None:
    """Between vectors of one length, every point has that length."""
    assume(pair[0].any() and pair[1].any() and abs(cosine(*pair)) < 0.999)
    x, y = (one / one.norm() for one in pair)
    assert float(merged(Slerp, [y], base=x, t=t).norm()) == pytest.approx(1, abs=1e-4)


@FIXED
@given(pairs(), times, st.sampled_from([-2.0, 0.25, 16.0]))
def test_scaling_both_scales_the_result(
    merged: Merge, pair: tuple[torch.Tensor, torch.Tensor], t: float, factor: float
) -> None:
    """Factors that are powers of two round nothing, so equality is exact."""
    x, y = pair
    scaled = merged(Slerp, [y * factor], base=x * factor, t=t)
    assert torch.equal(scaled, merged(Slerp, [y], base=x, t=t) * factor)


@pytest.mark.parametrize("t", [-0.01, 1.01, float("nan"), float("inf"), None, "half"])
def test_t_is_from_0_to_1(t: Any) -> None:
    with pytest.raises(ValidationError):
        Slerp.Parameters.model_validate({"t": t})


def test_t_is_required_and_alone() -> None:
    for asked in ({}, {"t": 0.5, "weight": 1}):
        with pytest.raises(ValidationError):
            Slerp.Parameters.model_validate(asked)
    assert Slerp.Parameters.model_validate({"t": 0}).model_dump() == {"t": 0.0}


def test_needs_a_base_and_one_model() -> None:
    assert (Slerp.requires.base, Slerp.requires.min_inputs, Slerp.requires.max_inputs) == ("required", 1, 1)
