"""The folder that appears only when complete: interruption, resumption, what is in the way, a full disk."""

import contextlib
import errno
import json
import os
import stat
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from safegraft.engine.staging import JOURNAL, MANIFEST, StagedFolder, partial_path
from safegraft.errors import OutputError

DIGEST = "d" * 64
CONTENT = {"a.bin": b"alpha" * 100, "sub/b.bin": b"beta" * 50}


def fill(out: Path, names: list[str], digest: str = DIGEST) -> StagedFolder:
    with StagedFolder(out, digest) as folder:
        for name in names:
            folder.write(name, CONTENT[name])
        return folder


def finish(out: Path, digest: str = DIGEST) -> StagedFolder:
    with StagedFolder(out, digest) as folder:
        for name, content in CONTENT.items():
            if name not in folder.finished:
                folder.write(name, content)
        files = {name: {"size": entry.size, "sha256": entry.sha256} for name, entry in folder.finished.items()}
        folder.write(MANIFEST, json.dumps({"plan_digest": digest, "files": files}).encode())
        folder.commit()
        return folder


def test_folder_appears_whole_with_public_modes_and_nothing_else(tmp_path: Path) -> None:
    out = tmp_path / "deep" / "out"
    finish(out)
    assert {str(path.relative_to(out)) for path in out.rglob("*") if path.is_file()} == {*CONTENT, MANIFEST}
    assert stat.S_IMODE((out / "a.bin").stat().st_mode) == 0o644
    assert os.listdir(out.parent) == ["out"]


def test_nothing_is_at_out_before_commit(tmp_path: Path) -> None:
    fill(tmp_path / "out", ["a.bin"])
    assert not (tmp_path / "out").exists()
    assert partial_path(tmp_path / "out").is_dir()


def test_a_rerun_keeps_finished_files(tmp_path: Path) -> None:
    fill(tmp_path / "out", ["a.bin"])
    before = (partial_path(tmp_path / "out") / "a.bin").stat().st_ino
    folder = finish(tmp_path / "out")
    assert folder.resumed
    assert (tmp_path / "out" / "a.bin").stat().st_ino == before


def test_a_finished_file_that_was_damaged_is_made_anew(tmp_path: Path) -> None:
    fill(tmp_path / "out", ["a.bin"])
    (partial_path(tmp_path / "out") / "a.bin").write_bytes(b"short")
    finish(tmp_path / "out")
    assert (tmp_path / "out" / "a.bin").read_bytes() == CONTENT["a.bin"]


def test_leftovers_of_another_merge_are_discarded(tmp_path: Path) -> None:
    fill(tmp_path / "out", ["a.bin"], digest="other")
    with StagedFolder(tmp_path / "out", DIGEST) as folder:
        assert not folder.finished
        assert not folder.resumed
        assert not (folder.partial / "a.bin").exists()


def test_a_part_resumes_after_its_bytes_with_the_right_digest(tmp_path: Path) -> None:
    with StagedFolder(tmp_path / "out", DIGEST) as folder, folder.file("a.bin", 500, resume=True) as part:
        part.append(CONTENT["a.bin"][:123])
    with StagedFolder(tmp_path / "out", DIGEST) as folder, folder.file("a.bin", 500, resume=True) as part:
        assert part.offset == 123
        part.append(CONTENT["a.bin"][123:])
        assert part.finish().sha256 == sha256(CONTENT["a.bin"]).hexdigest()


def test_without_resume_a_part_starts_over(tmp_path: Path) -> None:
    for _ in range(2):
        with StagedFolder(tmp_path / "out", DIGEST) as folder, folder.file("a.bin", 500) as part:
            assert part.offset == 0
            part.append(b"x" * 10)


def test_a_part_longer_than_promised_starts_over(tmp_path: Path) -> None:
    with StagedFolder(tmp_path / "out", DIGEST) as folder:
        with folder.file("a.bin", 10, resume=True) as part:
            part.append(b"x" * 10)
        with folder.file("a.bin", 5, resume=True) as part:
            assert part.offset == 0


def test_missing_bytes_are_an_error(tmp_path: Path) -> None:
    with (
        StagedFolder(tmp_path / "out", DIGEST) as folder,
        folder.file("a.bin", 5) as part,
        pytest.raises(OutputError, match="0 bytes were written, 5 were promised"),
    ):
        part.finish()


