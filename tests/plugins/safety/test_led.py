"""Locate, elect, disjoint: by hand, and against boolean masks from sorts."""

from collections.abc import Callable, Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from safegraft.testing import check_method
from safegraft_plugins.safety.led import Led

Merge = Callable[..., torch.Tensor]
Statistics = list[dict[str, torch.Tensor | None]]

FIXED = settings(derandomize=True, deadline=None)
B = torch.zeros(2, 3)
X = torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]])
Y = torch.tensor([[10.0, 20.0, 30.0], [40.0, 50.0, 60.0]])
# Of three located: the expert's are 0, 1, 2 (in flat order) and the base's 0, 2, 4, so X elects 0 and 2
X_NEEDS = {
    "saliency": torch.tensor([[9.0, 8.0, 7.0], [1, 2, 3]]),
    "base_saliency": torch.tensor([[9.0, 1, 8], [2, 7, 3]]),
}
# The expert's are 2, 3, 4 and the base's 2, 3, 5, so Y elects 2 and 3
Y_NEEDS = {"saliency": torch.tensor([[1.0, 2, 9], [8, 7, 3]]), "base_saliency": torch.tensor([[1.0, 2, 7], [9, 3, 8]])}


def each(*pairs: tuple[float, float]) -> list[dict[str, float]]:
    return [{"weight": weight, "density": density} for weight, density in pairs]


@pytest.mark.parametrize("density", [0.0, 0.1, 0.4, 1.0])
def test_contract(density: float) -> None:
    check_method(Led, input_parameters={"density": density}, inputs=3)


def test_by_hand(merged: Merge) -> None:
    # 2 is elected twice, so X moves 0 alone, and Y 3 alone
    result = merged(Led, [X, Y], each((1, 0.5), (1, 0.5)), B, statistics=[X_NEEDS, Y_NEEDS], alpha=1)
    assert result.tolist() == [[1.0, 0.0, 0.0], [40.0, 0.0, 0.0]]
    # alpha 1/2 and weights of 2 and -1
    result = merged(Led, [X, Y], each((2, 0.5), (-1, 0.5)), B, statistics=[X_NEEDS, Y_NEEDS], alpha=0.5)
    assert result.tolist() == [[1.0, 0.0, 0.0], [-20.0, 0.0, 0.0]]
    # alone, X moves both of its elements, by alpha's default
    result = merged(Led, [X], each((1, 0.5)), B, statistics=[X_NEEDS])
    torch.testing.assert_close(result, torch.tensor([[0.9, 0.0, 2.7], [0.0, 0.0, 0.0]]))


def test_an_expert_of_weight_zero_is_absent(merged: Merge) -> None:
    both = merged(Led, [X, Y], each((1, 0.5), (0, 0.5)), B, statistics=[X_NEEDS, Y_NEEDS])
    assert torch.equal(both, merged(Led, [X], each((1, 0.5)), B, statistics=[X_NEEDS]))


@pytest.mark.parametrize("lacking", ["saliency", "base_saliency"])
def test_without_a_saliency_the_update_is_left_out(merged: Merge, lacking: str) -> None:
    part = merged(Led, [X, Y], each((1, 0.5), (1, 0.5)), B, statistics=[X_NEEDS, {**Y_NEEDS, lacking: None}])
    assert torch.equal(part, merged(Led, [X], each((1, 0.5)), B, statistics=[X_NEEDS]))
    assert torch.equal(merged(Led, [Y], base=B, statistics=[{**Y_NEEDS, lacking: None}]), B)


def test_nothing_of_saliency_zero_is_elected(merged: Merge) -> None:
    nowhere = {"saliency": torch.zeros(2, 3), "base_saliency": torch.ones(2, 3)}
    assert torch.equal(merged(Led, [X], each((1, 0.5)), B, statistics=[nowhere]), B)
    assert torch.equal(merged(Led, [X], each((1, 1)), B, statistics=[nowhere]), B)
    some = {"saliency": torch.tensor([[0.0, 1.0, 0.0], [0.0, 0.0, 2.0]]), "base_saliency": torch.ones(2, 3)}
    result = merged(Led, [X], each((1, 1)), B, statistics=[some], alpha=1)
    assert result.tolist() == [[0.0, 2.0, 0.0], [0.0, 0.0, 6.0]]


levels = st.lists(st.integers(0, 5), min_size=10, max_size=10).map(lambda row: torch.tensor(row).float())
values = st.lists(st.integers(-9, 9), min_size=10, max_size=10).map(lambda row: torch.tensor(row).float())


def located(saliency: torch.Tensor, count: int) -> set[int]:
    order = sorted(range(10), key=lambda index: -float(saliency[index]))
    return {index for index in order[:count] if saliency[index] > 0}


@FIXED
@given(st.lists(st.tuples(values, levels, levels, st.integers(1, 10)), min_size=1, max_size=4), values)
def test_against_sets(
    merged: Merge, experts: Sequence[tuple[torch.Tensor, torch.Tensor, torch.Tensor, int]], base: torch.Tensor
) -> None:
    elected = [located(own, count) & located(bases, count) for _, own, bases, count in experts]
    expected = base.clone()
    for number, (tensor, *_) in enumerate(experts):
        others = set[int]().union(*elected[:number], *elected[number + 1 :])
        for index in elected[number] - others:
            expected[index] = tensor[index]
    statistics = [{"saliency": own, "base_saliency": bases} for _, own, bases, _ in experts]
    own = each(*((1, count / 10) for *_, count in experts))
    result = merged(Led, [one[0] for one in experts], own, base, statistics=statistics, alpha=1)
    assert torch.equal(result, expected)


@pytest.mark.parametrize("asked", [{"density": 1.1}, {"weight": float("nan")}, {"lambda": 1}])
def test_parameters_have_ranges(asked: dict[str, float]) -> None:
    with pytest.raises(ValidationError):
        Led.InputParameters.model_validate(asked)
