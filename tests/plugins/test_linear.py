"""The weighted mean: numbers worked by hand, and what a mean must obey."""

import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from safegraft_plugins.linear import Linear
from safegraft_plugins.weights import total_of

Merge = Callable[..., torch.Tensor]

FIXED = settings(derandomize=True, deadline=None)
EPSILON = torch.finfo(torch.float32).eps

# Far enough from the smallest numbers that rounding is relative.
values = st.one_of(st.just(0.0), st.floats(2**-20, 1024, width=32), st.floats(-1024, -(2**-20), width=32))
weights = st.floats(0.01, 100)
signed_weights = st.one_of(weights, st.floats(-100, -0.01))


@st.composite
def tensors(draw: st.DrawFn, least: int = 1, most: int = 5) -> list[torch.Tensor]:
    size = draw(st.integers(1, 9))
    rows = st.lists(values, min_size=size, max_size=size)
    return [torch.tensor(draw(rows)) for _ in range(draw(st.integers(least, most)))]


def each(*numbers: float) -> list[dict[str, float]]:
    return [{"weight": number} for number in numbers]


A = torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]])
B = torch.tensor([[10.0, 0.0, -2.0], [8.0, -1.0, 0.5]])


@pytest.mark.parametrize(
    ("numbers", "normalize", "expected"),
    [
        # A / 4 + 3 B / 4
        ((0.25, 0.75), True, [[7.75, 0.5, -0.75], [7.0, 0.5, 1.875]]),
        # the same shares as 1 : 3, divided by 4
        ((1.0, 3.0), True, [[7.75, 0.5, -0.75], [7.0, 0.5, 1.875]]),
        # A + 3 B
        ((1.0, 3.0), False, [[31.0, 2.0, -3.0], [28.0, 2.0, 7.5]]),
        # 2 A - B, whose weights sum to 1 by themselves
        ((2.0, -1.0), True, [[-8.0, 4.0, 8.0], [0.0, 11.0, 11.5]]),
        # (A - 3 B) / (1 - 3)
        ((1.0, -3.0), True, [[14.5, -1.0, -4.5], [10.0, -4.0, -2.25]]),
        # B alone
        ((0.0, 2.0), True, [[10.0, 0.0, -2.0], [8.0, -1.0, 0.5]]),
        ((0.0, 0.0), False, [[0.0, 0.0, 0.0], [0.0, 0.0, 0.0]]),
    ],
)
def test_by_hand(merged: Merge, numbers: tuple[float, float], normalize: bool, expected: list[list[float]]) -> None:
    result = merged(Linear, [A, B], each(*numbers), normalize=normalize)
    assert result.tolist() == expected


def test_one_model_and_one_element(merged: Merge) -> None:
    assert merged(Linear, [torch.tensor([3.0])], each(0.5)).tolist() == [3.0]
    assert merged(Linear, [torch.tensor([3.0])], each(0.5), normalize=False).tolist() == [1.5]


def test_the_sum_starts_from_zero(merged: Merge) -> None:
    """As in mergekit: zeros of either sign add up to +0."""
    zeros = torch.tensor([-0.0, -0.0, 0.0])
    result = merged(Linear, [zeros, zeros], each(1, 1))
    assert torch.signbit(result).tolist() == [False, False, False]


def test_float64_stays_float64(merged: Merge) -> None:
    third = 1 / 3
    result = merged(Linear, [torch.tensor([1.0], dtype=torch.float64)] * 2, each(third, third), normalize=False)
    assert result.dtype == torch.float64
    assert result.item() == pytest.approx(2 * third, rel=1e-15)


@FIXED
@given(tensors(), st.data())
def test_close_to_the_equation_in_double_precision(
    merged: Merge, inputs: list[torch.Tensor], data: st.DataObject
) -> None:
    """One rounding for each weight, product, sum and for the division; cancelling weights magnify them."""
    numbers = data.draw(st.lists(signed_weights, min_size=len(inputs), max_size=len(inputs)))
    total = sum(numbers)
    assume(sum(map(abs, numbers)) < 100 * abs(total))
    exact = sum(one.double() * number for one, number in zip(inputs, numbers, strict=True)) / total
    size = sum((one.double() * number).abs() for one, number in zip(inputs, numbers, strict=True)) / abs(total)
    magnified = sum(map(abs, numbers)) / abs(total)
    error = (merged(Linear, inputs, each(*numbers)).double() - exact).abs()
    assert bool((error <= (2 + magnified) * (len(inputs) + 1) * EPSILON * size + 1e-40).all())


@FIXED
@given(tensors(most=1), st.lists(weights, min_size=1, max_size=6))
def test_equal_models_give_themselves(
    merged: Merge, ulps_apart: Callable[..., int], inputs: list[torch.Tensor], numbers: list[float]
) -> None:
    """Within an ulp a model in float32, which is what mergekit gives too; exactly in bfloat16 and float16."""
    result = merged(Linear, inputs * len(numbers), each(*numbers))
    assert ulps_apart(result, inputs[0]) <= len(numbers)
    for dtype in (torch.bfloat16, torch.float16):
        rounded = inputs[0].to(dtype)
        again = merged(Linear, [rounded.float()] * len(numbers), each(*numbers)).to(dtype)
        assert torch.equal(again, rounded)


