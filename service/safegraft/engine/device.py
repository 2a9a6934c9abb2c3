"""Where a kernel computes: on this processor, or on an accelerator that has its own memory.

Bytes go to an accelerator as they are stored, through pinned memory, and are widened there; results are rounded there
and come back as they are stored. The link carries two bytes an element and not four.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch

from safegraft.engine.task import REDUCTION_BLOCK
from safegraft.errors import UsageError

STAGES = 2  # one is filled from the file while the other is on its way to the device

Read = Callable[[memoryview], None]  # fills the view with a tensor's bytes


class Place(ABC):
    """One kernel's memory and queue on a device. Belongs to one thread at a time.

    reduction_block: elements over which statistics are summed; fixed for each kind of device.
    """

    device: torch.device
    reduction_block: int

    @abstractmethod
    def scope(self) -> AbstractContextManager[Any]:
        """Work inside it is this place's."""

    @abstractmethod
    def load(self, read: Read, dtype: torch.dtype, cast: torch.dtype, into: torch.Tensor) -> None:
        """Fill `into`, on the device, with what is stored in `dtype`, first rounded to `cast`."""

    @abstractmethod
    def round_into(self, result: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """The result in the dtype of `target`, on the device; on a processor `target` itself."""

    @abstractmethod
    def fetch(self, rounded: torch.Tensor, target: torch.Tensor) -> None:
        """Have what `round_into` returned in `target`, in this process's memory."""

    @abstractmethod
    def finish(self) -> None:
        """Wait until everything is computed: others are about to use it."""


class Processor(Place):
    """Plain memory: bytes are read where they are computed with."""

    device = torch.device("cpu")
    reduction_block = REDUCTION_BLOCK

    def __init__(self) -> None:
        self._raw = torch.empty(0, dtype=torch.uint8)

    def scope(self) -> AbstractContextManager[Any]:
        return nullcontext()

    def load(self, read: Read, dtype: torch.dtype, cast: torch.dtype, into: torch.Tensor) -> None:
        if dtype == into.dtype == cast:
            read(into.numpy().data.cast("B"))
            return
        size = into.numel() * dtype.itemsize
        if self._raw.numel() < size:
            self._raw = torch.empty(size, dtype=torch.uint8)
        raw = self._raw[:size]
        read(raw.numpy().data)
        stored = raw.view(dtype)
        into.copy_(stored if cast == dtype else stored.to(cast))

    def round_into(self, result: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        return target.copy_(result)

    def fetch(self, rounded: torch.Tensor, target: torch.Tensor) -> None:
        pass

    def finish(self) -> None:
        pass


class Backend(ABC):
    """What differs from one kind of accelerator to another."""

    device: torch.device

    @abstractmethod
    def pinned(self, size: int) -> torch.Tensor:
        """uint8 [size] in memory that the device copies from by itself."""

    @abstractmethod
    def stream(self) -> Any:
        """A queue of work."""

    @abstractmethod
    def within(self, stream: Any) -> AbstractContextManager[Any]:
        """Work inside it goes to this queue."""

    @abstractmethod
    def event(self) -> Any:
        """Something to record in a queue and to wait for: record(stream), synchronize()."""


class Cuda(Backend):
    """NVIDIA's and AMD's, through torch.cuda."""

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def pinned(self, size: int) -> torch.Tensor:
        return torch.empty(size, dtype=torch.uint8, pin_memory=True)

    def stream(self) -> Any:
        return torch.cuda.Stream(self.device)

    def within(self, stream: Any) -> AbstractContextManager[Any]:
        return torch.cuda.stream(stream)

    def event(self) -> Any:
        return torch.cuda.Event()


@dataclass(slots=True)
class _Stage:
    """Pinned memory, and when the copy from it is over."""

    memory: torch.Tensor
    copied: Any

    def take(self, size: int, backend: Backend) -> torch.Tensor:
        self.copied.synchronize()
        if self.memory.numel() < size:
            self.memory = backend.pinned(size)
        return self.memory[:size]


class Accelerator(Place):
    """Pinned stages and a stream of its own. While one kernel's cut is computed, other kernels' are copied."""

    reduction_block = 1 << 22

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self.device = backend.device
        self._stream = backend.stream()
        self._stages = [_Stage(backend.pinned(0), backend.event()) for _ in range(STAGES)]
        self._next = 0

    def scope(self) -> AbstractContextManager[Any]:
        return self._backend.within(self._stream)

    def _stage(self, size: int) -> tuple[_Stage, torch.Tensor]:
        stage = self._stages[self._next]
        self._next = (self._next + 1) % STAGES
        return stage, stage.take(size, self._backend)

    def load(self, read: Read, dtype: torch.dtype, cast: torch.dtype, into: torch.Tensor) -> None:
        stage, memory = self._stage(into.numel() * dtype.itemsize)
        read(memory.numpy().data)
        stored = memory.view(dtype).to(self.device, non_blocking=True)
        stage.copied.record(self._stream)
        into.copy_(stored if cast == dtype else stored.to(cast))

    def round_into(self, result: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        return result.to(target.dtype)

    def fetch(self, rounded: torch.Tensor, target: torch.Tensor) -> None:
        stage, memory = self._stage(target.numel() * target.element_size())
        there = memory.view(target.dtype)
        there.copy_(rounded, non_blocking=True)
        stage.copied.record(self._stream)
        stage.copied.synchronize()
        target.copy_(there)

    def finish(self) -> None:
        event = self._backend.event()
        event.record(self._stream)
        event.synchronize()


def backend_of(name: str) -> Backend | None:
    """The accelerator that a user names: "cuda", "cuda:1". None for "cpu". Raises UsageError."""
    try:
        device = torch.device(name)
    except RuntimeError:
        device = torch.device("meta")
    if device.type == "cpu":
        return None
    if device.type != "cuda":
        raise UsageError(f"{name} is not a device that can merge: choose cpu, cuda or cuda:N")
    if not torch.cuda.is_available():
        cause = "it sees no GPU and driver here" if torch.version.cuda or torch.version.hip else "it is built for CPUs"
        raise UsageError(
            f"{name} cannot be used: this torch ({torch.__version__}) says that {cause}. "
            "Install a build of torch for your GPU (https://pytorch.org), or leave --device away"
        )
    count = torch.cuda.device_count()
    if (device.index or 0) >= count:
        raise UsageError(f"{name} is not there: torch sees {count} GPU(s), cuda:0 to cuda:{count - 1}")
    return Cuda(torch.device("cuda", device.index or 0))
