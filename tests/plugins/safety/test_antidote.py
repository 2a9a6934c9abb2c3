"""The weights that harmful data needs most, set to zero: by hand, and against a sort."""

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from safegraft.testing import check_method
from safegraft_plugins.safety.antidote import Antidote

Merge = Callable[..., torch.Tensor]

FIXED = settings(derandomize=True, deadline=None)
W = torch.tensor([[1.0, -2.0, 3.0], [0.0, 5.0, -1.0]])


def known(norms: torch.Tensor | None) -> list[dict[str, torch.Tensor | None]]:
    return [{"input_norm": norms}]


@pytest.mark.parametrize("fraction", [0.1, 0.5, 1.0])
def test_contract(fraction: float) -> None:
    check_method(Antidote, parameters={"fraction": fraction})


@pytest.mark.parametrize(
    ("fraction", "expected"),
    [
        # scores |w| (3, 1, 2): [[3, 2, 6], [0, 5, 2]]. One in each row, ceil(0.3)
        (0.1, [[1.0, -2.0, 0.0], [0.0, 0.0, -1.0]]),
        # ceil(1.5) = 2 of them
        (0.5, [[0.0, -2.0, 0.0], [0.0, 0.0, 0.0]]),
        (1.0, [[0.0, 0.0, 0.0], [0.0, 0.0, 0.0]]),
        (0.0, W.tolist()),
    ],
)
def test_by_hand(merged: Merge, fraction: float, expected: list[list[float]]) -> None:
    result = merged(Antidote, [W], statistics=known(torch.tensor([3.0, 1.0, 2.0])), fraction=fraction)
    assert result.tolist() == expected


def test_a_tenth_of_ten_is_one(merged: Merge) -> None:
    for width in (10, 30, 70, 90, 4096):
        result = merged(Antidote, [torch.ones(1, width)], statistics=known(torch.ones(width)), fraction=0.1)
        assert int((result == 0).sum()) == -(-width // 10)


def test_what_harmful_data_never_reaches_stays(merged: Merge) -> None:
    result = merged(Antidote, [W], statistics=known(torch.tensor([1.0, 0.0, 0.0])), fraction=1)
    assert result.tolist() == [[0.0, -2.0, 3.0], [0.0, 5.0, -1.0]]
    assert torch.equal(merged(Antidote, [W], statistics=known(torch.zeros(3)), fraction=1), W)


def test_without_the_statistic_nothing_happens(merged: Merge) -> None:
    assert torch.equal(merged(Antidote, [W], statistics=known(None), fraction=1), W)
    assert torch.equal(merged(Antidote, [W[0]], statistics=known(None), fraction=1), W[0])


@FIXED
@given(
    st.lists(st.integers(-3, 3), min_size=18, max_size=18),
    st.lists(st.integers(0, 3), min_size=6, max_size=6),
    st.integers(0, 6),
)
def test_against_a_stable_sort(merged: Merge, weights: list[int], norms: list[int], count: int) -> None:
    tensor = torch.tensor(weights, dtype=torch.float32).view(3, 6)
    expected = tensor.clone()
    for row in expected:
        scores = [abs(float(weight)) * norm for weight, norm in zip(row, norms, strict=True)]
        for index in sorted(range(6), key=lambda index, scores=scores: -scores[index])[:count]:
            row[index] = 0.0 if scores[index] else row[index]
    result = merged(Antidote, [tensor], statistics=known(torch.tensor(norms).float()), fraction=count / 6)
    assert torch.equal(result, expected)
