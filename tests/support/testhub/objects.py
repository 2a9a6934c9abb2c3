"""Content on disk, by its hash: git blobs by sha1, LFS objects by sha256. It knows no names and no repositories."""

import hashlib
import os
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

CHUNK = 1 << 20


@dataclass(frozen=True, slots=True)
class File:
    """A file of a tree. `oid` is git's: of the content or, for LFS (`sha256` given), of the pointer in its place."""

    oid: str
    size: int
    sha256: str | None = None

    @property
    def etag(self) -> str:
        return self.sha256 or self.oid


def blob_oid(data: bytes) -> str:
    """The id git gives these bytes."""
    return hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()


def pointer(sha256: str, size: int) -> bytes:
    """The text that git holds in place of an LFS object."""
    return f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {size}\n".encode()


def lfs_file(sha256: str, size: int) -> File:
    return File(blob_oid(pointer(sha256, size)), size, sha256)


class Objects:
    """The store. Objects appear whole (written aside, then renamed), so readers need no lock."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.parts = folder / "parts"
        """Parts of uploads that are not complete."""
        for kind in ("git", "lfs", "incoming", "parts"):
            (folder / kind).mkdir(parents=True, exist_ok=True)

    def path(self, file: File) -> Path:
        return self._folder / ("lfs" if file.sha256 else "git") / file.etag

    def size(self, sha256: str) -> int | None:
        """Bytes of an LFS object, None where there is none."""
        path = self._folder / "lfs" / sha256
        return path.stat().st_size if path.is_file() else None

    def add_bytes(self, data: bytes) -> File:
        """A git blob."""
        file = File(blob_oid(data), len(data))
        with self.incoming() as out:
            out.write(data)
        os.replace(out.name, self.path(file))
        return file

    def add_lfs(self, chunks: Iterable[bytes]) -> File:
        """An LFS object, named by what it holds."""
        digest, size = hashlib.sha256(), 0
        out = self.incoming()
        try:
            with out:
                for chunk in chunks:
                    digest.update(chunk)
                    size += len(chunk)
                    out.write(chunk)
        except BaseException:
            os.unlink(out.name)
            raise
        file = lfs_file(digest.hexdigest(), size)
        os.replace(out.name, self.path(file))
        return file

    def incoming(self) -> IO[bytes]:
        """A new file beside the objects, to be renamed or deleted by whoever asked for it."""
        return tempfile.NamedTemporaryFile(dir=self._folder / "incoming", delete=False)


def chunks_of(path: Path, start: int = 0, stop: int | None = None) -> Iterator[bytes]:
    """The bytes of a file in pieces of a mebibyte at most."""
    with path.open("rb") as source:
        source.seek(start)
        left = (path.stat().st_size if stop is None else stop) - start
        while left > 0 and (chunk := source.read(min(CHUNK, left))):
            left -= len(chunk)
            yield chunk
