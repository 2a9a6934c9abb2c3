"""A plan's virtual files: any byte range of any file, computed on several threads in bounded memory.

Every byte is a function of (plan, file, offset): threads, cuts and the order of reading change nothing.
"""

import os
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np

from safegraft.engine.ahead import expecting
from safegraft.engine.identity import manifest
from safegraft.engine.layout import least_shard_size
from safegraft.engine.once import Once
from safegraft.engine.preparation import Preparation, Report, unreported
from safegraft.engine.staging import FileDigest
from safegraft.engine.stored import CompiledMethods, StoredKernel, is_wanted
from safegraft.engine.task import Known, Plan, PlannedFile, PlannedTensor, TensorTask
from safegraft.errors import MergeCancelledError, UsageError
from safegraft.methods.compiled import Compiled, DeclinedError
from safegraft.methods.contract import MergeMethod

if TYPE_CHECKING:  # torch is imported when it is first needed: machine code does without
    import torch

    from safegraft.engine.device import Backend
    from safegraft.engine.kernel import Kernel

ACCELERATOR_ELEMENTS = 1 << 22  # per cut that an accelerator merges: launching less costs more than computing it
BLOCK_ELEMENTS = 1 << 17  # per cut that torch merges: inputs and result stay in the second-level cache
STORED_BYTES = 1 << 20  # of the result, per cut that machine code merges: handing over a cut costs 0.1 ms
COPY_BYTES = 1 << 20  # per cut of a tensor that is copied, and of headers
ASKED_SECONDS = 0.5  # how long a cut may take before it is asked again whether anybody wants it
STATES_KEPT = 64  # what `prepare` returned: small by contract

Never = Callable[[], bool]


def never() -> bool:
    """The default for `cancelled`."""
    return False


@dataclass(frozen=True, slots=True)
class _Cut:
    """A stretch of a file's bytes and how to make it: given bytes, or elements of a tensor."""

    offset: int
    size: int
    content: bytes | None = None
    task: TensorTask | None = None
    start: int = 0
    stop: int = 0


