"""Tiny files and folders, made by hand so that they can be wrong in every way."""

import json
import os
import struct
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from safegraft.checkpoint.folder import FolderCheckpoint
from safegraft.checkpoint.header import Header, read_header
from safegraft.errors import CheckpointError

ITEMSIZE = {"F32": 4, "BF16": 2, "F16": 2, "F64": 8, "I64": 8, "U8": 1, "BOOL": 1, "F8_E4M3": 1}
Tensors = Mapping[str, tuple[str, Sequence[int], bytes]]


def frame(header: bytes, data: bytes) -> bytes:
    return struct.pack("<Q", len(header)) + header + data


def safetensors_bytes(tensors: Tensors, metadata: Mapping[str, str] | None = None) -> bytes:
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    data = b""
    for name, (dtype, shape, content) in tensors.items():
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [len(data), len(data) + len(content)]}
        data += content
    return frame(json.dumps(header).encode(), data)


def header_of(content: bytes, file: str = "model.safetensors", name: str = "tiny") -> Header:
    return read_header(lambda offset, length: content[offset : offset + length], len(content), file, name)


@pytest.fixture(scope="session")
def framed() -> Callable[[bytes, bytes], bytes]:
    """(header text, data) -> a safetensors file with exactly this header."""
    return frame


@pytest.fixture(scope="session")
def encode() -> Callable[..., bytes]:
    """{name: (dtype, shape, data)} -> a safetensors file, its data in the given order."""
    return safetensors_bytes


@pytest.fixture(scope="session")
def parse() -> Callable[..., Header]:
    """Read the header of a file given as bytes."""
    return header_of


@pytest.fixture(scope="session")
def problems_of() -> Callable[[Callable[[], object]], list[str]]:
    """Call something that must raise CheckpointError, and return its problems as text."""

    def problems(call: Callable[[], object]) -> list[str]:
        with pytest.raises(CheckpointError) as caught:
            call()
        return [str(problem) for problem in caught.value.problems]

    return problems


WEIGHTS: Tensors = {
    "model.embed.weight": ("F32", (4, 2), bytes(range(32))),
    "model.layers.0.weight": ("BF16", (3,), b"abcdef"),
    "model.layers.1.steps": ("I64", (), b"12345678"),
}
CONFIG = {"model_type": "llama", "architectures": ["LlamaForCausalLM"]}


@pytest.fixture(scope="session")
def weights() -> Tensors:
    return WEIGHTS


class FolderMaker:
    """Writes checkpoint folders; `open` closes what it opened when the test ends."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.opened: list[FolderCheckpoint] = []

    def single(self, name: str = "tiny", tensors: Tensors = WEIGHTS, **files: bytes) -> Path:
        return self.write(name, {"model.safetensors": safetensors_bytes(tensors), **files})

    def sharded(self, shards: Sequence[Tensors], name: str = "tiny", weight_map: Any = None) -> Path:
        names = [f"model-{index:05d}-of-{len(shards):05d}.safetensors" for index in range(1, len(shards) + 1)]
        if weight_map is None:
            weight_map = {tensor: file for file, shard in zip(names, shards, strict=True) for tensor in shard}
        index = json.dumps({"metadata": {"total_size": 0}, "weight_map": weight_map}).encode()
        contents = {file: safetensors_bytes(shard) for file, shard in zip(names, shards, strict=True)}
        return self.write(name, {**contents, "model.safetensors.index.json": index})

    def write(self, name: str, files: Mapping[str, bytes], config: Mapping[str, Any] | None = CONFIG) -> Path:
        folder = self.home / name
        folder.mkdir(parents=True, exist_ok=True)
        if config is not None:
            (folder / "config.json").write_text(json.dumps(config))
        for file, content in files.items():
            (folder / file).parent.mkdir(exist_ok=True)
            (folder / file).write_bytes(content)
        return folder

    def cached(self, sha256s: Mapping[str, str], files: Mapping[str, bytes], commit: str = "c" * 40) -> Path:
        """The same files as a Hugging Face cache keeps them; blobs are named by sha256, or a short git hash."""
        repository = self.home / "hub" / "models--acme--tiny"
        snapshot = repository / "snapshots" / commit
        snapshot.mkdir(parents=True)
        (repository / "blobs").mkdir(exist_ok=True)
        for number, (file, content) in enumerate({"config.json": json.dumps(CONFIG).encode(), **files}.items()):
            blob = repository / "blobs" / sha256s.get(file, f"{number:040x}")
            blob.write_bytes(content)
            link = snapshot / file
            link.parent.mkdir(exist_ok=True)
            link.symlink_to(os.path.relpath(blob, link.parent))
        return snapshot

    def open(self, path: Path, name: str = "tiny", **options: Any) -> FolderCheckpoint:
        checkpoint = FolderCheckpoint(path, name, **options)
        self.opened.append(checkpoint)
        return checkpoint


@pytest.fixture
def folders(tmp_path: Path) -> Any:
    maker = FolderMaker(tmp_path)
    yield maker
    for checkpoint in maker.opened:
        checkpoint.close()


@pytest.fixture
def large(monkeypatch: pytest.MonkeyPatch) -> None:
    """Treat every checkpoint as one that is too large to be hashed in full."""
    monkeypatch.setattr("safegraft.checkpoint.folder.HASHED_BYTES", -1)
