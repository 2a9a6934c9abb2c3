"""A checkpoint that shows another one differently: other names, other tensors, other files beside them."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager

from safegraft.checkpoint.types import Checkpoint, TensorInfo


class VirtualCheckpoint(Checkpoint):
    """`stored`, until a subclass changes what it shows. Closing it closes `stored`."""

    def __init__(self, stored: Checkpoint) -> None:
        self.stored = stored
        self.name = stored.name
        self.identity = stored.identity
        self.config = stored.config
        self.tensors = stored.tensors
        self.sidecars = stored.sidecars
        self.licence = stored.licence

    def read_into(self, tensor: TensorInfo, start: int, buffer: memoryview) -> None:
        self.stored.read_into(tensor, start, buffer)

    def expecting(self, ranges: Sequence[tuple[TensorInfo, int, int]]) -> AbstractContextManager[None]:
        """Tensors that are shown otherwise than they are stored are read when they are asked for."""
        there = self.stored.tensors
        return self.stored.expecting([one for one in ranges if there.get(one[0].name) is one[0]])

    def interrupt(self) -> None:
        self.stored.interrupt()

    def verify_all(self, cancelled: Callable[[], bool]) -> None:
        self.stored.verify_all(cancelled)

    def verified(self) -> Mapping[str, bool]:
        return self.stored.verified()

    def tokens(self) -> Mapping[str, int] | None:
        return self.stored.tokens()

    def modified_ns(self) -> int:
        return self.stored.modified_ns()

    def verify_unchanged(self) -> None:
        self.stored.verify_unchanged()

    def close(self) -> None:
        self.stored.close()


def stored(checkpoint: Checkpoint) -> Checkpoint:
    """What a checkpoint shows in the end."""
    while isinstance(checkpoint, VirtualCheckpoint):
        checkpoint = checkpoint.stored
    return checkpoint
