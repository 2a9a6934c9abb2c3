"""One cut of one tensor by its method's machine code, on numbers as they are stored. Knows no torch.

A stored kernel belongs to one thread at a time and reuses its buffers. What it does not serve, or declines, is the
kernel's, with the same bits.
"""

import math
import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from safegraft.checkpoint.dtypes import FLOAT_NAMES, DType
from safegraft.engine.rows import Piece
from safegraft.engine.task import REDUCTION_BLOCK, Known, Plan, TensorTask
from safegraft.errors import PluginError, SafegraftError
from safegraft.methods.compiled import Compiled, DeclinedError, StoredCut, StoredView
from safegraft.methods.contract import Context

SWITCH = "SAFEGRAFT_COMPILED"  # an environment variable: 0 turns machine code off

_FORMATS: dict[DType, type[Any]] = {DType.BF16: np.uint16, DType.F16: np.int16, DType.F32: np.float32}


def is_wanted() -> bool:
    """Whether machine code is used where a method offers it."""
    return os.environ.get(SWITCH, "1") != "0"


class CompiledMethods:
    """Which of a plan's tensors machine code serves. Shared by threads."""

    def __init__(self, plan: Plan, *, wanted: bool) -> None:
        self._plan = plan
        self._cast = FLOAT_NAMES[plan.recipe.dtype] if plan.recipe.dtype else None
        offers = {name: method.compiled() for name, method in plan.methods.items()} if wanted else {}
        self._offers = {name: one for name, one in offers.items() if one is not None}

    def of(self, task: TensorTask) -> Compiled | None:
        """The machine code for a tensor."""
        compiled = self._offers.get(task.method or "")
        if compiled is None or task.modifications or task.dtype not in _FORMATS:
            return None
        dtypes = self.dtypes(task)
        if not dtypes <= _FORMATS.keys() or (self._cast is not None and dtypes != {self._cast}):
            return None
        if task.rows is not None and self._plan.host.tensors[task.name].dtype is not task.dtype:
            return None  # rows that only the host has are copied here, not converted
        return compiled

    def dtypes(self, task: TensorTask) -> set[DType]:
        """In which a tensor's contributions are stored."""
        return {self._plan.checkpoints[one.model].tensors[one.tensor].dtype for one in task.contributions}


class StoredKernel:
    """Reads, calls and hands over."""

    def __init__(self, plan: Plan, methods: CompiledMethods) -> None:
        self._plan = plan
        self._methods = methods
        self._held: dict[str, NDArray[np.uint8]] = {}

    def prepare(self, task: TensorTask, compiled: Compiled) -> Any:
        """What the method wants to know of the whole tensor before its first cut. Raises DeclinedError."""
        return self._guard(task, lambda: compiled.prepare(_View(self, task), task.parameters))

    def merge(self, task: TensorTask, compiled: Compiled, known: Known, start: int, stop: int, out: memoryview) -> None:
        """Fill `out` with elements [start, stop) of the result. Raises DeclinedError."""
        target = np.frombuffer(out, dtype=_FORMATS[task.dtype])
        if task.rows is None:
            self._merge_cut(task, compiled, known, start, stop, target)
            return
        pieces = list(task.rows.shared_of_host(start, stop))
        shared = [(piece.source, piece.count) for piece in pieces if piece.source is not None]
        merged = target[:0]
        first = 0
        if shared:  # in the host's order: those of a cut lie side by side in the tensor of all shared rows
            first, last = shared[0][0], shared[-1][0] + shared[-1][1]
            merged = self._buffer("merged", last - first, task.dtype)
            self._merge_cut(task, compiled, known, first, last, merged)
        for piece in pieces:
            here = target[piece.at : piece.at + piece.count]
            if piece.source is None:
                self._read(self._plan.host_model, task.name, start + piece.at, here)
            else:
                here[:] = merged[piece.source - first : piece.source - first + piece.count]

    def _merge_cut(
        self, task: TensorTask, compiled: Compiled, known: Known, start: int, stop: int, out: NDArray[Any]
    ) -> None:
        """Of what the method sees: the tensor, or of a vocabulary tensor the rows that are shared."""
        cut = self.cut(task, start, stop)
        context = replace(task.context(), position=start, state=known.state, survey=known.survey)
        self._guard(task, lambda: compiled.merge(cut, context, out))

    def cut(self, task: TensorTask, start: int, stop: int) -> StoredCut:
        """Elements [start, stop) of every contribution, in one format: their own, or float32 where they differ."""
        dtypes = self._methods.dtypes(task)
        dtype = dtypes.pop() if len(dtypes) == 1 else DType.F32
        count = stop - start
        rows = self._buffer("rows", len(task.contributions) * count, dtype).reshape(-1, count)
        for index, one in enumerate(task.contributions):
            own = self._plan.checkpoints[one.model].tensors[one.tensor].dtype
            into = rows[index] if own is dtype else self._buffer("raw", count, own)
            for piece in task.rows.shared_cut(index, start, stop) if task.rows else (Piece(0, count, start),):
                assert piece.source is not None  # the rows that everybody has
                self._read(one.model, one.tensor, piece.source, into[piece.at : piece.at + piece.count])
            if own is not dtype:
                _widen(into, rows[index])
        inputs = rows if task.base is None else rows[:-1]
        return StoredCut(inputs, None if task.base is None else rows[-1], [one.parameters for one in task.inputs])

    def _read(self, model: str, tensor: str, start: int, into: NDArray[Any]) -> None:
        """Elements from `start`, as stored."""
        checkpoint = self._plan.checkpoints[model]
        info = checkpoint.tensors[tensor]
        checkpoint.read_into(info, start * info.dtype.itemsize, into.view(np.uint8).data)

    def _buffer(self, purpose: str, elements: int, dtype: DType) -> NDArray[Any]:
        """Scratch memory; grows to the largest cut and stays."""
        size = elements * dtype.itemsize
        have = self._held.get(purpose)
        if have is None or have.size < size:
            have = self._held[purpose] = np.empty(size, np.uint8)
        return have[:size].view(_FORMATS[dtype])

    def _guard(self, task: TensorTask, call: Callable[[], Any]) -> Any:
        try:
            return call()
        except (SafegraftError, DeclinedError, KeyboardInterrupt):
            raise
        except BaseException as error:  # of a plugin, or of what compiles it: named, with its tensor
            raise PluginError(
                f"the machine code of method {task.method} failed on {task.name}: {type(error).__name__}: {error} "
                f"(set {SWITCH}=0 to do without)"
            ) from error


class _View(StoredView):
    """Fixed blocks, as the kernel's."""

    def __init__(self, kernel: StoredKernel, task: TensorTask) -> None:
        self._kernel = kernel
        self._task = task
        self.context: Context = task.context()
        self.shape = self.context.shape

    def blocks(self) -> Iterator[StoredCut]:
        elements = math.prod(self.shape)
        for start in range(0, elements, REDUCTION_BLOCK):
            yield self._kernel.cut(self._task, start, min(start + REDUCTION_BLOCK, elements))


def _widen(stored: NDArray[Any], into: NDArray[np.float32]) -> None:
    """bfloat16 or float16 as float32: exact."""
    if stored.dtype == np.uint16:
        np.left_shift(stored, np.uint32(16), out=into.view(np.uint32), dtype=np.uint32)
    else:
        np.copyto(into, stored.view(np.float16))
