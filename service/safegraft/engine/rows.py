"""Which rows of a vocabulary tensor meet which rows of the inputs.

Two models seldom have the same vocabulary: an LVLM adds image tokens and padding to its LLM's. A row
stands for a token, so rows are paired by token string. Rows that all contributors share are merged;
the host's other rows stay as they are.
"""

from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256

import numpy as np
from numpy.typing import NDArray

NO_ROW = -1
RowMap = NDArray[np.int64]  # host row -> the input's row, or NO_ROW


@dataclass(frozen=True, slots=True)
class Piece:
    """A stretch of elements: where it begins in the cut, how long it is, where it begins in the
    source tensor (None: the source has no such rows)."""

    at: int
    count: int
    source: int | None


class RowLayout:
    """Runs of consecutive rows that move together.

    Two coordinate systems, both in elements: `host` is the host's tensor; `shared` is the smaller
    tensor [shared_rows, ...] of the rows that are merged, in the host's order, which is what a method
    that needs the whole tensor sees.
    """

    def __init__(self, maps: Sequence[RowMap], shape: tuple[int, ...]) -> None:
        self.shape = shape
        self.width = int(np.prod(shape[1:], dtype=np.int64))
        table = np.stack(maps)  # [contributors, host rows]
        merged = np.flatnonzero((table >= 0).all(axis=0))
        self.shared_rows = len(merged)
        self.shared_shape = (self.shared_rows, *shape[1:])
        if self.shared_rows:
            steps = np.diff(merged) != 1
            steps |= (np.diff(table[:, merged], axis=1) != 1).any(axis=0)
            first = np.concatenate(([0], np.flatnonzero(steps) + 1))
        else:
            first = np.zeros(0, dtype=np.int64)
        self.shared_starts: list[int] = first.tolist()
        self.host_starts: list[int] = merged[first].tolist()
        self.counts: list[int] = np.diff(np.append(first, len(merged))).tolist()
        self.source_starts: list[list[int]] = [one[merged[first]].tolist() for one in table]
        self.digest = sha256(np.ascontiguousarray(table).tobytes()).hexdigest()

    @property
    def is_identity(self) -> bool:
        """Every row of the host is merged with the row of the same index."""
        return self.counts == [self.shape[0]] and all(starts == [0] for starts in self.source_starts)

    def shared_cut(self, source: int, start: int, stop: int) -> Iterator[Piece]:
        """The pieces of contributor `source` for elements [start, stop) of the shared tensor."""
        return self._cut(self.shared_starts, self.source_starts[source], start, stop)

    def shared_of_host(self, start: int, stop: int) -> Iterator[Piece]:
        """For elements [start, stop) of the host's tensor, where they lie in the shared tensor."""
        return self._cut(self.host_starts, self.shared_starts, start, stop)

    def _cut(self, rows: list[int], source_rows: list[int], start: int, stop: int) -> Iterator[Piece]:
        """Walk the runs that begin at `rows` through [start, stop); gaps between them have no source."""
        at = start
        for run in self._runs(rows, start):
            begin = rows[run] * self.width
            end = begin + self.counts[run] * self.width
            if max(begin, at) >= stop:
                break
            if end <= at:
                continue
            if begin > at:
                yield Piece(at - start, begin - at, None)
                at = begin
            take = min(end, stop) - at
            yield Piece(at - start, take, source_rows[run] * self.width + at - begin)
            at += take
        if at < stop:
            yield Piece(at - start, stop - at, None)

    def _runs(self, starts: list[int], element: int) -> range:
        """Runs from the one that may hold `element` on."""
        if not self.width:
            return range(0)
        return range(max(0, bisect_right(starts, element // self.width) - 1), len(starts))


def pair_by_position(host_rows: int, input_rows: int) -> RowMap:
    """Row i with row i."""
    rows = np.arange(host_rows, dtype=np.int64)
    rows[input_rows:] = NO_ROW
    return rows


def pair_by_token(
    host_tokens: Mapping[str, int], input_tokens: Mapping[str, int], host_rows: int, input_rows: int
) -> RowMap:
    """Rows of the same token string. When the two vocabularies agree on every token and the
    tensors have the same size, the rows beyond the last token (padding) are paired as well."""
    if host_rows == input_rows and host_tokens == input_tokens:
        return pair_by_position(host_rows, input_rows)
    rows = np.full(host_rows, NO_ROW, dtype=np.int64)
    for token, row in host_tokens.items():
        other = input_tokens.get(token, NO_ROW)
        if row < host_rows and 0 <= other < input_rows:
            rows[row] = other
    return rows
