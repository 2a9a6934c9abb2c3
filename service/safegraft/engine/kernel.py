"""One cut of one tensor: read, cast, check, merge, check, cast. The only module that does arithmetic.

A kernel belongs to one thread at a time and reuses its buffers. Nothing it returns depends on how a
tensor was cut: element-wise methods see positions, statistics are taken over fixed blocks.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from safegraft.checkpoint.dtypes import FLOAT_NAMES
from safegraft.checkpoint.types import TensorInfo
from safegraft.engine.device import Place, Processor
from safegraft.engine.rows import Piece
from safegraft.engine.statistics import is_said, shown_model
from safegraft.engine.task import Contribution, Known, Plan, StatisticKey, TensorTask
from safegraft.errors import NonFiniteError, PluginError, Problem, SafegraftError, UsageError
from safegraft.methods.contract import Context, Input, MergeMethod, Prepared, TensorView

if TYPE_CHECKING:
    from safegraft.calibration import Gathered

Cutter = Callable[[int, int, int], Iterator[Piece]]  # contributor, start, stop -> pieces


@dataclass(slots=True)
class _Buffers:
    """Scratch memory by purpose; grows to the largest cut and stays."""

    device: torch.device
    held: dict[Any, torch.Tensor] = field(default_factory=dict[Any, torch.Tensor])

    def get(self, purpose: Any, elements: int, dtype: torch.dtype) -> torch.Tensor:
        have = self.held.get((purpose, dtype))
        if have is None or have.numel() < elements:
            have = torch.empty(elements, dtype=dtype, device=self.device)
            self.held[purpose, dtype] = have
        return have[:elements]


class Kernel:
    """Computes cuts of a plan's tensors.

    gathered: the plan's statistics, where its methods need any. place: where; default: on this processor.
    """

    def __init__(self, plan: Plan, gathered: "Mapping[StatisticKey, Gathered]", place: Place | None = None) -> None:
        self.plan = plan
        self.place = place or Processor()
        self.gathered = gathered
        self.replace_nonfinite = plan.recipe.on_nan == "host"
        self.cast = FLOAT_NAMES[plan.recipe.dtype] if plan.recipe.dtype else None
        self._buffers = _Buffers(self.place.device)
        self._host_buffers = _Buffers(torch.device("cpu"))

    def convert(self, task: TensorTask, start: int, out: memoryview) -> None:
        """Fill `out` with the host's own elements from `start`, in the task's dtype, which is another than theirs."""
        source = self._info(task.inputs[0])
        target = torch.frombuffer(out, dtype=task.dtype.torch)
        self._keep(task, self._raw(task.inputs[0].model, source, start, target.numel()), target)

    def merge(self, task: TensorTask, known: Known, start: int, stop: int, out: memoryview) -> None:
        """Fill `out` with elements [start, stop) of the result. For methods that may be cut."""
        target = torch.frombuffer(out, dtype=task.dtype.torch)
        if task.rows is None:
            bad = self._merge_cut(task, _one_piece, start, stop, known, target)
            if bad is not None:
                self._restore_host(task, start, target, bad)
            return
        pieces = list(task.rows.shared_of_host(start, stop))
        shared = [(piece.source, piece.count) for piece in pieces if piece.source is not None]
        if not shared:
            self._host(task, start, target)
            return
        # Shared rows keep the host's order: those of a cut lie side by side in the shared tensor.
        first, last = shared[0][0], shared[-1][0] + shared[-1][1]
        merged = self._host_buffers.get("merged", last - first, target.dtype)
        bad = self._merge_cut(task, task.rows.shared_cut, first, last, known, merged)
        self._lay_out(task, start, pieces, merged, first, bad, target)

    def merge_whole(self, task: TensorTask, known: Known) -> torch.Tensor:
        """The whole merged tensor, flat, in the task's dtype. For methods that may not be cut."""
        whole = torch.empty(task.elements, dtype=task.dtype.torch)
        if task.rows is None:
            bad = self._merge_cut(task, _one_piece, 0, task.elements, known, whole, scratch=_Buffers(self.place.device))
            if bad is not None:
                self._restore_host(task, 0, whole, bad)
            return whole
        elements = task.rows.shared_rows * task.rows.width
        merged = torch.empty(elements, dtype=task.dtype.torch)
        bad = self._merge_cut(
            task, task.rows.shared_cut, 0, elements, known, merged, scratch=_Buffers(self.place.device)
        )
        pieces = list(task.rows.shared_of_host(0, task.elements))
        self._lay_out(task, 0, pieces, merged, 0, bad, whole)
        return whole

    def _merge_cut(
        self,
        task: TensorTask,
        cutter: Cutter,
        start: int,
        stop: int,
        known: Known,
        target: torch.Tensor,
        scratch: _Buffers | None = None,
    ) -> torch.Tensor | None:
        """Merge elements [start, stop) of what the method sees: the tensor, or of a vocabulary tensor the
        rows that are shared. Returns where, under `on_nan: host`, the host's values belong instead."""
        with self.place.scope():
            return self._merge_here(task, cutter, start, stop, known, target, scratch)

    def _merge_here(
        self,
        task: TensorTask,
        cutter: Cutter,
        start: int,
        stop: int,
        known: Known,
        target: torch.Tensor,
        scratch: _Buffers | None,
    ) -> torch.Tensor | None:
        inputs, base, bad = self._gather(task, cutter, start, stop, scratch)
        method = self._method(task)
        shape = self._cut_shape(task, method, stop - start)
        base = None if base is None else base.view(shape)
        context = replace(task.context(), position=start, state=known.state, survey=known.survey)
        result = self._call(task, method, _shaped(method, inputs, shape), base, context).reshape(-1)
        if task.modifications:
            result = self._modify(task, cutter, start, stop, result, context, bad, scratch)
        self._store(task, result if bad is None else result.masked_fill(bad, 0), target)
        return None if bad is None else bad.cpu()

    def _lay_out(
        self,
        task: TensorTask,
        start: int,
        pieces: Sequence[Piece],
        merged: torch.Tensor,
        first: int,
        bad: torch.Tensor | None,
        target: torch.Tensor,
    ) -> None:
        """Put shared rows, merged from element `first` of the shared tensor on, between the host's own."""
        for piece in pieces:
            here = target[piece.at : piece.at + piece.count]
            if piece.source is None:
                self._host(task, start + piece.at, here)
                continue
            stretch = slice(piece.source - first, piece.source - first + piece.count)
            here.copy_(merged[stretch])
            if bad is not None and bool(bad[stretch].any()):
                self._restore_host(task, start + piece.at, here, bad[stretch])

    def prepare(self, task: TensorTask) -> Any:
        """What the method wants to know of the whole tensor before its first cut."""
        method = self._method(task)
        if type(method).prepare is MergeMethod.prepare:
            return None
        who = f"method {method.name}"
        with self.place.scope():
            state = self._guard(task, who, lambda: method.prepare(_View(self, task), task.parameters))
            self.place.finish()
        return state

    def survey(self, method: MergeMethod, states: Sequence[tuple[TensorTask, Any]]) -> Any:
        """What the method decides over all its tensors."""
        prepared = [
            Prepared(task.name, task.context().shape, task.layer, task.layers, task.parameters, state)
            for task, state in states
        ]
        return self._guard(states[0][0], f"method {method.name}", lambda: method.survey(prepared))

    # -- reading --------------------------------------------------------------------------------

    def _gather(
        self, task: TensorTask, cutter: Cutter, start: int, stop: int, scratch: _Buffers | None = None
    ) -> tuple[list[Input], torch.Tensor | None, torch.Tensor | None]:
        """Inputs and base as flat tensors of the compute dtype; and, under `on_nan: host`, where any
        of them is not finite (None: nowhere). Such elements are zeroed in all of them, so that they
        touch no statistic."""
        buffers = scratch or self._buffers
        compute = task.compute_dtype.torch
        tensors: list[torch.Tensor] = []
        bad: torch.Tensor | None = None
        for index, one in enumerate(task.contributions):
            tensor = self._contribution(task, index, cutter, start, stop, buffers.get(index, stop - start, compute))
            if not _is_finite(tensor):
                if not self.replace_nonfinite:
                    raise self._not_finite(one, tensor)
                here = ~torch.isfinite(tensor)
                bad = here if bad is None else bad | here
            tensors.append(tensor)
        if bad is not None:
            for tensor in tensors:
                tensor.masked_fill_(bad, 0)
        inputs = [
            Input(
                one.model, tensors[index], one.parameters, self._statistics(task, index, cutter, start, stop, buffers)
            )
            for index, one in enumerate(task.inputs)
        ]
        return inputs, tensors[-1] if task.base else None, bad

    def _contribution(
        self, task: TensorTask, index: int, cutter: Cutter, start: int, stop: int, into: torch.Tensor
    ) -> torch.Tensor:
        for piece in cutter(index, start, stop):
            self._read(task.contributions[index], piece, into[piece.at : piece.at + piece.count])
        return into

    def _statistics(
        self, task: TensorTask, index: int, cutter: Cutter, start: int, stop: int, buffers: _Buffers
    ) -> dict[str, torch.Tensor | None]:
        """What is known of the models at work for input `index`; nothing for models with a role."""
        method = self._method(task)
        found: dict[str, torch.Tensor | None] = {}
        if index >= len(task.inputs) - len(method.requires.roles):
            return found
        for calibration in method.requires.calibration:
            gathered = self.gathered.get((method.name, calibration.name, task.inputs[index].model))
            shown = shown_model(task, method, calibration, index)
            tensor = task.contributions[shown].tensor
            if gathered is None or is_said(calibration, task.parameters) or tensor not in gathered.tensors:
                found[calibration.name] = None
            elif calibration.statistic.elementwise:
                into = buffers.get((index, calibration.name), stop - start, torch.float32)
                for piece in cutter(shown, start, stop):
                    assert piece.source is not None  # as for the tensor itself
                    read = partial(gathered.read_into, tensor, piece.source * into.element_size())
                    self.place.load(read, into.dtype, into.dtype, into[piece.at : piece.at + piece.count])
                found[calibration.name] = into
            else:
                found[calibration.name] = gathered.whole(tensor).to(self.place.device)
        return found

    def _read(self, one: Contribution, piece: Piece, into: torch.Tensor) -> None:
        assert piece.source is not None  # of a vocabulary tensor, the rows that everybody has
        info = self._info(one)
        checkpoint = self.plan.checkpoints[one.model]
        read = partial(checkpoint.read_into, info, piece.source * info.dtype.itemsize)
        self.place.load(read, info.dtype.torch, (self.cast or info.dtype).torch, into)

    def _raw(self, model: str, info: TensorInfo, start: int, count: int) -> torch.Tensor:
        """Elements as stored, in a buffer that the next call overwrites."""
        raw = self._host_buffers.get("raw", count * info.dtype.itemsize, torch.uint8)
        view = raw.numpy().data
        self.plan.checkpoints[model].read_into(info, start * info.dtype.itemsize, view)
        return raw.view(info.dtype.torch)

    def _host(self, task: TensorTask, start: int, into: torch.Tensor) -> None:
        """Fill `into` with the host's own elements from `start`."""
        info = self.plan.host.tensors[task.name]
        self._keep(task, self._raw(self.plan.host_model, info, start, into.numel()), into)

    def _info(self, one: Contribution) -> TensorInfo:
        return self.plan.checkpoints[one.model].tensors[one.tensor]

    # -- calling the method ---------------------------------------------------------------------

    def _method(self, task: TensorTask) -> MergeMethod:
        assert task.method is not None  # a merge task has a method
        return self.plan.methods[task.method]

    def _cut_shape(self, task: TensorTask, method: MergeMethod, elements: int) -> tuple[int, ...]:
        if method.granularity == "tensor":
            return task.rows.shared_shape if task.rows else task.shape
        if method.granularity == "element" or len(task.shape) < 2:
            return (elements,)
        row = task.elements // task.shape[0]
        return (elements // row, *task.shape[1:])

    def _call(
        self,
        task: TensorTask,
        method: MergeMethod,
        inputs: Sequence[Input],
        base: torch.Tensor | None,
        context: Context,
    ) -> torch.Tensor:
        expected = inputs[0].tensor.shape
        result = self._guard(task, f"method {method.name}", lambda: method.merge(inputs, base, context))
        return _sound(task, f"method {method.name}", result, expected)

    def _modify(
        self,
        task: TensorTask,
        cutter: Cutter,
        start: int,
        stop: int,
        merged: torch.Tensor,
        context: Context,
        bad: torch.Tensor | None,
        scratch: _Buffers | None,
    ) -> torch.Tensor:
        """Let the modifiers work on what was merged. The base is read once more: `merge` may overwrite its own."""
        buffers = scratch or self._buffers
        for index, modification in enumerate(task.modifications):
            modifier = self.plan.modifiers[modification.modifier]
            origin = buffers.get(("origin", index), stop - start, task.compute_dtype.torch)
            base = self._contribution(task, task.modified_from, cutter, start, stop, origin)
            if bad is not None:
                base = base.masked_fill_(bad, 0)
            here = replace(context, parameters=modification.parameters, state=None, survey=None)
            who, now = f"modifier {modifier.name}", merged
            result = self._guard(task, who, partial(modifier.modify, now, base, here))
            merged = _sound(task, who, result, now.shape)
        return merged

    def _guard(self, task: TensorTask, who: str, call: Callable[[], Any]) -> Any:
        try:
            with torch.no_grad():
                return call()
        except (SafegraftError, KeyboardInterrupt):
            raise
        except torch.OutOfMemoryError as error:
            raise UsageError(
                f"{self.place.device} has too little memory for {who} on {task.name}: "
                "use fewer --threads, or --device cpu"
            ) from error
        except BaseException as error:  # a plugin may raise anything, SystemExit too; it is named, with its tensor
            raise PluginError(f"{who} failed on {task.name}: {type(error).__name__}: {error}") from error

    # -- writing --------------------------------------------------------------------------------

    def _store(self, task: TensorTask, result: torch.Tensor, target: torch.Tensor) -> None:
        rounded = self.place.round_into(result, target)
        if _is_finite(rounded):
            self.place.fetch(rounded, target)
            return
        if _is_finite(result):
            raise self._too_narrow(task)
        raise NonFiniteError(
            Problem(task.name, f"{_who(task)} gives NaN or inf from finite inputs; check its parameters")
        )

    def _keep(self, task: TensorTask, stored: torch.Tensor, target: torch.Tensor) -> None:
        """Values that are not merged: NaN and inf stay what they are, but none may come about."""
        target.copy_(stored)
        narrowed = target.dtype != stored.dtype and target.dtype.is_floating_point
        if narrowed and not _is_finite(target) and not torch.equal(torch.isfinite(target), torch.isfinite(stored)):
            raise self._too_narrow(task)

    def _too_narrow(self, task: TensorTask) -> NonFiniteError:
        return NonFiniteError(
            Problem(task.name, f"the values do not fit {task.dtype}; set `out_dtype: bfloat16` or float32")
        )

    def _restore_host(self, task: TensorTask, start: int, target: torch.Tensor, bad: torch.Tensor) -> None:
        """`on_nan: host`: elements that some input has as NaN or inf are the host's."""
        own = torch.empty_like(target)
        self._host(task, start, own)
        target.copy_(torch.where(bad, own, target))

    def _not_finite(self, one: Contribution, tensor: torch.Tensor) -> NonFiniteError:
        count = int((~torch.isfinite(tensor)).sum())
        cast = f", or values that do not fit `dtype: {self.plan.recipe.dtype}`" if self.cast else ""
        return NonFiniteError(
            Problem(
                one.model,
                f"{one.tensor} holds NaN or inf{cast} ({count} values where it was first seen); repair the checkpoint, "
                "or set `on_nan: host` to keep the host's values there",
            )
        )


class _View(TensorView):
    """Fixed blocks over the elements that are merged (of vocabulary tensors: the shared rows)."""

    def __init__(self, kernel: Kernel, task: TensorTask) -> None:
        self._kernel = kernel
        self._task = task
        self.context = task.context()
        self.shape = self.context.shape

    def blocks(self) -> Iterator[tuple[Sequence[Input], torch.Tensor | None]]:
        rows = self._task.rows
        elements = rows.shared_rows * rows.width if rows else self._task.elements
        cutter = rows.shared_cut if rows else _one_piece
        step = self._kernel.place.reduction_block
        for start in range(0, elements, step):
            stop = min(start + step, elements)
            inputs, base, _ = self._kernel._gather(self._task, cutter, start, stop)  # pyright: ignore[reportPrivateUsage]
            yield inputs, base


def _one_piece(source: int, start: int, stop: int) -> Iterator[Piece]:
    yield Piece(0, stop - start, start)


def _shaped(method: MergeMethod, inputs: Sequence[Input], shape: tuple[int, ...]) -> list[Input]:
    elementwise = {one.name for one in method.requires.calibration if one.statistic.elementwise}

    def statistics(one: Input) -> dict[str, torch.Tensor | None]:
        return {
            name: value.view(shape) if value is not None and name in elementwise else value
            for name, value in one.statistics.items()
        }

    return [Input(one.model, one.tensor.view(shape), one.parameters, statistics(one)) for one in inputs]


def _sound(task: TensorTask, who: str, result: Any, expected: tuple[int, ...]) -> torch.Tensor:
    """What a plugin returned, if it is a tensor as it should be."""
    if not isinstance(result, torch.Tensor):
        raise PluginError(f"{who} returned {type(result).__name__} for {task.name}, not a tensor")
    if result.layout is not torch.strided or result.is_meta:
        raise PluginError(
            f"{who} returned a sparse tensor or one without values for {task.name}; a dense one was expected"
        )
    if result.shape != expected or not result.dtype.is_floating_point:
        raise PluginError(
            f"{who} returned {list(result.shape)} {result.dtype} for {task.name}; "
            f"{list(expected)} of a floating-point dtype was expected"
        )
    return result


def _who(task: TensorTask) -> str:
    names = [one.modifier for one in task.modifications]
    return f"{task.method}" + (f" with the modifiers {', '.join(names)}" if names else "")


def _is_finite(tensor: torch.Tensor) -> bool:
    """Exact, in one cheap pass where all is well.

    A float32 sum is finite only if every term is; where it is not, the exact test decides, since finite
    terms may overflow it. Of 16-bit tensors the extremes are quicker than a sum.
    """
    if tensor.element_size() < 4:
        low, high = tensor.aminmax() if tensor.numel() else (torch.zeros(()), torch.zeros(()))
        return bool(torch.isfinite(low)) and bool(torch.isfinite(high))
    return math.isfinite(float(tensor.sum())) or bool(torch.isfinite(tensor).all())
