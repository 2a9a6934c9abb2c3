"""A checkpoint in a local folder, in the layout that transformers reads and writes.

Either model.safetensors, or model.safetensors.index.json with the shards that it lists; config.json
and the other sidecar files beside them. Every problem of the folder is reported at once. Opens
local files only: knows no network and no recipes.
"""

import functools
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safegraft.checkpoint.adapter import is_adapter
from safegraft.checkpoint.config import CONFIG_FILE, read_config
from safegraft.checkpoint.files import Folder, OpenFile, raise_changed
from safegraft.checkpoint.findings import Findings
from safegraft.checkpoint.header import Header, read_header
from safegraft.checkpoint.identity import HASHED_BYTES, WeightFile, identify
from safegraft.checkpoint.sidecars import CHAT_TEMPLATES, MAX_SIDECAR_BYTES, MAX_SIDECARS_BYTES, collect_sidecars
from safegraft.checkpoint.types import Checkpoint, TensorInfo
from safegraft.checkpoint.vocabulary import read_tokens
from safegraft.checkpoint.weights import INDEX_FILE, MAX_INDEX_BYTES, SINGLE_FILE, find_layout, join_shards, parse_index
from safegraft.errors import CheckpointError, Problem

_SHA256 = re.compile(r"[0-9a-f]{64}")


class FolderCheckpoint(Checkpoint):
    """Opens a folder: reads its headers and sidecars, and keeps every weight file open until `close`.

    path: the folder. name: how messages and the identity call it.
    digests: sha256 (hex) by weight file name, when the caller knows them; with every file's there, the
    identity covers every byte. A Hugging Face cache brings its own.
    root: what symlinks must not leave; by default the folder itself, or its repository in the cache.

    Raises CheckpointError with everything that is wrong with the folder.
    """

    def __init__(
        self, path: Path, name: str, digests: Mapping[str, str] | None = None, root: Path | None = None
    ) -> None:
        for file, digest in (digests or {}).items():
            if not _SHA256.fullmatch(digest):
                raise ValueError(f"{digest!r} of {file} is not a sha256 in hex")
        self.name = name
        self._files: dict[str, OpenFile] = {}
        self._headers: dict[str, Header] = {}
        folder = Folder(path, name, root)
        try:
            self._open(folder)
            small = sum(file.size for file in self._files.values()) <= HASHED_BYTES
            files = [self._weight_file(file, folder, digests or {}, small) for file in self._files]
            self.identity = identify(self, files)
        except BaseException:
            self.close()
            raise

    def read_into(self, tensor: TensorInfo, start: int, buffer: memoryview) -> None:
        if start < 0 or start + buffer.nbytes > tensor.nbytes:
            raise ValueError(f"{tensor.name} has {tensor.nbytes} bytes: {buffer.nbytes} from {start} are out of range")
        if not buffer.nbytes:
            return
        file = self._files[tensor.file]
        count = file.read_into(buffer.cast("B"), tensor.offset + start)
        if count < buffer.nbytes:
            file.verify_unchanged()
            message = f"ends inside tensor {tensor.name}, at byte {tensor.offset + start + count:,}"
            raise CheckpointError(Problem(file.where, message))

    def tokens(self) -> Mapping[str, int] | None:
        return self._tokens

    @functools.cached_property
    def _tokens(self) -> Mapping[str, int] | None:
        return read_tokens(self.sidecars, self.name)

    def modified_ns(self) -> int:
        return max(file.signature.mtime_ns for file in self._files.values())

    def verify_unchanged(self) -> None:
        raise_changed(list(self._files.values()))

    def close(self) -> None:
        for file in self._files.values():
            file.close()

    def _open(self, folder: Folder) -> None:
        """Set everything but the identity, or raise one error with every problem of the folder."""
        if is_adapter(folder.names):
            message = (
                "is a PEFT adapter, not a model: name it together with the model that it belongs to, as BASE+ADAPTER. "
                "(A recipe of adapters alone is merged on your own machine, and not planned.)"
            )
            raise CheckpointError(Problem(self.name, message))
        findings = Findings(self.name)
        self.sidecars = _read_sidecars(folder, findings)
        config: dict[str, Any] = {}
        tensors: dict[str, TensorInfo] = {}
        with findings.catching():
            if CONFIG_FILE in self.sidecars or CONFIG_FILE not in folder.names:  # else its problem is known already
                config = read_config(self.sidecars, self.name)
        with findings.catching():
            tensors = self._open_weights(folder)
        findings.raise_if_any()
        self.config = config
        self.tensors = tensors

    def _open_weights(self, folder: Folder) -> dict[str, TensorInfo]:
        findings = Findings(self.name)
        weight_map: dict[str, str] | None = None
        if find_layout(folder.names, self.name) == INDEX_FILE:
            weight_map = parse_index(folder.read(INDEX_FILE, MAX_INDEX_BYTES), folder.names, self.name)
        for file in sorted(set(weight_map.values())) if weight_map else [SINGLE_FILE]:
            with findings.catching():
                opened = folder.open(file)
                self._files[file] = opened
                self._headers[file] = read_header(opened.read, opened.size, file, self.name)
        findings.raise_if_any()
        return join_shards(self._headers, weight_map, self.name)

    def _weight_file(self, file: str, folder: Folder, digests: Mapping[str, str], small: bool) -> WeightFile:
        sha256 = digests.get(file) or folder.blob_sha256(file) or (self._files[file].sha256() if small else None)
        return WeightFile(file, self._files[file].size, self._headers[file].sha256, sha256)


def _read_sidecars(folder: Folder, findings: Findings) -> dict[str, bytes]:
    sidecars: dict[str, bytes] = {}
    listing = list(folder.names)
    with findings.catching():
        listing += [f"{CHAT_TEMPLATES}/{file}" for file in folder.subfolder(CHAT_TEMPLATES)]
    total = 0
    for file in collect_sidecars(listing):
        with findings.catching():
            sidecars[file] = folder.read(file, MAX_SIDECAR_BYTES)
            total += len(sidecars[file])
        if total > MAX_SIDECARS_BYTES:
            findings.add(
                f"has more than {MAX_SIDECARS_BYTES:,} bytes of files beside its weights: remove what is not needed"
            )
            break
    return sidecars
