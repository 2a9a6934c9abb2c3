"""What a checkpoint is to the rest of safegraft, wherever its bytes live."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

from safegraft.checkpoint.dtypes import DType
from safegraft.checkpoint.licence import Licence


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """A tensor as its file's header describes it."""

    name: str
    dtype: DType
    shape: tuple[int, ...]
    file: str  # bare name of the safetensors file
    offset: int  # of the first byte, from the start of that file

    @property
    def elements(self) -> int:
        count = 1
        for size in self.shape:
            count *= size
        return count

    @property
    def nbytes(self) -> int:
        return self.elements * self.dtype.itemsize


@dataclass(frozen=True, slots=True)
class Identity:
    """Which weights these are, without saying where they lie.

    scheme: "sha256" (every weight byte is covered), "commit" (a Hub revision) or "sampled-sha256"
    (headers, file sizes and a sample of the tensors: what a plan can afford to read of a local
    folder); all of them cover the sidecar files. digest: hex, or the commit id.
    """

    name: str
    scheme: str
    digest: str


class Checkpoint(ABC):
    """Named tensors plus config, tokenizer and processor files. Safe to use from several threads."""

    name: str  # how the recipe and messages call it; never an absolute path
    identity: Identity
    config: Mapping[str, Any]  # config.json
    tensors: Mapping[str, TensorInfo]  # in natural order of names
    sidecars: Mapping[str, bytes]  # every file that belongs beside the weights: bare name -> content
    notes: Sequence[str] = ()  # what a reader of a plan with it should know
    remarks: Sequence[str] = ()  # the same, of the way it was opened this time: no property of the content
    licence: Licence | None = None  # as its model card declares it

    @property
    def sources(self) -> tuple[str, ...]:
        """The names of what it is made of: itself, or a base and what is added to it."""
        return (self.name,)

    @abstractmethod
    def read_into(self, tensor: TensorInfo, start: int, buffer: memoryview) -> None:
        """Fill `buffer` with the tensor's bytes from byte `start`.

        Raises CheckpointError when the file ends early, InputChangedError when it is another one
        than was opened.
        """

    def expecting(self, ranges: Sequence[tuple[TensorInfo, int, int]]) -> AbstractContextManager[None]:
        """Within the block these tensors' bytes [start, stop) are going to be read, about in this order.

        A hint, for checkpoints that are better read ahead; without it everything is read all the same.
        """
        del ranges
        return nullcontext()

    def interrupt(self) -> None:
        """Have reads that wait for a network fail soon, because nobody wants them any more. Later ones are as ever."""

    def verified(self) -> Mapping[str, bool]:
        """Weight file -> whether all its bytes have been read and are those of the sha256 that is listed for it.

        Of files that come over a network and have one; False also where only a part was needed, or it was read in
        another order than it lies in the file.
        """
        return {}

    def verify_all(self, cancelled: Callable[[], bool]) -> None:
        """Read what it takes to know that of all of these files. Raises InputChangedError, and MergeCancelledError once
        `cancelled()` is true."""

    @abstractmethod
    def tokens(self) -> Mapping[str, int] | None:
        """Token string -> row of the embedding, from the tokenizer files; None without a tokenizer.

        Raises CheckpointError when a tokenizer file is there and cannot be read."""

    @abstractmethod
    def modified_ns(self) -> int:
        """When the weights were last written, in nanoseconds since the epoch; 0 where that is not known."""

    @abstractmethod
    def verify_unchanged(self) -> None:
        """Raise InputChangedError unless the files are still those that were opened."""

    def close(self) -> None:
        """Release file handles."""
