"""Means weighted by Fisher information: numbers worked by hand, and what an information is worth."""

from collections.abc import Callable, Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from safegraft.methods import Prepared
from safegraft.testing import check_method
from safegraft_plugins.fisher import Fisher, Squares

Merge = Callable[..., torch.Tensor]
Case = tuple[list[torch.Tensor], list[dict[str, torch.Tensor | None]], list[float]]

FIXED = settings(derandomize=True, deadline=None)

# Far enough from the smallest numbers that rounding is relative.
values = st.one_of(st.just(0.0), st.floats(2**-20, 1024, width=32), st.floats(-1024, -(2**-20), width=32))
squares = st.one_of(st.just(0.0), st.floats(2**-30, 1024, width=32))


@st.composite
def models(draw: st.DrawFn) -> Case:
    size = draw(st.integers(1, 9))
    count = draw(st.integers(1, 4))
    tensors = [torch.tensor(draw(st.lists(values, min_size=size, max_size=size))) for _ in range(count)]
    fishers = [torch.tensor(draw(st.lists(squares, min_size=size, max_size=size))) for _ in range(count)]
    return tensors, known(*fishers), draw(st.lists(st.floats(0.01, 100), min_size=count, max_size=count))


def known(*fishers: torch.Tensor | None) -> list[dict[str, torch.Tensor | None]]:
    return [{"fisher": fisher} for fisher in fishers]


def each(*numbers: float) -> list[dict[str, float]]:
    return [{"weight": number} for number in numbers]


@pytest.mark.parametrize("inputs", [1, 2, 4])
def test_contract(inputs: int) -> None:
    check_method(Fisher, inputs=inputs)
    check_method(Fisher, inputs=inputs, parameters={"normalize_fisher": False}, input_parameters={"weight": 0.3})


X = torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]])
Y = torch.tensor([[5.0, 2.0, -1.0], [0.0, 7.0, 2.0]])
OF_X = torch.tensor([[1.0, 1.0, 0.0], [3.0, 0.0, 2.0]])
OF_Y = torch.tensor([[3.0, 5.0, 2.0], [1.0, 0.0, 2.0]])


def test_by_hand(merged: Merge) -> None:
    # (1 + 15) / 4, equal, Y alone; (12 + 0) / 4, neither: the mean, (12 + 4) / 4
    result = merged(Fisher, [X, Y], statistics=known(OF_X, OF_Y), normalize_fisher=False, epsilon=1e-20)
    assert result.tolist() == [[4.0, 2.0, -1.0], [3.0, 6.0, 4.0]]
    # weights 3 : 1 are factors on it: (3 * 1 + 3 * 5) / 6, equal, Y alone; (9 * 4 + 0) / 10, 3 : 1, (6 * 6 + 2 * 2) / 8
    result = merged(Fisher, [X, Y], each(3, 1), statistics=known(OF_X, OF_Y), normalize_fisher=False, epsilon=1e-20)
    torch.testing.assert_close(result, torch.tensor([[3.0, 2.0, -1.0], [3.6, 5.5, 5.0]]))


def test_the_floor(merged: Merge) -> None:
    # 1/2 in place of zeros: (3/2 - 2) / (5/2) in the third element
    result = merged(Fisher, [X, Y], statistics=known(OF_X, OF_Y), normalize_fisher=False, epsilon=0.5)
    torch.testing.assert_close(result, torch.tensor([[4.0, 2.0, -0.2], [3.0, 6.0, 4.0]]))


def test_normalised_over_the_model(merged: Merge) -> None:
    """The second model's information is 4 times the first's everywhere: that says something of its loss alone."""
    result = merged(Fisher, [X, Y], statistics=known(OF_X, 4 * OF_X))
    torch.testing.assert_close(result, (X + Y) / 2)
    # rms 1 and 5 over the elements (1, 1) and (1, 7): in the second element (1 + 7/5 * 3) / (1 + 7/5)
    x, y = torch.tensor([1.0, 1.0]), torch.tensor([1.0, 3.0])
    result = merged(Fisher, [x, y], statistics=known(torch.tensor([1.0, 1.0]), torch.tensor([1.0, 7.0])))
    torch.testing.assert_close(result, torch.tensor([1.0, 5.2 / 2.4]))


