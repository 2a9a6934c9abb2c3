"""What a store lists, as the files of one folder: read whole, several at a time, and held to what the listing says.

Knows small files only, and not what is in them.
"""

import hashlib
from collections.abc import Mapping
from concurrent.futures import Executor, Future

from safegraft.errors import CheckpointError, InputChangedError, Problem
from safegraft.remote.store import RemoteFile, Store
from safegraft.remote.verifying import WRONG

WRONG_GIT_ID = "does not have the git id that is listed for it: it was changed, or damaged on its way; start again"


class ListedFiles:
    """The files of `store`, as `safegraft.checkpoint.contents.Files` has them."""

    def __init__(self, store: Store) -> None:
        self.name = store.listing.name
        self._store = store
        self._files = store.listing.files
        self._begun: dict[str, Future[bytes]] = {}
        self.names = tuple(sorted(file for file in self._files if "/" not in file))

    def begin(self, limits: Mapping[str, int], pool: Executor) -> None:
        """Start reading those of the files that are there and have no more bytes than their limit, in parallel."""
        for file, limit in limits.items():
            listed = self._files.get(file)
            if listed is not None and listed.size <= limit:
                self._begun[file] = pool.submit(self._store.read, listed, 0, listed.size)

    def subfolder(self, name: str) -> tuple[str, ...]:
        """The names in one folder below; () when there is none."""
        below = (file.removeprefix(f"{name}/") for file in self._files if file.startswith(f"{name}/"))
        return tuple(sorted(file for file in below if "/" not in file))

    def read(self, file: str, limit: int) -> bytes:
        """The whole content of a file of at most `limit` bytes. Raises CheckpointError, InputChangedError."""
        listed = self._listed(file)
        where = f"{self.name}/{file}"
        if listed.size > limit:
            message = f"has {listed.size:,} bytes; more than {limit:,} are not accepted for this kind of file"
            raise CheckpointError(Problem(where, message))
        begun = self._begun.pop(file, None)
        content = begun.result() if begun is not None else self._store.read(listed, 0, listed.size)
        if listed.sha256 is not None and hashlib.sha256(content).hexdigest() != listed.sha256:
            raise InputChangedError(Problem(where, WRONG))
        if listed.git_id is not None and git_id(content) != listed.git_id:
            raise InputChangedError(Problem(where, WRONG_GIT_ID))
        return content

    def read_start(self, file: str, length: int) -> bytes:
        """A file's first `length` bytes, or all of them."""
        listed = self._listed(file)
        return self.read(file, length) if listed.size <= length else self._store.read(listed, 0, length)

    def _listed(self, file: str) -> RemoteFile:
        if file not in self._files:
            raise CheckpointError(Problem(f"{self.name}/{file}", "is not there"))
        return self._files[file]


def git_id(content: bytes) -> str:
    """As git names a file of this content."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()
