"""The folder where shards lie between being computed and being uploaded: one process's own, and empty again at the end.

A process that was killed leaves it behind; the next one with the same key finds it and empties it.
"""

import fcntl
import os
import shutil
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from safegraft.errors import OutputError, output_errors

RESERVE = 16 << 20  # bytes that stay free on the disk


@contextmanager
def scratch_folder(parent: Path, key: str) -> Generator[Path]:
    """A folder below `parent` for the time of the block. Raises OutputError, also when another process has it."""
    path = parent / f"safegraft-push-{key}"
    with output_errors(path):
        lock = _locked(path)
    try:
        with output_errors(path):
            _empty(path)
        yield path
    finally:
        try:
            with output_errors(path):
                _empty(path)
                path.rmdir()
        finally:
            os.close(lock)


def require_space(folder: Path, needed: int) -> None:
    """Raise OutputError unless `needed` bytes fit."""
    free = shutil.disk_usage(folder).free
    if needed and needed + RESERVE > free:
        raise OutputError(
            f"{folder.parent}: the shards on their way need {needed:,} bytes, and {free:,} are free; free some space, "
            "choose another folder with --scratch, or smaller shards with --max-shard-size"
        )


def _locked(path: Path) -> int:
    """Make the folder and lock it. It counts only if it still is the one of that name: whoever had it removes it."""
    while True:
        path.mkdir(parents=True, exist_ok=True, mode=0o700)
        try:
            lock = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | os.O_NOFOLLOW)
        except FileNotFoundError:
            continue
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.path.lexists(path) and os.path.samestat(os.fstat(lock), os.lstat(path)):
                return lock
        except BlockingIOError:
            os.close(lock)
            raise OutputError("the same is being published by another process: wait for it") from None
        except FileNotFoundError:
            pass  # removed between the two looks at it
        os.close(lock)


def _empty(path: Path) -> None:
    for entry in path.iterdir():
        shutil.rmtree(entry) if entry.is_dir() and not entry.is_symlink() else entry.unlink()
