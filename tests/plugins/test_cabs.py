"""n:m pruning one after the other: worked by hand, and against the definition."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from safegraft.testing import check_method
from safegraft_plugins.cabs import Cabs, largest_of_blocks
from safegraft_plugins.task_arithmetic import TaskArithmetic

Merge = Callable[..., torch.Tensor]

FIXED = settings(derandomize=True, deadline=None)

BASE = torch.tensor([[1.0, 1.0, 1.0, 1.0], [2.0, 2.0, 2.0, 2.0]])
X = BASE + torch.tensor([[4.0, -3.0, 2.0, -1.0], [1.0, 1.0, 0.0, 0.0]])
Y = BASE + torch.tensor([[8.0, 7.0, 6.0, 5.0], [5.0, 6.0, 7.0, 8.0]])


def test_by_hand(merged: Merge) -> None:
    # 1:2. X keeps 4 and 2, of the two ones the first, and no zero. Y is left 7 and 5, 6 and 8.
    own = [{"weight": 0.5}, {"weight": -1.0}]
    result = merged(Cabs, [X, Y], own, BASE, n=1, m=2)
    assert result.tolist() == [[3.0, -6.0, 2.0, -4.0], [2.5, -4.0, 2.0, -6.0]]
    # the other way round Y keeps 8 and 6, 6 and 8, and X is left -3 and -1, 1 and nothing that moves
    result = merged(Cabs, [Y, X], own[::-1], BASE, n=1, m=2)
    assert result.tolist() == [[-7.0, -0.5, -5.0, 0.5], [2.5, -4.0, 2.0, -6.0]]


def test_more_than_there_is_room_for(merged: Merge) -> None:
    """3:4 for both. X keeps 4, -3 and 2, and only 5 is left to Y; of the second row X's two ones, and 7 and 8."""
    result = merged(Cabs, [X, Y], base=BASE, n=3, m=4)
    assert result.tolist() == [[5.0, -2.0, 3.0, 6.0], [3.0, 3.0, 9.0, 10.0]]


def test_a_short_block_keeps_its_share(merged: Merge) -> None:
    """2:4 of six elements: two of the first four, one of the other two."""
    delta = torch.tensor([1.0, 4.0, 3.0, 2.0, 5.0, 6.0])
    assert merged(Cabs, [delta], base=torch.zeros(6), n=2, m=4).tolist() == [0.0, 4.0, 3.0, 0.0, 0.0, 6.0]


def test_contract() -> None:
    check_method(Cabs)
    check_method(Cabs, parameters={"n": 2, "m": 5}, input_parameters={"weight": -0.5}, inputs=4)


rows = st.lists(st.lists(st.integers(-4, 4).map(float), min_size=7, max_size=7), min_size=1, max_size=3)


@FIXED
@given(st.lists(rows.filter(lambda one: len(one) == 2), min_size=1, max_size=3), st.integers(1, 3), st.integers(3, 9))
def test_is_the_definition(merged: Merge, models: list[list[list[float]]], n: int, m: int) -> None:
    expected = torch.zeros(2, 7)
    for row in range(2):
        for start in range(0, 7, m):
            block = range(start, min(start + m, 7))
            free = list(block)
            count = n if len(block) == m else -(-n * len(block) // m)
            for number, model in enumerate(models):
                best = sorted(free, key=lambda at: (-abs(model[row][at]), at))[:count]
                for at in best:
                    if model[row][at] != 0:
                        expected[row, at] = (number + 1) * model[row][at]
                        free.remove(at)
    tensors = [torch.tensor(one) for one in models]
    own = [{"weight": number + 1} for number in range(len(models))]
    assert torch.equal(merged(Cabs, tensors, own, torch.zeros(2, 7), n=n, m=m), expected)


def test_everything_of_one_model_is_task_arithmetic(merged: Merge) -> None:
    own = [{"weight": -0.7}]
    assert torch.equal(merged(Cabs, [Y], own, BASE, n=4, m=4), merged(TaskArithmetic, [Y], own, BASE))


def test_zero_weight_and_the_base_are_absence(merged: Merge) -> None:
    without = merged(Cabs, [Y], base=BASE, n=1, m=2)
    assert torch.equal(merged(Cabs, [X, Y], [{"weight": 0}, {}], BASE, n=1, m=2), without)
    assert torch.equal(merged(Cabs, [BASE, Y], base=BASE, n=1, m=2), without)
    assert torch.equal(merged(Cabs, [X], [{"weight": 0}], BASE, n=1, m=2), BASE)


def test_blocks_stay_within_rows() -> None:
    """Of four columns in blocks of three, the fourth is a block of its own."""
    keys = np.array([[4, 3, 2, 1], [1, 2, 3, 4]])
    assert largest_of_blocks(keys, 1, 3).tolist() == [[True, False, False, True], [False, False, True, True]]


@pytest.mark.parametrize(("n", "m", "fine"), [(1, 1, True), (2, 4, True), (5, 4, False)])
def test_n_is_at_most_m(n: int, m: int, fine: bool) -> None:
    messages = list(Cabs().check([Cabs.InputParameters()], Cabs.Parameters(n=n, m=m)))
    assert (messages == []) is fine


@pytest.mark.parametrize("shape", [(5,), (2, 3)])
def test_models_without_weight_leave_the_base(merged: Merge, shape: tuple[int, ...]) -> None:
    base = torch.ones(shape)
    assert torch.equal(merged(Cabs, [base + 1, base + 2], [{"weight": 0}, {"weight": 0}], base), base)
