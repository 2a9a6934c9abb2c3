"""The base plus weighted differences from it: numbers worked by hand, and what the equation implies."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from safegraft_plugins.linear import Linear
from safegraft_plugins.task_arithmetic import TaskArithmetic

Merge = Callable[..., torch.Tensor]

FIXED = settings(derandomize=True, deadline=None)
EPSILON = torch.finfo(torch.float32).eps

# Far enough from the smallest numbers that rounding is relative.
values = st.one_of(st.just(0.0), st.floats(2**-20, 1024, width=32), st.floats(-1024, -(2**-20), width=32))
weights = st.one_of(st.floats(0.01, 100), st.floats(-100, -0.01))


@st.composite
def models(draw: st.DrawFn, least: int = 1, most: int = 4) -> tuple[torch.Tensor, list[torch.Tensor], list[float]]:
    """A base, models, and a weight for each of them."""
    size = draw(st.integers(1, 9))
    rows = st.lists(values, min_size=size, max_size=size)
    count = draw(st.integers(least, most))
    numbers = draw(st.lists(weights, min_size=count, max_size=count))
    return torch.tensor(draw(rows)), [torch.tensor(draw(rows)) for _ in range(count)], numbers


def each(*numbers: float) -> list[dict[str, float]]:
    return [{"weight": number} for number in numbers]


BASE = torch.tensor([[1.0, 1.0, 1.0], [2.0, 2.0, 2.0]])
X = torch.tensor([[3.0, 1.0, 0.0], [2.0, 4.0, 6.0]])  # BASE + [[2, 0, -1], [0, 2, 4]]
Y = torch.tensor([[1.0, 5.0, 1.0], [0.0, 2.0, 2.0]])  # BASE + [[0, 4, 0], [-2, 0, 0]]


@pytest.mark.parametrize(
    ("numbers", "shared", "expected"),
    [
        # BASE + [[1, 0, -0.5], [0, 1, 2]] + [[0, 1, 0], [-0.5, 0, 0]]
        ((0.5, 0.25), {}, [[2.0, 2.0, 0.5], [1.5, 3.0, 4.0]]),
        # BASE + 2 ([[1, 0, -0.5], [0, 1, 2]] + [[0, 1, 0], [-0.5, 0, 0]])
        ((0.5, 0.25), {"lambda": 2}, [[3.0, 3.0, 0.0], [1.0, 4.0, 6.0]]),
        # BASE + ([[1, 0, -0.5], [0, 1, 2]] + [[0, 6, 0], [-3, 0, 0]]) / (0.5 + 1.5)
        ((0.5, 1.5), {"normalize": True}, [[1.5, 4.0, 0.75], [0.5, 2.5, 3.0]]),
        # BASE + 4 ([[1, 0, -0.5], [0, 1, 2]] + [[0, 6, 0], [-3, 0, 0]]) / 2
        ((0.5, 1.5), {"normalize": True, "lambda": 4}, [[3.0, 13.0, 0.0], [-4.0, 4.0, 6.0]]),
        # BASE - [[2, 0, -1], [0, 2, 4]]: what X has learned is taken out
        ((-1.0, 0.0), {}, [[-1.0, 1.0, 2.0], [2.0, 0.0, -2.0]]),
        ((0.0, 0.0), {}, [[1.0, 1.0, 1.0], [2.0, 2.0, 2.0]]),
    ],
)
def test_by_hand(
    merged: Merge, numbers: tuple[float, float], shared: dict[str, Any], expected: list[list[float]]
) -> None:
    assert merged(TaskArithmetic, [X, Y], each(*numbers), BASE, **shared).tolist() == expected


def test_one_element(merged: Merge) -> None:
    result = merged(TaskArithmetic, [torch.tensor([3.0])], each(0.5), torch.tensor([1.0]))
    assert result.tolist() == [2.0]


@FIXED
@given(models())
def test_equal_models_give_the_base(merged: Merge, case: tuple[torch.Tensor, list[torch.Tensor], list[float]]) -> None:
    base, inputs, numbers = case
    assert torch.equal(merged(TaskArithmetic, [base] * len(inputs), each(*numbers), base), base)


@FIXED
@given(models())
def test_lambda_zero_gives_the_base(merged: Merge, case: tuple[torch.Tensor, list[torch.Tensor], list[float]]) -> None:
    base, inputs, numbers = case
    assert torch.equal(merged(TaskArithmetic, inputs, each(*numbers), base, **{"lambda": 0}), base)


@FIXED
@given(models(least=2), st.data())
def test_weight_zero_is_absence(
    merged: Merge, case: tuple[torch.Tensor, list[torch.Tensor], list[float]], data: st.DataObject
) -> None:
    base, inputs, numbers = case
    absent = data.draw(st.integers(0, len(inputs) - 1))
    others = [*inputs[:absent], *inputs[absent + 1 :]]
    without = merged(TaskArithmetic, others, each(*numbers[:absent], *numbers[absent + 1 :]), base)
    numbers[absent] = 0.0
    assert torch.equal(merged(TaskArithmetic, inputs, each(*numbers), base), without)


@FIXED
@given(models(), st.floats(-4, 4))
def test_close_to_the_equation_in_double_precision(
    merged: Merge, case: tuple[torch.Tensor, list[torch.Tensor], list[float]], scale: float
) -> None:
    """One rounding for each difference, weight, product and sum, for lambda and for the last sum."""
    base, inputs, numbers = case
    x = base.double()
    deltas = [(one.double() - x) * number * scale for one, number in zip(inputs, numbers, strict=True)]
    size = x.abs() + sum(
        (one.double().abs() + x.abs()) * abs(n * scale) for one, n in zip(inputs, numbers, strict=True)
    )
    error = (merged(TaskArithmetic, inputs, each(*numbers), base, **{"lambda": scale}) - x - sum(deltas)).abs()
    assert bool((error <= (len(inputs) + 4) * EPSILON * size + 1e-40).all())


@FIXED
@given(models(least=2), st.data())
def test_the_order_of_models_matters_to_rounding_only(
    merged: Merge, case: tuple[torch.Tensor, list[torch.Tensor], list[float]], data: st.DataObject
) -> None:
    base, inputs, numbers = case
    order = data.draw(st.permutations(range(len(inputs))))
    one = merged(TaskArithmetic, inputs, each(*numbers), base)
    other = merged(TaskArithmetic, [inputs[at] for at in order], each(*(numbers[at] for at in order)), base)
    size = base.abs() + sum((x - base).abs() * abs(number) for x, number in zip(inputs, numbers, strict=True))
    assert bool(((one - other).abs() <= 2 * len(inputs) * EPSILON * size).all())


@FIXED
@given(models(), st.sampled_from([-2.0, 0.5, 8.0]))
def test_lambda_is_a_factor_on_every_weight(
    merged: Merge, case: tuple[torch.Tensor, list[torch.Tensor], list[float]], factor: float
) -> None:
    """Factors that are powers of two round nothing, so equality is exact."""
    base, inputs, numbers = case
    scaled = each(*(number * factor for number in numbers))
    by_lambda = merged(TaskArithmetic, inputs, each(*numbers), base, **{"lambda": factor})
    assert torch.equal(merged(TaskArithmetic, inputs, scaled, base), by_lambda)


@FIXED
@given(models(), st.sampled_from([-2.0, 0.5, 8.0]))
def test_normalized_weights_are_shares(
    merged: Merge, case: tuple[torch.Tensor, list[torch.Tensor], list[float]], factor: float
) -> None:
    base, inputs, numbers = case
    assume(abs(sum(numbers)) > 0.01)
    scaled = each(*(number * factor for number in numbers))
    one = merged(TaskArithmetic, inputs, each(*numbers), base, normalize=True)
    assert torch.equal(merged(TaskArithmetic, inputs, scaled, base, normalize=True), one)


@FIXED
@given(models())
def test_it_is_a_linear_merge_with_the_base_taking_the_rest(
    merged: Merge, case: tuple[torch.Tensor, list[torch.Tensor], list[float]]
) -> None:
    base, inputs, numbers = case
    linear = merged(Linear, [*inputs, base], each(*numbers, 1 - sum(numbers)), normalize=False)
    result = merged(TaskArithmetic, inputs, each(*numbers), base)
    largest = max(one.abs().max() for one in [base, *inputs])
    size = (1 + 2 * sum(map(abs, numbers))) * largest
    assert float((linear - result).abs().max()) <= (2 * len(inputs) + 4) * EPSILON * size


@pytest.mark.parametrize("numbers", [(0,), (1, -1), (0.1, 0.2, -0.3), (1, -1.00000003)])
def test_weights_that_cancel_are_refused(numbers: tuple[float, ...]) -> None:
    (message,) = check(numbers, normalize=True)
    shown = ", ".join(f"{number:g}" for number in numbers)
    assert message == (
        f"the weights {shown} sum to zero, and `normalize` divides by their sum; change them or set `normalize: false`"
    )
    assert check(numbers, normalize=False) == []


@pytest.mark.parametrize("numbers", [(1,), (1e-9, 1e-9), (-0.5, -0.5), (1, -0.999)])
def test_weights_that_do_not_cancel_pass(numbers: tuple[float, ...]) -> None:
    assert check(numbers, normalize=True) == []


def check(numbers: tuple[float, ...], *, normalize: bool) -> list[str]:
    inputs = [TaskArithmetic.InputParameters(weight=number) for number in numbers]
    return list(TaskArithmetic().check(inputs, TaskArithmetic.Parameters(normalize=normalize)))


@pytest.mark.parametrize(
    ("kind", "asked"),
    [
        (TaskArithmetic.InputParameters, {}),
        (TaskArithmetic.InputParameters, {"weight": float("nan")}),
        (TaskArithmetic.InputParameters, {"weight": 1, "lamda": 1}),
        (TaskArithmetic.Parameters, {"lambda": float("inf")}),
        (TaskArithmetic.Parameters, {"normalise": True}),
    ],
)
def test_parameters_are_known_and_finite(kind: Any, asked: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        kind.model_validate(asked)


def test_lambda_goes_by_its_recipe_name() -> None:
    names = set(TaskArithmetic.Parameters.model_json_schema()["properties"])
    assert names == {"lambda", "normalize", "rescale", "int8_mask"}
