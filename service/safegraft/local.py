"""Opens the models and finds the data that a recipe names here: folders, models of the Hugging Face Hub, and URLs.

A folder comes first. "org/name[@revision]" that is none is a model of the Hub: it is read from the Hugging Face cache
when that holds all of the commit, else from the Hub by byte ranges, unless it is to be brought into the cache whole
(`cache=True`, or SAFEGRAFT_HUB_CACHE=1 in the environment). Where every model is a folder, no network is touched.
"""

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from safegraft.checkpoint.adapter import Adapter, AdapterFolder, is_adapter
from safegraft.checkpoint.folder import FolderCheckpoint
from safegraft.checkpoint.hub_cache import HUB_NAME
from safegraft.checkpoint.lora import add_adapter
from safegraft.checkpoint.types import Checkpoint
from safegraft.errors import CheckpointError, InputError, Problem, SafegraftError
from safegraft.recipe.reference import Reference, Source, is_url, parse_reference

if TYPE_CHECKING:
    from safegraft.remote.hub_model import HubModel
    from safegraft.remote.store import Store

# Where huggingface_hub keeps a downloaded model: the path names it and its commit.
HUB_CACHE = re.compile(r"/models--([^/]+?)--([^/]+)/snapshots/([0-9a-f]{40})/?$")
CACHE_VARIABLE = "SAFEGRAFT_HUB_CACHE"

Opened = TypeVar("Opened", bound=Checkpoint)


def open_model(reference: str, *, cache: bool | None = None) -> Checkpoint:
    """Open a model, with its adapter where the reference names one; relative paths start at the current directory.

    A model of the Hub goes by its name and commit. cache: bring one that the Hugging Face cache does not hold into it,
    whole, before it is opened; None: as SAFEGRAFT_HUB_CACHE says.

    Raises CheckpointError when there is no such folder or model or it is not a sound checkpoint; UsageError when a
    package for a URL is missing.
    """
    parsed = _parse(reference)
    model = _open(parsed.model, FolderCheckpoint, _remote_model, cache)
    if parsed.lora is None:
        return model
    lora, notes, remarks = parsed.lora, list(model.notes), list(model.remarks)

    def adapter() -> Adapter:
        opened = _open(lora, AdapterFolder, _remote_adapter, cache)
        notes.extend(opened.notes)
        remarks.extend(opened.remarks)
        return opened

    combined = add_adapter(model, adapter, reference)
    combined.notes, combined.remarks = (*notes, *combined.notes), tuple(remarks)
    return combined


def open_adapter(reference: str, *, cache: bool | None = None) -> Adapter:
    """Open an adapter on its own; see `open_model`. Raises CheckpointError when it is none, or not sound."""
    parsed = _parse(reference)
    if parsed.lora is not None:
        raise CheckpointError(Problem(reference, "is a model with an adapter; an adapter alone is needed here"))
    return _open(parsed.model, AdapterFolder, _remote_adapter, cache)


def is_adapter_here(reference: str) -> bool:
    """Whether a reference names an adapter and no model. Asks the Hub where that is the only way to tell."""
    try:
        parsed = parse_reference(reference, exists)
        return parsed.lora is None and is_adapter(_names(parsed.model))
    except (ValueError, SafegraftError, OSError):  # whoever opens it says what is wrong
        return False


def exists(path: str) -> bool:
    """Whether there is anything of this name here."""
    return os.path.exists(os.path.expanduser(path))


def _parse(reference: str) -> Reference:
    try:
        return parse_reference(reference, exists)
    except ValueError as error:
        raise CheckpointError(Problem(reference, f"cannot be opened: {error}")) from error


def _open(
    source: Source,
    in_folder: Callable[[Path, str], Opened],
    in_store: "Callable[[Store], Opened]",
    cache: bool | None,
) -> Opened:
    if is_url(source.path):
        return in_store(_store_at(source))
    if exists(source.path):
        path = _folder(source)
        cached = HUB_CACHE.search(os.path.abspath(path))
        return in_folder(path, "{}/{}@{}".format(*cached.groups()) if cached else source.path)
    found = _hub_model(source, cache)
    opened = in_folder(found.place, found.name) if isinstance(found.place, Path) else in_store(found.place)
    if found.note is not None:
        opened.remarks = (found.note,)
    return opened