def test_the_same_result_is_not_written_twice(tmp_path: Path) -> None:
    finish(tmp_path / "out")
    with StagedFolder(tmp_path / "out", DIGEST) as folder:
        assert folder.complete
        assert set(folder.finished) == {*CONTENT, MANIFEST}
    assert not partial_path(tmp_path / "out").exists()


def test_a_damaged_result_is_told(tmp_path: Path) -> None:
    finish(tmp_path / "out")
    (tmp_path / "out" / "a.bin").write_bytes(b"")
    with pytest.raises(OutputError, match=r"a\.bin is damaged"), StagedFolder(tmp_path / "out", DIGEST):
        pass


@pytest.mark.parametrize("in_the_way", ["file", "folder", "other merge", "dangling link", "link"])
def test_what_is_in_the_way_is_never_touched(tmp_path: Path, in_the_way: str) -> None:
    out = tmp_path / "out"
    if in_the_way == "file":
        out.write_text("mine")
    elif in_the_way == "folder":
        out.mkdir()
        (out / "mine.txt").write_text("mine")
    elif in_the_way == "other merge":
        finish(out, digest="other")
    elif in_the_way == "link":
        (tmp_path / "empty").mkdir()
        out.symlink_to(tmp_path / "empty")
    else:
        out.symlink_to(tmp_path / "nowhere")
    before = sorted(path.name for path in tmp_path.rglob("*"))
    with pytest.raises(OutputError, match="choose another output folder"), StagedFolder(out, DIGEST):
        pass
    assert sorted(path.name for path in tmp_path.rglob("*")) == before


