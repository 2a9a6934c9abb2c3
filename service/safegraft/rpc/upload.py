"""Sending a local checkpoint to a server: only the files it lacks, continuing where an earlier attempt stopped."""

import hashlib
import json
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from safegraft.errors import DataCorruptedError, InputChangedError, ServerUnavailableError
from safegraft.rpc.checksum import crc32c
from safegraft.rpc.connection import Backoff, Connection
from safegraft.rpc.resources import TransferProgress
from safegraft.v1 import artifact_service_pb2 as pb

UPLOAD_PREFIX = "upload:"
CHUNK_BYTES = 1 << 20  # the fastest on loopback


@dataclass(frozen=True, slots=True)
class _Item:
    """A file to send, or the manifest, whose content is at hand."""

    name: str
    digest: pb.BlobDigest
    source: Path | bytes


class Upload:
    """One checkpoint folder on its way to a server."""

    def __init__(
        self, connection: Connection, folder: Path, progress: Callable[[TransferProgress], None] | None
    ) -> None:
        self._connection, self._folder, self._progress = connection, folder, progress
        self._total = 0
        self._before = 0  # bytes of the files before the present one

    def run(self) -> str:
        """Send what is missing; returns the reference by which a recipe names the checkpoint on that server.

        Raises CheckpointError before anything is sent when the folder is not a sound checkpoint.
        """
        names = checkpoint_files(self._folder)
        items = [self._item(name) for name in names]
        entries = {item.name: {"sha256": item.digest.sha256, "size": item.digest.size} for item in items}
        content = json.dumps({"name": _plain_name(self._folder), "files": entries}, sort_keys=True).encode()
        manifest = _Item("manifest", pb.BlobDigest(sha256=_sha256(content), size=len(content)), content)
        items.append(manifest)  # last: whoever sees it may rely on the rest
        self._total = sum(item.digest.size for item in items)
        missing = self._missing(items)
        for item in items:
            if item.digest.sha256 in missing:
                self._send(item)
            self._before += item.digest.size
            self._report(item.name, 0)
        return UPLOAD_PREFIX + manifest.digest.sha256

    def _item(self, name: str) -> _Item:
        path = self._folder / name
        with path.open("rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
            return _Item(name, pb.BlobDigest(sha256=sha256, size=file.tell()), path)

    def _missing(self, items: list[_Item]) -> set[str]:
        request = pb.FindMissingBlobsRequest(blobs=[item.digest for item in items])
        answer = self._connection.call(self._connection.artifacts.FindMissingBlobs, request)
        return {digest.sha256 for digest in answer.missing}

    def _send(self, item: _Item) -> None:
        artifacts = self._connection.artifacts
        backoff = Backoff(self._connection.patience)
        reached = 0
        while True:
            status = self._connection.call(artifacts.QueryWriteStatus, pb.QueryWriteStatusRequest(blob=item.digest))
            if status.complete:
                return
            if status.committed_size > reached:
                reached = status.committed_size
                backoff.progressed()
            try:
                self._connection.send(artifacts.WriteBlob, self._requests(item, status.committed_size))
                return
            except ServerUnavailableError as error:
                backoff.wait(error)
            except DataCorruptedError as error:
                self._check_unchanged(item)
                backoff.wait(error)

    def _requests(self, item: _Item, offset: int) -> Iterator[pb.WriteBlobRequest]:
        first = True
        for data in _chunks(item.source, offset):
            yield pb.WriteBlobRequest(
                blob=item.digest if first else None, offset=offset, data=data, crc32c=crc32c(data)
            )
            first = False
            offset += len(data)
            self._report(item.name, offset)
        if first:
            yield pb.WriteBlobRequest(blob=item.digest, offset=offset)

    def _check_unchanged(self, item: _Item) -> None:
        """The server got other bytes than those that were hashed: was it the way, or the file?"""
        if isinstance(item.source, Path) and self._item(item.name).digest != item.digest:
            raise InputChangedError(f"{item.source} changed while it was being sent; upload the folder again")

    def _report(self, file: str, done: int) -> None:
        if self._progress:
            self._progress(TransferProgress(file, min(self._before + done, self._total), self._total))


def checkpoint_files(folder: Path) -> list[str]:
    """The files that make up a checkpoint or an adapter, and nothing else that lies beside them.

    Raises CheckpointError.
    """
    from safegraft.checkpoint.adapter import AdapterFolder, is_adapter
    from safegraft.checkpoint.folder import FolderCheckpoint
    from safegraft.checkpoint.weights import INDEX_FILE, SINGLE_FILE

    kind = AdapterFolder if is_adapter(os.listdir(folder)) else FolderCheckpoint
    checkpoint = kind(folder, folder.name)
    try:
        weights = {tensor.file for tensor in checkpoint.tensors.values()}
        index = {INDEX_FILE} if kind is FolderCheckpoint and weights != {SINGLE_FILE} else set[str]()
        return sorted(weights | index | set(checkpoint.sidecars))
    finally:
        checkpoint.close()


def _chunks(source: Path | bytes, offset: int) -> Iterator[bytes]:
    if isinstance(source, bytes):
        for start in range(offset, len(source), CHUNK_BYTES):
            yield source[start : start + CHUNK_BYTES]
        return
    with source.open("rb") as file:
        file.seek(offset)
        while data := file.read(CHUNK_BYTES):
            yield data


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _plain_name(folder: Path) -> str:
    """What results call the model: the folder's name, in signs that every server takes."""
    return re.sub(r"[^A-Za-z0-9._+-]", "-", folder.resolve().name).lstrip(".+-")[:100] or "model"
