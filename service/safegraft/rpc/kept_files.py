"""The files of a merge on disk, at every stage: growing, finished, and in place.

A file is first FILE.part in the partial folder, growing in order; then FILE there; then FILE in the result's folder.
Looking in this order finds it whenever it exists, however it moves meanwhile. Blocking code. Knows no gRPC
and no database.
"""

import json
import os
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safegraft.engine.staging import JOURNAL, partial_path


def available(out: Path, name: str, size: int) -> int:
    """How many bytes of a file can be read now; `size` is what it will have."""
    with _opened(out, name) as stages:
        return max((min(os.fstat(fd).st_size, size) for fd in stages), default=0)


def read(out: Path, name: str, start: int, stop: int, chunk: int) -> list[bytes]:
    """What there is of bytes [start, stop) now, in chunks of at most `chunk` bytes; [] when there is nothing yet."""
    with _opened(out, name) as stages:
        for fd in stages:
            chunks: list[bytes] = []
            while start < stop and (data := os.pread(fd, min(chunk, stop - start), start)):
                chunks.append(data)
                start += len(data)
            if chunks:
                return chunks
    return []


def finished(out: Path) -> dict[str, str]:
    """sha256 by name of the files that are finished while the merge is still running."""
    try:
        journal: dict[str, Any] = json.loads((partial_path(out) / JOURNAL).read_bytes())
    except FileNotFoundError:  # not begun, or complete
        return {}
    return {name: entry["sha256"] for name, entry in journal["files"].items()}


@contextmanager
def _opened(out: Path, name: str) -> Generator[Iterator[int]]:
    """File descriptors of the stages that exist, in the order in which a file goes through them."""
    partial = partial_path(out)
    fds: list[int] = []

    def stages() -> Iterator[int]:
        for path in (partial / f"{name}.part", partial / name, out / name):
            try:
                fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            except FileNotFoundError:
                continue
            fds.append(fd)
            yield fd

    try:
        yield stages()
    finally:
        for fd in fds:
            os.close(fd)
