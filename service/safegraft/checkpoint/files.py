"""Opens the files of one folder, and nothing outside of it.

A file is a regular one, inside the boundary after every symlink is followed, and is held by its
descriptor from then on: it is read with `preadv`, never mapped, because a mapped file that somebody
truncates kills the process. Knows nothing of checkpoints.
"""

import errno
import hashlib
import os
import re
import stat
import weakref
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from safegraft.errors import CheckpointError, InputChangedError, Problem

_WORDS = {
    errno.ENOENT: "is not there",
    errno.EACCES: "cannot be read: permission denied",
    errno.EPERM: "cannot be read: permission denied",
    errno.ELOOP: "is a symlink that leads in a circle",
    errno.EMFILE: "cannot be opened: too many open files in this process; raise the limit (ulimit -n)",
    errno.ENFILE: "cannot be opened: too many open files on this machine",
    errno.EIO: "cannot be read: the storage reports an input/output error",
    errno.ESTALE: "cannot be read any more: the file server has replaced it",
}
_KINDS = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a named pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)
_REPOSITORY = re.compile(r"(models|datasets|spaces)--.+")
_COMMIT = re.compile(r"[0-9a-f]{40}")
_SHA256 = re.compile(r"[0-9a-f]{64}")

HASH_CHUNK = 1 << 20


@dataclass(frozen=True, slots=True)
class Signature:
    """What tells that a file is still the one that was opened, without reading it."""

    size: int
    mtime_ns: int
    inode: int
    device: int

    @classmethod
    def of(cls, status: os.stat_result) -> "Signature":
        return cls(status.st_size, status.st_mtime_ns, status.st_ino, status.st_dev)


class OpenFile:
    """A regular file held open for reading. Safe to use from several threads, except `close`."""

    def __init__(self, where: str, path: str, descriptor: int) -> None:
        self.where = where
        self._path = path
        self._descriptor = descriptor
        self._closing = weakref.finalize(self, os.close, descriptor)
        self.signature = Signature.of(os.fstat(descriptor))

    @property
    def size(self) -> int:
        """In bytes, when it was opened."""
        return self.signature.size

    def read_into(self, view: memoryview, offset: int) -> int:
        """Fill `view` (of bytes) from `offset`; the count is smaller only where the file ends."""
        if not self._closing.alive:  # its number may belong to another file by now
            raise ValueError(f"{self.where} has been closed")
        done = 0
        with explained(self.where):
            while done < len(view):
                count = os.preadv(self._descriptor, [view[done:]], offset + done)
                if count == 0:
                    break
                done += count
        return done

    def read(self, offset: int, length: int) -> bytes:
        """`length` bytes from `offset`, or as many as there are."""
        content = bytearray(length)
        count = self.read_into(memoryview(content), offset)
        return bytes(memoryview(content)[:count])

    def sha256(self) -> str:
        """Of the whole file, in hex."""
        digest = hashlib.sha256()
        for offset in range(0, self.size, HASH_CHUNK):
            digest.update(self.read(offset, HASH_CHUNK))
        return digest.hexdigest()

    def verify_unchanged(self) -> None:
        """Raise InputChangedError when the file, or what lies under its name, is another by now."""
        changed = Problem(self.where, "changed while it was in use. Leave the input alone and start again")
        try:
            # By path, which covers the descriptor too: no other file can get the inode while it is held open.
            there = Signature.of(os.stat(self._path))
        except OSError as error:
            raise InputChangedError(changed) from error
        if there != self.signature:
            raise InputChangedError(changed)

    def close(self) -> None:
        self._closing()


