"""Cuts what is going to be read into blocks that are worth a request each. Computes: fetches nothing.

Tensors lie in a file one after the other without a gap, so every byte of a block is one that is expected: what is not
needed is never moved along.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator
from typing import NamedTuple


class Block(NamedTuple):
    """Bytes [start, stop) of a file."""

    file: str
    start: int
    stop: int

    @property
    def size(self) -> int:
        return self.stop - self.start


def cut_blocks(ranges: Iterable[tuple[str, int, int]], largest: int, reach: int) -> list[Block]:
    """Blocks of at most `largest` bytes that cover the ranges (file, start, stop) once, in the order of first use.

    Neighbours in a file share a block where they are expected within `reach` bytes of each other, in whatever order:
    many small tensors are then one request, and none has to wait in memory for long.
    """
    pieces: dict[str, list[tuple[int, int, int]]] = defaultdict(list)
    expected = 0  # bytes that are read before
    for file, start, stop in ranges:
        if start < stop:
            pieces[file].append((start, stop, expected))
            expected += stop - start
    found = [one for file, own in pieces.items() for one in _cut_file(file, sorted(own), largest, reach)]
    return [block for _, block in sorted(found)]


def _cut_file(
    file: str, pieces: Iterable[tuple[int, int, int]], largest: int, reach: int
) -> Iterator[tuple[int, Block]]:
    """Blocks of one file, each with how many bytes are read before it. pieces: start, stop, bytes read before."""
    start = stop = first = 0
    covered = 0  # all that is expected before this byte is in a block
    for begin, end, expected in pieces:
        if begin < covered:  # expected twice
            expected += min(covered, end) - begin
            begin = covered
        while begin < end:
            fits = begin == stop and stop - start < largest and abs(expected - first) <= reach
            if not fits:
                if start < stop:
                    yield first, Block(file, start, stop)
                start = stop = begin
                first = expected
            stop = min(end, start + largest)
            first = min(first, expected)
            expected += stop - begin
            begin = stop
        covered = max(covered, end)
    if start < stop:
        yield first, Block(file, start, stop)
