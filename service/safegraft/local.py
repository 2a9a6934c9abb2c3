"""Opens the models that a recipe names on this machine."""

from pathlib import Path

from safegraft.checkpoint.folder import FolderCheckpoint
from safegraft.checkpoint.types import Checkpoint
from safegraft.errors import CheckpointError, Problem


def open_model(reference: str) -> Checkpoint:
    """Open a folder; relative paths start at the current directory, as in mergekit.

    Raises CheckpointError when there is no such folder or it is not a sound checkpoint.
    """
    path = Path(reference).expanduser()
    if not path.exists():
        hint = "check the path; relative paths start at the current directory"
        if reference.count("/") == 1 and not reference.startswith((".", "~")):
            hint += (
                f". If it is a model on the Hugging Face Hub, fetch it first: hf download {reference} --local-dir DIR"
            )
        raise CheckpointError(Problem(reference, f"no such folder; {hint}"))
    return FolderCheckpoint(path, reference)
