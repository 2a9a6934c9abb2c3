"""What a place on a network is to the checkpoint that lies there: a listing, and ranges of its files."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """A file as the store lists it.

    name: bare, or "folder/name". size: bytes. sha256: of the content in hex, when the store vouches for it.
    version: what changes with the content, such as an ETag. git_id: its id as git names contents, 40 hex digits, where
    the store vouches for that instead.
    """

    name: str
    size: int
    sha256: str | None
    version: str
    git_id: str | None = None


@dataclass(frozen=True, slots=True)
class Listing:
    """All files at one version of the place.

    name: how messages and results call it: "org/name@commit", or a URL without user info and query.
    others: names of what lies there besides and is no part of a checkpoint.
    modified_ns: when the newest was last written, in nanoseconds since the epoch; 0 where nothing can change.
    """

    name: str
    files: Mapping[str, RemoteFile]
    modified_ns: int = 0
    others: Sequence[str] = ()


class Store(ABC):
    """Safe to use from several threads. `bytes_read`: how many bytes of content have been received."""

    listing: Listing
    bytes_read: int = 0

    @abstractmethod
    def read(self, file: RemoteFile, start: int, stop: int) -> bytes:
        """Bytes [start, stop) of a file, exactly so many; tried again, with pauses, while that may help.

        Raises CheckpointError when they cannot be had, InputChangedError when the file is another than was listed.
        """

    def interrupt(self) -> None:
        """Have reads that are going on, or pause, fail soon. Later ones are as ever."""

    def close(self) -> None:
        """Release connections; requests under way may fail. Calling it again does nothing."""
