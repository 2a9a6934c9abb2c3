"""A checkpoint whose vocabulary tensors have the rows of another vocabulary.

A row is the model's own, another model's, the mean of several models', zero, or padding. Computed when it is read,
in bounded memory; `tokenizer.py` decides which row is which.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from safegraft.checkpoint.config import CONFIG_FILE
from safegraft.checkpoint.dtypes import DType
from safegraft.checkpoint.sidecars import dump_like
from safegraft.checkpoint.types import Checkpoint, TensorInfo
from safegraft.checkpoint.weights import natural_order
from safegraft.engine.once import Once
from safegraft.engine.virtual import VirtualCheckpoint

if TYPE_CHECKING:
    import torch  # planning needs none

ZERO, AVERAGE, PADDING = -1, -2, -3  # in place of a donor's number
SUMMED_ELEMENTS = 1 << 20  # how much of a tensor is in memory while its mean is taken
KEPT_MEANS = 16


@dataclass(frozen=True, slots=True)
class Donor:
    """A stored vocabulary tensor that rows come from."""

    checkpoint: Checkpoint
    tensor: TensorInfo


@dataclass(frozen=True, slots=True)
class RowSources:
    """For each row, whose it is (a donor's number, ZERO, AVERAGE or PADDING) and which row of theirs.

    averages: row -> the (donor, row) pairs whose mean it is, in the order in which they are added.
    tokens: rows that stand for tokens; what comes after them is padding, the mean of all rows before it.
    """

    donor: NDArray[np.int16]
    row: NDArray[np.int64]
    tokens: int
    averages: Mapping[int, Sequence[tuple[int, int]]] = field(default_factory=dict[int, Sequence[tuple[int, int]]])


@dataclass(frozen=True, slots=True, eq=False)
class VocabularyTensor:
    """A tensor of such rows. info: its name, dtype and shape. own: the stored one that it takes the place of."""

    info: TensorInfo
    own: str
    donors: Sequence[Donor]
    rows: RowSources

    @property
    def width(self) -> int:
        """Elements a row."""
        return int(np.prod(self.info.shape[1:], dtype=np.int64))


class VocabularyCheckpoint(VirtualCheckpoint):
    """`stored` with other vocabulary tensors, and a tokenizer and a config to go with them.

    Args:
        tensors: those that take the place of stored ones, one of several with the same `own`.
        tokens: token -> row.
        config: config.json.
        sidecars: files beside the weights; the config's is written from `config`.

    Arithmetic is done in the tensors' dtype and rounded to it after every step, as mergekit does; the mean of
    padding rows alone is taken in double precision.
    """

    def __init__(
        self,
        stored: Checkpoint,
        tensors: Sequence[VocabularyTensor],
        tokens: Mapping[str, int],
        config: Mapping[str, Any],
        sidecars: Mapping[str, bytes],
    ) -> None:
        super().__init__(stored)
        self._virtual = {one.info.name: one for one in tensors}
        self._tokens = tokens
        self._means: Once[torch.Tensor] = Once(KEPT_MEANS)
        replaced = {one.own for one in tensors}
        shown = {name: tensor for name, tensor in stored.tensors.items() if name not in replaced}
        shown |= {name: one.info for name, one in self._virtual.items()}
        self.tensors = {name: shown[name] for name in sorted(shown, key=natural_order)}
        self.config = config
        self.sidecars = dict(sidecars)
        if config != stored.config and CONFIG_FILE in sidecars:
            self.sidecars[CONFIG_FILE] = dump_like(config, sidecars[CONFIG_FILE])

    def tokens(self) -> Mapping[str, int] | None:
        return self._tokens

    def expecting(self, ranges: Sequence[tuple[TensorInfo, int, int]]) -> AbstractContextManager[None]:
        """Of a vocabulary tensor in another order all rows may be wanted at any time."""
        expected: list[tuple[TensorInfo, int, int]] = []
        for tensor, start, stop in ranges:
            virtual = self._virtual.get(tensor.name)
            own = tensor if virtual is None else self.stored.tensors[virtual.own]
            expected.append((own, start, stop) if virtual is None else (own, 0, own.nbytes))
        return self.stored.expecting(expected)

    def stored_dtype(self, name: str) -> DType:
        """Of the tensor that is stored for the one shown as `name`."""
        virtual = self._virtual.get(name)
        return self.stored.tensors[virtual.own if virtual else name].dtype

    def read_into(self, tensor: TensorInfo, start: int, buffer: memoryview) -> None:
        virtual = self._virtual.get(tensor.name)
        if virtual is None:
            self.stored.read_into(tensor, start, buffer)
            return
        if start < 0 or start + buffer.nbytes > tensor.nbytes:
            raise ValueError(f"{tensor.name} has {tensor.nbytes} bytes: {buffer.nbytes} from {start} are out of range")
        size = tensor.dtype.itemsize
        first, last = start // size, -(-(start + buffer.nbytes) // size)
        content = _bytes_of(self._elements(virtual, first, last))
        skip = start - first * size
        buffer.cast("B")[:] = content[skip : skip + buffer.nbytes]

    def _elements(self, virtual: VocabularyTensor, start: int, stop: int) -> "torch.Tensor":
        import torch

        result = torch.empty(stop - start, dtype=virtual.info.dtype.torch)
        for stretch in _stretches(virtual, start, stop):
            here = result[stretch.at : stretch.at + stretch.count]
            if stretch.donor == ZERO:
                here.zero_()
            elif stretch.donor == PADDING:
                here.copy_(self._mean(virtual)[stretch.column : stretch.column + stretch.count])
            elif stretch.donor == AVERAGE:
                _average(virtual, stretch, here)
            else:
                _read(virtual, stretch.donor, stretch.source, here)
        return result

    def _mean(self, virtual: VocabularyTensor) -> "torch.Tensor":
        return self._means.get(virtual.info.name, lambda: self._take_mean(virtual))

    def _take_mean(self, virtual: VocabularyTensor) -> "torch.Tensor":
        """Of all rows that stand for tokens; added up row after row, so that equal rows give equal bits."""
        import torch

        width, tokens = virtual.width, virtual.rows.tokens
        total = np.zeros(width)
        step = max(1, SUMMED_ELEMENTS // max(1, width))
        for row in range(0, tokens, step):
            count = min(step, tokens - row)
            block = self._elements(virtual, row * width, (row + count) * width).double().numpy().reshape(count, width)
            total += np.add.reduce(block, axis=0)
        return torch.from_numpy(total / max(1, tokens)).to(virtual.info.dtype.torch)  # pyright: ignore[reportUnknownMemberType]


@dataclass(frozen=True, slots=True)
class _Stretch:
    """Elements of one origin: where they begin in what is read, how many, and where they come from.

    source: the first element in the donor's tensor. row, column: where the first element lies in the tensor.
    """

    at: int
    count: int
    donor: int
    source: int
    row: int
    column: int


def _stretches(virtual: VocabularyTensor, start: int, stop: int) -> Iterator[_Stretch]:
    """Elements [start, stop), cut where rows stop following one another in a donor's tensor."""
    width = virtual.width
    if start == stop or not width:
        return
    first, last = start // width, -(-stop // width)
    donor, row = virtual.rows.donor[first:last], virtual.rows.row[first:last]
    breaks = (np.diff(donor) != 0) | ((np.diff(row) != 1) & (donor[1:] >= 0)) | (donor[1:] == AVERAGE)
    breaks |= donor[1:] == PADDING
    begins = [0, *(np.flatnonzero(breaks) + 1).tolist(), len(donor)]
    for begin, end in pairwise(begins):
        low, high = max(start, (first + begin) * width), min(stop, (first + end) * width)
        column = low - (first + begin) * width
        source = int(row[begin]) * width + column
        yield _Stretch(low - start, high - low, int(donor[begin]), source, first + begin, column)


def _average(virtual: VocabularyTensor, stretch: _Stretch, into: "torch.Tensor") -> None:
    """Part of one row that is the mean of several models' rows."""
    import torch

    into.zero_()
    term = torch.empty_like(into)
    donors = virtual.rows.averages[stretch.row]
    for donor, row in donors:
        _read(virtual, donor, row * virtual.width + stretch.column, term)
        into += term
    into /= len(donors)


def _read(virtual: VocabularyTensor, donor: int, start: int, into: "torch.Tensor") -> None:
    import torch

    checkpoint, tensor = virtual.donors[donor].checkpoint, virtual.donors[donor].tensor
    if tensor.dtype is virtual.info.dtype:
        checkpoint.read_into(tensor, start * tensor.dtype.itemsize, _bytes_of(into))
        return
    raw = torch.empty(into.numel(), dtype=tensor.dtype.torch)
    checkpoint.read_into(tensor, start * tensor.dtype.itemsize, _bytes_of(raw))
    into.copy_(raw.to(into.dtype))


def _bytes_of(tensor: "torch.Tensor") -> memoryview:
    import torch

    array: Any = tensor.view(torch.uint8).numpy()
    return array.data