@FIXED
@given(tensors(least=2), st.data())
def test_weight_zero_is_absence(
    merged: Merge, ulps_apart: Callable[..., int], inputs: list[torch.Tensor], data: st.DataObject
) -> None:
    """To the bit for the sum; the mean divides by a sum that torch adds up in an order of its own."""
    numbers = data.draw(st.lists(weights, min_size=len(inputs) - 1, max_size=len(inputs) - 1))
    absent = data.draw(st.integers(0, len(inputs) - 1))
    others = [*inputs[:absent], *inputs[absent + 1 :]]
    padded = [*numbers[:absent], 0.0, *numbers[absent:]]
    total = merged(Linear, others, each(*numbers), normalize=False)
    assert torch.equal(merged(Linear, inputs, each(*padded), normalize=False), total)
    mean = merged(Linear, others, each(*numbers))
    assert ulps_apart(merged(Linear, inputs, each(*padded)), mean) <= len(inputs)


@FIXED
@given(tensors(least=2), st.data())
def test_the_order_of_models_matters_to_rounding_only(
    merged: Merge, inputs: list[torch.Tensor], data: st.DataObject
) -> None:
    numbers = data.draw(st.lists(weights, min_size=len(inputs), max_size=len(inputs)))
    order = data.draw(st.permutations(range(len(inputs))))
    one = merged(Linear, inputs, each(*numbers))
    other = merged(Linear, [inputs[at] for at in order], each(*(numbers[at] for at in order)))
    size = sum(tensor.abs() * number for tensor, number in zip(inputs, numbers, strict=True)) / sum(numbers)
    assert bool(((one - other).abs() <= 2 * (len(inputs) + 2) * EPSILON * size).all())


@FIXED
@given(tensors(), st.data(), st.sampled_from([-2.0, 0.5, 8.0]))
def test_scaling(merged: Merge, inputs: list[torch.Tensor], data: st.DataObject, factor: float) -> None:
    """Factors that are powers of two round nothing, so equality is exact."""
    numbers = data.draw(st.lists(weights, min_size=len(inputs), max_size=len(inputs)))
    scaled = [number * factor for number in numbers]
    mean = merged(Linear, inputs, each(*numbers))
    total = merged(Linear, inputs, each(*numbers), normalize=False)
    assert torch.equal(merged(Linear, inputs, each(*scaled)), mean)
    assert torch.equal(merged(Linear, inputs, each(*scaled), normalize=False), total * factor)
    assert torch.equal(merged(Linear, [one * factor for one in inputs], each(*numbers)), mean * factor)


@FIXED
@given(tensors(), st.data())
def test_a_mean_lies_between_its_models(merged: Merge, inputs: list[torch.Tensor], data: st.DataObject) -> None:
    numbers = data.draw(st.lists(weights, min_size=len(inputs), max_size=len(inputs)))
    result = merged(Linear, inputs, each(*numbers))
    stack = torch.stack(inputs)
    slack = (len(inputs) + 2) * EPSILON * stack.abs().amax(0)
    assert bool((stack.amin(0) - slack <= result).all())
    assert bool((result <= stack.amax(0) + slack).all())


@pytest.mark.parametrize("numbers", [(0,), (0, 0), (1, -1), (0.1, 0.2, -0.3), (1e6, -1e6, 1e-3), (1, -1.00000003)])
def test_weights_that_cancel_are_refused(numbers: tuple[float, ...]) -> None:
    (message,) = check(numbers, normalize=True)
    shown = ", ".join(f"{number:g}" for number in numbers)
    assert message == (
        f"the weights {shown} sum to zero, and `normalize` divides by their sum; change them or set `normalize: false`"
    )
    assert check(numbers, normalize=False) == []


@pytest.mark.parametrize("numbers", [(1,), (1e-9, 1e-9), (-0.5, -0.5), (1, -0.999), (0, 1e-30), (2, -1)])
def test_weights_that_do_not_cancel_pass(numbers: tuple[float, ...]) -> None:
    assert check(numbers, normalize=True) == []


def check(numbers: tuple[float, ...], *, normalize: bool) -> list[str]:
    inputs = [Linear.InputParameters(weight=number) for number in numbers]
    return list(Linear().check(inputs, Linear.Parameters(normalize=normalize)))


@pytest.mark.parametrize("asked", [{}, {"weight": float("nan")}, {"weight": float("inf")}, {"wieght": 1}])
def test_weight_is_required_and_finite(asked: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Linear.InputParameters.model_validate(asked)


@pytest.mark.parametrize("count", range(1, 12))
def test_weights_are_added_as_torch_adds_them(count: int) -> None:
    generator = random.Random(count)
    for _ in range(200):
        weights = [generator.gauss(0, 1) for _ in range(count)]
        assert total_of(weights) == float(torch.tensor(weights).sum())
