"""A folder that appears only when complete, and continues where an interrupted run stopped.

Files are written into `.NAME.safegraft-partial` beside the target: each as `FILE.part`, appended in
order, fsynced, renamed, then recorded with its sha256 in `.journal.json`. At the end the whole folder
is renamed to its name. Knows nothing of what the bytes are or where they come from.
"""

import fcntl
import hashlib
import json
import os
import shutil
import stat
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from safegraft.engine.hashing import ThreadedSha256
from safegraft.errors import OutputError, output_errors

JOURNAL = ".journal.json"
MANIFEST = "safegraft.json"
REHASH_CHUNK = 1 << 20
FLUSHED_BYTES = 32 << 20


@dataclass(frozen=True, slots=True)
class FileDigest:
    """What a complete file holds: size in bytes, sha256 in hex."""

    size: int
    sha256: str


def partial_path(out: Path) -> Path:
    """Where the unfinished folder for `out` lies."""
    return out.parent / f".{out.name}.safegraft-partial"


class StagedFolder:
    """Use as a context manager; leaving it without `commit` keeps what is finished for a rerun.

    Args:
        out: the folder to appear. It must not exist, be empty, or hold this very result already.
        digest: what identifies the content. Leftovers of another digest are discarded.
        newer_than: nanoseconds since the epoch; what was written before is not used, whatever its digest.

    Raises OutputError when `out` is in the way, cannot be written, or another process writes it.
    """

    def __init__(self, out: Path, digest: str, *, newer_than: int = 0) -> None:
        self.newer_than = newer_than
        self.out = Path(os.path.abspath(out))
        self.partial = partial_path(self.out)
        self.digest = digest
        self.finished: dict[str, FileDigest] = {}
        self.complete = False
        self.resumed = False
        self._lock: int | None = None
        self._lock_path = self.partial

    def __enter__(self) -> "StagedFolder":
        self.complete = self._out_is_complete()
        if self.complete:
            return self
        with output_errors(self.out):
            self.out.parent.mkdir(parents=True, exist_ok=True)
            self._take_lock()
            try:
                self.complete = self._out_is_complete()  # by whoever had the lock before
                if not self.complete:
                    self._continue_or_start_over()
            except BaseException:
                self._drop_lock()
                raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._drop_lock()

    def file(self, name: str, size: int, *, resume: bool = False) -> "StagedFile":
        """Open `name` for appending up to `size` bytes; with `resume`, after the bytes that are there."""
        return StagedFile(self, name, size, resume=resume)

    def write(self, name: str, content: bytes) -> FileDigest:
        """Write a whole small file."""
        with self.file(name, len(content)) as target:
            target.append(content)
            return target.finish()

    def commit(self) -> None:
        """Make the folder appear under its name. The journal goes last: it says whose the folder is."""
        with output_errors(self.out):
            for leftover in self.partial.rglob("*.part"):
                if leftover.relative_to(self.partial).as_posix() not in self.finished:
                    leftover.unlink()
            _fsync_folder(self.partial)
            if self.out.is_dir():
                self.out.rmdir()  # it was empty when we began; if no longer, this fails and nothing is lost
            os.rename(self.partial, self.out)
            (self.out / JOURNAL).unlink()
            _fsync_folder(self.out)
            _fsync_folder(self.out.parent)
        self.complete = True

    def discard(self) -> None:
        """Remove everything that was staged, the journal last."""
        with output_errors(self.partial):
            self._empty(keep=JOURNAL)
            shutil.rmtree(self.partial)

    def record(self, name: str, digest: FileDigest) -> None:
        """Note a finished file in the journal."""
        self.finished[name] = digest
        files = {name: {"size": entry.size, "sha256": entry.sha256} for name, entry in self.finished.items()}
        _write_durably(self.partial / JOURNAL, json.dumps({"digest": self.digest, "files": files}).encode())

    def _out_is_complete(self) -> bool:
        """True when `out` holds this result already; OutputError when it holds something else."""
        if not os.path.lexists(self.out):
            return False
        if self.out.is_symlink() or not self.out.is_dir():
            raise OutputError(f"{self.out} exists and is not a folder; choose another output folder")
        if not any(self.out.iterdir()):
            return False
        files = _recorded(self.out / MANIFEST, "plan_digest", self.digest)
        if files is None:
            raise OutputError(f"{self.out} exists and is not empty; choose another output folder or remove it")
        if (self.out / MANIFEST).stat().st_mtime_ns < self.newer_than:
            raise OutputError(
                f"{self.out} holds this merge, but an input was modified since; remove the folder and run again"
            )
        for name, entry in files.items():
            target = self.out / name
            if not target.is_file() or target.stat().st_size != entry.size:
                raise OutputError(
                    f"{self.out} holds this merge, but {name} is damaged; remove the folder and run again"
                )
        with output_errors(self.out):
            (self.out / JOURNAL).unlink(missing_ok=True)  # of a process killed just after the folder got its name
        own = (self.out / MANIFEST).read_bytes()
        self.finished = {**files, MANIFEST: FileDigest(len(own), hashlib.sha256(own).hexdigest())}
        return True

    def _take_lock(self) -> None:
        """Lock a file beside the folder. Whoever had it before removed it, so the lock counts only if the
        file is still the one under that name."""
        path = self.out.parent / f".{self.out.name}.safegraft-lock"
        while True:
            lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if os.path.lexists(path) and os.path.samestat(os.fstat(lock), os.lstat(path)):
                    self._lock, self._lock_path = lock, path
                    return
            except BlockingIOError:
                os.close(lock)
                raise OutputError(
                    f"{self.out} is being written by another process; wait for it or choose another folder"
                ) from None
            except FileNotFoundError:
                pass  # removed between the two looks at it: try again
            os.close(lock)

    def _drop_lock(self) -> None:
        if self._lock is not None:
            self._lock_path.unlink(missing_ok=True)
            os.close(self._lock)
            self._lock = None

    def _empty(self, keep: str = "") -> None:
        for entry in self.partial.iterdir():
            if entry.name != keep:
                shutil.rmtree(entry) if entry.is_dir() and not entry.is_symlink() else entry.unlink()

    def _continue_or_start_over(self) -> None:
        if os.path.lexists(self.partial):
            if self.partial.is_symlink() or not self.partial.is_dir():
                raise OutputError(f"{self.partial} is in the way and is not a folder; remove it and run again")
            inside = {entry.name for entry in self.partial.iterdir()}
            if inside - {f"{JOURNAL}.new"} and JOURNAL not in inside:
                raise OutputError(f"{self.partial} is in the way and is no merge's; remove it and run again")
        self.partial.mkdir(exist_ok=True, mode=0o755)
        files = _recorded(self.partial / JOURNAL, "digest", self.digest)
        if files is None:
            self._empty()
            _write_durably(self.partial / JOURNAL, json.dumps({"digest": self.digest, "files": {}}).encode())
            return
        for name, entry in files.items():
            target = self.partial / name
            status = target.stat() if target.is_file() else None
            if status and status.st_size == entry.size and status.st_mtime_ns >= self.newer_than:
                self.finished[name] = entry
        self.resumed = bool(self.finished) or any(self.partial.rglob("*.part"))


