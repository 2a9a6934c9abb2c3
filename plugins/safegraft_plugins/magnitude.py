"""The k elements of largest magnitude in a tensor that is only seen block by block: exact, in bounded memory.

Finite floats order as their bit patterns do. One walk over the blocks counts the upper 15 bits, a second one the lower
16 bits of the elements that share the threshold's upper ones; a third finds the last of equal elements that belongs to
the k, where not all of them do.
"""

import sys
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from safegraft_plugins.float_bits import MAGNITUDE, magnitude, sign_bit_mask

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray

LOW_BITS = 16
LOW = (1 << LOW_BITS) - 1
HIGH_DIGITS = (MAGNITUDE >> LOW_BITS) + 1

Walk = Callable[[], Iterator[Sequence["torch.Tensor"]]]  # each call: flat blocks of the same tensors, in order


class Largest(NamedTuple):
    """The elements of largest magnitude; among equal ones those with the lowest index.

    bits: the smallest magnitude that belongs to them, as a float32's bit pattern.
    last: the index of the last element of just this magnitude that belongs to them.
    """

    bits: int
    last: int


NOTHING = Largest(MAGNITUDE, -1)
EVERYTHING = Largest(0, sys.maxsize)


class Threshold(NamedTuple):
    """The k-th largest magnitude: its bits, its rank among equal ones (from 1), and how many are equal."""

    bits: int
    rank: int
    equal: int


def largest(walk: Walk, counts: Mapping[int, Sequence[int]], elements: int) -> dict[int, list[Largest]]:
    """For tensors by their index in the blocks: the `count` largest elements, for each of its counts.

    elements: of each whole tensor.
    """
    found = thresholds(
        walk, {(index, count) for index, several in counts.items() for count in several if 0 < count < elements}
    )
    shared = {key: one for key, one in found.items() if one.rank < one.equal}
    last = _last_indices(walk, shared) if shared else {}

    def one(index: int, count: int) -> Largest:
        if count <= 0:
            return NOTHING
        if count >= elements:
            return EVERYTHING
        return Largest(found[index, count].bits, last.get((index, count), sys.maxsize))

    return {index: [one(index, count) for count in several] for index, several in counts.items()}


def belongs(magnitudes: "torch.Tensor", one: Largest, position: int) -> "torch.Tensor":
    """Turn the magnitudes of a flat cut that starts at `position` into the mask of what belongs to `one`."""
    import torch

    border = min(max(one.last + 1 - position, 0), magnitudes.numel())
    for part, least in ((magnitudes[:border], one.bits), (magnitudes[border:], one.bits + 1)):
        below = torch.tensor(least - 1, dtype=part.dtype, device=part.device)
        sign_bit_mask(torch.sub(below, part, out=part))
    return magnitudes


def thresholds(walk: Walk, wanted: Collection[tuple[int, int]]) -> dict[tuple[int, int], Threshold]:
    """For each (index of a tensor, k): the k-th largest magnitude in it."""
    if not wanted:
        return {}
    upper = _count_upper(walk, {index for index, _ in wanted})
    high = {key: _locate(upper[key[0]], key[1]) for key in wanted}
    lower = _count_lower(walk, {(key[0], place.bits) for key, place in high.items()})
    found: dict[tuple[int, int], Threshold] = {}
    for key, place in high.items():
        low = _locate(lower[key[0], place.bits], place.rank)
        found[key] = low._replace(bits=place.bits << LOW_BITS | low.bits)
    return found


def _count_upper(walk: Walk, indices: Collection[int]) -> "dict[int, NDArray[np.int64]]":
    import numpy as np
    import torch

    counts = {index: np.zeros(HIGH_DIGITS, np.int64) for index in indices}
    for tensors in walk():
        for index, count in counts.items():
            digits = magnitude(tensors[index]).bitwise_right_shift_(LOW_BITS)
            count += torch.bincount(digits, minlength=HIGH_DIGITS).cpu().numpy()
    return counts


def _count_lower(walk: Walk, wanted: Collection[tuple[int, int]]) -> "dict[tuple[int, int], NDArray[np.int64]]":
    import numpy as np

    counts = {key: np.zeros(LOW + 1, np.int64) for key in wanted}
    for tensors in walk():
        for (index, digit), count in counts.items():
            numbers = magnitude(tensors[index]).cpu().numpy()
            np.add.at(count, numbers[numbers >> LOW_BITS == digit] & LOW, 1)
    return counts


def _locate(counts: "NDArray[np.int64]", rank: int) -> Threshold:
    """Where the element of this rank, counted from the largest, falls."""
    import numpy as np

    so_far = np.cumsum(counts[::-1])
    at = int(np.searchsorted(so_far, rank))
    digit = len(counts) - 1 - at
    equal = int(counts[digit])
    return Threshold(digit, rank - (int(so_far[at]) - equal), equal)


def _last_indices(walk: Walk, wanted: Mapping[tuple[int, int], Threshold]) -> dict[tuple[int, int], int]:
    import numpy as np

    left = {key: one.rank for key, one in wanted.items()}
    found: dict[tuple[int, int], int] = {}
    position = 0
    for tensors in walk():
        for key in [key for key in left if key not in found]:
            equal = np.flatnonzero(magnitude(tensors[key[0]]).cpu().numpy() == wanted[key].bits)
            if left[key] <= len(equal):
                found[key] = position + int(equal[left[key] - 1])
            left[key] -= len(equal)
        if len(found) == len(wanted):
            break
        position += tensors[0].numel()
    return found
