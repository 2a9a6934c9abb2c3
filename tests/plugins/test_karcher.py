"""The Karcher mean: angles worked by hand, and that the mean is one."""

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from safegraft.testing import check_method
from safegraft_plugins.karcher import Karcher, mean

Merge = Callable[..., torch.Tensor]

FIXED = settings(derandomize=True, deadline=None)

values = st.floats(0.125, 16, width=32)


@st.composite
def models(draw: st.DrawFn) -> list[torch.Tensor]:
    """Tensors in one orthant: less than 90 degrees apart."""
    size = draw(st.integers(2, 9))
    rows = st.lists(values, min_size=size, max_size=size)
    return [torch.tensor(draw(rows)) for _ in range(draw(st.integers(2, 5)))]


@pytest.mark.parametrize("inputs", [1, 2, 4])
def test_contract(inputs: int) -> None:
    check_method(Karcher, inputs=inputs)


X = [[3.0, 0.0, 0.0], [0.0, 0.0, 0.0]]
Y = [[0.0, 4.0, 0.0], [0.0, 0.0, 0.0]]
Z = [[0.0, 0.0, 0.0], [0.0, 0.0, 5.0]]


@pytest.mark.parametrize(
    ("tensors", "expected"),
    [
        # halfway between two directions, at the length (3 + 4) / 2: 3.5 / sqrt 2
        ([X, Y], [[2.4748737, 2.4748737, 0.0], [0.0, 0.0, 0.0]]),
        # from three directions: 4 / sqrt 3
        ([X, Y, Z], [[2.3094011, 2.3094011, 0.0], [0.0, 0.0, 2.3094011]]),
        # a third of the way to Y: 10/3 (cos 30, sin 30), where the mean of the directions lies at atan 1/2 = 26.6
        ([X, X, Y], [[2.8867513, 1.6666667, 0.0], [0.0, 0.0, 0.0]]),
    ],
)
def test_by_hand(merged: Merge, tensors: list[list[list[float]]], expected: list[list[float]]) -> None:
    result = merged(Karcher, [torch.tensor(one) for one in tensors])
    torch.testing.assert_close(result, torch.tensor(expected), rtol=2e-6, atol=1e-6)


@FIXED
@given(st.lists(st.tuples(st.floats(0, 2.5), st.floats(0.5, 2)), min_size=2, max_size=5))
def test_on_a_circle_it_is_the_mean_angle(merged: Merge, polar: list[tuple[float, float]]) -> None:
    """Within half a circle the least squares of angles are those of numbers."""
    tensors = [torch.tensor([length * math.cos(angle), length * math.sin(angle)]) for angle, length in polar]
    angles, lengths = zip(*polar, strict=True)
    angle, length = sum(angles) / len(polar), sum(lengths) / len(polar)
    expected = torch.tensor([length * math.cos(angle), length * math.sin(angle)])
    torch.testing.assert_close(merged(Karcher, tensors, max_iter=50), expected, rtol=0, atol=5e-5)


@FIXED
@given(models())
def test_the_logarithms_sum_to_zero(merged: Merge, tensors: list[torch.Tensor]) -> None:
    """What makes a point the mean, in double precision, with vectors instead of inner products."""
    result = merged(Karcher, [one.double() for one in tensors], max_iter=100, tol=1e-9)
    at, units = result / result.norm(), [one.double() / one.double().norm() for one in tensors]
    logarithms = torch.zeros_like(at)
    for unit in units:
        orthogonal = unit - unit.dot(at) * at
        if float(orthogonal.norm()) > 1e-12:
            logarithms += math.atan2(float(orthogonal.norm()), float(unit.dot(at))) * orthogonal / orthogonal.norm()
    assert float(logarithms.norm()) < 1e-6
    assert float(result.norm()) == pytest.approx(sum(float(one.norm()) for one in tensors) / len(tensors), rel=1e-5)


def test_without_steps_it_is_the_mean_direction(merged: Merge) -> None:
    # (2, 1) / sqrt 5 at the length 10/3
    result = merged(Karcher, [torch.tensor(one) for one in (X, X, Y)], max_iter=0)
    torch.testing.assert_close(result[0], torch.tensor([2.9814240, 1.4907120, 0.0]), rtol=3e-7, atol=0)


def test_where_there_is_no_direction(merged: Merge) -> None:
    x, zero = torch.tensor([3.0, 4.0]), torch.zeros(2)
    assert merged(Karcher, [zero, zero, zero]).tolist() == [0.0, 0.0]
    assert merged(Karcher, [torch.tensor([1e-6]), torch.tensor([1e-6])]).tolist() == [0.0]  # below `tol`
    torch.testing.assert_close(merged(Karcher, [x, zero]), x / 2)
    torch.testing.assert_close(merged(Karcher, [x, 1e-6 * x], tol=1e-9), x * 0.5000005)


@pytest.mark.parametrize("tol", [0.0, 1e-5])
def test_opposites_give_the_first(merged: Merge, tol: float) -> None:
    """There is no one way between them."""
    x = torch.tensor([3.0, -4.0, 0.1])
    torch.testing.assert_close(merged(Karcher, [x, -3 * x], tol=tol), 2 * x)
    torch.testing.assert_close(merged(Karcher, [-x, 3 * x], tol=tol), -2 * x)


@FIXED
@given(models())
def test_equal_models_give_themselves(merged: Merge, tensors: list[torch.Tensor]) -> None:
    assert torch.equal(merged(Karcher, [tensors[0]] * len(tensors)), tensors[0])
    assert torch.equal(merged(Karcher, tensors[:1], tol=0.9, max_iter=0), tensors[0])


@FIXED
@given(models(), st.data())
def test_the_order_of_models_matters_to_rounding_only(
    merged: Merge, tensors: list[torch.Tensor], data: st.DataObject
) -> None:
    order = data.draw(st.permutations(tensors))
    torch.testing.assert_close(merged(Karcher, tensors), merged(Karcher, order), rtol=1e-5, atol=1e-5)


@FIXED
@given(st.lists(st.lists(st.floats(-1, 1), min_size=3, max_size=3), min_size=2, max_size=5), st.sampled_from([0, 1e-5]))
def test_coefficients_stay_finite(rows: list[list[float]], tol: float) -> None:
    """Whatever the directions, opposite and equal ones among them."""
    vectors = torch.tensor(rows, dtype=torch.float64)
    assume(bool((vectors.norm(dim=1) > 1e-3).all()))
    units = torch.cat([vectors, -vectors[:1]]) / torch.cat([vectors, vectors[:1]]).norm(dim=1, keepdim=True)
    found = mean((units @ units.T).tolist(), 10, tol)
    assert math.sqrt(sum(float(x) ** 2 for x in torch.tensor(found, dtype=torch.float64) @ units)) == pytest.approx(
        1, abs=1e-2
    )
