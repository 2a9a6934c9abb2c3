"""The k elements of largest magnitude in a tensor that is only seen block by block: exact, in bounded memory.

Finite floats order as their bit patterns do. One walk over the blocks counts the upper 15 bits. A second one gathers
the elements that share the threshold's upper bits, from which the threshold follows, and which of equal elements belong
to the k. Where they are too many to be held, it counts their lower 16 bits, and a third walk finds the last of equals.
"""

import sys
from abc import ABC, abstractmethod
from bisect import bisect_right
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from safegraft_plugins.float_bits import MAGNITUDE, magnitude, sign_bit_mask

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray

LOW_BITS = 16
LOW = (1 << LOW_BITS) - 1
HIGH_DIGITS = (MAGNITUDE >> LOW_BITS) + 1
HELD = 1 << 22  # elements that may be gathered at a time: six bytes each


class Block(ABC):
    """A flat stretch of one tensor, as far as magnitudes go. `digit`: a value of the upper bits."""

    size: int

    @abstractmethod
    def count_upper(self, counts: "NDArray[np.int64]") -> None:
        """Add how often each value of the upper bits occurs, [HIGH_DIGITS]."""

    @abstractmethod
    def count_lower(self, digit: int, counts: "NDArray[np.int64]") -> None:
        """Add how often each value of the lower bits occurs below this digit, [LOW + 1]."""

    @abstractmethod
    def gather(self, digit: int, lower: "NDArray[np.uint16]", positions: "NDArray[np.uint32]") -> int:
        """Lower bits and positions in the block of the elements with this digit, in order; returns their number.

        The arrays have one place more than is needed."""

    @abstractmethod
    def equal(self, bits: int) -> "NDArray[np.int64]":
        """The positions in the block of elements of this magnitude, in order."""


class TensorBlock(Block):
    """Of a tensor [n] on any device."""

    def __init__(self, tensor: "torch.Tensor") -> None:
        self._tensor = tensor
        self.size = tensor.numel()

    def count_upper(self, counts: "NDArray[np.int64]") -> None:
        import torch

        digits = magnitude(self._tensor).bitwise_right_shift_(LOW_BITS)
        counts += torch.bincount(digits, minlength=HIGH_DIGITS).cpu().numpy()

    def count_lower(self, digit: int, counts: "NDArray[np.int64]") -> None:
        import torch

        magnitudes = magnitude(self._tensor)
        lower = magnitudes[magnitudes >> LOW_BITS == digit].bitwise_and_(LOW)
        counts += torch.bincount(lower, minlength=LOW + 1).cpu().numpy()

    def gather(self, digit: int, lower: "NDArray[np.uint16]", positions: "NDArray[np.uint32]") -> int:
        magnitudes = magnitude(self._tensor)
        (places,) = (magnitudes >> LOW_BITS == digit).nonzero(as_tuple=True)
        lower[: len(places)] = magnitudes[places].bitwise_and_(LOW).cpu().numpy()
        positions[: len(places)] = places.cpu().numpy()
        return len(places)

    def equal(self, bits: int) -> "NDArray[np.int64]":
        return (magnitude(self._tensor) == bits).nonzero().flatten().cpu().numpy()


Walk = Callable[[], Iterator[Sequence["torch.Tensor | Block"]]]  # each call: flat blocks of the same tensors, in order


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
    found = _find(
        walk,
        {(index, count) for index, several in counts.items() for count in several if 0 < count < elements},
        with_last=True,
    )

    def one(index: int, count: int) -> Largest:
        if count <= 0:
            return NOTHING
        if count >= elements:
            return EVERYTHING
        threshold, last = found[index, count]
        return Largest(threshold.bits, last)

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
    return {key: threshold for key, (threshold, _) in _find(walk, wanted, with_last=False).items()}


Key = tuple[int, int]  # the index of a tensor, a rank


