"""Shared memory through which a worker hands computed bytes to the server: one copy in, one out, none through the pipe.

A few slots of fixed size. Who may touch which slot is agreed on over the pipe, with `Block` and `Took` (messages.py).
"""

from multiprocessing.shared_memory import SharedMemory

SLOTS = 8
# A slot is what one message to a client carries. On loopback, frames of 512 KB pass 1-1.5 GB/s and larger ones half of
# that: they miss the allocator's caches.
SLOT_BYTES = 512 * 1024 - 64


class Ring:
    """Make one with `create`, in the server; open it by its name with `attach`, in the worker."""

    def __init__(self, memory: SharedMemory) -> None:
        self._memory = memory
        self._bytes = memoryview(memory.buf or b"")
        self.name = memory.name

    @classmethod
    def create(cls) -> "Ring":
        return cls(SharedMemory(create=True, size=SLOTS * SLOT_BYTES))

    @classmethod
    def attach(cls, name: str) -> "Ring":
        return cls(SharedMemory(name))

    def write(self, slot: int, offset: int, data: memoryview) -> None:
        """Put bytes into a slot, from `offset` within it; they must fit."""
        start = slot * SLOT_BYTES + offset
        self._bytes[start : start + len(data)] = data

    def view(self, slot: int, size: int) -> memoryview:
        """A slot's first `size` bytes, as long as nobody writes there. Release it."""
        start = slot * SLOT_BYTES
        return self._bytes[start : start + size]

    def close(self) -> None:
        """Let go of it, in the worker."""
        self._bytes.release()
        self._memory.close()

    def remove(self) -> None:
        """Let go of it for good, in the server."""
        self.close()
        self._memory.unlink()
