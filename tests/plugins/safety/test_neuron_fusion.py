"""Neurons that have moved far stay, the others go back: by hand, in rows and columns, limits."""

from collections.abc import Callable

import pytest
import torch

from safegraft.methods import Context
from safegraft.testing import check_method
from safegraft_plugins.safety.neuron_fusion import NeuronFusion, kept_neurons

Merge = Callable[..., torch.Tensor]

A = torch.tensor([[0.0, 0.0, 0.0], [2.0, 2.0, 2.0], [1.0, 1.0, 1.0]])
# shifts of the rows: [3, 0, 0], norm 3; [2, 2, 2], norm sqrt 12; [0, 0, 4], norm 4
# shifts of the columns: [3, 2, 0], norm sqrt 13; [0, 2, 0], norm 2; [0, 2, 4], norm sqrt 20
F = A + torch.tensor([[3.0, 0.0, 0.0], [2.0, 2.0, 2.0], [0.0, 0.0, 4.0]])


@pytest.mark.parametrize("shared", [{}, {"fraction": 0.5, "scale": 0.2}, {"fraction": 0.4, "neurons": "columns"}])
def test_contract(shared: dict[str, float | str]) -> None:
    check_method(NeuronFusion, parameters=shared)


@pytest.mark.parametrize(
    ("shared", "shift"),
    [
        # one of three rows: the last; the others keep half their shift
        ({"fraction": 0.34}, [[1.5, 0.0, 0.0], [1.0, 1.0, 1.0], [0.0, 0.0, 4.0]]),
        # two of them: sqrt 12 comes before 3
        ({"fraction": 0.67}, [[1.5, 0.0, 0.0], [2.0, 2.0, 2.0], [0.0, 0.0, 4.0]]),
        # one of three columns: the last
        ({"fraction": 0.34, "neurons": "columns"}, [[1.5, 0.0, 0.0], [1.0, 1.0, 2.0], [0.0, 0.0, 4.0]]),
        ({"fraction": 0.67, "neurons": "columns"}, [[3.0, 0.0, 0.0], [2.0, 1.0, 2.0], [0.0, 0.0, 4.0]]),
        ({"fraction": 0.34, "scale": 0}, [[0.0, 0.0, 0.0], [0.0, 0.0, 0.0], [0.0, 0.0, 4.0]]),
        ({"fraction": 0, "scale": 0.25}, [[0.75, 0.0, 0.0], [0.5, 0.5, 0.5], [0.0, 0.0, 1.0]]),
    ],
)
def test_by_hand(merged: Merge, shared: dict[str, float | str], shift: list[list[float]]) -> None:
    assert torch.equal(merged(NeuronFusion, [F], roles=[A], **shared), A + torch.tensor(shift))


def test_limits(merged: Merge) -> None:
    f, a = torch.randn(2, 9, 5, generator=torch.Generator().manual_seed(1))
    assert torch.equal(merged(NeuronFusion, [f], roles=[a], fraction=1, scale=0), f)
    assert torch.equal(merged(NeuronFusion, [f], roles=[a], fraction=0, scale=1), f)
    assert torch.equal(merged(NeuronFusion, [f], roles=[a], fraction=0, scale=0), a)
    assert torch.equal(merged(NeuronFusion, [f], roles=[f], fraction=0.3, scale=0.3), f)


def test_of_equal_shifts_the_first_stay(merged: Merge) -> None:
    a, f = torch.zeros(4, 2), torch.ones(4, 2)
    assert merged(NeuronFusion, [f], roles=[a], fraction=0.5, scale=0)[:, 0].tolist() == [1, 1, 0, 0]


def test_a_row_of_stacked_experts_is_a_row_of_one_expert(merged: Merge) -> None:
    f, a = torch.randn(2, 2, 3, 4, generator=torch.Generator().manual_seed(2))
    stacked = merged(NeuronFusion, [f], roles=[a], fraction=0.5, neurons="columns")
    flat = merged(NeuronFusion, [f.view(6, 4)], roles=[a.view(6, 4)], fraction=0.5)
    assert torch.equal(stacked.view(6, 4), flat)


def test_one_dimension_stays_the_lvlms(merged: Merge) -> None:
    assert torch.equal(merged(NeuronFusion, [F[1]], roles=[A[1]], scale=0, fraction=0), F[1])


def test_rows_of_a_cut() -> None:
    """Rows 2 and 3 of 0 1 1 0: the bits of 0110 0000."""
    context = Context("x", (4, 3), 6, 0, NeuronFusion.Parameters(), bytes([0b01100000]))
    assert kept_neurons(torch.zeros(2, 3), context).tolist() == [[True], [False]]


def test_the_defaults_keep_a_tenth_and_halve_the_rest(merged: Merge) -> None:
    # shifts 1, 2, ... 20 of twenty rows: the last two stay, the others keep half
    shift = torch.arange(1.0, 21).view(20, 1)
    result = merged(NeuronFusion, [shift], roles=[torch.zeros(20, 1)])
    assert result.flatten().tolist() == [row / 2 for row in range(1, 19)] + [19.0, 20.0]
