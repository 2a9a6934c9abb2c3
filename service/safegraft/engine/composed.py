"""A checkpoint some of whose tensors are put together, when they are read, from matrices in others.

Cuts, stacks and transposes, byte for byte and in bounded memory; does no arithmetic. Which matrices make
which tensor, and why, is `experts.py`'s business.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from safegraft.checkpoint.types import Checkpoint, TensorInfo
from safegraft.checkpoint.weights import natural_order
from safegraft.engine.once import Once

STRIP_ROWS = 128  # how many rows are transposed at a time: they stay in the second-level cache
PADDING = 64  # bytes, a cache line: rows that lie a power of two apart share too few places in the cache
KEPT_BYTES = 32 << 20  # of transposed blocks, a checkpoint
LEAST_KEPT = 2  # blocks, however large: threads that read in order work on both sides of a border


@dataclass(frozen=True, slots=True)
class Matrix:
    """A matrix [rows, columns] within a stored tensor, row after row from byte `start` of it."""

    tensor: TensorInfo
    start: int
    rows: int
    columns: int

    @property
    def nbytes(self) -> int:
        return self.rows * self.columns * self.tensor.dtype.itemsize


@dataclass(frozen=True, slots=True)
class Block:
    """Matrices of one width and dtype, each below the last; `turned`: the whole of them transposed."""

    matrices: tuple[Matrix, ...]
    turned: bool

    @property
    def nbytes(self) -> int:
        return sum(matrix.nbytes for matrix in self.matrices)


@dataclass(frozen=True, slots=True)
class ComposedTensor:
    """A tensor that consists of `blocks`, all of one size, one after the other from byte `skip` on.

    info: its name, dtype and shape; file and offset are those of a tensor that it is made from.
    """

    info: TensorInfo
    blocks: tuple[Block, ...]
    skip: int = 0


class ComposedCheckpoint(Checkpoint):
    """`stored`, with the composed tensors in place of those that they are made from.

    Transposing keeps the latest blocks (32 MiB of them, or two), so that reading a tensor in order, on any
    number of threads, reads its matrices once. Closing it closes `stored`.
    """

    def __init__(self, stored: Checkpoint, composed: Sequence[ComposedTensor]) -> None:
        self._stored = stored
        self._composed = {one.info.name: one for one in composed}
        blocks = [block for one in composed for block in one.blocks]
        used = {matrix.tensor.name for block in blocks for matrix in block.matrices}
        tensors = {name: tensor for name, tensor in stored.tensors.items() if name not in used}
        tensors.update((name, one.info) for name, one in self._composed.items())
        self.name = stored.name
        self.identity = stored.identity
        self.config = stored.config
        self.sidecars = stored.sidecars
        self.licence = stored.licence
        self.tensors = {name: tensors[name] for name in sorted(tensors, key=natural_order)}
        largest = max((block.nbytes for block in blocks if block.turned), default=0)
        self._turned: Once[memoryview] = Once(max(LEAST_KEPT, KEPT_BYTES // max(1, largest)))

    @property
    def sources(self) -> tuple[str, ...]:
        return self._stored.sources

    def read_into(self, tensor: TensorInfo, start: int, buffer: memoryview) -> None:
        composed = self._composed.get(tensor.name)
        if composed is None:
            self._stored.read_into(tensor, start, buffer)
            return
        if start < 0 or start + buffer.nbytes > tensor.nbytes:
            raise ValueError(f"{tensor.name} has {tensor.nbytes} bytes: {buffer.nbytes} from {start} are out of range")
        target = buffer.cast("B")
        position = composed.skip + start
        while target:
            size = composed.blocks[0].nbytes
            index, offset = divmod(position, size)
            count = min(len(target), size - offset)
            self._read_block(composed.blocks[index], offset, target[:count])
            target = target[count:]
            position += count

    def expecting(self, ranges: Sequence[tuple[TensorInfo, int, int]]) -> AbstractContextManager[None]:
        expected: list[tuple[TensorInfo, int, int]] = []
        for tensor, start, stop in ranges:
            composed = self._composed.get(tensor.name)
            expected += [(tensor, start, stop)] if composed is None else _matrices_of(composed, start, stop)
        return self._stored.expecting(expected)

    def interrupt(self) -> None:
        self._stored.interrupt()

    def verify_all(self, cancelled: Callable[[], bool]) -> None:
        self._stored.verify_all(cancelled)

    def verified(self) -> Mapping[str, bool]:
        return self._stored.verified()

    def tokens(self) -> Mapping[str, int] | None:
        return self._stored.tokens()

    def modified_ns(self) -> int:
        return self._stored.modified_ns()

    def verify_unchanged(self) -> None:
        self._stored.verify_unchanged()

    def close(self) -> None:
        self._stored.close()

    def _read_block(self, block: Block, start: int, target: memoryview) -> None:
        if block.turned:
            target[:] = self._turned.get(block, lambda: self._transpose(block))[start : start + len(target)]
            return
        for matrix in block.matrices:
            count = min(len(target), matrix.nbytes - start)
            if count > 0:
                self._stored.read_into(matrix.tensor, matrix.start + start, target[:count])
                target = target[count:]
            start = max(0, start - matrix.nbytes)

    def _transpose(self, block: Block) -> memoryview:
        itemsize = block.matrices[0].tensor.dtype.itemsize
        unit = np.dtype(f"u{itemsize}")  # whatever the bits mean
        columns = block.matrices[0].columns
        rows = sum(matrix.rows for matrix in block.matrices)
        result = np.empty((columns, rows), unit)
        strip = np.empty((STRIP_ROWS, columns), unit)
        spaced = np.empty((STRIP_ROWS, columns + PADDING // itemsize), unit)[:, :columns]
        done = 0
        for matrix in block.matrices:
            for row in range(0, matrix.rows, STRIP_ROWS):
                count = min(STRIP_ROWS, matrix.rows - row)
                start = matrix.start + row * columns * itemsize
                self._stored.read_into(matrix.tensor, start, _bytes_of(strip[:count]))
                spaced[:count] = strip[:count]
                result[:, done : done + count] = spaced[:count].T
                done += count
        return _bytes_of(result).toreadonly()


def _matrices_of(composed: ComposedTensor, start: int, stop: int) -> list[tuple[TensorInfo, int, int]]:
    """Where the blocks lie that hold these bytes of a composed tensor."""
    size = composed.blocks[0].nbytes
    touched = composed.blocks[(composed.skip + start) // size : -(-(composed.skip + stop) // size)]
    return [(one.tensor, one.start, one.start + one.nbytes) for block in touched for one in block.matrices]


def _bytes_of(array: NDArray[np.generic]) -> memoryview:
    return array.data.cast("B")
