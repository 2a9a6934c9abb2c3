"""Opens the models and finds the data that a recipe names here: files, and what the Hugging Face cache holds."""

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn, TypeVar

from safegraft.checkpoint.adapter import AdapterFolder, is_adapter
from safegraft.checkpoint.folder import FolderCheckpoint
from safegraft.checkpoint.hub_cache import DEFAULT_REVISION, HUB_NAME, snapshot
from safegraft.checkpoint.lora import add_adapter
from safegraft.checkpoint.types import Checkpoint
from safegraft.errors import CheckpointError, InputError, Problem
from safegraft.recipe.reference import Reference, Source, parse_reference

# Where huggingface_hub keeps a downloaded model: the path names it and its commit.
HUB_CACHE = re.compile(r"/models--([^/]+?)--([^/]+)/snapshots/([0-9a-f]{40})/?$")

Opened = TypeVar("Opened", bound=Checkpoint)


def open_model(reference: str) -> Checkpoint:
    """Open a model, with its adapter where the reference names one; relative paths start at the current directory.

    A model in the Hugging Face cache goes by its Hub name and commit.

    Raises CheckpointError when there is no such folder or it is not a sound checkpoint.
    """
    parsed = _parse(reference)
    model = _open(parsed.model, FolderCheckpoint)
    if parsed.lora is None:
        return model
    return add_adapter(model, lambda: _open(parsed.lora or parsed.model, AdapterFolder), reference)


def open_adapter(reference: str) -> AdapterFolder:
    """Open an adapter on its own. Raises CheckpointError when it is none, or not sound."""
    parsed = _parse(reference)
    if parsed.lora is not None:
        raise CheckpointError(Problem(reference, "is a model with an adapter; an adapter alone is needed here"))
    return _open(parsed.model, AdapterFolder)


def is_adapter_here(reference: str) -> bool:
    """Whether a reference names an adapter and no model."""
    try:
        parsed = parse_reference(reference, exists)
        path = _locate(parsed.model)
        return parsed.lora is None and path.is_dir() and is_adapter(os.listdir(path))
    except (ValueError, CheckpointError, OSError):  # whoever opens it says what is wrong
        return False


def exists(path: str) -> bool:
    """Whether there is anything of this name here."""
    return os.path.exists(os.path.expanduser(path))


def _parse(reference: str) -> Reference:
    try:
        return parse_reference(reference, exists)
    except ValueError as error:
        raise CheckpointError(Problem(reference, f"cannot be opened: {error}")) from error


def _open(source: Source, kind: Callable[[Path, str], Opened]) -> Opened:
    path = _locate(source)
    cached = HUB_CACHE.search(os.path.abspath(path))
    return kind(path, "{}/{}@{}".format(*cached.groups()) if cached else source.path)


def _locate(source: Source) -> Path:
    if not exists(source.path):
        return _cached(source) or _refuse(source)
    if source.revision is not None:
        message = f"is a folder here, and a folder has no revisions; leave @{source.revision} away"
        raise CheckpointError(Problem(source.path, message))
    return Path(os.path.expanduser(source.path))


def _cached(source: Source) -> Path | None:
    from huggingface_hub import constants  # it knows where the cache is, which the environment can change

    return snapshot(Path(constants.HF_HUB_CACHE), source.path, source.revision or DEFAULT_REVISION)


def _refuse(source: Source) -> NoReturn:
    on_hub = HUB_NAME.fullmatch(source.path) is not None
    hint = "check the path; relative paths start at the current directory"
    if source.revision is not None:
        message = "no such revision is in the Hugging Face cache" if on_hub else "no such folder, and no Hub name"
        hint = f"fetch it first: hf download {source.path} --revision {source.revision}" if on_hub else hint
    else:
        message = "no such folder"
        if on_hub:
            hint += f". If it is a model on the Hugging Face Hub, fetch it first: hf download {source.path}"
    raise CheckpointError(Problem(str(source), f"{message}; {hint}"))


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
