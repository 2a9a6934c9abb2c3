"""Trimming at both ends: numbers worked by hand, and mergekit's own."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from safegraft.testing import check_method
from safegraft_plugins.breadcrumbs import Breadcrumbs, BreadcrumbsTies, band_counts
from safegraft_plugins.mergekit import merge_methods as mergekit_methods

Merge = Callable[..., torch.Tensor]

THEIRS = {one.name: one for one in mergekit_methods()}

BASE = torch.tensor([[1.0, 1.0, 1.0, 1.0, 1.0], [2.0, 2.0, 2.0, 2.0, 2.0]])
DELTA = torch.tensor([[9.0, -7.0, 5.0, 3.0, 1.0], [-8.0, 6.0, -4.0, 2.0, 0.0]])


def each(*own: tuple[float, float, float]) -> list[dict[str, float]]:
    return [{"weight": weight, "density": density, "gamma": gamma} for weight, density, gamma in own]


@pytest.mark.parametrize(
    ("density", "gamma", "expected"),
    [
        # of 10: drop 2 as outliers (9, 8), keep the next 4 (7, 6, 5, 4)
        (0.4, 0.2, [[0, -7, 5, 0, 0], [0, 6, -4, 0, 0]]),
        # no outliers: the 4 largest
        (0.4, 0.0, [[9, -7, 0, 0, 0], [-8, 6, 0, 0, 0]]),
        # 0.8 + 0.5 > 1: the smallest 8, so that 2 outliers are dropped
        (0.8, 0.5, [[0, -7, 5, 3, 1], [0, 6, -4, 2, 0]]),
        # a density of 1 drops nothing, of 0 everything
        (1.0, 0.5, [[9, -7, 5, 3, 1], [-8, 6, -4, 2, 0]]),
        (0.0, 0.2, [[0, 0, 0, 0, 0], [0, 0, 0, 0, 0]]),
    ],
)
def test_by_hand(merged: Merge, density: float, gamma: float, expected: list[list[float]]) -> None:
    result = merged(Breadcrumbs, [BASE + DELTA], each((0.5, density, gamma)), BASE)
    assert torch.equal(result, BASE + 0.5 * torch.tensor(expected))


def test_equal_magnitudes(merged: Merge) -> None:
    """Of eight ones, two outliers and the next three: the first ones count as larger."""
    result = merged(Breadcrumbs, [torch.ones(8)], each((1, 3 / 8, 2 / 8)), torch.zeros(8))
    assert result.tolist() == [0, 0, 1, 1, 1, 0, 0, 0]


def test_rescaled_by_hand(merged: Merge) -> None:
    # 45 in all, 7 + 6 + 5 + 4 = 22 kept
    result = merged(Breadcrumbs, [BASE + DELTA], each((1, 0.4, 0.2)), BASE, rescale=True)
    kept = torch.tensor([[0, -7, 5, 0, 0], [0, 6, -4, 0, 0]])
    torch.testing.assert_close(result, BASE + kept * (45 / 22), rtol=1e-6, atol=0)


def test_elected_signs_by_hand(merged: Merge) -> None:
    # kept of the first: [[0, -7, 5, 0, 0], [0, 6, -4, 0, 0]]; of the second all, twice: [[0, 4, 2, -6, 0], 0]
    # signs: 0 - + - 0, 0 + - 0 0
    other = BASE.clone()
    other[0] += torch.tensor([0.0, 2.0, 1.0, -3.0, 0.0])
    own = each((1, 0.4, 0.2), (2, 1, 0))
    result = merged(BreadcrumbsTies, [BASE + DELTA, other], own, BASE)
    assert torch.equal(result, BASE + torch.tensor([[0.0, -7, 7, -6, 0], [0, 6, -4, 0, 0]]))
    shares = merged(BreadcrumbsTies, [BASE + DELTA, other], own, BASE, normalize=True)
    torch.testing.assert_close(shares, BASE + torch.tensor([[0.0, -7, 7 / 3, -3, 0], [0, 6, -4, 0, 0]]))


@pytest.mark.parametrize("method", [Breadcrumbs, BreadcrumbsTies])
@pytest.mark.parametrize("shared", [{}, {"normalize": True, "lambda": 0.8}])
def test_the_same_bits_as_mergekit(merged: Merge, method: type[Breadcrumbs], shared: dict[str, Any]) -> None:
    generator = torch.Generator().manual_seed(0)
    base, *tensors = (torch.randn(31, 65, generator=generator) for _ in range(4))
    own = each((0.7, 0.3, 0.01), (-0.4, 0.9, 0.2), (0.2, 1.0, 0.5))
    theirs = merged(THEIRS[f"mergekit:{method.name}"], tensors, own, base, **shared)
    assert torch.equal(merged(method, tensors, own, base, **shared), theirs)


@pytest.mark.parametrize("method", [Breadcrumbs, BreadcrumbsTies])
def test_contract(method: type[Breadcrumbs]) -> None:
    check_method(method, input_parameters={"weight": 0.5})
    own = {"weight": -0.5, "density": 0.4, "gamma": 0.2}
    check_method(method, input_parameters=own, parameters={"rescale": True, "normalize": True}, inputs=3)


def test_mergekits_parameters_and_defaults() -> None:
    for method in (Breadcrumbs, BreadcrumbsTies):
        defaults = method.Parameters().model_dump(by_alias=True)
        assert defaults == {"lambda": 1.0, "normalize": False, "rescale": False, "int8_mask": False}
        assert method.InputParameters(weight=1).model_dump() == {"weight": 1.0, "density": 1.0, "gamma": 0.01}


def test_counts_are_mergekits() -> None:
    """int(0.29 * 100) is 28: the product is 28.999999999999996."""
    own = Breadcrumbs.InputParameters(weight=1, density=0.29, gamma=0.07)
    assert band_counts(own, 100) == [35, 7]


def test_weights_that_cancel_are_refused_only_where_all_are_summed() -> None:
    own = [Breadcrumbs.InputParameters(weight=weight) for weight in (1, -1)]
    assert len(list(Breadcrumbs().check(own, Breadcrumbs.Parameters(normalize=True)))) == 1
    assert list(BreadcrumbsTies().check(own, Breadcrumbs.Parameters(normalize=True))) == []