def test_an_empty_folder_may_be_filled(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    finish(tmp_path / "out")
    assert (tmp_path / "out" / "a.bin").exists()


def test_two_writers_of_one_folder_exclude_each_other(tmp_path: Path) -> None:
    with (
        StagedFolder(tmp_path / "out", DIGEST),
        pytest.raises(OutputError, match="another process"),
        StagedFolder(tmp_path / "out", DIGEST),
    ):
        pass
    finish(tmp_path / "out")


def test_a_full_disk_says_so_and_keeps_what_is_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(tmp_path / "out", ["a.bin"])

    def full(fd: int, data: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with StagedFolder(tmp_path / "out", DIGEST) as folder:
        monkeypatch.setattr("safegraft.engine.staging.os.write", full)
        with pytest.raises(OutputError, match="disk is full; free some space and run the same command again"):
            folder.write("sub/b.bin", CONTENT["sub/b.bin"])
        monkeypatch.undo()
    assert not (tmp_path / "out").exists()
    assert finish(tmp_path / "out").resumed


def test_a_read_only_place_is_an_error_without_a_trace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Path, *args: object, **more: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(OutputError, match="Permission denied"), StagedFolder(tmp_path / "out", DIGEST):
        pass


def test_discard_leaves_nothing(tmp_path: Path) -> None:
    with StagedFolder(tmp_path / "out", DIGEST) as folder:
        folder.write("a.bin", CONTENT["a.bin"])
        folder.discard()
    assert list(tmp_path.iterdir()) == []


def test_a_broken_journal_starts_over(tmp_path: Path) -> None:
    fill(tmp_path / "out", ["a.bin"])
    (partial_path(tmp_path / "out") / JOURNAL).write_text("{half")
    with StagedFolder(tmp_path / "out", DIGEST) as folder:
        assert not folder.finished


def test_nothing_older_than_the_inputs_is_used(tmp_path: Path) -> None:
    fill(tmp_path / "out", ["a.bin"])
    written = (partial_path(tmp_path / "out") / "a.bin").stat().st_mtime_ns
    with StagedFolder(tmp_path / "out", DIGEST, newer_than=written) as folder:
        assert set(folder.finished) == {"a.bin"}
    with StagedFolder(tmp_path / "out", DIGEST, newer_than=written + 1) as folder:
        assert not folder.finished
    finish(tmp_path / "out")
    later = (tmp_path / "out" / MANIFEST).stat().st_mtime_ns + 1
    with (
        pytest.raises(OutputError, match="an input was modified since"),
        StagedFolder(tmp_path / "out", DIGEST, newer_than=later),
    ):
        pass


@pytest.mark.parametrize("link", [True, False])
def test_what_stands_where_the_parts_would_be_is_never_touched(tmp_path: Path, link: bool) -> None:
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "mine.txt").write_text("mine")
    partial = partial_path(tmp_path / "out")
    partial.symlink_to(precious) if link else precious.rename(partial)
    with pytest.raises(OutputError, match="is in the way"), StagedFolder(tmp_path / "out", DIGEST):
        pass
    assert (partial / "mine.txt").read_text() == "mine"


RIGHT = f'"digest": "{DIGEST}", "plan_digest": "{DIGEST}"'
NONSENSE = ["[" * 100_000, "{}", "[]", "7", "\0", "{" + RIGHT + "}"]
NONSENSE.append("{" + RIGHT + ', "files": {"a": {"size": 1}}}')


@pytest.mark.parametrize("text", NONSENSE)
def test_nonsense_in_journal_or_manifest_is_nobodys_record(tmp_path: Path, text: str) -> None:
    fill(tmp_path / "out", ["a.bin"])
    (partial_path(tmp_path / "out") / JOURNAL).write_text(text)
    with StagedFolder(tmp_path / "out", DIGEST) as folder:
        assert not folder.finished
    (tmp_path / "done").mkdir()
    (tmp_path / "done" / MANIFEST).write_text(text)
    with pytest.raises(OutputError, match="not empty"), StagedFolder(tmp_path / "done", DIGEST):
        pass


def test_a_pipe_for_a_journal_does_not_hang(tmp_path: Path) -> None:
    fill(tmp_path / "out", ["a.bin"])
    (partial_path(tmp_path / "out") / JOURNAL).unlink()
    os.mkfifo(partial_path(tmp_path / "out") / JOURNAL)
    with StagedFolder(tmp_path / "out", DIGEST) as folder:
        assert not folder.finished


def test_the_lock_holds_until_the_folder_has_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rename = os.rename

    def slow(source: object, target: object) -> None:
        if target == tmp_path / "out":
            with pytest.raises(OutputError, match="another process"), StagedFolder(tmp_path / "out", DIGEST):
                pass
        rename(source, target)  # type: ignore[arg-type]

    monkeypatch.setattr("safegraft.engine.staging.os.rename", slow)
    finish(tmp_path / "out")
    assert (tmp_path / "out" / "a.bin").read_bytes() == CONTENT["a.bin"]
    assert os.listdir(tmp_path) == ["out"]


class Killed(BaseException):
    """Stands for kill -9: nothing is cleaned up but the lock, which the system drops."""


@pytest.mark.parametrize("call", range(12))
def test_a_kill_at_any_step_of_commit_leaves_a_rerun_its_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: int
) -> None:
    """Every system call of the end may be the last one; the rerun finds a complete folder or finishes it."""
    calls = 0

    def counted(real: Any) -> Any:
        def wrapper(*args: Any, **more: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls > call:
                raise Killed
            return real(*args, **more)

        return wrapper

    with contextlib.suppress(Killed), StagedFolder(tmp_path / "out", DIGEST) as folder:
        for name, content in CONTENT.items():
            folder.write(name, content)
        files = {name: {"size": entry.size, "sha256": entry.sha256} for name, entry in folder.finished.items()}
        folder.write(MANIFEST, json.dumps({"plan_digest": DIGEST, "files": files}).encode())
        with monkeypatch.context() as patch:
            for name in ("rename", "fsync", "unlink", "rmdir"):
                patch.setattr(f"safegraft.engine.staging.os.{name}", counted(getattr(os, name)))
            folder.commit()
    with StagedFolder(tmp_path / "out", DIGEST) as again:
        complete = again.complete
    if not complete:
        finish(tmp_path / "out")
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"a.bin", "sub", MANIFEST}
    assert os.listdir(tmp_path) == ["out"]


@pytest.mark.parametrize("inside", [[], [f"{JOURNAL}.new"]])
def test_a_kill_before_the_first_journal_leaves_a_rerun_its_way(tmp_path: Path, inside: list[str]) -> None:
    partial = partial_path(tmp_path / "out")
    partial.mkdir()
    for name in inside:
        (partial / name).write_text("{half")
    finish(tmp_path / "out")


def test_a_file_whose_name_ends_like_a_part_stays(tmp_path: Path) -> None:
    with StagedFolder(tmp_path / "out", DIGEST) as folder:
        folder.write("LICENSE.part", b"terms")
        folder.commit()
    assert (tmp_path / "out" / "LICENSE.part").read_bytes() == b"terms"
