"""A merge as a stream of tensors, computed here or by a server. Nothing is written to a disk.

Knows the engine's virtual checkpoint and the client; nothing of transformers.
"""

import json
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from safegraft.errors import DataCorruptedError, SafegraftError

if TYPE_CHECKING:
    import torch

    from safegraft import Client, MergedCheckpoint
    from safegraft.checkpoint.dtypes import DType

Recipe = Mapping[str, Any]

CARD, MANIFEST = "README.md", "safegraft.json"  # of the result; the second needs the whole merge to be computed
WEIGHTS, INDEX = ".safetensors", ".safetensors.index.json"


@dataclass(frozen=True, slots=True)
class Tensor:
    """What is known of a tensor before it is computed.

    source: for a tensor that is copied, what its content is told by; None when it is merged.
    """

    dtype: "DType"
    shape: tuple[int, ...]
    source: str | None = None


class Merge(Protocol):
    """A merge that is about to be read. digest: of its plan. sidecars: the small files that a model is loaded with."""

    @property
    def digest(self) -> str: ...
    @property
    def warnings(self) -> tuple[str, ...]: ...
    @property
    def layout(self) -> Mapping[str, Tensor]: ...
    def sidecars(self) -> dict[str, bytes]: ...
    def tensors(self, wanted: Callable[[str], bool]) -> Iterator[tuple[str, "torch.Tensor"]]:
        """Those of the tensors that are wanted, one after the other; the caller may keep them."""
        ...


class Merger(Protocol):
    """Where merges are computed."""

    def open(self, recipe: Recipe) -> AbstractContextManager[Merge]:
        """Plan it. Raises RecipeError, InputError, and what a server's client raises."""
        ...


# -- here -------------------------------------------------------------------------------------------


class LocalMerger:
    """Merges in this process. threads: of the engine; default: the cores this process may use."""

    def __init__(self, threads: int | None = None, device: str = "cpu") -> None:
        self._threads, self._device = threads, device

    @contextmanager
    def open(self, recipe: Recipe) -> Generator[Merge]:
        import safegraft

        with safegraft.open(recipe, threads=self._threads, device=self._device) as merged:
            yield LocalMerge(merged)


class LocalMerge:
    def __init__(self, merged: "MergedCheckpoint") -> None:
        self._merged = merged
        self.digest = merged.plan.digest
        self.warnings = merged.plan.warnings
        self.layout: Mapping[str, Tensor] = {
            task.name: Tensor(
                task.dtype,
                task.shape,
                None if task.action == "merge" else self._source(task.inputs[0].model, task.inputs[0].tensor),
            )
            for task in merged.plan.tensors
        }

    def _source(self, model: str, tensor: str) -> str:
        return f"{self._merged.plan.checkpoints[model].identity.digest}:{tensor}"

    def sidecars(self) -> dict[str, bytes]:
        return {name: file.read() for name, file in self._merged.files.items() if _is_sidecar(name)}

    def tensors(self, wanted: Callable[[str], bool]) -> Iterator[tuple[str, "torch.Tensor"]]:
        for name in self.layout:
            if wanted(name):
                yield name, self._merged.tensors[name]


# -- a server ---------------------------------------------------------------------------------------


class RemoteMerger:
    """Merges on a server, which keeps nothing of them: bytes are computed as they are read, and go to memory here."""

    def __init__(self, client: "Client") -> None:
        self._client = client

    @contextmanager
    def open(self, recipe: Recipe) -> Generator[Merge]:
        merge = self._client.create(recipe, retention="none")
        try:
            yield RemoteMerge(self._client, merge.id, self._client.plan(recipe))
        except BaseException:
            _delete_quietly(self._client, merge.id)
            raise
        self._client.delete(merge.id)


def _delete_quietly(client: "Client", id: str) -> None:
    """The error that is under way says more than one of tidying up."""
    try:
        client.delete(id)
    except SafegraftError:
        return


class RemoteMerge:
    def __init__(self, client: "Client", id: str, plan: Mapping[str, Any]) -> None:
        from safegraft.checkpoint.dtypes import DType

        self._client, self._id = client, id
        self._files = [file["name"] for file in plan["files"]]
        self.digest: str = plan["digest"]
        self.warnings: tuple[str, ...] = tuple(plan["warnings"])
        self.layout: Mapping[str, Tensor] = {
            one["name"]: Tensor(DType(one["dtype"]), tuple(one["shape"])) for one in plan["tensors"]
        }

    def sidecars(self) -> dict[str, bytes]:
        return {name: b"".join(self._client.read(self._id, name)) for name in self._files if _is_sidecar(name)}

    def tensors(self, wanted: Callable[[str], bool]) -> Iterator[tuple[str, "torch.Tensor"]]:
        for file in self._files:
            if file.endswith(WEIGHTS):
                yield from read_safetensors(self._client.read(self._id, file), file, wanted)


def read_safetensors(
    chunks: Iterator[bytes], file: str, wanted: Callable[[str], bool]
) -> Iterator[tuple[str, "torch.Tensor"]]:
    """The tensors of a safetensors file as its bytes arrive, in memory for one of them.

    Raises DataCorruptedError when it ends too early, or is no such file.
    """
    import torch

    from safegraft.checkpoint.dtypes import DType

    source = _Bytes(chunks, file)
    header = json.loads(source.take(int.from_bytes(source.take(8), "little")))
    entries = [(name, one) for name, one in header.items() if name != "__metadata__"]
    for name, one in sorted(entries, key=lambda entry: entry[1]["data_offsets"]):
        start, stop = one["data_offsets"]
        data = source.take(stop - start)
        if wanted(name):
            dtype = DType(one["dtype"]).torch
            flat = torch.frombuffer(data, dtype=dtype) if data else torch.empty(0, dtype=dtype)
            yield name, flat.view(one["shape"])
    source.end()


class _Bytes:
    """A stream of chunks, taken piece by piece."""

    def __init__(self, chunks: Iterator[bytes], file: str) -> None:
        self._chunks, self._file = chunks, file
        self._rest = memoryview(b"")

    def take(self, count: int) -> bytearray:
        taken = bytearray(count)
        at = 0
        while at < count:
            if not self._rest:
                self._rest = memoryview(self._next())
            part = self._rest[: count - at]
            taken[at : at + len(part)] = part
            self._rest = self._rest[len(part) :]
            at += len(part)
        return taken

    def end(self) -> None:
        """Read on to the end: what verifies the file does so there."""
        if self._rest or any(self._chunks):
            raise DataCorruptedError(f"{self._file}: there are more bytes than its header tells")

    def _next(self) -> bytes:
        chunk = next(self._chunks, None)
        if chunk is None:
            raise DataCorruptedError(f"{self._file}: it ends before its last tensor")
        return chunk


def _is_sidecar(name: str) -> bool:
    return name not in (CARD, MANIFEST) and not name.endswith((WEIGHTS, INDEX))
