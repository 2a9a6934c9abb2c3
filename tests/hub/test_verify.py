"""A result's bytes against its manifest, and against its recipe: every way to be wrong is found, and nothing else."""

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from testhub import Hub, point_at

import safegraft
from safegraft.checkpoint.dtypes import DType
from safegraft.engine.layout import least_shard_size, weight_files
from safegraft.engine.task import TensorTask
from safegraft.errors import CheckpointError, MergeCancelledError
from safegraft.hub.manifest import read_manifest
from safegraft.hub.recompute import recompute
from safegraft.hub.verify import verify_folder, verify_repository
from safegraft.remote.access import HubAccess
from safegraft.testing import tiny_llm


@pytest.fixture(scope="module")
def once(tmp_path_factory: pytest.TempPathFactory, models) -> Path:
    """A merge in several files. Read only."""
    out = tmp_path_factory.mktemp("verify") / "merged"
    safegraft.merge(models.linear(), out=out, max_shard_size=4000)
    return out


@pytest.fixture
def merged(once: Path, tmp_path: Path) -> Path:
    """A copy of its own."""
    return Path(shutil.copytree(once, tmp_path / "merged"))


def flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def edit_manifest(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    document = json.loads((folder / "safegraft.json").read_text())
    change(document)
    (folder / "safegraft.json").write_text(json.dumps(document))


def test_a_merge_as_it_was_written(merged: Path) -> None:
    calls: list[tuple[int, int, str]] = []
    found = verify_folder(merged, progress=lambda *state: calls.append(state))
    assert found.ok
    assert {status for _, status in found.files} == {"same"}
    assert {name for name, _ in found.files} == {one.name for one in merged.iterdir()} - {"safegraft.json"}
    assert (
        calls[-1][0]
        == calls[-1][1]
        == sum(one.stat().st_size for one in merged.iterdir() if one.name != "safegraft.json")
    )
    assert json.loads(json.dumps(found.to_dict()))["ok"] is True


def test_one_bit_of_any_file_is_noticed(merged: Path) -> None:
    for file in sorted(merged.iterdir()):
        if file.name == "safegraft.json":
            continue
        flip(file)
        found = verify_folder(merged)
        odd = [one for one in found.files if one[1] != "same"]
        assert odd == [(file.name, "edited" if file.name == "README.md" else "differs")]
        assert found.ok is (file.name == "README.md"), "an edited card is no fault"
        flip(file)
    assert verify_folder(merged).ok


def test_files_that_lack_are_cut_or_were_added(merged: Path) -> None:
    (merged / "config.json").unlink()
    weights = merged / "model-00002-of-00002.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    for name in ("modeling_evil.py", "adapter_config.json", "model.safetensors", "sub/pytorch_model.bin"):
        (merged / name).parent.mkdir(exist_ok=True)
        (merged / name).touch()
    for name in (
        ".gitattributes",
        "trade-off.png",
        "evaluation.json",
        ".cache/huggingface/x",
        "LICENSE",
        "docs/more.md",
    ):
        (merged / name).parent.mkdir(exist_ok=True, parents=True)
        (merged / name).touch()
    found = verify_folder(merged)
    assert sorted(found.wrong()) == [
        ("adapter_config.json", "extra"),
        ("config.json", "missing"),
        ("model-00002-of-00002.safetensors", "differs"),
        ("model.safetensors", "extra"),
        ("modeling_evil.py", "extra"),
        ("sub/pytorch_model.bin", "extra"),
    ]
    assert ("trade-off.png", "extra") in found.files


def test_a_link_out_of_the_folder_is_not_followed(merged: Path, tmp_path: Path) -> None:
    shutil.move(merged / "config.json", tmp_path / "config.json")
    (merged / "config.json").symlink_to(tmp_path / "config.json")
    with pytest.raises(CheckpointError, match=r"merged/config\.json: is a symlink that leads out"):
        verify_folder(merged)


def test_it_stops_when_it_is_asked_to(merged: Path) -> None:
    with pytest.raises(MergeCancelledError):
        verify_folder(merged, cancelled=lambda: True)


@pytest.mark.parametrize(
    "change",
    [
        lambda document: document.pop("plan_digest"),
        lambda document: document.pop("recipe"),
        lambda document: document.update(files=[]),
        lambda document: document.update(plan_digest="x"),
        lambda document: document.update(max_shard_size=0),
        lambda document: document.update(max_shard_size="5GB"),
        lambda document: document["files"].update({"../x": {"size": 1, "sha256": "0" * 64}}),
        lambda document: document["files"].update({"/etc/passwd": {"size": 1, "sha256": "0" * 64}}),
        lambda document: document["files"].update({"a/./b": {"size": 1, "sha256": "0" * 64}}),
        lambda document: document["files"].update({"safegraft.json": {"size": 1, "sha256": "0" * 64}}),
        lambda document: document["files"].update({"a": {"size": -1, "sha256": "0" * 64}}),
        lambda document: document["files"].update({"a": {"size": True, "sha256": "0" * 64}}),
        lambda document: document["files"].update({"a": {"size": 1, "sha256": "0"}}),
        lambda document: document["files"].update({"a": {"size": 1}}),
    ],
)
def test_a_manifest_that_is_none_is_told(merged: Path, change: Callable[[dict[str, Any]], object]) -> None:
    edit_manifest(merged, change)
    with pytest.raises(CheckpointError, match=r"merged/safegraft\.json: is no manifest of a merge"):
        verify_folder(merged)


def test_a_folder_without_a_manifest(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"holds no merge of safegraft: safegraft\.json is not there"):
        verify_folder(tmp_path)


@pytest.mark.parametrize("name", ["/etc", "../up", "a/../../b", "~/x", "s3:bucket", "https://x/y", "a+../b"])
def test_a_strangers_recipe_leads_nowhere(merged: Path, name: str) -> None:
    edit_manifest(merged, lambda document: document["recipe"]["models"][0].update(model=name))
    manifest = read_manifest((merged / "safegraft.json").read_bytes(), "safegraft.json")
    with pytest.raises(CheckpointError, match=r"its recipe names .*, which is not opened on its word"):
        manifest.plannable("safegraft.json")


# -- the recipe ---------------------------------------------------------------------------------


def again(folder: Path, recipe: dict[str, Any], size: int | None = None):
    found = verify_folder(folder)
    planned = safegraft.plan(recipe, max_shard_size=size or found.manifest.max_shard_size or 5 * 10**9)
    try:
        return recompute(found, planned).recomputed
    finally:
        planned.close()


def test_the_recipe_gives_the_very_bytes(merged: Path, models) -> None:
    found = again(merged, models.linear())
    assert found.ok
    assert found.same_plan
    assert len(found.files) == len(list(merged.iterdir())) - 2, "all but the card and the manifest"


def test_another_recipe_does_not(merged: Path, models) -> None:
    found = again(merged, models.linear(0.26))
    assert not found.ok
    assert not found.same_plan
    differing = {name for name, status in found.files if status == "differs"}
    assert differing
    assert all(name.startswith("model-0") for name in differing)


def test_changed_inputs_and_versions_are_named(merged: Path, models) -> None:
    edit_manifest(merged, lambda document: document["versions"].update({"torch": "1.0", "gone": "2"}))
    edit_manifest(merged, lambda document: document["inputs"][1].update(digest="0" * 64))
    edit_manifest(merged, lambda document: document.update(plan_digest="0" * 64))
    found = again(merged, models.linear())
    assert found.ok, "the bytes are the same all the same"
    assert not found.same_plan
    assert set(found.versions) == {"torch", "gone"}
    assert found.versions["gone"] == ("2", None)
    assert found.inputs == ("aligned-llm",)


def test_the_layout_is_recorded_as_what_matters_of_it(once: Path, models) -> None:
    recorded = json.loads((once / "safegraft.json").read_text())["max_shard_size"]
    for size in (recorded, 4000):
        with safegraft.open(models.linear(), max_shard_size=size) as merged:
            assert merged.files["safegraft.json"].read() == (once / "safegraft.json").read_bytes()
            assert least_shard_size(merged.plan.files) == recorded
    with safegraft.open(models.linear(), max_shard_size=recorded - 1) as merged:
        assert merged.plan.digest != json.loads((once / "safegraft.json").read_text())["plan_digest"]


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.lists(st.integers(1, 9), min_size=1, max_size=12), st.integers(1, 60))
def test_the_recorded_size_gives_the_same_files_whatever_was_asked_for(sizes: list[int], asked: int) -> None:
    tasks = [TensorTask(f"t{place}", DType.U8, (size,), "copy", ()) for place, size in enumerate(sizes)]
    files = weight_files(tasks, asked)
    least = least_shard_size(files)
    assert weight_files(tasks, least) == files
    assert least == 1 or weight_files(tasks, least - 1) != files