class Folder:
    """The files of one folder: `names`. `name` stands for it in messages, which never show where it lies.

    Symlinks may lead anywhere below `root`. Without a root they must stay in the folder; a snapshot
    in a Hugging Face cache may also link into that cache's blobs.
    """

    def __init__(self, path: Path, name: str, root: Path | None = None) -> None:
        self.name = name
        if "\0" in os.fspath(path):
            raise CheckpointError(Problem(name, "is not a path: it holds a NUL character"))
        with explained(name, missing="there is no such folder"):
            self._path = os.path.realpath(path, strict=True)
            self._boundary = _Boundary(self._path, os.path.realpath(root, strict=True) if root is not None else None)
            if not self._boundary.admits(self._path):
                raise CheckpointError(Problem(name, "leads out of the folder that models are served from"))
            if not stat.S_ISDIR(os.stat(self._path).st_mode):
                message = "is not a folder: name the folder that holds config.json and the weights"
                raise CheckpointError(Problem(name, message))
            entries = sorted(os.listdir(self._path))
        self._folders = {entry for entry in entries if os.path.isdir(os.path.join(self._path, entry))}
        self.names = tuple(entry for entry in entries if entry not in self._folders)

    def subfolder(self, name: str) -> tuple[str, ...]:
        """The names in one folder below; () when there is none."""
        if name not in self._folders:
            return ()
        where = f"{self.name}/{name}"
        with explained(where):
            real = os.path.realpath(os.path.join(self._path, name), strict=True)
            self._admit(real, where)
            return tuple(sorted(os.listdir(real)))

    def open(self, file: str) -> OpenFile:
        """Open a file by its name in `names` (or "subfolder/name").

        Raises CheckpointError when it is no regular file, cannot be read, or leads out of bounds. Never blocks.
        """
        where = f"{self.name}/{file}"
        path = os.path.join(self._path, file)
        with explained(where):
            os.lstat(path)
        with explained(where, missing="is a symlink to nothing: is the download complete?"):
            real = os.path.realpath(path, strict=True)
            self._admit(real, where)
            # Looked at before it is opened: opening a device may already do something.
            _require_regular(os.stat(real, follow_symlinks=False), where)
            descriptor = os.open(real, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
            opened = OpenFile(where, path, descriptor)
            _require_regular(os.fstat(descriptor), where)
        return opened

    def read(self, file: str, limit: int) -> bytes:
        """The whole content of a file of at most `limit` bytes."""
        opened = self.open(file)
        try:
            if opened.size > limit:
                message = f"has {opened.size:,} bytes; more than {limit:,} are not accepted for this kind of file"
                raise CheckpointError(Problem(opened.where, message))
            return opened.read(0, opened.size)
        finally:
            opened.close()

    def read_start(self, file: str, length: int) -> bytes:
        """A file's first `length` bytes, or all of them."""
        opened = self.open(file)
        try:
            return opened.read(0, min(length, opened.size))
        finally:
            opened.close()

    def blob_sha256(self, file: str) -> str | None:
        """The sha256 by which a Hugging Face cache stores the file; None elsewhere, and for small files."""
        path = os.path.join(self._path, file)
        if self._boundary.blobs is None or not os.path.islink(path):
            return None
        # The first link tells, not where the last one ends: a blob may in turn link into the store
        # that several repositories share, where names are hashes of another kind.
        target = os.path.normpath(os.path.join(os.path.dirname(path), os.readlink(path)))
        folder, blob = os.path.split(target)
        return blob if folder == self._boundary.blobs and _SHA256.fullmatch(blob) else None

    def _admit(self, real: str, where: str) -> None:
        if not self._boundary.admits(real):
            message = "is a symlink that leads out of the checkpoint. Put the file itself in the folder"
            raise CheckpointError(Problem(where, message))


class _Boundary:
    """What a folder's symlinks may lead to. `blobs`: where its Hugging Face cache keeps the contents."""

    def __init__(self, folder: str, root: str | None) -> None:
        snapshots, commit = os.path.split(folder)
        repository = os.path.dirname(snapshots)
        cached = (
            os.path.basename(snapshots) == "snapshots"
            and _COMMIT.fullmatch(commit) is not None
            and _REPOSITORY.fullmatch(os.path.basename(repository)) is not None
        )
        self.blobs = os.path.join(repository, "blobs") if cached else None
        self._roots = [root] if root is not None else [repository] if cached else [folder]
        self._shared = os.path.join(os.path.dirname(repository), "blobs") if cached and root is None else None

    def admits(self, real: str) -> bool:
        """Whether a path without symlinks lies inside."""
        if any(os.path.commonpath([root, real]) == root for root in self._roots):
            return True
        shelf, blob = os.path.split(real)
        return (
            self._shared is not None
            and _SHA256.fullmatch(blob) is not None
            and shelf == os.path.join(self._shared, blob[:2])
        )


@contextmanager
def explained(where: str, missing: str | None = None) -> Generator[None, None, None]:
    """Turn an OSError inside the block into a CheckpointError in words, without the path it carries."""
    try:
        yield
    except OSError as error:
        words = _WORDS.get(error.errno or 0, f"cannot be read: {error.strerror}")
        if missing and error.errno in (errno.ENOENT, errno.ENOTDIR):
            words = missing
        raise CheckpointError(Problem(where, words)) from error


def _require_regular(status: os.stat_result, where: str) -> None:
    if not stat.S_ISREG(status.st_mode):
        kind = next((words for test, words in _KINDS if test(status.st_mode)), "no file")
        raise CheckpointError(Problem(where, f"is {kind}, not a regular file"))


def raise_changed(files: Sequence[OpenFile]) -> None:
    """Verify all files, and name every one that changed in a single InputChangedError."""
    problems: list[Problem] = []
    for file in files:
        try:
            file.verify_unchanged()
        except InputChangedError as error:
            problems.extend(error.problems)
    if problems:
        raise InputChangedError(problems)