def test_the_survey_is_over_all_tensors() -> None:
    # sqrt((3 + 9) / (1 + 2)) and sqrt(8 / 2); a tensor without the statistic does not count
    def prepared(state: dict[str, Squares]) -> Prepared:
        return Prepared("weight", (2,), None, 0, Fisher.Parameters(), state)

    found = Fisher().survey(
        [
            prepared({"a": Squares(3.0, 1), "b": Squares(8.0, 2)}),
            prepared({"a": Squares(9.0, 2)}),
            prepared({}),
        ]
    )
    assert found == {"a": 2.0, "b": 2.0}


@pytest.mark.parametrize("fishers", [(None, None), (torch.ones(2, 3), None)])
def test_without_the_statistic_it_is_the_mean(merged: Merge, fishers: Sequence[torch.Tensor | None]) -> None:
    # (3 X + Y) / 4
    result = merged(Fisher, [X, Y], each(3, 1), statistics=known(*fishers))
    assert result.tolist() == [[2.0, 2.0, 2.0], [3.0, 5.5, 5.0]]


def test_no_information_at_all_is_the_mean(merged: Merge) -> None:
    result = merged(Fisher, [X, Y], each(3, 1), statistics=known(torch.zeros(2, 3), torch.zeros(2, 3)))
    torch.testing.assert_close(result, (3 * X + Y) / 4)


@FIXED
@given(models(), st.booleans())
def test_close_to_the_equation_in_double_precision(merged: Merge, case: Case, normalize: bool) -> None:
    tensors, statistics, weights = case
    result = merged(Fisher, tensors, each(*weights), statistics=statistics, normalize_fisher=normalize)
    above = below = torch.zeros_like(tensors[0], dtype=torch.float64)
    for tensor, statistic, weight in zip(tensors, statistics, weights, strict=True):
        assert statistic["fisher"] is not None
        fisher = statistic["fisher"].double()
        if normalize and bool(fisher.any()):
            fisher = fisher / fisher.square().mean().sqrt()
        fisher = fisher.clamp(min=1e-6) * weight
        above, below = above + fisher * tensor.double(), below + fisher
    largest = torch.stack(tensors).abs().amax(0)
    assert bool(((result - above / below).abs() <= 2e-6 * largest).all())


@FIXED
@given(models(), st.data())
def test_equal_models_and_absent_ones(merged: Merge, case: Case, data: st.DataObject) -> None:
    tensors, statistics, weights = case
    equal = merged(Fisher, tensors[:1] * len(tensors), each(*weights), statistics=statistics)
    assert torch.equal(equal, tensors[0])
    at = data.draw(st.integers(0, len(tensors)))
    other, ones = torch.full_like(tensors[0], 7.0), torch.ones_like(tensors[0])
    with_other = merged(
        Fisher,
        [*tensors[:at], other, *tensors[at:]],
        each(*weights[:at], 0, *weights[at:]),
        statistics=[*statistics[:at], {"fisher": ones}, *statistics[at:]],
        normalize_fisher=False,
    )
    without = merged(Fisher, tensors, each(*weights), statistics=statistics, normalize_fisher=False)
    assert torch.equal(with_other, without)


def test_some_weight_is_needed() -> None:
    inputs = [Fisher.InputParameters(weight=0)] * 2
    assert list(Fisher().check(inputs, Fisher.Parameters())) == [
        "every weight is zero; give at least one model a weight"
    ]
    for kind, asked in ((Fisher.InputParameters, {"weight": -1}), (Fisher.Parameters, {"epsilon": 0})):
        with pytest.raises(ValidationError):
            kind.model_validate(asked)