class MergedCheckpoint:
    """The merged checkpoint as virtual files and as a lazy mapping of tensors.

    Args:
        threads: how many compute; default: the cores this process may use.
        cache: where statistics of models at work are kept; default: see safegraft.calibration.
        block_elements: elements a cut; changes speed and memory, never a byte. Default: what suits the cache.
        compiled: use machine code where a method offers it; changes speed, never a byte. Default: unless the
            environment says SAFEGRAFT_COMPILED=0.
        device: "cpu", "cuda" or "cuda:N". Results on a GPU may differ from a processor's in their last bit.
        owns_plan: close the plan too when this is closed.

    Close it (or use it as a context manager) to end its threads.
    """

    def __init__(
        self,
        plan: Plan,
        *,
        threads: int | None = None,
        block_elements: int | None = None,
        compiled: bool | None = None,
        device: str = "cpu",
        cache: Path | None = None,
        owns_plan: bool = False,
    ) -> None:
        if threads is not None and threads < 1:
            raise UsageError(f"threads must be at least 1, not {threads}")
        if block_elements is not None and block_elements < 1:
            raise UsageError(f"block_elements must be at least 1, not {block_elements}")
        self.plan = plan
        self.closed = False
        self._owns_plan = owns_plan
        self.threads = threads or len(os.sched_getaffinity(0))
        self.block_elements = block_elements
        self.files: Mapping[str, VirtualFile] = {file.name: VirtualFile(self, file) for file in plan.files}
        self.tensors: Mapping[str, torch.Tensor] = MergedTensors(self)
        self._backend = _backend_of(device)
        wanted = is_wanted() if compiled is None else compiled
        self._compiled = CompiledMethods(plan, wanted=wanted and self._backend is None)
        self._kernels = threading.local()
        self._states = Once[Any](STATES_KEPT)
        self._preparation = Preparation(plan, cache)
        self._wholes = Once["torch.Tensor"](self.threads + 1)
        self._pool = ThreadPoolExecutor(self.threads, thread_name_prefix="safegraft")

    def __enter__(self) -> "MergedCheckpoint":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the threads. Reading afterwards is an error."""
        self.closed = True
        self._pool.shutdown(wait=True, cancel_futures=True)
        self._preparation.close()
        if self._owns_plan:
            self.plan.close()

    def submit(self, cut: _Cut) -> "Future[bytes | memoryview]":
        """Start computing one cut."""
        return self._pool.submit(self._compute, cut)

    def _compute(self, cut: _Cut) -> bytes | memoryview:
        if cut.content is not None:
            return cut.content
        task = cut.task
        assert task is not None  # a cut is bytes or part of a task
        out = np.empty(cut.size, np.uint8).data  # unlike a bytearray, not set to zero first
        if task.action == "copy":
            self._copy(task, cut.start, out)
        elif self._is_whole(task):
            import torch

            whole = self._whole(task)
            torch.frombuffer(out, dtype=task.dtype.torch).copy_(whole[cut.start : cut.stop])
        else:
            self._merge(task, cut, out)
        return out

    def _whole(self, task: TensorTask) -> "torch.Tensor":
        return self._wholes.get(task.name, lambda: self._kernel().merge_whole(task, self._known(task)))

    def begin(self, task: TensorTask) -> None:
        """Start what has to be known of a tensor, or be computed of it at once, before its first cut is wanted.

        What goes wrong is raised when it is.
        """
        if task.method is None or not self._preparation.is_ready(task.method):
            return
        if self._is_whole(task):
            self._pool.submit(self._whole, task)
        elif type(self.plan.methods[task.method]).prepare is not MergeMethod.prepare:
            self._pool.submit(self._known, task)

    def _copy(self, task: TensorTask, start: int, out: memoryview) -> None:
        checkpoint = self.plan.checkpoints[task.inputs[0].model]
        source = checkpoint.tensors[task.inputs[0].tensor]
        if source.dtype is task.dtype:
            checkpoint.read_into(source, start * source.dtype.itemsize, out)
        else:
            self._kernel().convert(task, start, out)

    def _merge(self, task: TensorTask, cut: _Cut, out: memoryview) -> None:
        compiled = self._compiled.of(task)
        known = self._known(task)
        if compiled is not None:
            try:
                self._stored_kernel().merge(task, compiled, known, cut.start, cut.stop, out)
            except DeclinedError:
                pass  # as the contract has it: the method itself then merges this cut
            else:
                return
        self._kernel().merge(task, known, cut.start, cut.stop, out)

    def _kernel(self) -> "Kernel":
        from safegraft.engine.device import Accelerator
        from safegraft.engine.kernel import Kernel

        kernel: Kernel | None = self._kernels.__dict__.get("kernel")
        if kernel is None:
            _one_torch_thread.apply_here()
            place = None if self._backend is None else Accelerator(self._backend)
            kernel = self._kernels.kernel = Kernel(self.plan, self._preparation.gathered, place)
        return kernel

    def _stored_kernel(self) -> StoredKernel:
        kernel: StoredKernel | None = self._kernels.__dict__.get("stored")
        if kernel is None:
            kernel = self._kernels.stored = StoredKernel(self.plan, self._compiled)
        return kernel

    def _known(self, task: TensorTask) -> Known:
        surveyed = self._preparation.surveyed.get(task.method or "")
        if surveyed is not None:
            return Known(surveyed.states[task.name], surveyed.answer)
        return Known(self._states.get(task.name, lambda: self._prepare(task)))

    def _prepare(self, task: TensorTask) -> Any:
        compiled: Compiled | None = self._compiled.of(task)
        if compiled is not None:
            try:
                return self._stored_kernel().prepare(task, compiled)
            except DeclinedError:
                pass
        return self._kernel().prepare(task)

    def gather(self, placed: Sequence[PlannedTensor], cancelled: Never, report: Report = unreported) -> None:
        """Put models to work for the methods of these tensors, while torch still has all its threads."""
        for method in dict.fromkeys(one.task.method for one in placed):
            if method is not None and not self._preparation.is_ready(method):
                self._preparation.gather(method, cancelled, report)

    def make_ready(self, cut: _Cut, cancelled: Never) -> None:
        """Find out what the cut's method needs to know beyond the tensor: models at work, all other tensors."""
        task = cut.task
        if task is not None and task.method is not None and not self._preparation.is_ready(task.method):
            self._preparation.prepare(task.method, self._prepared, cancelled)

    def _prepared(self, task: TensorTask) -> "Future[Any]":
        return self._pool.submit(lambda: self._prepare(task))

    def _is_whole(self, task: TensorTask) -> bool:
        return task.method is not None and self.plan.methods[task.method].granularity == "tensor"

    def cuts(self, placed: PlannedTensor, start: int, stop: int) -> Iterator[_Cut]:
        """The cuts that cover bytes [start, stop) of the tensor's file. Their borders depend on the
        tensor alone, so that equal ranges are computed equally often."""
        task = placed.task
        size = task.dtype.itemsize
        step = self._step(task)
        first = max(0, start - placed.offset) // size // step * step
        last = min(task.nbytes, stop - placed.offset)
        for element in range(first, -(-last // size), step):
            end = min(element + step, task.elements)
            yield _Cut(placed.offset + element * size, (end - element) * size, task=task, start=element, stop=end)

    def _step(self, task: TensorTask) -> int:
        if task.action == "copy":
            return COPY_BYTES // task.dtype.itemsize
        elements = self.block_elements or self._usual_step(task)
        if self.plan.methods[task.method or ""].granularity == "row" and len(task.shape) > 1:
            row = max(1, task.elements // task.shape[0])
            return row * max(1, elements // row)
        return elements

    def _usual_step(self, task: TensorTask) -> int:
        if self._backend is not None:
            return ACCELERATOR_ELEMENTS
        return BLOCK_ELEMENTS if self._compiled.of(task) is None else STORED_BYTES // task.dtype.itemsize


class VirtualFile:
    """One file of the result. `size` in bytes is known from the plan."""

    def __init__(self, merged: MergedCheckpoint, planned: PlannedFile) -> None:
        self._merged = merged
        self._planned = planned
        self.name = planned.name
        self.size = planned.size

    def read(self, start: int = 0, stop: int | None = None) -> bytes:
        """Bytes [start, stop), in memory at once."""
        return b"".join(self.stream(start, stop))

    def stream(self, start: int = 0, stop: int | None = None, *, cancelled: Never = never) -> Iterator[memoryview]:
        """Yield bytes [start, stop) in order, in blocks of about a megabyte or less.

        The threads work ahead by a few blocks. Raises UsageError outside the file, the errors of
        reading and merging, and MergeCancelledError once `cancelled()` is true.
        """
        stop = self.size if stop is None else stop
        if self._merged.closed:
            raise UsageError(f"{self.name} cannot be read: the merged checkpoint has been closed")
        if not 0 <= start <= stop <= self.size:
            raise UsageError(f"{self.name} has {self.size} bytes; [{start}, {stop}) is not within it")
        ahead: deque[tuple[_Cut, Future[bytes | memoryview]]] = deque()
        placed = self._placed(start, stop)
        self._merged.gather(placed, cancelled)
        next_ones = _NextOnes(self._merged, [one.task for one in placed])
        with _one_torch_thread, expecting(self._merged.plan, placed, start, stop):
            try:
                for cut in self._cuts(start, stop):
                    self._merged.make_ready(cut, cancelled)
                    next_ones.begin(cut.task)  # first, or threads with nothing else to do would wait for this one
                    ahead.append((cut, self._merged.submit(cut)))
                    if len(ahead) > 2 * self._merged.threads:
                        yield _finish(ahead, start, stop, cancelled)
                while ahead:
                    yield _finish(ahead, start, stop, cancelled)
            except MergeCancelledError:
                for checkpoint in self._merged.plan.checkpoints.values():
                    checkpoint.interrupt()  # or threads that wait for a network would be waited for
                raise
            finally:
                for _, future in ahead:
                    future.cancel()

    def _cuts(self, start: int, stop: int) -> Iterator[_Cut]:
        if start == stop:
            return
        if self._planned.kind == "manifest":
            yield _Cut(0, self.size, content=self._manifest())
            return
        head = self._planned.content if self._planned.content is not None else self._planned.header
        for offset in range(start // COPY_BYTES * COPY_BYTES, min(stop, len(head)), COPY_BYTES):
            part = head[offset : offset + COPY_BYTES]
            yield _Cut(offset, len(part), content=part)
        for placed in self._placed(start, stop):
            yield from self._merged.cuts(placed, start, stop)

    def _placed(self, start: int, stop: int) -> list[PlannedTensor]:
        """The tensors that lie in these bytes."""
        tensors = self._planned.tensors
        return [one for one in tensors if one.offset < stop and one.offset + one.task.nbytes > start]

    def _manifest(self) -> bytes:
        """Needs the digest of every other file, and so computes them all."""
        from hashlib import sha256

        digests: dict[str, FileDigest] = {}
        for name, file in self._merged.files.items():
            if name != self.name:
                whole = sha256()
                for block in file.stream():
                    whole.update(block)
                digests[name] = FileDigest(file.size, whole.hexdigest())
        return manifest_of(self._merged.plan, digests)


class _NextOnes:
    """Keeps other threads busy while one finds out about a tensor: they begin with the tensors that come next."""

    def __init__(self, merged: MergedCheckpoint, tasks: list[TensorTask]) -> None:
        self._merged = merged
        self._tasks = tasks
        self._at = -1  # of the tensor whose cuts are being computed
        self._begun = 0  # how many were begun or have had their first cut

    def begin(self, task: TensorTask | None) -> None:
        """Before a cut of this tensor is handed out."""
        if task is None or (self._at >= 0 and self._tasks[self._at] is task):
            return
        self._at += 1
        last = min(self._at + self._merged.threads, len(self._tasks))
        for one in self._tasks[max(self._begun, self._at + 1) : last]:
            self._merged.begin(one)
        self._begun = max(self._begun, last)


class MergedTensors(Mapping[str, "torch.Tensor"]):
    """The merged tensors by name, each computed when asked for: a `state_dict` without a file.

    Every access computes anew and returns a tensor of its own.
    """

    def __init__(self, merged: MergedCheckpoint) -> None:
        self._merged = merged
        self._places = {placed.task.name: (file.name, placed) for file in merged.plan.files for placed in file.tensors}
        self._names = [task.name for task in merged.plan.tensors]

    def __getitem__(self, name: str) -> "torch.Tensor":
        import torch

        file, placed = self._places[name]
        task = placed.task
        data = bytearray(task.nbytes)
        at = 0
        for block in self._merged.files[file].stream(placed.offset, placed.offset + task.nbytes):
            data[at : at + len(block)] = block
            at += len(block)
        if not data:
            return torch.empty(task.shape, dtype=task.dtype.torch)
        return torch.frombuffer(data, dtype=task.dtype.torch).view(task.shape)

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def manifest_of(plan: Plan, digests: Mapping[str, FileDigest]) -> bytes:
    """safegraft.json for files of these digests."""
    return manifest(
        plan.recipe,
        plan.digest,
        plan.host_model,
        plan.names,
        plan.checkpoints,
        plan.versions,
        digests,
        least_shard_size(plan.files),
    )


def _finish(
    ahead: "deque[tuple[_Cut, Future[bytes | memoryview]]]", start: int, stop: int, cancelled: Never
) -> memoryview:
    """Wait for the first cut and trim it to the range asked for."""
    cut, future = ahead[0]
    while True:
        if cancelled():
            raise MergeCancelledError("the merge was cancelled; what is complete is kept")
        if future.done() or wait((future,), timeout=ASKED_SECONDS).done:
            break
    ahead.popleft()
    block = memoryview(future.result())
    return block[max(0, start - cut.offset) : max(0, min(stop - cut.offset, cut.size))]


def usable(device: str) -> str:
    """The name of a device that can compute. Raises UsageError for others."""
    _backend_of(device)
    return device


def _backend_of(device: str) -> "Backend | None":
    if device == "cpu":
        return None
    from safegraft.engine.device import backend_of

    return backend_of(device)


class _OneTorchThread:
    """While cuts are computed, torch itself runs on one thread: parallelism lies in the cuts, and two
    layers of it fight for the cores (measured: five times slower). torch knows this setting for the whole
    process only, so it is taken for as long as somebody streams, and then put back.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._users = 0
        self._before: int | None = None

    def __enter__(self) -> None:
        with self._lock:
            self._users += 1
        if "torch" in sys.modules:
            self.apply()

    def apply(self) -> None:
        """Importing torch, if nobody has yet. For users, once they turn out to need it."""
        import torch

        with self._lock:
            if self._users and self._before is None:
                self._before = torch.get_num_threads()
                torch.set_num_threads(1)

    def apply_here(self) -> None:
        """For a thread that is about to compute: linear algebra below torch asks each thread for its own setting."""
        import torch

        self.apply()
        torch.set_num_threads(1)

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._users -= 1
            if self._users == 0 and self._before is not None:
                import torch

                torch.set_num_threads(self._before)
                self._before = None


_one_torch_thread = _OneTorchThread()
