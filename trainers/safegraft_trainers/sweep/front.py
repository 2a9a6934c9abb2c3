"""The Pareto front and its hypervolume. Knows points only: every coordinate is a loss, lower is better."""

import math
from collections.abc import Sequence

Point = Sequence[float]


def dominates(one: Point, other: Point) -> bool:
    """Whether `one` is nowhere worse and somewhere better."""
    return all(a <= b for a, b in zip(one, other, strict=True)) and any(a < b for a, b in zip(one, other, strict=True))


def pareto_front(points: Sequence[Point]) -> list[int]:
    """The indices of the points that no other dominates, in their order; of equal points all."""
    return [index for index, one in enumerate(points) if not any(dominates(other, one) for other in points)]


def hypervolume(points: Sequence[Point], reference: Point) -> float:
    """The volume between the points and `reference`, exactly: what at least one of them dominates.

    The WFG algorithm (While, Bradstreet, Barone 2012), in any number of dimensions; a front of a hundred points in four
    takes a second or two. A point that is not better than the reference everywhere adds nothing.
    """
    inside = [tuple(point) for point in points if all(a < b for a, b in zip(point, reference, strict=True))]
    return _volume(_front(inside), tuple(reference))


def _volume(front: Sequence[tuple[float, ...]], reference: tuple[float, ...]) -> float:
    """front: different points of which none dominates another, in order."""
    if len(reference) == 2:
        return _area(front, reference)
    return sum(_added(one, front[index + 1 :], reference) for index, one in enumerate(front))


def _added(point: tuple[float, ...], others: Sequence[tuple[float, ...]], reference: tuple[float, ...]) -> float:
    """What a point dominates and none of the others does."""
    overlaps = [tuple(map(max, point, other)) for other in others]
    box = math.prod(b - a for a, b in zip(point, reference, strict=True))
    return box - _volume(_front(overlaps), reference)


def _area(front: Sequence[tuple[float, ...]], reference: tuple[float, ...]) -> float:
    area, above = 0.0, reference[1]
    for x, y in front:  # from left to right, and so from the top down
        area += (reference[0] - x) * (above - y)
        above = y
    return area


def _front(points: Sequence[tuple[float, ...]]) -> list[tuple[float, ...]]:
    distinct = sorted(set(points))
    return [distinct[index] for index in pareto_front(distinct)]
