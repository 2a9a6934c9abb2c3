"""A checkpoint in a local folder, in the layout that transformers reads and writes.

Either model.safetensors, or model.safetensors.index.json with the shards that it lists; config.json
and the other sidecar files beside them. Every problem of the folder is reported at once. Opens
local files only: knows no network and no recipes.
"""

import functools
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from safegraft.checkpoint.contents import read_contents
from safegraft.checkpoint.files import Folder, OpenFile, raise_changed
from safegraft.checkpoint.findings import Findings
from safegraft.checkpoint.header import Header, read_header
from safegraft.checkpoint.identity import HASHED_BYTES, WeightFile, identify
from safegraft.checkpoint.types import Checkpoint, TensorInfo
from safegraft.checkpoint.vocabulary import read_tokens
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
        folder = Folder(path, name, root)
        try:
            contents = read_contents(folder, lambda files, findings: self._open(folder, files, findings))
            self.config, self.sidecars, self.licence = contents.config, contents.sidecars, contents.licence
            self.tensors = contents.tensors
            small = sum(file.size for file in self._files.values()) <= HASHED_BYTES
            self.identity = identify(
                self,
                [
                    WeightFile(
                        file,
                        opened.size,
                        contents.headers[file].sha256,
                        (digests or {}).get(file) or folder.blob_sha256(file) or (opened.sha256() if small else None),
                    )
                    for file, opened in self._files.items()
                ],
            )
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

    def _open(self, folder: Folder, files: Sequence[str], findings: Findings) -> dict[str, Header]:
        """Keep the weight files open, and read their headers."""
        headers: dict[str, Header] = {}
        for file in files:
            with findings.catching():
                self._files[file] = opened = folder.open(file)
                headers[file] = read_header(opened.read, opened.size, file, self.name)
        return headers
