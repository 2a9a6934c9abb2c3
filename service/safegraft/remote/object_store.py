"""A model's files in an object store, through fsspec: s3, gs, az and what else is listed here.

Credentials are those that the store's own library finds in the environment. Knows no checkpoints.
"""

import threading
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime
from typing import Any

import fsspec  # pyright: ignore[reportMissingTypeStubs]

from safegraft.checkpoint.sidecars import CHAT_TEMPLATES
from safegraft.errors import CheckpointError, InputChangedError, Problem, SafegraftError, UsageError
from safegraft.remote.http_ranges import OPENING_ATTEMPTS, Clock, Patience, Tries
from safegraft.remote.store import Listing, RemoteFile, Store
from safegraft.remote.url_names import shown_url

# Scheme -> the package that brings it.
PACKAGES = {
    "s3": "s3fs",
    "s3a": "s3fs",
    "gs": "gcsfs",
    "gcs": "gcsfs",
    "az": "adlfs",
    "abfs": "adlfs",
    "abfss": "adlfs",
    "memory": "fsspec",
}
# What the stores call a version, and the time of the last change; the first that an entry has counts.
_VERSIONS = ("ETag", "etag", "md5Hash", "content_md5", "generation", "version_id")
_NOTHING = "there is nothing at this URL: name the folder that holds config.json and the weights"
_TIMES = ("LastModified", "last_modified", "updated", "mtime", "created")


class ObjectStore(Store):
    """Lists the files at once.

    Raises UsageError when the store's package is not installed, CheckpointError when nothing can be listed.
    """

    def __init__(self, url: str, *, patience: Patience | None = None, clock: Clock | None = None) -> None:
        self._name = shown_url(url)
        self._patience, self._clock = patience or Patience(), clock or Clock()
        self._closing = threading.Event()
        self._lock = threading.Lock()
        scheme = url.partition("://")[0].lower()
        library: Any = fsspec
        try:
            opened: Any = library.core.url_to_fs(url, use_listings_cache=False)
        except ImportError as error:
            package = PACKAGES[scheme]
            raise UsageError(
                f"{self._name}: reading {scheme}:// needs the package {package}: pip install {package}"
            ) from error
        except ValueError as error:
            raise CheckpointError(Problem(self._name, "is no URL that its store understands")) from error
        self._filesystem, self._root = opened
        self.listing = self._list()

    def read(self, file: RemoteFile, start: int, stop: int) -> bytes:
        if not 0 <= start <= stop <= file.size:
            raise ValueError(f"{file.name} has {file.size} bytes: {start} to {stop} are out of range")
        where = f"{self._name}/{file.name}"
        tries = self._tries(where)
        pieces: list[bytes] = []
        while start < stop:
            if self._closing.is_set():
                raise ValueError(f"{where} has been closed")
            with _explained(where, tries):
                piece = self._piece(file, start, stop, where)
                pieces.append(piece)
                start += len(piece)
                tries.progress()
        return b"".join(pieces)

    def close(self) -> None:
        self._closing.set()

    def _piece(self, file: RemoteFile, start: int, stop: int, where: str) -> bytes:
        """From `start`; shorter than asked for when the answer broke off."""
        path = f"{self._root}/{file.name}"
        piece: bytes = self._filesystem.cat_file(path, start=start, end=stop)
        with self._lock:
            self.bytes_read += len(piece)
        # Looked at afterwards: what was replaced before the bytes came is found, too.
        if _listed(file.name, self._filesystem.info(path)) != file:
            raise _changed(where)
        if len(piece) > stop - start:
            raise CheckpointError(Problem(where, "has a store that sends more bytes than it was asked for"))
        if not piece:
            raise ConnectionError("the answer broke off")
        return piece

    def _list(self) -> Listing:
        entries = self._entries(self._root)
        if self._root in (str(one["name"]).rstrip("/") for one in entries if one.get("type") == "file"):
            message = "is a file: name the folder that holds config.json and the weights"
            raise CheckpointError(Problem(self._name, message))
        if any(one.get("type") == "directory" and _bare(one) == CHAT_TEMPLATES for one in entries):
            entries += self._entries(f"{self._root}/{CHAT_TEMPLATES}")
        files: dict[str, RemoteFile] = {}
        for entry in entries:
            if entry.get("type") == "file":
                name = str(entry["name"]).rstrip("/").removeprefix(f"{self._root}/")
                files[name] = _listed(name, entry)
        if not files:
            raise CheckpointError(Problem(self._name, _NOTHING))
        return Listing(self._name, files, max(map(_modified_ns, entries)))

    def _entries(self, path: str) -> list[dict[str, Any]]:
        tries = self._tries(self._name, OPENING_ATTEMPTS)
        while True:
            with _explained(self._name, tries, missing=CheckpointError(Problem(self._name, _NOTHING))):
                return list(self._filesystem.ls(path, detail=True))

    def _tries(self, where: str, attempts: int | None = None) -> Tries:
        patience = replace(self._patience, attempts=min(self._patience.attempts, attempts or self._patience.attempts))
        return Tries(where, patience, self._clock, self._clock.sleep or self._closing.wait)


@contextmanager
def _explained(where: str, tries: Tries, missing: SafegraftError | None = None) -> Generator[None]:
    """Pause where another attempt may help, and leave the block as if it had ended; else raise in words.

    missing: the error for a file that is not there; None: it was, so it changed.
    """
    try:
        yield
    except SafegraftError:
        raise
    except FileNotFoundError as error:
        raise missing or _changed(where) from error
    except PermissionError as error:
        message = "cannot be read: its store gives no access. Check the credentials in the environment"
        raise CheckpointError(Problem(where, message)) from error
    except (OSError, EOFError) as error:
        tries.pause(error, "its store does not answer as it should")
    except Exception as error:  # the stores' libraries have errors of their own; they are named
        message = (
            f"cannot be read: its store's library failed with {type(error).__name__}. Check the URL and credentials"
        )
        raise CheckpointError(Problem(where, message)) from error


def _changed(where: str) -> InputChangedError:
    return InputChangedError(Problem(where, "changed while it was in use. Leave the input alone and start again"))


def _bare(entry: Mapping[str, Any]) -> str:
    return str(entry["name"]).rstrip("/").rpartition("/")[2]


def _listed(name: str, entry: Mapping[str, Any]) -> RemoteFile:
    version = next((str(entry[key]) for key in _VERSIONS if entry.get(key)), None)
    return RemoteFile(name, int(entry["size"]), None, (version or f"{_modified_ns(entry)}").strip('"'))


def _modified_ns(entry: Mapping[str, Any]) -> int:
    """0 when the store does not tell."""
    value = next((entry[key] for key in _TIMES if entry.get(key)), None)
    if isinstance(value, str):
        try:
            value = datetime.fromisoformat(value)
        except ValueError:
            return 0
    if isinstance(value, datetime):
        value = value.timestamp()
    return int(value * 1e9) if isinstance(value, (int, float)) else 0
