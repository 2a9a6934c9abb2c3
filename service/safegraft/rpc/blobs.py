"""Uploaded files on disk: content-addressed blobs, and checkpoint folders made of hard links to them.

    blobs/SHA256               a verified file
    blobs/partial/SHA256.SIZE  one that is arriving; its name reserves its final size
    checkpoints/SHA256/        a checkpoint, by the SHA-256 of its manifest

Blocking code: the server calls it in threads, workers directly. Knows no gRPC.
"""

import errno
import json
import os
import re
import shutil
import tempfile
import threading
import time
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

from safegraft.engine.hashing import ThreadedSha256
from safegraft.engine.staging import FLUSHED_BYTES, begin_flush
from safegraft.errors import CheckpointError, DataCorruptedError, OutputError, Problem, UsageError

_SHA256 = re.compile(r"[0-9a-f]{64}")
_FILE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._+ -]{0,254}")
_MAX_MANIFEST = 4 << 20
_MAX_FILES = 10_000
_HASH_CHUNK = 1 << 20


@dataclass(frozen=True, slots=True)
class Blob:
    """Content, by its SHA-256 (64 hex digits) and its size in bytes."""

    sha256: str
    size: int

    def __post_init__(self) -> None:
        if not _SHA256.fullmatch(self.sha256):
            raise UsageError(Problem("blob.sha256", "must be 64 lower-case hex digits"))
        if self.size < 0:
            raise UsageError(Problem("blob.size", "must not be negative"))


@dataclass(frozen=True, slots=True)
class UploadedFolder:
    """A checkpoint made of uploaded blobs: what its uploader calls it, where it lies, and the SHA-256 of each file."""

    name: str
    path: Path
    digests: Mapping[str, str]


@dataclass(frozen=True)
class BlobStore:
    """Blobs and checkpoints under one data folder."""

    root: Path

    @property
    def blobs(self) -> Path:
        return self.root / "blobs"

    @property
    def partials(self) -> Path:
        return self.blobs / "partial"

    @property
    def checkpoints(self) -> Path:
        return self.root / "checkpoints"

    def prepare(self) -> None:
        """Make the folders."""
        self.partials.mkdir(parents=True, exist_ok=True)
        self.checkpoints.mkdir(parents=True, exist_ok=True)

    def has(self, blob: Blob) -> bool:
        """True for a verified blob, which is marked as used just now."""
        path = self.blobs / blob.sha256
        try:
            if path.stat().st_size != blob.size:
                return False
            os.utime(path)
        except FileNotFoundError:
            return False
        return True

    def committed(self, blob: Blob) -> int:
        """Bytes of a blob that have arrived."""
        if self.has(blob):
            return blob.size
        try:
            return self._partial(blob).stat().st_size
        except FileNotFoundError:
            return 0

    def used(self) -> int:
        """Bytes that verified and promised blobs take."""
        verified = sum(entry.stat().st_size for entry in os.scandir(self.blobs) if entry.is_file())
        return verified + sum(int(entry.name.partition(".")[2]) for entry in os.scandir(self.partials))

    def reserved(self, blob: Blob) -> bool:
        """True when `used` counts the blob already."""
        return self._partial(blob).exists()

    def reserve(self, blob: Blob) -> None:
        """Have `used` count the blob from now on."""
        with _disk_errors():
            self._partial(blob).touch(0o644)

    def receive(self, blob: Blob) -> "IncomingBlob":
        """For writing a blob that is reserved."""
        return IncomingBlob(self._partial(blob), self.blobs / blob.sha256, blob)

    def assemble(self, manifest_sha256: str) -> UploadedFolder:
        """The folder of an uploaded checkpoint, made when it is first asked for.

        Raises CheckpointError when the manifest or one of its files is missing or unsound.
        """
        reference = f"upload:{manifest_sha256}"
        name, files = self._read_manifest(reference, manifest_sha256)
        path = self.checkpoints / manifest_sha256
        if not path.is_dir():
            self._link(reference, files, path)
        os.utime(path)
        return UploadedFolder(name or reference, path, {file: blob.sha256 for file, blob in files.items()})

    def sweep(self, in_use: frozenset[str], lifetime: float) -> int:
        """Remove what nothing has used for `lifetime` seconds; returns the number of things removed.

        in_use: manifest digests of checkpoints that live merges need.
        """
        oldest = time.time() - lifetime
        removed = 0
        for entry in list(os.scandir(self.checkpoints)):
            if entry.name not in in_use and entry.stat().st_mtime < oldest:
                shutil.rmtree(entry.path)
                removed += 1
        # A link count above one: a checkpoint holds the blob. Manifests are in no checkpoint, but are named like one.
        for entry in [*os.scandir(self.blobs), *os.scandir(self.partials)]:
            if entry.is_file() and entry.name not in in_use:
                facts = os.stat(entry.path)  # scandir's own may lack the link count
                if facts.st_nlink == 1 and facts.st_mtime < oldest:
                    os.unlink(entry.path)
                    removed += 1
        return removed

    def _partial(self, blob: Blob) -> Path:
        return self.partials / f"{blob.sha256}.{blob.size}"

    def _read_manifest(self, reference: str, sha256: str) -> tuple[str | None, dict[str, Blob]]:
        if not _SHA256.fullmatch(sha256):
            raise CheckpointError(Problem(reference, "is not 'upload:' and 64 lower-case hex digits"))
        path = self.blobs / sha256
        try:
            if path.stat().st_size > _MAX_MANIFEST:
                raise CheckpointError(Problem(reference, "is too large for a checkpoint's manifest"))
            content = path.read_bytes()
            os.utime(path)
        except FileNotFoundError:
            raise CheckpointError(Problem(reference, "is not on this server; upload it (again)")) from None
        return parse_manifest(reference, content)

    def _link(self, reference: str, files: Mapping[str, Blob], path: Path) -> None:
        temporary = Path(tempfile.mkdtemp(prefix=".new-", dir=self.checkpoints))
        try:
            missing = [
                Problem(f"{reference}: {name}", "is not uploaded") for name, blob in files.items() if not self.has(blob)
            ]
            if missing:
                raise CheckpointError(missing)
            for name, blob in files.items():
                os.link(self.blobs / blob.sha256, temporary / name)
            temporary.chmod(0o755)
            try:
                temporary.rename(path)
            except OSError as error:
                if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                    raise  # otherwise another process was faster, with the same content
        finally:
            if temporary.exists():
                shutil.rmtree(temporary)


