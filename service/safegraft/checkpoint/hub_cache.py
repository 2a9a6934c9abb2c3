"""Finds a Hub model's revision in a Hugging Face cache: models--ORG--NAME/refs and snapshots. Downloads nothing."""

import re
from pathlib import Path

from safegraft.checkpoint.files import explained
from safegraft.errors import CheckpointError, Problem

DEFAULT_REVISION = "main"
HUB_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*/[A-Za-z0-9][A-Za-z0-9._-]*")
_COMMIT = re.compile(r"[0-9a-f]{40}")
_REVISION = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/-]*")  # of git's names those that lead nowhere as a path
_MAX_REF_BYTES = 100
_MAX_NAME = 200  # characters; a file's name can have 255 bytes, and the cache adds some of its own


def snapshot(cache: Path, name: str, revision: str = DEFAULT_REVISION) -> Path | None:
    """The snapshot's folder, or None when this cache has no such revision.

    name: ORG/NAME. revision: a commit, or a branch or tag as it was when it was last downloaded.
    """
    if not HUB_NAME.fullmatch(name) or not _REVISION.fullmatch(revision) or ".." in revision:
        return None
    if max(len(name), len(revision)) > _MAX_NAME:
        return None
    repository = cache / f"models--{name.replace('/', '--')}"
    commit = revision if _COMMIT.fullmatch(revision) else _commit_of(repository / "refs" / revision, name, revision)
    folder = repository / "snapshots" / commit if commit else None
    return folder if folder is not None and folder.is_dir() else None


def hub_name(name: str) -> str | None:
    """The Hub's name of a model that goes by NAME@COMMIT, as one from the cache does; None of any other."""
    path, _, commit = name.rpartition("@")
    return path if HUB_NAME.fullmatch(path) and _COMMIT.fullmatch(commit) else None


def _commit_of(ref: Path, name: str, revision: str) -> str | None:
    if not ref.is_file():
        return None
    with explained(f"{name}@{revision}"), ref.open("rb") as file:
        content = file.read(_MAX_REF_BYTES).decode("ascii", "replace").strip()
    if not _COMMIT.fullmatch(content):
        message = "stands in the Hub cache with something that is no commit: download it again"
        raise CheckpointError(Problem(f"{name}@{revision}", message))
    return content
