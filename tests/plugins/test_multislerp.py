"""The mean of directions at the mean length: numbers worked by hand, and where there is no direction."""

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from safegraft.testing import check_method
from safegraft_plugins.multislerp import Multislerp

Merge = Callable[..., torch.Tensor]

FIXED = settings(derandomize=True, deadline=None)

values = st.one_of(st.just(0.0), st.floats(2**-10, 1024, width=32), st.floats(-1024, -(2**-10), width=32))


@st.composite
def models(draw: st.DrawFn, least: int = 2) -> tuple[list[torch.Tensor], list[float]]:
    size = draw(st.integers(1, 9))
    rows = st.lists(values, min_size=size, max_size=size)
    count = draw(st.integers(least, 5))
    weights = draw(st.lists(st.floats(0.01, 10), min_size=count, max_size=count))
    return [torch.tensor(draw(rows)) for _ in range(count)], weights


def each(*numbers: float) -> list[dict[str, float]]:
    return [{"weight": number} for number in numbers]


@pytest.mark.parametrize("inputs", [1, 2, 4])
def test_contract(inputs: int) -> None:
    check_method(Multislerp, input_parameters={"weight": 0.6}, inputs=inputs)


X = [[3.0, 0.0, 0.0], [0.0, 0.0, 0.0]]
Y = [[0.0, 4.0, 0.0], [0.0, 0.0, 0.0]]
Z = [[0.0, 0.0, 0.0], [0.0, 0.0, 5.0]]


@pytest.mark.parametrize(
    ("tensors", "numbers", "normalize", "expected"),
    [
        # halfway between two directions, at the length (3 + 4) / 2: 3.5 / sqrt 2
        ([X, Y], (1, 1), True, [[2.4748737, 2.4748737, 0.0], [0.0, 0.0, 0.0]]),
        # m = (3/4, 1/4), |m| = sqrt(10) / 4; length 9/4 + 4/4 = 13/4: (13/4) (3, 1) / sqrt 10
        ([X, Y], (3, 1), True, [[3.0832207, 1.0277402, 0.0], [0.0, 0.0, 0.0]]),
        # lengths are weighted, too: (2 * 3 + 2 * 4) / sqrt 2
        ([X, Y], (2, 2), False, [[9.8994949, 9.8994949, 0.0], [0.0, 0.0, 0.0]]),
        # the same from three directions: 4 / sqrt 3
        ([X, Y, Z], (1, 1, 1), True, [[2.3094011, 2.3094011, 0.0], [0.0, 0.0, 2.3094011]]),
        # away from Y: m = (2, -1), |m| = sqrt 5; length 2 * 3 - 4 = 2
        ([X, Y], (2, -1), True, [[1.7888544, -0.8944272, 0.0], [0.0, 0.0, 0.0]]),
    ],
)
@pytest.mark.parametrize("base", [0.0, 2.0])
def test_by_hand(
    merged: Merge,
    tensors: list[list[list[float]]],
    numbers: tuple[float, ...],
    normalize: bool,
    expected: list[list[float]],
    base: float,
) -> None:
    """Without a base, and with one: all is then relative to it."""
    origin = torch.full((2, 3), base) if base else None
    inputs = [torch.tensor(one) + base for one in tensors]
    result = merged(Multislerp, inputs, each(*numbers), origin, normalize_weights=normalize)
    torch.testing.assert_close(result, torch.tensor(expected) + base, rtol=3e-7, atol=0)


def test_where_directions_cancel_it_is_a_line(merged: Merge) -> None:
    x = torch.tensor([1.0, 2.0, -4.0])
    assert merged(Multislerp, [x, -3 * x], each(1, 1)).tolist() == [-1.0, -2.0, 4.0]
    # three directions 120 degrees apart, one of them twice as long: the plain mean is a third of what is too much
    corners = [torch.tensor(one) for one in ([2.0, 0.0], [-1.0, 3**0.5], [-2.0, -(12**0.5)])]
    torch.testing.assert_close(merged(Multislerp, corners, each(1, 1, 1)), torch.tensor([-1.0, -(3**0.5)]) / 3)


