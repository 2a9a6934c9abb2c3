"""Opens the models and finds the data that a recipe names on this machine."""

import re
from pathlib import Path

from safegraft.checkpoint.folder import FolderCheckpoint
from safegraft.checkpoint.types import Checkpoint
from safegraft.errors import CheckpointError, InputError, Problem

# Where huggingface_hub keeps a downloaded model: the path names it and its commit.
HUB_CACHE = re.compile(r"/models--([^/]+?)--([^/]+)/snapshots/([0-9a-f]{40})/?$")


def open_model(reference: str) -> Checkpoint:
    """Open a folder; relative paths start at the current directory, as in mergekit.

    A model in the Hugging Face cache goes by its Hub name and commit.

    Raises CheckpointError when there is no such folder or it is not a sound checkpoint.
    """
    try:
        path = Path(reference).expanduser()
        exists = path.exists()
    except (RuntimeError, OSError, ValueError) as error:  # no such user's home, a name too long, no permission
        raise CheckpointError(Problem(reference, f"cannot be looked up: {error}")) from error
    if not exists:
        hint = "check the path; relative paths start at the current directory"
        if reference.count("/") == 1 and not reference.startswith((".", "~")):
            hint += (
                f". If it is a model on the Hugging Face Hub, fetch it first: hf download {reference} --local-dir DIR"
            )
        raise CheckpointError(Problem(reference, f"no such folder; {hint}"))
    cached = HUB_CACHE.search(str(path.absolute()))
    return FolderCheckpoint(path, "{}/{}@{}".format(*cached.groups()) if cached else reference)


def find_data(reference: str) -> Path:
    """The file of a calibration set; relative paths start at the current directory.

    Raises InputError when there is none. Data sets on the Hub are looked up in the local Hugging Face cache.
    """
    path = Path(reference).expanduser()
    if path.is_file():
        return path
    if reference.count("/") == 1 and not reference.startswith((".", "~", "/")):
        return _cached_data(reference)
    raise InputError(Problem(reference, "no such file; relative paths start at the current directory"))


def _cached_data(name: str) -> Path:
    """The one JSONL or parquet file of a Hub data set in the cache."""
    from huggingface_hub.constants import HF_HUB_CACHE

    folder = Path(HF_HUB_CACHE) / f"datasets--{name.replace('/', '--')}"
    main = folder / "refs" / "main"
    hint = f"fetch it first: hf download {name} --repo-type dataset"
    if not main.is_file():
        raise InputError(Problem(name, f"no such file, and no data set of this name in the Hugging Face cache; {hint}"))
    snapshot = folder / "snapshots" / main.read_text().strip()
    files = sorted(file for kind in ("*.jsonl", "*.parquet") for file in snapshot.rglob(kind))
    if len(files) != 1:
        names = ", ".join(str(file.relative_to(snapshot)) for file in files[:10]) or "none"
        raise InputError(
            Problem(
                name,
                f"the cached data set has to hold one JSONL or parquet file; it has: {names}. "
                f"Give the path of one, within {snapshot.name} of the cache",
            )
        )
    return files[0]
