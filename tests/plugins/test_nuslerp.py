"""Spherical interpolation by weights: numbers worked by hand, and what arcs must obey."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from safegraft.testing import check_method
from safegraft_plugins.nuslerp import COLLINEAR, Nuslerp, shares

Merge = Callable[..., torch.Tensor]

FIXED = settings(derandomize=True, deadline=None)

ROWS = {"nuslerp_flatten": False}
COLUMNS = {"nuslerp_flatten": False, "nuslerp_row_wise": True}

values = st.one_of(st.just(0.0), st.floats(2**-10, 1024, width=32), st.floats(-1024, -(2**-10), width=32))


@st.composite
def pairs(draw: st.DrawFn) -> tuple[torch.Tensor, torch.Tensor]:
    shape = draw(st.integers(1, 4)), draw(st.integers(1, 4))
    size = shape[0] * shape[1]
    rows = st.lists(values, min_size=size, max_size=size)
    return torch.tensor(draw(rows)).view(shape), torch.tensor(draw(rows)).view(shape)


def each(*numbers: float) -> list[dict[str, float]]:
    return [{"weight": number} for number in numbers]


@pytest.mark.parametrize("shared", [{}, ROWS, COLUMNS])
def test_contract(shared: dict[str, Any]) -> None:
    check_method(Nuslerp, parameters=shared, input_parameters={"weight": 0.6})


@pytest.mark.parametrize(
    ("x", "y", "numbers", "shared", "expected"),
    [
        # orthogonal, t = 2 / (1 + 2): sin 30 x + sin 60 y
        (
            [[3.0, 0.0, 0.0], [0.0, 0.0, 0.0]],
            [[0.0, 0.0, 0.0], [0.0, 4.0, 0.0]],
            (1, 2),
            {},
            [[1.5, 0.0, 0.0], [0.0, 3.4641016, 0.0]],
        ),
        # rows: 60 degrees, halfway, sin 30 / sin 60 = 0.5773503 of both; and twice the same row
        (
            [[1.0, 0.0, 0.0], [0.0, 2.0, 6.0]],
            [[1.0, 1.7320508, 0.0], [0.0, 2.0, 6.0]],
            (0.4, 0.4),
            ROWS,
            [[1.1547005, 1.0, 0.0], [0.0, 2.0, 6.0]],
        ),
        # columns: orthogonal, halfway, sin 45 = 0.7071068 of both; in the middle twice the same column
        (
            [[1.0, 5.0, 0.0], [0.0, 0.0, 1.0]],
            [[0.0, 5.0, 1.0], [1.0, 0.0, 0.0]],
            (1, 1),
            COLUMNS,
            [[0.7071068, 5.0, 0.7071068], [0.7071068, 0.0, 0.7071068]],
        ),
        # the same as one vector: cos = 25 / 27, sin(a / 2) / sin a = 1 / (2 cos(a / 2)) = 1 / sqrt(2 (1 + 25 / 27))
        (
            [[1.0, 5.0, 0.0], [0.0, 0.0, 1.0]],
            [[0.0, 5.0, 1.0], [1.0, 0.0, 0.0]],
            (1, 1),
            {},
            [[0.5095247, 5.0952468, 0.5095247], [0.5095247, 0.0, 0.5095247]],
        ),
        # beyond y: t = 2 / (2 - 1) = 2; orthogonal, sin(-90) x + sin 180 y
        ([[3.0, 0.0, 0.0]], [[0.0, 4.0, 0.0]], (-1, 2), {}, [[-3.0, 0.0, 0.0]]),
    ],
)
@pytest.mark.parametrize("base", [0.0, 2.0])
def test_by_hand(
    merged: Merge,
    x: list[list[float]],
    y: list[list[float]],
    numbers: tuple[float, float],
    shared: dict[str, Any],
    expected: list[list[float]],
    base: float,
) -> None:
    """Without a base, and with one: all is then relative to it."""
    tensors = [torch.tensor(x) + base, torch.tensor(y) + base]
    origin = torch.full_like(tensors[0], base) if base else None
    result = merged(Nuslerp, tensors, each(*numbers), origin, **shared)
    torch.testing.assert_close(result, torch.tensor(expected) + base, rtol=3e-7, atol=5e-7)


@pytest.mark.parametrize("shared", [{}, ROWS, COLUMNS])
@pytest.mark.parametrize(
    ("x", "y", "numbers", "expected"),
    [
        # the same direction: a line. 3/4 x + 1/4 y
        ([1.0, 2.0, -4.0], [2.0, 4.0, -8.0], (3, 1), [1.25, 2.5, -5.0]),
        # opposite directions have no arc between them: a line
        ([1.0, 2.0, -4.0], [-1.0, -2.0, 4.0], (3, 1), [0.5, 1.0, -2.0]),
        # weights that cancel count as equal
        ([1.0, 2.0, -4.0], [3.0, 6.0, -12.0], (1, -1), [2.0, 4.0, -8.0]),
        ([3.0], [-5.0], (3, 1), [1.0]),
        ([0.0, 0.0], [0.0, 0.0], (3, 1), [0.0, 0.0]),
    ],
)
def test_where_there_is_no_arc(
    merged: Merge,
    x: list[float],
    y: list[float],
    numbers: tuple[float, float],
    expected: list[float],
    shared: dict[str, Any],
) -> None:
    """A tensor of one dimension is one vector, whatever is asked for."""
    assert merged(Nuslerp, [torch.tensor(x), torch.tensor(y)], each(*numbers), **shared).tolist() == expected


def test_zero_counts_as_orthogonal(merged: Merge) -> None:
    """As in mergekit: sin(t * 90 degrees) of the one that is not zero, in each row."""
    x, y = torch.tensor([[0.0, 0.0], [3.0, 4.0]]), torch.tensor([[1.0, 2.0], [0.0, 0.0]])
    result = merged(Nuslerp, [x, y], each(2, 1), **ROWS)
    torch.testing.assert_close(result, torch.stack([y[0] * 0.5, x[1] * 3**0.5 / 2]))


def test_the_arc_meets_the_line_where_one_replaces_the_other() -> None:
    border = (1 - COLLINEAR) ** 0.5
    first, second = shares(0.3, torch.tensor([border - 1e-9, border + 1e-9], dtype=torch.float64))
    assert first[1] == 0.7
    assert second[1] == 0.3
    torch.testing.assert_close(first[0], first[1], rtol=1e-6, atol=0)
    torch.testing.assert_close(second[0], second[1], rtol=1e-6, atol=0)


@FIXED
@given(pairs(), st.sampled_from([{}, ROWS, COLUMNS]))
def test_the_ends_are_the_models(
    merged: Merge, pair: tuple[torch.Tensor, torch.Tensor], shared: dict[str, Any]
) -> None:
    assert torch.equal(merged(Nuslerp, pair, each(0.3, 0), **shared), pair[0])
    assert torch.equal(merged(Nuslerp, pair, each(0, 0.3), **shared), pair[1])


@FIXED
@given(pairs(), st.floats(0.01, 1), st.sampled_from([{}, ROWS, COLUMNS]))
def test_equal_models_give_themselves(
    merged: Merge,
    ulps_apart: Callable[..., int],
    pair: tuple[torch.Tensor, torch.Tensor],
    weight: float,
    shared: dict[str, Any],
) -> None:
    x, base = pair
    assert ulps_apart(merged(Nuslerp, [x, x], each(weight, 0.4), **shared), x) <= 1
    assert torch.equal(merged(Nuslerp, [base, base], each(weight, 0.4), base, **shared), base)


@FIXED
@given(pairs(), st.floats(0.01, 1))
def test_vectors_do_not_know_of_each_other(
    merged: Merge, pair: tuple[torch.Tensor, torch.Tensor], weight: float
) -> None:
    """Row by row is the same as each row on its own, and the same as column by column on the transpose."""
    rows = merged(Nuslerp, pair, each(weight, 0.4), **ROWS)
    alone = [merged(Nuslerp, [x, y], each(weight, 0.4)) for x, y in zip(*pair, strict=True)]
    tolerance = {"rtol": 1e-5, "atol": 1e-3}  # near opposite directions, coefficients are large
    torch.testing.assert_close(rows, torch.stack(alone), **tolerance)
    columns = merged(Nuslerp, [one.T.contiguous() for one in pair], each(weight, 0.4), **COLUMNS)
    torch.testing.assert_close(columns.T, rows, **tolerance)


@pytest.mark.parametrize(
    ("kind", "asked"),
    [
        (Nuslerp.InputParameters, {}),
        (Nuslerp.InputParameters, {"weight": float("inf")}),
        (Nuslerp.Parameters, {"nuslerp_rowwise": True}),
    ],
)
def test_parameters_are_known_and_finite(kind: Any, asked: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        kind.model_validate(asked)
