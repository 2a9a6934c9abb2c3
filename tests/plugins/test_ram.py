"""Reinforced Agent Merging: changes counted by hand."""

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from safegraft.methods import MergeMethod
from safegraft.testing import check_method
from safegraft_plugins.ram import Ram, RamPlus

Merge = Callable[..., torch.Tensor]

FIXED = settings(derandomize=True, deadline=None)

values = st.sampled_from([-2.0, -1.0, 0.0, 0.0, 0.0, 2**-20, 0.5, 4.0])


@st.composite
def models(draw: st.DrawFn) -> list[torch.Tensor]:
    size = draw(st.integers(1, 9))
    rows = st.lists(values, min_size=size, max_size=size)
    return [torch.tensor(draw(rows)) for _ in range(draw(st.integers(2, 4)))]


@pytest.mark.parametrize("method", [Ram, RamPlus])
@pytest.mark.parametrize("inputs", [1, 2, 4])
def test_contract(method: type[MergeMethod], inputs: int) -> None:
    check_method(method, inputs=inputs)


BASE = torch.tensor([[1.0, 1.0, 2.0], [2.0, 0.0, -1.0]])
X = torch.tensor([[2.0, 0.0, 4.0], [2**-20, 0.0, -2.0]])  # 2^-20 is about 1e-6: no change
Y = torch.tensor([[0.0, 0.0, 2.0], [0.0, 3.0, 2.0]])


def test_by_hand(merged: Merge) -> None:
    # X alone 2, none, (4 + 2) / 2; none, Y alone 3, (-2 + 2) / 2
    expected = BASE + torch.tensor([[2.0, 0.0, 3.0], [0.0, 3.0, 0.0]])
    assert torch.equal(merged(Ram, [BASE + X, BASE + Y], base=BASE), expected)
    # with epsilon 2 of X only the 4 counts, of Y only the 3
    expected = BASE + torch.tensor([[0.0, 0.0, 4.0], [0.0, 3.0, 0.0]])
    assert torch.equal(merged(Ram, [BASE + X, BASE + Y], base=BASE, epsilon=2), expected)


@pytest.mark.parametrize(
    ("alpha", "of_x", "of_y"),
    [
        # both share 2 elements; X alone has 1, Y alone 1. 1 + 0.5 min(2, 4)
        (4.0, 2.0, 2.0),
        # 1 + 0.5 min(2, 0.5)
        (0.5, 1.25, 1.25),
    ],
)
def test_own_changes_are_strengthened(merged: Merge, alpha: float, of_x: float, of_y: float) -> None:
    result = merged(RamPlus, [BASE + X, BASE + Y], base=BASE, r=0.5, alpha=alpha)
    assert torch.equal(result, BASE + torch.tensor([[2.0 * of_x, 0.0, 3.0], [0.0, 3.0 * of_y, 0.0]]))


def test_models_are_counted_apart(merged: Merge) -> None:
    # X: 1 shared, 4 own, 1 + 0.5 / 4; Y: 1 shared, 1 own, 1 + 0.5
    x, y = torch.tensor([8.0, 8.0, 8.0, 8.0, 2.0, 0.0]), torch.tensor([0.0, 0.0, 0.0, 0.0, 4.0, 8.0])
    result = merged(RamPlus, [x, y], base=torch.zeros(6), r=0.5, alpha=1)
    assert result.tolist() == [9.0, 9.0, 9.0, 9.0, 3.0, 12.0]


def test_one_element(merged: Merge) -> None:
    one, three = torch.tensor([1.0]), torch.tensor([3.0])
    for method in (Ram, RamPlus):
        assert merged(method, [three], base=one).tolist() == [3.0]


@FIXED
@given(models(), st.sampled_from([Ram, RamPlus]), st.data())
def test_what_merging_means(
    merged: Merge, deltas: list[torch.Tensor], method: type[MergeMethod], data: st.DataObject
) -> None:
    """A model that changes nothing is absent; equal models are themselves where they change; order is nothing."""
    base = torch.zeros_like(deltas[0])
    result = merged(method, deltas, base=base)
    assert torch.equal(merged(method, [*deltas, base], base=base), result)
    assert torch.equal(merged(method, [base] * 3, base=base), base)
    changed = deltas[0].abs() > 1e-5
    torch.testing.assert_close(merged(method, deltas[:1] * 3, base=base), deltas[0] * changed, rtol=3e-7, atol=0)
    order = data.draw(st.permutations(deltas))
    torch.testing.assert_close(merged(method, order, base=base), result, rtol=1e-6, atol=1e-6)
