"""The aligned model merged into its safety layers: where they lie, and where the borders are given."""

import math
from collections.abc import Callable

import pytest
import torch

from safegraft.testing import check_method
from safegraft_plugins.safety.safety_layers import SafetyLayers, parting

Merge = Callable[..., torch.Tensor]

F = torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]])
A = torch.tensor([[5.0, 2.0, -1.0], [0.0, 1.0, 2.0]])
HALF = torch.tensor([[3.0, 2.0, 1.0], [2.0, 3.0, 4.0]])


def cosines(*gaps: float) -> torch.Tensor:
    """Of layers whose normal pairs are 30 degrees apart, and mixed ones by so many degrees more."""
    angles = torch.tensor([[30.0, 30.0 + gap] for gap in gaps], dtype=torch.float64)
    return (angles * math.pi / 180).cos().float()


@pytest.mark.parametrize("shared", [{}, {"first": 0, "last": 0, "t": 0.3}])
def test_contract(shared: dict[str, float]) -> None:
    check_method(SafetyLayers, parameters=shared)


@pytest.mark.parametrize(
    ("gaps", "expected"),
    [
        # Of 40 degrees, the first above 4 is layer 2 and the first from 36 on layer 5
        ((0, 2, 5, 15, 30, 38, 40, 39), range(2, 6)),
        ((10, 20, 10), range(2)),
        ((0, 0, 40), range(2, 3)),
        ((0, -1, -5), range(0)),
        ((0,), range(0)),
    ],
)
def test_where_the_gap_opens(gaps: tuple[float, ...], expected: range) -> None:
    assert parting(cosines(*gaps)) == expected


@pytest.mark.parametrize(
    ("layer", "shared", "expected"),
    [
        (1, {}, F),
        (2, {}, HALF),
        (3, {}, HALF),
        (4, {}, F),
        (None, {}, F),
        (2, {"t": 0}, F),
        (2, {"t": 1}, A),
        (2, {"first": 0, "last": 1}, F),
        (0, {"first": 0, "last": 1}, HALF),
        (1, {"first": 0, "last": 1}, HALF),
    ],
)
def test_by_hand(merged: Merge, layer: int | None, shared: dict[str, float], expected: torch.Tensor) -> None:
    known = [{"cosines": None if layer is None else cosines(0, 0, 20, 40, 40)}]  # layers 2 and 3
    layers = 0 if layer is None else 5
    result = merged(SafetyLayers, [F], roles=[A], statistics=known, layer=layer, layers=layers, **shared)
    assert torch.equal(result, expected)


def test_borders_that_are_given_need_no_data(merged: Merge) -> None:
    shared = {"layer": 1, "layers": 2, "first": 1, "last": 1, "t": 1}
    assert torch.equal(merged(SafetyLayers, [F], roles=[A], statistics=[{"cosines": None}], **shared), A)
    assert torch.equal(merged(SafetyLayers, [F], roles=[A], statistics=[{"cosines": cosines(1, 0, 0)}], **shared), A)


def test_another_number_of_layers_is_refused(merged: Merge) -> None:
    known = [{"cosines": cosines(0, 20, 40)}]
    with pytest.raises(ValueError, match=r"aligned model has 3 layers and the result 5.*give `first` and `last`"):
        merged(SafetyLayers, [F], roles=[A], statistics=known, layer=0, layers=5)


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"first": 3}, "`first` and `last` go together"),
        ({"last": 3}, "`first` and `last` go together"),
        ({"first": 3, "last": 2}, "the first safety layer is 3 and the last 2"),
    ],
)
def test_borders_that_make_no_range(asked: dict[str, int], message: str) -> None:
    (said,) = SafetyLayers().check([], SafetyLayers.Parameters(**asked))
    assert message in said
    assert not [*SafetyLayers().check([], SafetyLayers.Parameters(first=2, last=2))]