def parse_manifest(reference: str, content: bytes) -> tuple[str | None, dict[str, Blob]]:
    """Read a checkpoint's manifest: its name, if it has one, and bare file name -> blob. Raises CheckpointError."""

    def wrong(what: str) -> CheckpointError:
        return CheckpointError(Problem(reference, f"is not a checkpoint's manifest: {what}"))

    try:
        document: Any = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise wrong(f"it is not JSON ({error})") from None
    facts = cast("dict[str, Any]", document) if isinstance(document, dict) else {}
    name = facts.get("name")
    if name is not None and not (isinstance(name, str) and _FILE_NAME.fullmatch(name)):
        raise wrong(f"{name!r} is not a bare name")
    listing = facts.get("files")
    if not isinstance(listing, dict) or not listing:
        raise wrong('it lacks {"files": {name: {"sha256", "size"}}}')
    entries = cast("dict[str, Any]", listing)
    if len(entries) > _MAX_FILES:
        raise wrong(f"it lists more than {_MAX_FILES} files")
    files: dict[str, Blob] = {}
    for file, entry in entries.items():
        if not _FILE_NAME.fullmatch(file):
            raise wrong(f"{file!r} is not a bare file name")
        match entry:
            case {"sha256": str(sha256), "size": int(size)} if not isinstance(size, bool):
                try:
                    files[file] = Blob(sha256, size)
                except UsageError as error:
                    raise wrong(f"{file}: {error}") from None
            case _:
                raise wrong(f'{file} lacks "sha256" or "size"')
    return name, files


class IncomingBlob:
    """One blob being written: open, append, finish; `close` keeps what arrived for another call.

    May be closed while another thread is in the middle of a write: `close` then waits for it.
    """

    def __init__(self, partial: Path, target: Path, blob: Blob) -> None:
        self.committed = 0
        self._partial, self._target, self._blob = partial, target, blob
        self._flushed = 0
        self._hash = ThreadedSha256()
        self._file: BinaryIO | None = None
        self._lock = threading.Lock()

    def open(self) -> None:
        """Take up what has arrived already."""
        with self._lock:
            self._file = self._partial.open("r+b", buffering=0)
            while chunk := self._file.read(_HASH_CHUNK):
                self._hash.update(chunk)
                self.committed += len(chunk)
            self._flushed = self.committed

    def append(self, data: bytes) -> None:
        """Write the next bytes. Raises UsageError beyond the promised size, OutputError when the disk is full."""
        if self.committed + len(data) > self._blob.size:
            raise UsageError(Problem("data", f"goes beyond the blob's size of {self._blob.size} bytes"))
        with self._lock, _disk_errors():
            assert self._file is not None
            view = memoryview(data)
            while view:
                written = self._file.write(view) or 0
                self._hash.update(view[:written])
                self.committed += written
                view = view[written:]
            if self.committed - self._flushed >= FLUSHED_BYTES:
                begin_flush(self._file.fileno(), self._flushed, self.committed)
                self._flushed = self.committed

    def finish(self) -> None:
        """Verify and store. Raises DataCorruptedError, and forgets the bytes, when they are not those promised."""
        with self._lock, _disk_errors():
            assert self._file is not None
            if self._hash.hexdigest() != self._blob.sha256:
                self._partial.unlink()
                raise DataCorruptedError(
                    f"the bytes received for blob {self._blob.sha256} have the SHA-256 {self._hash.hexdigest()}; "
                    "they are discarded: read the file again and send it anew"
                )
            os.fsync(self._file.fileno())
            os.rename(self._partial, self._target)

    def close(self) -> None:
        with self._lock:
            self._hash.close()
            if self._file is not None:
                self._file.close()


@contextmanager
def _disk_errors() -> Generator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise OutputError(
                "the server's disk is full; what arrived is kept, continue when there is space"
            ) from error
        raise
