"""Whether a result's bytes are those that its safegraft.json lists: of a folder, or of a repository on the Hub.

A repository's weights need not be downloaded for it. Writes nothing to disk. Whether those bytes are what the recipe
gives is recompute.py's business.
"""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

from safegraft.checkpoint.files import Folder, OpenFile
from safegraft.engine.execute import Never, never
from safegraft.engine.staging import MANIFEST, FileDigest
from safegraft.errors import CheckpointError, Problem
from safegraft.hub.hashing import Meter, Progress, silent
from safegraft.hub.manifest import MAX_MANIFEST_BYTES, Manifest, read_manifest
from safegraft.hub.verification import CARD, Status, Verification

if TYPE_CHECKING:
    from safegraft.remote.access import HubAccess
    from safegraft.remote.store import RemoteFile, Store

CHUNK = 4 << 20  # bytes that are hashed, or fetched, at a time
_AHEAD = 4  # chunks that are fetched while one is hashed
_ALWAYS_READ = 1 << 20  # bytes: files up to this size are read even where the Hub tells their sha256


def verify_folder(path: Path, *, progress: Progress = silent, cancelled: Never = never) -> Verification:
    """Hash every file of a merged folder. Raises CheckpointError when it is none, or a file cannot be read."""
    name = path.name or str(path)
    folder = Folder(path, name)
    if MANIFEST not in folder.names:
        raise CheckpointError(Problem(name, _no_merge()))
    manifest = read_manifest(folder.read(MANIFEST, MAX_MANIFEST_BYTES), f"{name}/{MANIFEST}")
    there = set(_below(path))
    meter = Meter(sum(one.size for file, one in manifest.files.items() if file in there), progress, cancelled)
    found: list[tuple[str, Status]] = []
    for file, expected in manifest.files.items():
        if file not in there:
            found.append((file, "missing"))
            continue
        opened = folder.open(file)
        try:
            found.append((file, _status(file, expected, opened.size, lambda opened=opened: _chunks(opened), meter)))
        finally:
            opened.close()
    return Verification(name, manifest, (*found, *_extra(there, manifest)))


def verify_repository(
    name: str,
    revision: str | None,
    access: "HubAccess",
    *,
    download: bool = False,
    progress: Progress = silent,
    cancelled: Never = never,
) -> Verification:
    """Compare a repository of the Hub with its own safegraft.json.

    Small files are read. Of the large ones the Hub knows the sha256, which is compared; with `download` their bytes
    are streamed and hashed, and nothing is kept.

    revision: a branch, a tag or a commit, pinned to its commit first; None: the main branch.
    Raises CheckpointError and what reading from the Hub raises.
    """
    from safegraft.remote.hub import open_hub

    store = open_hub(name, revision, access)
    try:
        there, pinned = store.listing.files, store.listing.name
        if MANIFEST not in there:
            raise CheckpointError(Problem(pinned, _no_merge()))
        where = f"{pinned}/{MANIFEST}"
        if there[MANIFEST].size > MAX_MANIFEST_BYTES:
            raise CheckpointError(Problem(where, f"has more than {MAX_MANIFEST_BYTES:,} bytes: it is no manifest"))
        manifest = read_manifest(store.read(there[MANIFEST], 0, there[MANIFEST].size), where)
        read = [file for file in manifest.files if file in there and (download or _is_read(there[file]))]
        meter = Meter(sum(there[file].size for file in read), progress, cancelled)
        found: list[tuple[str, Status]] = []
        for file, expected in manifest.files.items():
            remote = there.get(file)
            if remote is None:
                found.append((file, "missing"))
            elif file in read:
                found.append(
                    (file, _status(file, expected, remote.size, lambda one=remote: _fetched(store, one), meter))
                )
            else:
                same = (remote.size, remote.sha256) == (expected.size, expected.sha256)
                found.append((file, "same" if same else "differs"))
        believed = tuple(file for file in manifest.files if file in there and file not in read)
        return Verification(pinned, manifest, (*found, *_extra([*there, *store.listing.others], manifest)), believed)
    finally:
        store.close()


def _no_merge() -> str:
    return f"holds no merge of safegraft: {MANIFEST} is not there"


def _is_read(file: "RemoteFile") -> bool:
    return file.sha256 is None or file.size <= _ALWAYS_READ


def _status(name: str, expected: FileDigest, size: int, chunks: Callable[[], Iterable[bytes]], meter: Meter) -> Status:
    """Of a file that is there."""
    if size != expected.size:
        meter.pass_over(size)
        same = False
    else:
        same = meter.sha256(name, chunks()) == expected.sha256
    return "same" if same else "edited" if name == CARD else "differs"


def _extra(there: Iterable[str], manifest: Manifest) -> list[tuple[str, Status]]:
    return [(name, "extra") for name in sorted(there) if name not in manifest.files and name != MANIFEST]


def _below(path: Path) -> Iterator[str]:
    """Every file below a folder, by its path from there."""
    for folder, folders, files in os.walk(path):
        for name in (*files, *(one for one in folders if os.path.islink(os.path.join(folder, one)))):
            yield Path(folder, name).relative_to(path).as_posix()


def _chunks(file: OpenFile) -> Iterator[bytes]:
    for offset in range(0, file.size, CHUNK):
        yield file.read(offset, CHUNK)
    file.verify_unchanged()


def _fetched(store: "Store", file: "RemoteFile") -> Iterator[bytes]:
    """A file's bytes in order, some chunks ahead of whoever hashes them."""
    ahead: deque[Future[bytes]] = deque()
    with ThreadPoolExecutor(_AHEAD, thread_name_prefix="safegraft-verify") as pool:
        try:
            for start in range(0, file.size, CHUNK):
                ahead.append(pool.submit(store.read, file, start, min(start + CHUNK, file.size)))
                if len(ahead) > _AHEAD:
                    yield ahead.popleft().result()
            while ahead:
                yield ahead.popleft().result()
        finally:
            for one in ahead:
                one.cancel()
