"""Reading a merge's files over connections that break: bytes in order, each chunk and each file verified."""

import json
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from safegraft.engine.hashing import ThreadedSha256
from safegraft.engine.staging import MANIFEST, FileDigest, StagedFile, StagedFolder
from safegraft.errors import DataCorruptedError, OutputError, ServerError, ServerUnavailableError
from safegraft.rpc.checksum import crc32c
from safegraft.rpc.connection import Backoff, Connection
from safegraft.rpc.resources import Merge, MergeFile, PullResult, TransferProgress
from safegraft.v1 import artifact_service_pb2 as pb

_CORRUPTIONS = 3  # damaged chunks in a row, or damaged whole files, before we believe that it is no accident


class Download:
    """Bytes [start, stop) of one file. Iterate once; then `sha256` is what the server says of the whole file.

    sha256 is "" when the range does not reach the end, or the server does not know it.
    """

    def __init__(self, connection: Connection, id: str, file: str, start: int = 0, stop: int | None = None) -> None:
        self.sha256 = ""
        self._connection, self._id, self._file = connection, id, file
        self._position, self._stop = start, stop

    def __iter__(self) -> Iterator[bytes]:
        backoff = Backoff(self._connection.patience)
        corruptions = 0
        while self._stop is None or self._position < self._stop:
            try:
                for data in self._attempt():
                    backoff.progressed()
                    corruptions = 0
                    yield data
                return
            except ServerUnavailableError as error:
                backoff.wait(error)
            except DataCorruptedError as error:
                corruptions += 1
                if corruptions == _CORRUPTIONS:
                    raise
                backoff.wait(error)

    def _attempt(self) -> Iterator[bytes]:
        """One call, from where the last one stopped."""
        limit = 0 if self._stop is None else self._stop - self._position
        request = pb.ReadFileRequest(name=f"merges/{self._id}", file=self._file, offset=self._position, limit=limit)
        for frame in self._connection.stream(self._connection.artifacts.ReadFile, request):
            if data := frame.data:  # each look at it makes a copy
                self._check(frame, data)
                self._position += len(data)
                yield data
            self.sha256 = frame.sha256

    def _check(self, frame: pb.ReadFileResponse, data: bytes) -> None:
        if frame.offset != self._position:
            raise ServerError(f"{self._file}: byte {self._position} was due and the server sent byte {frame.offset}")
        if crc32c(data) != frame.crc32c:
            raise DataCorruptedError(f"{self._file}: the chunk at byte {frame.offset} does not match its checksum")


def read_verified(download: Download, file: str) -> Iterator[bytes]:
    """A whole file, verified at its end. Raises DataCorruptedError after the last byte when it is another one."""
    with ThreadedSha256() as whole:
        for data in download:
            whole.update(data)
            yield data
        if download.sha256 and whole.hexdigest() != download.sha256:
            raise DataCorruptedError(f"{file}: its SHA-256 is {whole.hexdigest()}, the server says {download.sha256}")


class Pull:
    """A merge's files into a folder that appears when all of them are there and verified.

    Continues what an earlier run has left, of this merge or of any other with the same plan digest.
    """

    def __init__(
        self, connection: Connection, merge: Merge, progress: Callable[[TransferProgress], None] | None
    ) -> None:
        self._connection, self._merge, self._progress = connection, merge, progress
        self._done = 0
        self._total = sum(file.size for file in merge.files)
        self._received = 0

    def run(self, out: Path) -> PullResult:
        began = time.monotonic()
        with StagedFolder(out, self._merge.plan_digest) as folder:
            resumed = folder.resumed or folder.complete
            if folder.complete:
                self._check_complete(folder)
            else:
                for file in self._merge.files:
                    self._fetch(folder, file)
                _check_manifest(folder)
                folder.commit()
        return PullResult(
            out=folder.out,
            digest=self._merge.plan_digest,
            files=dict(folder.finished),
            bytes_received=self._received,
            seconds=time.monotonic() - began,
            resumed=resumed,
            warnings=self._merge.warnings,
        )

    def _check_complete(self, folder: StagedFolder) -> None:
        """A folder with this plan digest may be of another version of inputs that the digest only samples."""
        for file in self._merge.files:
            there = folder.finished.get(file.name)
            if there is not None and file.sha256 not in ("", there.sha256):
                raise OutputError(
                    f"{folder.out} holds this merge of inputs that have been modified since; "
                    "remove the folder and run again"
                )

    def _fetch(self, folder: StagedFolder, file: MergeFile) -> None:
        if file.name in folder.finished:
            self._advance(file.name, file.size)
            return
        with folder.file(file.name, file.size, resume=True) as target:
            self._advance(file.name, target.offset)
            for _ in range(_CORRUPTIONS):
                promised = self._append(target, file)
                if promised in ("", target.sha256):
                    target.finish()
                    return
                self._done -= target.offset
                target.restart()  # what an earlier run left may be damaged
        raise DataCorruptedError(f"{file.name} was read {_CORRUPTIONS} times and never had the SHA-256 it should have")

    def _append(self, target: StagedFile, file: MergeFile) -> str:
        """Fetch what is missing; returns the SHA-256 that the server promises, or ""."""
        download = Download(self._connection, self._merge.id, file.name, start=target.offset)
        for data in download:
            target.append(data)
            self._received += len(data)
            self._advance(file.name, len(data))
        return download.sha256

    def _advance(self, file: str, size: int) -> None:
        self._done += size
        if self._progress:
            self._progress(TransferProgress(file, self._done, self._total))


def _check_manifest(folder: StagedFolder) -> None:
    """The result says itself what its files are; for files whose digest the server did not know, this is the check."""
    manifest: dict[str, Any] = json.loads((folder.partial / MANIFEST).read_bytes())
    listed: Mapping[str, Mapping[str, Any]] = manifest["files"]
    promised = {name: FileDigest(entry["size"], entry["sha256"]) for name, entry in listed.items()}
    arrived = {name: digest for name, digest in folder.finished.items() if name != MANIFEST}
    if wrong := sorted(name for name in promised.keys() | arrived.keys() if promised.get(name) != arrived.get(name)):
        folder.discard()
        raise DataCorruptedError(
            f"{', '.join(wrong)}: not what {MANIFEST} lists; everything fetched is discarded, fetch it again"
        )
