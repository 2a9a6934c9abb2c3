"""Model Stock: ratios worked by hand, and where there is no ratio."""

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from safegraft.testing import check_method
from safegraft_plugins.model_stock import ModelStock

Merge = Callable[..., torch.Tensor]

FIXED = settings(derandomize=True, deadline=None)

values = st.one_of(st.just(0.0), st.floats(0.25, 1024, width=32), st.floats(-1024, -0.25, width=32))


@st.composite
def models(draw: st.DrawFn) -> tuple[torch.Tensor, list[torch.Tensor]]:
    shape = draw(st.integers(1, 3)), draw(st.integers(1, 4))
    size = shape[0] * shape[1]
    rows = st.lists(values, min_size=size, max_size=size)
    drawn = [torch.tensor(draw(rows)).view(shape) for _ in range(draw(st.integers(3, 5)))]
    return drawn[0], drawn[1:]


@pytest.mark.parametrize("filter_wise", [False, True])
@pytest.mark.parametrize("inputs", [2, 4])
def test_contract(filter_wise: bool, inputs: int) -> None:
    check_method(ModelStock, parameters={"filter_wise": filter_wise}, inputs=inputs)


@pytest.mark.parametrize(
    ("deltas", "filter_wise", "expected"),
    [
        # 60 degrees: t = 2 (1/2) / (1 + 1/2) = 2/3 of the mean (1.5, 0.866, 0)
        ([[[2, 0, 0], [0, 0, 0]], [[1, 1.7320508, 0], [0, 0, 0]]], False, [[1, 0.5773503, 0], [0, 0, 0]]),
        # three, each two at 60 degrees: t = 3 (1/2) / (1 + 2/2) = 3/4 of the mean (2/3, 2/3, 2/3)
        (
            [[[1, 1, 0], [0, 0, 0]], [[1, 0, 1], [0, 0, 0]], [[0, 1, 1], [0, 0, 0]]],
            False,
            [[0.5, 0.5, 0.5], [0, 0, 0]],
        ),
        # orthogonal: nothing that the models agree on
        ([[[2, 0, 0], [0, 0, 0]], [[0, 0, 0], [0, 3, 0]]], False, [[0, 0, 0], [0, 0, 0]]),
        # row by row: the first as above; in the second both agree, but for the length: t = 1
        ([[[2, 0, 0], [0, 0, 1]], [[1, 1.7320508, 0], [0, 0, 3]]], True, [[1, 0.5773503, 0], [0, 0, 2]]),
        # 120 degrees: t = 2 (-1/2) / (1 - 1/2) = -2 times the mean (0.5, 0.866, 0), away from the models
        ([[[2, 0, 0], [0, 0, 0]], [[-1, 1.7320508, 0], [0, 0, 0]]], False, [[-1, -1.7320508, 0], [0, 0, 0]]),
        # opposite: the denominator is 0
        ([[[2, 0, 0], [0, 0, 0]], [[-4, 0, 0], [0, 0, 0]]], False, [[0, 0, 0], [0, 0, 0]]),
        # the norms' product 1e-4 * 5e-3 counts as 1e-6: c = 1/2, t = 2/3 of the mean 2.55e-3
        ([[[1e-4, 0, 0], [0, 0, 0]], [[5e-3, 0, 0], [0, 0, 0]]], False, [[1.7e-3, 0, 0], [0, 0, 0]]),
    ],
)
def test_by_hand(
    merged: Merge, deltas: list[list[list[float]]], filter_wise: bool, expected: list[list[float]]
) -> None:
    base = torch.tensor([[1.0, 0.0, 0.0], [0.0, 0.0, -2.0]])
    inputs = [base + torch.tensor(one) for one in deltas]
    result = merged(ModelStock, inputs, base=base, filter_wise=filter_wise)
    torch.testing.assert_close(result, base + torch.tensor(expected), rtol=1e-6, atol=1e-6)


def test_small_tensors(merged: Merge) -> None:
    # one element: the same direction, t = 1
    one = [torch.tensor([3.0]), torch.tensor([5.0])]
    assert merged(ModelStock, one, base=torch.tensor([1.0])).tolist() == [4.0]
    # a tensor of one dimension is one filter
    two = [torch.tensor([3.0, 1.0]), torch.tensor([1.0, 3.0])]
    assert merged(ModelStock, two, base=torch.ones(2), filter_wise=True).tolist() == [1.0, 1.0]


@FIXED
@given(models(), st.booleans())
def test_equal_models_give_themselves(
    merged: Merge, case: tuple[torch.Tensor, list[torch.Tensor]], filter_wise: bool
) -> None:
    base, inputs = case
    result = merged(ModelStock, inputs[:1] * len(inputs), base=base, filter_wise=filter_wise)
    # rows that are the base's own have no direction: t = 0 there
    assert torch.equal(result, inputs[0])
    assert torch.equal(merged(ModelStock, [base] * len(inputs), base=base, filter_wise=filter_wise), base)


@FIXED
@given(models())
def test_filters_do_not_know_of_each_other(merged: Merge, case: tuple[torch.Tensor, list[torch.Tensor]]) -> None:
    base, inputs = case
    rows = merged(ModelStock, inputs, base=base, filter_wise=True)
    alone = [merged(ModelStock, [one[at] for one in inputs], base=base[at]) for at in range(len(base))]
    torch.testing.assert_close(rows, torch.stack(alone), rtol=1e-4, atol=1e-4)


def test_needs_a_base_and_two_models() -> None:
    assert (ModelStock.requires.base, ModelStock.requires.min_inputs) == ("required", 2)