def test_an_old_manifest_without_a_layout(merged: Path, models, tmp_path: Path) -> None:
    edit_manifest(merged, lambda document: document.pop("max_shard_size"))
    found = again(merged, models.linear())
    assert found.guessed_layout
    assert not found.ok
    assert ("model.safetensors", "missing") in found.files
    assert ("model-00001-of-00002.safetensors", "extra") in found.files
    safegraft.merge(models.linear(), out=tmp_path / "usual")
    edit_manifest(tmp_path / "usual", lambda document: document.pop("max_shard_size"))
    assert again(tmp_path / "usual", models.linear()).ok


def test_a_result_is_right_only_if_both_are(merged: Path, models) -> None:
    found = verify_folder(merged)
    assert replace(found, recomputed=again(merged, models.linear())).ok
    flip(merged / "config.json")
    assert not replace(verify_folder(merged), recomputed=again(merged, models.linear())).ok


# -- repositories -------------------------------------------------------------------------------


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with Hub.start() as started:
        point_at(started, monkeypatch, tmp_path / "cache")
        yield started


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A merge whose weights are larger than what is read anyway. Read only."""
    root = tmp_path_factory.mktemp("large")
    models = [tiny_llm(root / name, vocab=40, hidden=128, layers=4, seed=seed) for seed, name in enumerate("ab")]
    recipe = {"models": [{"model": str(one)} for one in models], "merge_method": "linear", "parameters": {"weight": 1}}
    safegraft.merge(recipe, out=root / "merged")
    assert (root / "merged" / "model.safetensors").stat().st_size > 2 << 20
    return root / "merged"


def test_a_repository_is_checked_by_the_hubs_own_digests(hub: Hub, large: Path) -> None:
    commit = hub.add_model("org/merge", large)
    found = verify_repository("org/merge", None, HubAccess())
    assert found.ok
    assert found.name == f"org/merge@{commit}"
    assert found.believed == ("model.safetensors",)
    assert hub.bytes_sent("/cdn/") < 1 << 20, "no weights moved"


def test_download_reads_every_byte_and_keeps_none(hub: Hub, large: Path, tmp_path: Path) -> None:
    hub.add_model("org/merge", large)
    found = verify_repository("org/merge", "main", HubAccess(), download=True)
    assert found.ok
    assert not found.believed
    assert hub.bytes_sent("/cdn/") >= (large / "model.safetensors").stat().st_size
    assert not list(tmp_path.rglob("*.safetensors"))


def test_what_was_changed_on_the_hub_is_noticed(hub: Hub, large: Path, tmp_path: Path) -> None:
    changed = Path(shutil.copytree(large, tmp_path / "changed"))
    flip(changed / "model.safetensors")
    flip(changed / "tokenizer.json")
    flip(changed / "README.md")
    (changed / "modeling.py").touch()
    (changed / "config.json").unlink()
    hub.add_model("org/merge", changed)
    for download in (False, True):
        found = verify_repository("org/merge", None, HubAccess(), download=download)
        assert sorted(found.wrong()) == [
            ("config.json", "missing"),
            ("model.safetensors", "differs"),
            ("modeling.py", "extra"),
            ("tokenizer.json", "differs"),
        ]
        assert ("README.md", "edited") in found.files


def test_a_revision_is_checked_as_it_was(hub: Hub, large: Path, tmp_path: Path) -> None:
    first = hub.add_model("org/merge", large)
    changed = Path(shutil.copytree(large, tmp_path / "changed"))
    flip(changed / "model.safetensors")
    hub.add_model("org/merge", changed)
    assert verify_repository("org/merge", first, HubAccess()).ok
    assert not verify_repository("org/merge", None, HubAccess()).ok


def test_a_repository_that_holds_no_merge(hub: Hub, models) -> None:
    hub.add_model("org/plain", models.llm)
    with pytest.raises(CheckpointError, match=r"org/plain@[0-9a-f]{40}: holds no merge of safegraft"):
        verify_repository("org/plain", None, HubAccess())
    with pytest.raises(CheckpointError, match="org/none"):
        verify_repository("org/none", None, HubAccess())


def test_what_was_put_below_a_repository_is_seen(merged: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files that no checkpoint has, and so no listing of one."""
    evil = ("custom_generate/generate.py", "sub/model.safetensors", "modeling_license.py", "original/weights.00.pth")
    for name in (*evil, "notes.txt"):
        (merged / name).parent.mkdir(exist_ok=True)
        (merged / name).write_text("x")
    with Hub.start() as hub:
        point_at(hub, monkeypatch, tmp_path / "cache", token=hub.token)
        hub.add_model("team/merged", merged)
        found = verify_repository("team/merged", None, HubAccess(), download=True)
    assert sorted(found.wrong()) == sorted((name, "extra") for name in evil)
    assert found.wrong() == verify_folder(merged).wrong()


@pytest.mark.parametrize("data", ["/etc/passwd", "~/.bashrc", "../x.jsonl", "https://x/y.jsonl"])
def test_a_strangers_calibration_data_is_not_opened(merged: Path, data: str) -> None:
    edit_manifest(merged, lambda one: one["recipe"].update(calibration={"harmless": {"data": data, "text": "text"}}))
    manifest = read_manifest((merged / "safegraft.json").read_bytes(), "safegraft.json")
    with pytest.raises(CheckpointError, match="not opened on its word"):
        manifest.plannable("safegraft.json")


@pytest.mark.parametrize(
    "change",
    [
        lambda one: one["versions"].update(torch="2\nthis is what the recipe gives"),
        lambda one: one["inputs"][0].update(name="a\nb"),
        lambda one: one["files"].update({f"f{n}": {"size": 0, "sha256": "0" * 64} for n in range(100_001)}),
    ],
)
def test_a_strangers_words_fake_no_lines_and_go_on_for_ever(merged: Path, change: Any) -> None:
    edit_manifest(merged, change)
    with pytest.raises(CheckpointError, match="no manifest of a merge"):
        verify_folder(merged)