def _find(walk: Walk, wanted: Collection[Key], *, with_last: bool) -> dict[Key, tuple[Threshold, int]]:
    """Thresholds, and the index of the last element of this magnitude that belongs to the k (sys.maxsize: all do)."""
    if not wanted:
        return {}
    upper = _count_upper(walk, {index for index, _ in wanted})
    high = {(index, rank): _locate(upper[index], rank) for index, rank in wanted}
    few, many = _divide({(index, place.bits): place.equal for (index, _), place in high.items()})
    gathered, lower = _look_below(walk, few, many)
    found: dict[Key, tuple[Threshold, int]] = {}
    open_: dict[Key, Threshold] = {}
    for key, place in high.items():
        digit = key[0], place.bits
        below = gathered[digit].counts() if digit in gathered else lower[digit]
        low = _locate(below, place.rank)
        threshold = low._replace(bits=place.bits << LOW_BITS | low.bits)
        last = sys.maxsize
        if with_last and threshold.rank < threshold.equal:
            if digit in gathered:
                last = gathered[digit].place(low.bits, threshold.rank)
            else:
                open_[key] = threshold
        found[key] = threshold, last
    for key, last in (_last_indices(walk, open_) if open_ else {}).items():
        found[key] = found[key][0], last
    return found


@dataclass(slots=True)
class _Gathered:
    """The elements of a tensor that share their upper bits, in order."""

    lower: "NDArray[np.uint16]"
    positions: "NDArray[np.uint32]"  # in their blocks
    count: int = 0
    blocks: list[tuple[int, int]] = field(default_factory=list[tuple[int, int]])  # count before a block, its start

    def add(self, block: Block, digit: int, start: int) -> None:
        self.blocks.append((self.count, start))
        self.count += block.gather(digit, self.lower[self.count :], self.positions[self.count :])

    def counts(self) -> "NDArray[np.int64]":
        import numpy as np

        return np.bincount(self.lower[: self.count], minlength=LOW + 1)

    def place(self, low: int, rank: int) -> int:
        """Where in the whole tensor the element of this rank lies among those whose lower bits are `low`."""
        import numpy as np

        at = int(np.flatnonzero(self.lower[: self.count] == low)[rank - 1])
        _, start = self.blocks[bisect_right(self.blocks, at, key=lambda block: block[0]) - 1]
        return start + int(self.positions[at])


def _divide(sizes: Mapping[Key, int]) -> tuple[dict[Key, int], list[Key]]:
    """The digits whose elements can be held, with their numbers; and those of which there are too many."""
    few: dict[Key, int] = {}
    for key, size in sorted(sizes.items(), key=lambda one: one[1]):
        if sum(few.values()) + size <= HELD:
            few[key] = size
    return few, [key for key in sizes if key not in few]


def _count_upper(walk: Walk, indices: Collection[int]) -> "dict[int, NDArray[np.int64]]":
    import numpy as np

    counts = {index: np.zeros(HIGH_DIGITS, np.int64) for index in indices}
    for several in walk():
        for index, count in counts.items():
            _as_block(several[index]).count_upper(count)
    return counts


def _look_below(
    walk: Walk, few: Mapping[Key, int], many: Collection[Key]
) -> "tuple[dict[Key, _Gathered], dict[Key, NDArray[np.int64]]]":
    """By (index of a tensor, digit)."""
    import numpy as np

    gathered = {
        key: _Gathered(np.empty(size + 1, np.uint16), np.empty(size + 1, np.uint32)) for key, size in few.items()
    }
    counts = {key: np.zeros(LOW + 1, np.int64) for key in many}
    position = 0
    for several in walk():
        blocks = [_as_block(one) for one in several]
        for (index, digit), one in gathered.items():
            one.add(blocks[index], digit, position)
        for (index, digit), count in counts.items():
            blocks[index].count_lower(digit, count)
        position += blocks[0].size
    return gathered, counts


def _locate(counts: "NDArray[np.int64]", rank: int) -> Threshold:
    """Where the element of this rank, counted from the largest, falls."""
    import numpy as np

    so_far = np.cumsum(counts[::-1])
    at = int(np.searchsorted(so_far, rank))
    digit = len(counts) - 1 - at
    equal = int(counts[digit])
    return Threshold(digit, rank - (int(so_far[at]) - equal), equal)


def _last_indices(walk: Walk, wanted: Mapping[Key, Threshold]) -> dict[Key, int]:
    left = {key: one.rank for key, one in wanted.items()}
    found: dict[Key, int] = {}
    position = 0
    for several in walk():
        blocks = [_as_block(one) for one in several]
        for key in [key for key in left if key not in found]:
            equal = blocks[key[0]].equal(wanted[key].bits)
            if left[key] <= len(equal):
                found[key] = position + int(equal[left[key] - 1])
            left[key] -= len(equal)
        if len(found) == len(wanted):
            break
        position += blocks[0].size
    return found


def _as_block(one: "torch.Tensor | Block") -> Block:
    return one if isinstance(one, Block) else TensorBlock(one)
