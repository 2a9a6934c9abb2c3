"""Trim, elect, merge: numbers worked by hand, what must hold whatever the numbers, and mergekit's own."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from safegraft.testing import check_method
from safegraft_plugins.mergekit import merge_methods as mergekit_methods
from safegraft_plugins.task_arithmetic import TaskArithmetic
from safegraft_plugins.ties import Ties

Merge = Callable[..., torch.Tensor]

FIXED = settings(derandomize=True, deadline=None)
THEIRS = {one.name: one for one in mergekit_methods()}["mergekit:ties"]

values = st.one_of(st.just(0.0), st.floats(2**-20, 1024, width=32), st.floats(-1024, -(2**-20), width=32))
weights = st.one_of(st.floats(0.01, 100), st.floats(-100, -0.01))
densities = st.sampled_from([0.0, 0.3, 0.5, 0.9, 1.0])


@st.composite
def models(
    draw: st.DrawFn, least: int = 1, most: int = 4
) -> tuple[torch.Tensor, list[torch.Tensor], list[dict[str, float]]]:
    """A base, models, and the parameters of each."""
    size = draw(st.integers(1, 9))
    rows = st.lists(values, min_size=size, max_size=size)
    count = draw(st.integers(least, most))
    own = [{"weight": draw(weights), "density": draw(densities)} for _ in range(count)]
    return torch.tensor(draw(rows)), [torch.tensor(draw(rows)) for _ in range(count)], own


BASE = torch.tensor([[1.0, 1.0, 1.0], [2.0, 2.0, 2.0]])
X = torch.tensor([[3.0, 1.0, 0.0], [2.0, 4.0, 6.0]])  # BASE + [[2, 0, -1], [0, 2, 4]]
Y = torch.tensor([[0.0, 5.0, 2.0], [0.0, 2.0, 3.0]])  # BASE + [[-1, 4, 1], [-2, 0, 1]]


def each(*own: tuple[float, float]) -> list[dict[str, float]]:
    return [{"weight": weight, "density": density} for weight, density in own]


@pytest.mark.parametrize(
    ("own", "shared", "expected"),
    [
        # Half of X's differences: [[2, 0, 0], [0, 2, 4]]; of Y's 4, -2 and the first 1: [[-1, 4, 0], [-2, 0, 0]].
        # Weighted: [[2, 0, 0], [0, 2, 4]] and [[-0.5, 2, 0], [-1, 0, 0]]. Signs: + + + - + +.
        # Sums of what agrees: [[2, 2, 0], [-1, 2, 4]]; weights that took part: [[1, 0.5, -], [0.5, 1, 1]].
        (((1, 0.5), (0.5, 0.5)), {}, [[3.0, 5.0, 1.0], [0.0, 4.0, 6.0]]),
        (((1, 0.5), (0.5, 0.5)), {"normalize": False}, [[3.0, 3.0, 1.0], [1.0, 4.0, 6.0]]),
        (((1, 0.5), (0.5, 0.5)), {"lambda": 0.5}, [[2.0, 3.0, 1.0], [1.0, 3.0, 4.0]]),
        # Untrimmed, Y negative: [[2, 0, -1], [0, 2, 4]] and [[1, -4, -1], [2, 0, -1]]. Signs: + - - + + +.
        # Sums: [[3, -4, -2], [2, 2, 4]]; weights: [[0, -1, 0], [-1, 1, 1]], of which 0 are not divided by.
        (((1, 1), (-1, 1)), {}, [[4.0, 5.0, -1.0], [0.0, 4.0, 6.0]]),
        # A sum of zero elects plus. [[2, 0, -1], [0, 2, 4]] and [[-2, 8, 2], [-4, 0, 2]]: sums 0 8 1 -4 2 6.
        # What agrees: [[2, 8, 2], [-4, 2, 6]]; weights: [[1, 2, 2], [2, 1, 3]].
        (((1, 1), (2, 1)), {}, [[3.0, 5.0, 2.0], [0.0, 4.0, 4.0]]),
        # X's L1 norm is 9, after trimming to one element 4: 4 * 9 / 4 = 9.
        (((1, 0.2), (0, 1)), {"rescale": True}, [[1.0, 1.0, 1.0], [2.0, 2.0, 11.0]]),
        # A density above 0 keeps one element at least, of 0 none.
        (((1, 0.01), (1, 0)), {}, [[1.0, 1.0, 1.0], [2.0, 2.0, 6.0]]),
        (((0, 1), (0, 1)), {}, [[1.0, 1.0, 1.0], [2.0, 2.0, 2.0]]),
    ],
)
def test_by_hand(
    merged: Merge, own: tuple[tuple[float, float], ...], shared: dict[str, Any], expected: list[list[float]]
) -> None:
    assert merged(Ties, [X, Y], each(*own), BASE, **shared).tolist() == expected


def test_contract() -> None:
    check_method(Ties, input_parameters={"weight": 0.5})
    check_method(Ties, input_parameters={"weight": -0.5, "density": 0.4}, parameters={"rescale": True}, inputs=4)


@pytest.mark.parametrize("count", [1, 2, 5])
@pytest.mark.parametrize("normalize", [True, False])
def test_the_same_bits_as_mergekit(merged: Merge, count: int, normalize: bool) -> None:
    """Of normal numbers, no two differences have one magnitude."""
    generator = torch.Generator().manual_seed(count)
    base, *tensors = (torch.randn(31, 65, generator=generator) for _ in range(count + 1))
    own = each(*[(0.7, 0.3), (-0.4, 0.55), (0.2, 1.0), (1.3, 0.0), (0.5, 0.0001)][:count])
    shared = {"normalize": normalize, "lambda": 0.8}
    assert torch.equal(merged(Ties, tensors, own, base, **shared), merged(THEIRS, tensors, own, base, **shared))


def test_rescaled_to_a_rounding_of_mergekit(merged: Merge, ulps_apart: Callable[..., int]) -> None:
    """mergekit sums norms in float32: here of 2,015 numbers, so that its factor is wrong in the last bits."""
    generator = torch.Generator().manual_seed(0)
    zero, *tensors = (torch.randn(31, 65, generator=generator) * scale for scale in (0, 1, 1))
    own = each((0.7, 0.3), (0.4, 0.55))
    results = [merged(method, tensors, own, zero, rescale=True) for method in (Ties, THEIRS)]
    assert ulps_apart(*results) <= 8


@FIXED
@given(models())
def test_trimming_keeps_as_many_as_mergekit(
    merged: Merge, case: tuple[torch.Tensor, list[torch.Tensor], list[dict[str, float]]]
) -> None:
    """Ties included: of one model, how many elements move."""
    base, (tensor, *_), (own, *_) = case
    moved = [int((merged(method, [tensor], [own], base) != base).sum()) for method in (Ties, THEIRS)]
    assert moved[0] == moved[1] or bool((tensor == base).any())  # theirs may keep a zero in place of another


@FIXED
@given(models(most=3))
def test_the_equation_in_double_precision(
    merged: Merge, case: tuple[torch.Tensor, list[torch.Tensor], list[dict[str, float]]]
) -> None:
    base, tensors, own = case
    result = merged(Ties, tensors, own, base, normalize=False).double()
    kept = [trimmed(one - base, o["density"]).double() * o["weight"] for one, o in zip(tensors, own, strict=True)]
    total, size = sum(kept), sum(one.abs() for one in kept) + base.abs()
    for sign in (1, -1):
        agreeing = sum(one * (one * sign > 0) for one in kept)
        clear = total * sign > 1e-5 * size  # elsewhere rounding may decide the election
        assert bool(((result - base - agreeing).abs() <= 1e-5 * size)[clear].all())


def trimmed(delta: torch.Tensor, density: float) -> torch.Tensor:
    count = max(1, int(density * len(delta))) if density else 0
    largest = sorted(range(len(delta)), key=lambda at: (-abs(float(delta[at])), at))[:count]
    return delta * torch.tensor([at in largest for at in range(len(delta))])


@FIXED
@given(models(least=2), st.data())
def test_weight_zero_is_absence(
    merged: Merge, case: tuple[torch.Tensor, list[torch.Tensor], list[dict[str, float]]], data: st.DataObject
) -> None:
    base, tensors, own = case
    absent = data.draw(st.integers(0, len(tensors) - 1))
    without = merged(
        Ties, [*tensors[:absent], *tensors[absent + 1 :]], [*own[:absent], *own[absent + 1 :]], base, rescale=True
    )
    own[absent]["weight"] = 0.0
    assert torch.equal(merged(Ties, tensors, own, base, rescale=True), without)


@FIXED
@given(models())
def test_the_base_among_the_models_changes_nothing(
    merged: Merge, case: tuple[torch.Tensor, list[torch.Tensor], list[dict[str, float]]]
) -> None:
    base, tensors, own = case
    with_base = merged(Ties, [*tensors, base], [*own, {"weight": 3.0, "density": 0.5}], base, normalize=True)
    assert torch.equal(with_base, merged(Ties, tensors, own, base, normalize=True))


@FIXED
@given(models(most=1), st.sampled_from([0.5, -2.0, 4.0]))
def test_identical_models_are_averaged_to_themselves(
    merged: Merge, case: tuple[torch.Tensor, list[torch.Tensor], list[dict[str, float]]], weight: float
) -> None:
    base, (tensor,), _ = case
    own = each((weight, 0.5), (weight, 0.5))
    assert torch.equal(merged(Ties, [tensor] * 2, own, base), merged(Ties, [tensor], each((1, 0.5)), base))


@FIXED
@given(models(most=1))
def test_one_untrimmed_model_is_task_arithmetic(
    merged: Merge, case: tuple[torch.Tensor, list[torch.Tensor], list[dict[str, float]]]
) -> None:
    base, tensors, (own,) = case
    one = [{"weight": own["weight"]}]
    assert torch.equal(merged(Ties, tensors, one, base, normalize=False), merged(TaskArithmetic, tensors, one, base))


def test_weights_that_cancel_to_rounding_are_not_divided_by(merged: Merge) -> None:
    """0.1 + 0.2 - 0.3 is 7e-9 in float32; dividing by it would blow the sum up."""
    zero = torch.zeros(2)
    tensors = [torch.tensor([1.0, 1.0]), torch.tensor([1.0, 0.0]), torch.tensor([-1.0, 0.0])]
    result = merged(Ties, tensors, each((0.1, 1), (0.2, 1), (-0.3, 1)), zero)
    torch.testing.assert_close(result, torch.tensor([0.6, 1.0]))


def test_weights_of_very_different_sizes_are_divided_by(merged: Merge) -> None:
    zero = torch.zeros(2)
    tensors = [torch.tensor([1.0, 0.0]), torch.tensor([0.0, 3.0])]
    torch.testing.assert_close(merged(Ties, tensors, each((1, 1), (1e-9, 1)), zero), torch.tensor([1.0, 3.0]))
    torch.testing.assert_close(merged(Ties, tensors, each((1, 1), (-1e-9, 1)), zero), torch.tensor([1.0, 3.0]))


def test_cuts_through_equal_magnitudes(merged: Merge) -> None:
    """Twelve differences of one magnitude, five kept: the first five, in whatever blocks they come."""
    base = torch.zeros(12)
    result = merged(Ties, [torch.ones(12)], each((1, 5.5 / 12)), base)
    assert result.tolist() == [1.0] * 5 + [0.0] * 7


@pytest.mark.parametrize(
    ("kind", "asked"),
    [
        (Ties.InputParameters, {}),
        (Ties.InputParameters, {"weight": float("nan")}),
        (Ties.InputParameters, {"weight": 1, "density": 1.1}),
        (Ties.InputParameters, {"weight": 1, "density": -0.1}),
        (Ties.InputParameters, {"weight": 1, "gamma": 0.1}),
        (Ties.Parameters, {"lambda": float("inf")}),
    ],
)
def test_parameters_are_known_and_in_range(kind: Any, asked: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        kind.model_validate(asked)


def test_mergekits_parameters_and_defaults() -> None:
    defaults = Ties.Parameters().model_dump(by_alias=True)
    assert defaults == {"lambda": 1.0, "normalize": True, "rescale": False, "int8_mask": False}
    assert Ties.InputParameters(weight=1).model_dump() == {"weight": 1.0, "density": 1.0}