class StagedFile:
    """One file being written. Append, then `finish`; leaving without `finish` keeps the part."""

    def __init__(self, folder: StagedFolder, name: str, size: int, *, resume: bool) -> None:
        self.folder = folder
        self.name = name
        self.size = size
        self.target = folder.partial / name
        self.part = folder.partial / f"{name}.part"
        self.offset = 0  # bytes that are there: where to continue
        self._hash = ThreadedSha256()
        self._flushed = 0
        with output_errors(self.target):
            self.target.parent.mkdir(parents=True, exist_ok=True)
            flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | (0 if resume else os.O_TRUNC)
            self._fd = os.open(self.part, flags, 0o644)
            if resume:
                self._take_up()

    def __enter__(self) -> "StagedFile":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._hash.close()
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def append(self, data: bytes | memoryview) -> None:
        """Write the next bytes and take them into the digest. They must not change afterwards."""
        self._hash.update(data)
        with output_errors(self.target):
            view = memoryview(data)
            while view:
                view = view[os.write(self._fd, view) :]
        self.offset += len(data)
        if self.offset - self._flushed >= FLUSHED_BYTES:
            begin_flush(self._fd, self._flushed, self.offset)
            self._flushed = self.offset

    def restart(self) -> None:
        """Throw the bytes away: they turned out to be wrong."""
        with output_errors(self.target):
            os.ftruncate(self._fd, 0)
            os.lseek(self._fd, 0, os.SEEK_SET)
        self._hash.close()
        self._hash = ThreadedSha256()
        self.offset = self._flushed = 0

    @property
    def sha256(self) -> str:
        """Of the bytes so far."""
        return self._hash.hexdigest()

    def finish(self) -> FileDigest:
        """fsync, give the file its name and record it. Raises OutputError if bytes are missing."""
        if self.offset != self.size:
            raise OutputError(f"{self.target}: {self.offset} bytes were written, {self.size} were promised")
        with output_errors(self.target):
            os.fchmod(self._fd, 0o644)  # whatever the umask: the folder is meant to be shared
            os.fsync(self._fd)
            os.rename(self.part, self.target)
            _fsync_folder(self.target.parent)
            digest = FileDigest(self.size, self.sha256)
            self.folder.record(self.name, digest)
        return digest

    def _take_up(self) -> None:
        if os.fstat(self._fd).st_size > self.size:
            os.ftruncate(self._fd, 0)
        while chunk := os.read(self._fd, REHASH_CHUNK):
            self._hash.update(chunk)
            self.offset += len(chunk)


def begin_flush(fd: int, start: int, stop: int) -> None:
    """Have the kernel start to write these bytes of a file to the disk, or the fsync at its end would wait for all.

    That is a side effect, on Linux, of the advice to forget those pages: pages not yet written stay.
    """
    if hasattr(os, "posix_fadvise"):
        os.posix_fadvise(fd, start, stop - start, os.POSIX_FADV_DONTNEED)


def _recorded(path: Path, key: str, digest: str) -> dict[str, FileDigest] | None:
    """The files that a journal or manifest lists, if it is one and is of `digest`; else None: it is not ours."""
    try:
        if not stat.S_ISREG(path.lstat().st_mode):
            return None
        document: Any = json.loads(path.read_bytes())
        if document[key] != digest:
            return None
        return {str(name): FileDigest(int(one["size"]), str(one["sha256"])) for name, one in document["files"].items()}
    except (FileNotFoundError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return None


def _write_durably(path: Path, content: bytes) -> None:
    temporary = path.with_name(path.name + ".new")
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644)
    try:
        os.write(fd, content)
        os.fsync(fd)
    finally:
        os.close(fd)
    os.rename(temporary, path)


def _fsync_folder(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