def _remote_model(store: "Store") -> Checkpoint:
    from safegraft.remote.checkpoint import RemoteCheckpoint

    return RemoteCheckpoint(store)


def _remote_adapter(store: "Store") -> Adapter:
    from safegraft.remote.adapter import RemoteAdapter

    return RemoteAdapter(store)


def _store_at(source: Source) -> "Store":
    from safegraft.remote.urls import open_url

    return open_url(source.path)


def _folder(source: Source) -> Path:
    if source.revision is not None:
        message = f"is a folder here, and a folder has no revisions; leave @{source.revision} away"
        raise CheckpointError(Problem(source.path, message))
    return Path(os.path.expanduser(source.path))


def _hub_model(source: Source, cache: bool | None) -> "HubModel":
    if HUB_NAME.fullmatch(source.path) is None:
        what = "no such folder" if source.revision is None else "no such folder, and no Hub name"
        hint = "check the path; relative paths start at the current directory"
        raise CheckpointError(Problem(str(source), f"{what}; {hint}"))

    from safegraft.remote.access import HubAccess
    from safegraft.remote.errors import is_missing, is_unreachable
    from safegraft.remote.hub_model import find_hub_model

    wanted = os.environ.get(CACHE_VARIABLE, "").lower() in ("1", "true", "yes", "on") if cache is None else cache
    try:
        return find_hub_model(source.path, source.revision, HubAccess(), cache=wanted)
    except CheckpointError as error:
        if not is_missing(error) and not is_unreachable(error):
            raise
        # Perhaps a folder was meant.
        (problem,) = error.problems
        raise CheckpointError(Problem(problem.where, f"no such folder here, and {problem.message}")) from error


def _names(source: Source) -> list[str]:
    """Of the files that a source has."""
    if is_url(source.path):
        store = _store_at(source)
        store.close()
        return list(store.listing.files)
    if exists(source.path):
        path = _folder(source)
        return os.listdir(path) if path.is_dir() else []
    found = _hub_model(source, cache=False)
    if not isinstance(found.place, Path):
        found.place.close()
    return found.names()


def find_data(reference: str) -> Path:
    """The file of a calibration set; relative paths start at the current directory.

    Raises InputError when there is none. Data sets on the Hub are looked up in the local Hugging Face cache.
    """
    path = Path(reference).expanduser()
    if path.is_file():
        return path
    if path.exists():
        raise InputError(Problem(reference, f"{reference} is no file: give a JSONL or parquet file"))
    if HUB_NAME.fullmatch(reference) is not None:
        return _cached_data(reference)
    message = f"there is no file {reference}; relative paths start at the current directory"
    raise InputError(Problem(reference, message))


def _cached_data(name: str) -> Path:
    """The one JSONL or parquet file of a Hub data set in the cache."""
    from huggingface_hub import constants

    folder = Path(constants.HF_HUB_CACHE) / f"datasets--{name.replace('/', '--')}"
    main = folder / "refs" / "main"
    if not main.is_file():
        message = f"there is no file {name}, and no data set of this name in the Hugging Face cache"
        raise InputError(Problem(name, f"{message}; fetch it first: hf download {name} --repo-type dataset"))
    snapshot = folder / "snapshots" / main.read_text().strip()
    files = sorted(file for kind in ("*.jsonl", "*.parquet") for file in snapshot.rglob(kind))
    if len(files) != 1:
        names = ", ".join(str(file.relative_to(snapshot)) for file in files[:10]) or "none"
        message = f"has to hold one JSONL or parquet file in the Hugging Face cache, and holds {names}"
        raise InputError(Problem(name, f"{message}; give the path of one"))
    return files[0]
