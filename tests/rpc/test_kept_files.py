"""A file can be read at every stage, and while it moves from one to the next."""

import hashlib
import json
import os
import threading
from pathlib import Path

import pytest

from safegraft.engine.staging import StagedFolder, partial_path
from safegraft.rpc import kept_files

CONTENT = os.urandom(100_000)


def read(out: Path, start: int, stop: int) -> bytes:
    chunks = kept_files.read(out, "a", start, stop, 7000)
    assert all(0 < len(chunk) <= 7000 for chunk in chunks)
    return b"".join(chunks)


def test_a_file_is_found_at_every_stage(tmp_path: Path):
    out = tmp_path / "files"
    assert kept_files.available(out, "a", len(CONTENT)) == 0
    assert read(out, 0, 10) == b""
    assert kept_files.finished(out) == {}
    with StagedFolder(out, "d") as folder:
        with folder.file("a", len(CONTENT)) as target:
            target.append(CONTENT[:1000])
            assert kept_files.available(out, "a", len(CONTENT)) == 1000
            assert read(out, 900, 2000) == CONTENT[900:1000]
            assert read(out, 1000, 2000) == b""
            target.append(CONTENT[1000:])
            target.finish()
        assert read(out, 0, len(CONTENT)) == CONTENT
        assert kept_files.finished(out) == {"a": hashlib.sha256(CONTENT).hexdigest()}
        folder.commit()
    assert kept_files.available(out, "a", len(CONTENT)) == len(CONTENT)
    assert read(out, 99_000, 100_000) == CONTENT[99_000:]
    assert kept_files.finished(out) == {}


@pytest.mark.parametrize("attempt", range(5))
def test_bytes_that_were_there_never_vanish(tmp_path: Path, attempt: int):
    """Renames race with readers; a byte that could be read once can be read ever after."""
    out = tmp_path / "files"
    over = threading.Event()
    lost: list[str] = []

    def watch() -> None:
        seen = 0
        while not over.is_set():
            data = read(out, 0, len(CONTENT))
            if len(data) < seen or data != CONTENT[: len(data)]:
                lost.append(f"{seen} bytes were there, then {len(data)}")
            seen = max(seen, len(data))

    reader = threading.Thread(target=watch)
    reader.start()
    with StagedFolder(out, "d") as folder:
        with folder.file("a", len(CONTENT)) as target:
            for start in range(0, len(CONTENT), 10_000):
                target.append(CONTENT[start : start + 10_000])
            target.finish()
        folder.write("b", b"x")
        folder.commit()
    over.set()
    reader.join()
    assert not lost


def test_the_journal_is_read_as_staging_writes_it(tmp_path: Path):
    out = tmp_path / "files"
    with StagedFolder(out, "d") as folder:
        folder.write("a", b"x")
        journal = json.loads((partial_path(out) / ".journal.json").read_bytes())
        assert {name: entry["sha256"] for name, entry in journal["files"].items()} == kept_files.finished(out)
