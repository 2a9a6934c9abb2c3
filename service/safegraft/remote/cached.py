"""Brings a model's files whole into the standard Hugging Face cache, which every other tool shares.

Downloads are huggingface_hub's. Each file that arrives is hashed before anybody uses it. A file that the cache has
already, under this commit and with the right size, is not hashed again: the library puts a file there only when it is
complete, and other tools have trusted it since. Knows no checkpoints.
"""

import errno
import hashlib
import logging
import os
import secrets
import time
from collections.abc import Collection, Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2
from huggingface_hub import constants
from huggingface_hub.errors import HfHubHTTPError

from safegraft.checkpoint.hub_cache import snapshot
from safegraft.errors import CheckpointError, Problem
from safegraft.remote.access import HubAccess, scrub
from safegraft.remote.errors import MAY_PASS, hub_errors, transport_words
from safegraft.remote.http_ranges import OPENING_ATTEMPTS, Clock, Patience, Tries, asked_pause
from safegraft.remote.store import RemoteFile

PARALLEL_FILES = 4

_HASHED_AT_ONCE = 1 << 20  # bytes
_PATIENCE = Patience(attempts=OPENING_ATTEMPTS)  # the library has some of its own
_FULL = (errno.ENOSPC, errno.EDQUOT)
_LOGS = ("huggingface_hub.file_download", "huggingface_hub.utils._http")


def cache_hub(
    name: str,
    commit: str,
    files: Collection[RemoteFile],
    access: HubAccess,
    *,
    revision: str | None = None,
    clock: Clock | None = None,
) -> Path:
    """The snapshot's folder, with these files of `name` ("org/name") at `commit` in it.

    revision: the branch or tag that was asked for, which the cache knows by this commit from then on.

    Raises CheckpointError when a file cannot be had, or arrives damaged: then it is taken out of the cache again.
    """
    folder = Path(constants.HF_HUB_CACHE) / f"models--{name.replace('/', '--')}" / "snapshots" / commit
    missing = [file for file in files if not _is_there(folder, file)]
    with _quiet_logs(), ThreadPoolExecutor(PARALLEL_FILES, "safegraft-download") as pool:
        tasks = [pool.submit(_bring, folder, name, commit, file, access, clock or Clock()) for file in missing]
        try:
            for task in tasks:
                task.result()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    if revision is not None and revision != commit:
        with _disk_errors(f"{name}@{revision}"):
            _remember(folder.parent.parent / "refs", revision, commit)
    return folder


def cached_snapshot(name: str, commit: str, files: Collection[RemoteFile]) -> Path | None:
    """The snapshot's folder when all these files are in the cache already, each with its size."""
    folder = snapshot(Path(constants.HF_HUB_CACHE), name, commit)
    return folder if folder is not None and all(_is_there(folder, file) for file in files) else None


def _is_there(folder: Path, file: RemoteFile) -> bool:
    try:
        return (folder / file.name).stat().st_size == file.size
    except OSError:  # not there, or not to be had: then it is brought, and that says what is wrong
        return False


def _bring(folder: Path, name: str, commit: str, file: RemoteFile, access: HubAccess, clock: Clock) -> None:
    """Download one file, and let it stay only if it is what the Hub lists."""
    where = f"{name}@{commit}/{file.name}"
    if os.path.lexists(folder / file.name):  # of another size than the Hub's
        with _disk_errors(where):
            _remove(folder / file.name)
    with hub_errors(where), _disk_errors(where):
        path = _download(name, commit, file.name, access, clock)
        if not _is_sound(path, file):
            _remove(path)
            message = "arrived damaged: its hash is not the one that the Hub lists. It is out of the cache again"
            raise CheckpointError(Problem(where, f"{message}; run the same command again"))


def _download(name: str, commit: str, file: str, access: HubAccess, clock: Clock) -> Path:
    """The library resumes what breaks off, but gives up at once on a store that is only busy."""
    api: Any = access.api()
    tries = Tries(f"{name}@{commit}/{file}", _PATIENCE, clock, clock.sleep or time.sleep)
    while True:
        try:
            return Path(api.hf_hub_download(name, file, revision=commit))
        except HfHubHTTPError as error:
            status = error.response.status_code
            if status not in MAY_PASS:
                raise
            tries.pause(error, f"the Hub answers with status {status}", asked_pause(error.response, clock))
        except (httpx2.NetworkError, httpx2.TimeoutException, httpx2.RemoteProtocolError) as error:
            tries.pause(error, transport_words(error))


def _is_sound(path: Path, file: RemoteFile) -> bool:
    """Whether content and size are the Hub's: by sha256 where it tells one, else by git's id of the file."""
    if path.stat().st_size != file.size:
        return False
    if file.sha256 is not None:
        return _hash(path, "sha256") == file.sha256
    if file.git_id is not None:
        return _hash(path, "sha1", b"blob %d\0" % file.size) == file.git_id
    return True


def _hash(path: Path, kind: str, head: bytes = b"") -> str:
    digest = hashlib.new(kind, head, usedforsecurity=False)
    with path.open("rb") as content:
        while piece := content.read(_HASHED_AT_ONCE):
            digest.update(piece)
    return digest.hexdigest()


def _remove(path: Path) -> None:
    """A snapshot's file, and the contents that its links lead to: the blob, and the one that repositories share."""
    cache = Path(constants.HF_HUB_CACHE).resolve()
    while path.is_symlink():
        target = path.parent / path.readlink()
        path.unlink()
        path = target
    if path.resolve().is_relative_to(cache):
        path.unlink(missing_ok=True)


def _remember(refs: Path, revision: str, commit: str) -> None:
    ref = refs / revision
    ref.parent.mkdir(parents=True, exist_ok=True)
    unfinished = ref.with_name(f".{secrets.token_hex(8)}")
    unfinished.write_text(commit)
    unfinished.replace(ref)


@contextmanager
def _disk_errors(where: str) -> Generator[None]:
    """What the disk says, without the path it says it of. The Hub's own errors, some of which are OSErrors, pass."""
    try:
        yield
    except HfHubHTTPError:
        raise
    except OSError as error:
        if error.errno is None:  # the library's way to say that a download ended early, among others
            words = "could not be downloaded whole: run the same command again"
        elif error.errno in _FULL:
            words = "does not fit on the disk of the Hugging Face cache: free some space, or set HF_HUB_CACHE"
        else:
            words = (
                f"cannot be written into the Hugging Face cache: {error.strerror}. Set HF_HUB_CACHE to another place"
            )
        raise CheckpointError(Problem(where, words)) from error


@contextmanager
def _quiet_logs() -> Generator[None]:
    """The library warns with whole URLs, signed ones too: their signatures stay out of the log."""

    def scrubbed(record: logging.LogRecord) -> bool:
        record.msg, record.args = scrub(record.getMessage()), ()
        return True

    loggers = [logging.getLogger(name) for name in _LOGS]
    for one in loggers:
        one.addFilter(scrubbed)
    try:
        yield
    finally:
        for one in loggers:
            one.removeFilter(scrubbed)
