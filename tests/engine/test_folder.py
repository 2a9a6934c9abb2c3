"""A merge written to a folder: complete or absent, resumable, verified."""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections import namedtuple
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

import safegraft
from safegraft.engine.folder import Progress
from safegraft.engine.staging import partial_path
from safegraft.errors import InputChangedError, MergeCancelledError, OutputError
from safegraft.testing import tiny_llm


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_the_folder_holds_weights_sidecars_card_and_manifest(models: Any, tmp_path: Path) -> None:
    result = safegraft.merge(models.linear(), out=tmp_path / "out")
    assert set(files_of(result.out)) == {
        "README.md",
        "config.json",
        "model.safetensors",
        "safegraft.json",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    for name in ("config.json", "tokenizer.json"):
        assert (result.out / name).read_bytes() == (models.lvlm / name).read_bytes()


def test_the_manifest_tells_the_digest_of_every_other_file(models: Any, tmp_path: Path) -> None:
    result = safegraft.merge(models.linear(), out=tmp_path / "out", max_shard_size=3000)
    manifest = json.loads((result.out / "safegraft.json").read_text())
    contents = files_of(result.out)
    assert set(manifest["files"]) == set(contents) - {"safegraft.json"}
    for name, entry in manifest["files"].items():
        assert entry == {"size": len(contents[name]), "sha256": sha256(contents[name]).hexdigest()}
    assert manifest["plan_digest"] == result.digest
    assert {entry["name"] for entry in manifest["inputs"]} == {"aligned-llm", "adapted-lvlm"}
    text = b"".join(content for name, content in contents.items() if not name.endswith(".safetensors")).decode()
    assert str(tmp_path) not in text
    assert str(models.llm.parent) not in text


def test_the_index_is_complete(models: Any, tmp_path: Path) -> None:
    result = safegraft.merge(models.linear(), out=tmp_path / "out", max_shard_size=3000)
    index = json.loads((result.out / "model.safetensors.index.json").read_text())
    stored = {name: file.name for file in result.out.glob("*.safetensors") for name in load_file(file)}
    assert index["weight_map"] == stored
    assert index["metadata"]["total_size"] == sum(
        tensor.numel() * tensor.element_size()
        for file in result.out.glob("*.safetensors")
        for tensor in load_file(file).values()
    )


@pytest.mark.parametrize("recipe", ["linear", "slerp", "task_arithmetic"])
def test_same_bytes_for_any_threads(models: Any, tmp_path: Path, recipe: str) -> None:
    asked = getattr(models, recipe)()
    one = safegraft.merge(asked, out=tmp_path / "one", threads=1)
    three = safegraft.merge(asked, out=tmp_path / "three", threads=3)
    assert files_of(one.out) == files_of(three.out)


def test_progress_ends_at_everything(models: Any, tmp_path: Path) -> None:
    seen: list[Progress] = []
    result = safegraft.merge(models.linear(), out=tmp_path / "out", max_shard_size=3000, progress=seen.append)
    assert [one.bytes_done for one in seen] == sorted(one.bytes_done for one in seen)
    last = seen[-1]
    assert last.bytes_done == last.bytes_total == sum(path.stat().st_size for path in result.out.iterdir())
    assert last.tensors_done == last.tensors_total
    assert result.bytes_written == last.bytes_total


@pytest.mark.parametrize("stop_after", [1, 4, 9])
def test_a_cancelled_merge_leaves_nothing_and_continues(models: Any, tmp_path: Path, stop_after: int) -> None:
    calls = 0

    def cancelled() -> bool:
        nonlocal calls
        calls += 1
        return calls > stop_after

    with pytest.raises(MergeCancelledError):
        safegraft.merge(models.linear(), out=tmp_path / "out", max_shard_size=2000, cancelled=cancelled)
    assert not (tmp_path / "out").exists()
    again = safegraft.merge(models.linear(), out=tmp_path / "out", max_shard_size=2000)
    straight = safegraft.merge(models.linear(), out=tmp_path / "straight", max_shard_size=2000)
    assert files_of(again.out) == files_of(straight.out)
    assert again.resumed
    assert not partial_path(tmp_path / "out").exists()


def test_a_killed_merge_continues_from_its_finished_shards(models: Any, tmp_path: Path) -> None:
    code = (
        "import os, safegraft\n"
        "def die(p):\n"
        "    if p.file.startswith('model-00003'): os.kill(os.getpid(), 9)\n"
        f"safegraft.merge({models.linear()!r}, out={str(tmp_path / 'out')!r}, max_shard_size=2000, progress=die)\n"
    )
    killed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert killed.returncode == -signal.SIGKILL
    assert not (tmp_path / "out").exists()
    kept = partial_path(tmp_path / "out") / "model-00001-of-00006.safetensors"
    inode = next(partial_path(tmp_path / "out").glob("model-00001*.safetensors")).stat().st_ino
    result = safegraft.merge(models.linear(), out=tmp_path / "out", max_shard_size=2000)
    assert result.resumed
    assert next(result.out.glob("model-00001*.safetensors")).stat().st_ino == inode
    assert not kept.exists()
    assert files_of(result.out) == files_of(
        safegraft.merge(models.linear(), out=tmp_path / "straight", max_shard_size=2000).out
    )


def test_running_twice_does_the_work_once(models: Any, tmp_path: Path) -> None:
    first = safegraft.merge(models.linear(), out=tmp_path / "out")
    second = safegraft.merge(models.linear(), out=tmp_path / "out")
    assert second.bytes_written == 0
    assert second.files.keys() == first.files.keys()


def test_another_recipe_does_not_overwrite(models: Any, tmp_path: Path) -> None:
    safegraft.merge(models.linear(0.25), out=tmp_path / "out")
    before = files_of(tmp_path / "out")
    with pytest.raises(OutputError, match="not empty"):
        safegraft.merge(models.linear(0.5), out=tmp_path / "out")
    assert files_of(tmp_path / "out") == before


def test_an_input_that_changes_under_way_spoils_the_merge(models: Any, tmp_path: Path) -> None:
    llm = shutil.copytree(models.llm, tmp_path / "aligned-llm")
    recipe = models.linear()
    recipe["models"][0]["model"] = str(llm)

    def touch(progress: Progress) -> None:
        if progress.file == "README.md":
            tiny_llm(llm, seed=77)

    with pytest.raises(InputChangedError, match="aligned-llm"):
        safegraft.merge(recipe, out=tmp_path / "out", progress=touch)
    assert not (tmp_path / "out").exists()
    assert not partial_path(tmp_path / "out").exists()


def test_too_little_space_is_told_before_a_byte_is_written(
    models: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr("safegraft.engine.folder.shutil.disk_usage", lambda _: usage(1, 1, 1000))
    with pytest.raises(OutputError, match=r"more bytes and the disk has 1,000 free; free some space"):
        safegraft.merge(models.linear(), out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_files_are_readable_by_others_whatever_the_umask(models: Any, tmp_path: Path) -> None:
    before = os.umask(0o077)
    try:
        result = safegraft.merge(models.linear(), out=tmp_path / "out")
    finally:
        os.umask(before)
    assert {oct(path.stat().st_mode & 0o777) for path in result.out.iterdir()} == {"0o644"}


def test_an_edit_that_a_sample_misses_is_noticed_by_its_time(
    models: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("safegraft.checkpoint.folder.HASHED_BYTES", -1)
    llm = shutil.copytree(models.llm, tmp_path / "aligned-llm")
    recipe = models.linear()
    recipe["models"][0]["model"] = str(llm)
    safegraft.merge(recipe, out=tmp_path / "out")
    assert safegraft.merge(recipe, out=tmp_path / "out").bytes_written == 0
    later = (tmp_path / "out" / "safegraft.json").stat().st_mtime_ns + 1
    os.utime(llm / "model.safetensors", ns=(later, later))
    with pytest.raises(OutputError, match="an input was modified since"):
        safegraft.merge(recipe, out=tmp_path / "out")
