"""Opens the models that a recipe names on this machine."""

import re
from pathlib import Path

from safegraft.checkpoint.folder import FolderCheckpoint
from safegraft.checkpoint.types import Checkpoint
from safegraft.errors import CheckpointError, Problem

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
