"""Where a Hub model is read from: this machine's Hugging Face cache when all of it is there, else the Hub.

A branch or tag is what the Hub says it is now, as for `from_pretrained`; only when the Hub cannot be asked is it what
it was at the last download, and a note says so. Opens no checkpoints.
"""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import constants, get_cached_repo_tree
from huggingface_hub.errors import CachedRepoTreeNotFoundError

from safegraft.checkpoint.adapter import ADAPTER_CONFIG, ADAPTER_WEIGHTS, is_adapter
from safegraft.checkpoint.files import explained
from safegraft.checkpoint.hub_cache import DEFAULT_REVISION, hub_name, snapshot
from safegraft.checkpoint.licence import CARD_FILE
from safegraft.checkpoint.sidecars import collect_sidecars
from safegraft.checkpoint.strict_json import as_object, parse_object
from safegraft.checkpoint.weights import INDEX_FILE, MAX_INDEX_BYTES, SINGLE_FILE
from safegraft.errors import CheckpointError, Problem
from safegraft.remote.access import HubAccess
from safegraft.remote.cached import cache_hub, cached_snapshot
from safegraft.remote.errors import is_unreachable
from safegraft.remote.hub import HubStore, open_hub
from safegraft.remote.store import RemoteFile


@dataclass(frozen=True, slots=True)
class HubModel:
    """name: "org/name@commit". place: a snapshot's folder, or a store, which its taker closes. note: for the reader."""

    name: str
    place: Path | HubStore
    note: str | None = None

    def names(self) -> list[str]:
        """Of its files."""
        return os.listdir(self.place) if isinstance(self.place, Path) else list(self.place.listing.files)


def find_hub_model(name: str, revision: str | None, access: HubAccess, *, cache: bool = False) -> HubModel:
    """A model of the Hub, or an adapter.

    cache: bring it whole into the cache when it is not there. Raises CheckpointError when neither has it.
    """
    pinned = revision is not None and hub_name(f"{name}@{revision}") is not None
    if revision is not None and pinned:
        folder = _known_whole(name, revision)
        if folder is not None:
            return HubModel(f"{name}@{revision}", folder)
    try:
        store = open_hub(name, revision, access)
    except CheckpointError as error:
        if not pinned and not is_unreachable(error):
            raise
        return _without_hub(name, revision, error)
    try:
        found = _with_hub(store, revision or DEFAULT_REVISION, access, cache)
    except BaseException:
        store.close()
        raise
    if found.place is not store:
        store.close()
    return found


def _with_hub(store: HubStore, revision: str, access: HubAccess, cache: bool) -> HubModel:
    listing = store.listing

    def read(index: RemoteFile) -> bytes:
        cached = _cached_file(store.repository, store.commit, index)
        return store.read(index, 0, index.size) if cached is None else cached

    weights, others = _needed(listing.files, read)
    folder = cached_snapshot(store.repository, store.commit, [*weights, *others])
    if folder is not None:
        return HubModel(listing.name, folder)
    folder = cached_snapshot(store.repository, store.commit, weights) if weights else None
    if folder is not None and not cache and not os.access(folder, os.W_OK):
        note = f"{listing.name}: read from the Hub, because the cache has its weights only, and cannot be written"
        return HubModel(listing.name, store, note)
    # With the weights there, the few small files that others had no use for are not worth reading the weights again.
    if cache or folder is not None:
        folder = cache_hub(store.repository, store.commit, [*weights, *others], access, revision=revision)
        return HubModel(listing.name, folder)
    return HubModel(listing.name, store)


def _without_hub(name: str, revision: str | None, error: CheckpointError) -> HubModel:
    """From the cache alone, as it was at the last download."""
    reason = error.problems[0].message
    where = error.problems[0].where
    folder = snapshot(Path(constants.HF_HUB_CACHE), name, revision or DEFAULT_REVISION)
    if folder is None:
        raise CheckpointError(Problem(where, f"{reason}; the Hugging Face cache does not hold it either")) from error
    if not {SINGLE_FILE, INDEX_FILE, ADAPTER_WEIGHTS} & set(os.listdir(folder)):
        message = f"{reason}; the Hugging Face cache holds it without its weights"
        raise CheckpointError(Problem(where, message)) from error
    commit = folder.name
    used = "used what the cache has of it" if revision == commit else "used the commit of the last download"
    return HubModel(f"{name}@{commit}", folder, f"{name}@{commit}: could not ask the Hub ({reason}); {used}")


def _known_whole(name: str, commit: str) -> Path | None:
    """The snapshot's folder when it is known without the Hub that nothing is missing: `hf download` leaves a list."""
    folder = snapshot(Path(constants.HF_HUB_CACHE), name, commit)
    if folder is None:
        return None
    try:
        tree = get_cached_repo_tree(name, revision=commit, cache_dir=constants.HF_HUB_CACHE)
    except CachedRepoTreeNotFoundError:
        return None
    files = {one.path: RemoteFile(one.path, one.size, None, "") for one in tree}

    def read(index: RemoteFile) -> bytes:
        return _cached_file(name, commit, index) or b""

    weights, others = _needed(files, read)
    return cached_snapshot(name, commit, [*weights, *others]) if weights else None


def _needed(
    files: Mapping[str, RemoteFile], read: Callable[[RemoteFile], bytes]
) -> tuple[list[RemoteFile], list[RemoteFile]]:
    """Of a repository's files those that a checkpoint is read from: with weights, and others.

    read: the content of the index. One that says nothing sensible is for those to judge who open the checkpoint.
    """
    others = [*collect_sidecars(files), CARD_FILE]
    if is_adapter(files):
        weights, others = [ADAPTER_WEIGHTS], [ADAPTER_CONFIG]
    else:
        weights = [SINGLE_FILE, INDEX_FILE]
        index = files.get(INDEX_FILE)
        if index is not None and index.size <= MAX_INDEX_BYTES:
            weights += _shards(read(index))
    return [files[one] for one in weights if one in files], [files[one] for one in others if one in files]


def _shards(index: bytes) -> list[str]:
    try:
        weight_map = as_object(parse_object(index, INDEX_FILE).get("weight_map")) or {}
    except CheckpointError:
        return []
    return sorted({str(file) for file in weight_map.values()} - {SINGLE_FILE})


def _cached_file(name: str, commit: str, file: RemoteFile) -> bytes | None:
    folder = cached_snapshot(name, commit, [file])
    with explained(f"{name}@{commit}/{file.name}"):
        return (folder / file.name).read_bytes() if folder is not None else None