def test_where_directions_nearly_cancel_it_is_a_line(merged: Merge) -> None:
    """|m| = 5e-8, most of it rounding in any float32: not stretched to the models' length."""
    opposites = [torch.tensor([1.0, 0.0]), torch.tensor([-1.0, 1e-7])]
    torch.testing.assert_close(
        merged(Multislerp, opposites, each(1, 1)), torch.tensor([0.0, 5e-8]), rtol=1e-6, atol=1e-12
    )


def test_opposites_of_unequal_weight_keep_their_length(merged: Merge) -> None:
    """m = (3/4 - 1/4) x / |x|: the direction of x, at the length of both."""
    x = torch.tensor([1.0, 2.0, -4.0])
    torch.testing.assert_close(merged(Multislerp, [x, -x], each(3, 1)), x)


def test_zeros(merged: Merge) -> None:
    """A zero tensor has no direction; its length counts."""
    x, zero = torch.tensor([1.0, -2.0]), torch.zeros(2)
    assert merged(Multislerp, [zero] * 3, each(1, 2, 3)).tolist() == [0.0, 0.0]
    assert merged(Multislerp, [x] * 3, each(1, 2, 3), x).tolist() == [1.0, -2.0]
    torch.testing.assert_close(merged(Multislerp, [x, zero], each(1, 1)), x / 2)
    torch.testing.assert_close(merged(Multislerp, [x, zero], each(1, 1), eps=0), x / 2)


def test_one_model_is_given_back(merged: Merge) -> None:
    x = torch.tensor([3.0, 0.1])
    assert torch.equal(merged(Multislerp, [x], each(0.3)), x)
    assert torch.equal(merged(Multislerp, [x], each(0.3), torch.tensor([0.7, 9.0])), x)


@FIXED
@given(models())
def test_equal_models_give_themselves(merged: Merge, case: tuple[list[torch.Tensor], list[float]]) -> None:
    (x, base, *_), weights = case
    assert torch.equal(merged(Multislerp, [x] * len(weights), each(*weights)), x)
    around = merged(Multislerp, [x] * len(weights), each(*weights), base)
    assert bool(((around - x).abs() <= 2**-23 * (x.abs() + base.abs())).all())


@FIXED
@given(models())
def test_weight_zero_is_absence(merged: Merge, case: tuple[list[torch.Tensor], list[float]]) -> None:
    tensors, weights = case
    other = torch.full_like(tensors[0], 7.0)
    torch.testing.assert_close(
        merged(Multislerp, [*tensors, other], each(*weights, 0)),
        merged(Multislerp, tensors, each(*weights)),
        rtol=1e-5,
        atol=1e-6,
    )


@FIXED
@given(models(least=3), st.data())
def test_the_order_of_models_matters_to_rounding_only(
    merged: Merge, case: tuple[list[torch.Tensor], list[float]], data: st.DataObject
) -> None:
    tensors, weights = case
    order = data.draw(st.permutations(range(len(tensors))))
    one = merged(Multislerp, [one.abs() for one in tensors], each(*weights))
    other = merged(Multislerp, [tensors[at].abs() for at in order], each(*(weights[at] for at in order)))
    torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-3)


def test_weights_that_cancel_are_refused() -> None:
    inputs = [Multislerp.InputParameters(weight=weight) for weight in (1, -1)]
    (message,) = Multislerp().check(inputs, Multislerp.Parameters())
    assert message == (
        "the weights 1, -1 sum to zero, and `normalize_weights` divides by their sum; change them or set "
        "`normalize_weights: false`"
    )
    assert list(Multislerp().check(inputs, Multislerp.Parameters(normalize_weights=False))) == []
