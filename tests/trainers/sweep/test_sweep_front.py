"""The Pareto front and the hypervolume, against what they are by definition and against chance."""

import math
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from safegraft_trainers.sweep.front import dominates, hypervolume, pareto_front

# Few distinct values, so that ties and equal points are common, as they are with rates of a few prompts.
COORDINATES = st.integers(0, 8).map(lambda eighths: eighths / 8)


def points(dimensions: int) -> st.SearchStrategy[list[tuple[float, ...]]]:
    return st.lists(st.tuples(*[COORDINATES] * dimensions), max_size=9)


ANY = st.integers(1, 4).flatmap(points)


def by_cells(found: list[tuple[float, ...]], dimensions: int) -> float:
    """Points on a grid of eighths dominate whole cells: count them."""
    cells = product(range(8), repeat=dimensions)
    return sum(any(all(8 * a <= b for a, b in zip(one, cell, strict=True)) for one in found) for cell in cells) / (
        8**dimensions
    )


@given(ANY)
def test_the_front_is_what_nothing_dominates_and_dominates_all_else(found: list[tuple[float, ...]]) -> None:
    front = {found[index] for index in pareto_front(found)}
    assert not any(dominates(one, other) for one in front for other in front)
    assert all(one in front or any(dominates(other, one) for other in front) for one in found)
    assert len(pareto_front(found)) == sum(one in front for one in found)  # of equal points all


@given(st.integers(1, 4).flatmap(lambda n: st.tuples(st.just(n), points(n))))
@settings(deadline=None)
def test_hypervolume_is_exact(case: tuple[int, list[tuple[float, ...]]]) -> None:
    dimensions, found = case
    assert hypervolume(found, [1.0] * dimensions) == pytest.approx(by_cells(found, dimensions), abs=1e-12)


@pytest.mark.parametrize("dimensions", [2, 3, 4])
def test_hypervolume_against_monte_carlo(dimensions: int) -> None:
    generator = np.random.default_rng(dimensions)
    found = generator.random((12, dimensions))
    samples = generator.random((40_000, dimensions))
    hit = (found[None, :, :] <= samples[:, None, :]).all(axis=2).any(axis=1)
    tolerance = 4 * math.sqrt(0.25 / len(samples))
    assert hypervolume(found.tolist(), [1.0] * dimensions) == pytest.approx(float(hit.mean()), abs=tolerance)


@given(points(3), st.randoms())
@settings(deadline=None)
def test_order_and_dominated_points_change_nothing(found: list[tuple[float, ...]], chance: object) -> None:
    whole = hypervolume(found, (1, 1, 1))
    assert hypervolume(found[::-1], (1, 1, 1)) == pytest.approx(whole, abs=1e-12)
    assert hypervolume([found[index] for index in pareto_front(found)], (1, 1, 1)) == pytest.approx(whole, abs=1e-12)
    assert hypervolume([*found, (0, 0, 0)], (1, 1, 1)) == 1


def test_what_is_not_better_than_the_reference_everywhere_adds_nothing() -> None:
    assert hypervolume([(0.2, 1.0), (1.5, 0.0)], (1, 1)) == 0
    assert hypervolume([], (1, 1)) == 0


@pytest.mark.timeout(60)
def test_a_large_front_takes_seconds() -> None:
    generator = np.random.default_rng(0)
    sphere = np.abs(generator.normal(size=(60, 4)))
    front = 1 - sphere / np.linalg.norm(sphere, axis=1, keepdims=True)
    assert len(pareto_front(front.tolist())) == 60
    assert 0.1 < hypervolume(front.tolist(), [1.0] * 4) < 1
