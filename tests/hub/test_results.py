"""What can be published: the same files from a plan and from a folder, and never other bytes than were promised."""

import json
import shutil
import time
from collections.abc import Callable, Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard

import safegraft
from safegraft.checkpoint.folder import FolderCheckpoint
from safegraft.engine.execute import never
from safegraft.engine.staging import FileDigest
from safegraft.errors import CheckpointError, InputChangedError, MergeCancelledError, UsageError
from safegraft.hub.edition import PLOT, Edition
from safegraft.hub.evaluation import FULL, PLAN, SAMPLED
from safegraft.hub.journal import Journal, default_folder
from safegraft.hub.results import FolderResult, PlannedResult

SHARD = 1500


@pytest.fixture(scope="module")
def plan(models) -> Iterator[Any]:
    planned = safegraft.plan(models.linear(), max_shard_size=SHARD)
    yield planned
    planned.close()


@pytest.fixture(scope="module")
def kept(models, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("out") / "merged"
    safegraft.merge(models.linear(), out=out, max_shard_size=SHARD)
    return out


@pytest.fixture
def folder(kept: Path, tmp_path: Path) -> Path:
    """A copy that may be spoilt."""
    return shutil.copytree(kept, tmp_path / "merged")


def test_plan_and_folder_have_the_same_files(plan, folder: Path, tmp_path: Path) -> None:
    with PlannedResult(plan) as planned, FolderResult(folder) as found:
        assert list(planned.files) == list(found.files)
        assert [one.large for one in found.files] == sorted((one.large for one in found.files), reverse=True)
        assert (planned.digest, planned.card) == (found.digest, found.card)
        digests: dict[str, FileDigest] = {}
        for file in found.files:
            if file.large:
                here, there = (one.stage(file.name, tmp_path, never) for one in (planned, found))
                assert here.path.read_bytes() == there.path.read_bytes() == (folder / file.name).read_bytes()
                assert (here.size, here.sha256) == (there.size, there.sha256)
                assert here.path.parent == tmp_path
                digests[file.name] = FileDigest(here.size, here.sha256)
            else:
                content = planned.read(file.name)
                assert content == found.read(file.name)
                digests[file.name] = FileDigest(len(content), sha256(content).hexdigest())
        digests["README.md"] = FileDigest(len(found.card), sha256(found.card).hexdigest())
        own = json.loads((folder / "safegraft.json").read_bytes())
        for result in (planned, found):
            assert json.loads(result.manifest(digests)) == own
            assert json.loads(Edition(result, "org/merged", unevaluated=True).manifest(digests)) == {
                **own,
                "evaluation": None,
            }
        found.verify()


SPOILT: dict[str, Callable[[Path], Any]] = {
    "a bit of a weight": lambda path: flip(next(path.glob("model-00002*"))),
    "a shorter weight": lambda path: (next(path.glob("model-00002*"))).write_bytes(b"short"),
    "another config": lambda path: (path / "config.json").write_text("{}"),
    "a missing shard": lambda path: next(path.glob("model-00001*")).unlink(),
    "a shard that leads out": lambda path: lead_out(next(path.glob("model-00001*"))),
}


def flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)


def lead_out(file: Path) -> None:
    other = file.parent.parent / "elsewhere"
    file.rename(other)
    file.symlink_to(other)


def handed_out(result: FolderResult, folder: Path) -> None:
    for file in result.files:
        result.stage(file.name, folder, never) if file.large else result.read(file.name)


@pytest.mark.parametrize("name", SPOILT)
def test_a_folder_that_is_not_what_it_says_is_refused(name: str, folder: Path, tmp_path: Path) -> None:
    SPOILT[name](folder)
    with pytest.raises(CheckpointError) as caught, FolderResult(folder) as result:
        handed_out(result, tmp_path)
    assert "merged/" in str(caught.value)
    assert str(tmp_path) not in str(caught.value)


def test_an_edited_card_and_what_it_shows_come_along(folder: Path) -> None:
    (folder / "README.md").write_text("# Mine\n\n![](curve.png) ![](../secret.png) ![](gone.png) [](config.json)\n")
    (folder / "curve.png").write_bytes(b"a picture")
    (folder / "other.png").write_bytes(b"not shown")
    with FolderResult(folder) as result:
        assert {one.name for one in result.files if one.name.endswith(".png")} == {"curve.png"}
        assert result.read("curve.png") == b"a picture"
        assert "# Mine" in result.card.decode()


def test_no_merge_is_told(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"safegraft\.json is not there"):
        FolderResult(tmp_path)
    (tmp_path / "safegraft.json").write_text('{"files": {"../x": {}}}')
    with pytest.raises(CheckpointError, match="no manifest"):
        FolderResult(tmp_path)


def test_a_folder_that_changes_on_the_way_is_noticed(folder: Path) -> None:
    with FolderResult(folder) as result:
        result.read("config.json")
        (folder / "config.json").write_text("{ }")
        with pytest.raises(InputChangedError):
            result.verify()


def test_inputs_that_change_on_the_way_are_noticed(models, tmp_path: Path) -> None:
    inputs = {name: shutil.copytree(getattr(models, name), tmp_path / name) for name in ("llm", "lvlm")}
    recipe = {"models": [{"model": str(one), "parameters": {"weight": 1}} for one in inputs.values()]}
    with PlannedResult(safegraft.plan({**recipe, "merge_method": "linear"}), owns_plan=True) as result:
        flip(next(inputs["llm"].glob("*.safetensors")))
        with pytest.raises(InputChangedError):
            result.stage("model.safetensors", tmp_path, never)


def test_staging_stops_when_asked(plan, folder: Path, tmp_path: Path) -> None:
    for result in (PlannedResult(plan), FolderResult(folder)):
        with result, pytest.raises(MergeCancelledError):
            result.stage(result.files[0].name, tmp_path, lambda: True)


def test_a_folder_knows_every_digest_that_an_evaluation_can_have(folder: Path, plan) -> None:
    with FolderResult(folder) as result:
        known = result.known_digests({})
    assert known.keys() == {PLAN, FULL, SAMPLED}
    assert known[PLAN] == plan.digest
    opened = FolderCheckpoint(folder, "merged")
    assert opened.identity.digest in known.values()
    opened.close()


def test_merged_adapters_can_be_published_and_get_a_card(models, write_lora, tmp_path: Path) -> None:
    base = {"base_model_name_or_path": "org/llm"}
    adapters = [write_lora(tmp_path / name, models.llm, seed=seed, **base) for seed, name in enumerate(("one", "two"))]
    recipe = {"models": [{"model": str(one), "parameters": {"weight": 1}} for one in adapters]}
    safegraft.merge({**recipe, "merge_method": "linear"}, out=tmp_path / "out")
    with FolderResult(tmp_path / "out") as result:
        assert [one.name for one in result.files if one.large] == ["adapter_model.safetensors"]
        card = Edition(result, "org/merged", unevaluated=True).extra["README.md"].decode()
    assert "# Merge of `one` and `two`" in card
    metadata = ModelCard(card).data
    assert (metadata.base_model, metadata.library_name, metadata.get("base_model_relation")) == (
        "org/llm",
        "peft",
        "adapter",
    )
    assert "Load it with PEFT onto `org/llm`" in card
    assert "**This merge has not been evaluated.**" in card


@pytest.mark.parametrize("plot", [b"no picture", b"\x89PNG\r\n\x1a\n" + bytes(16 << 20)])
def test_a_plot_is_a_png_of_a_sane_size(plot: bytes, folder: Path) -> None:
    with FolderResult(folder) as result, pytest.raises(UsageError, match="plot"):
        Edition(result, "org/merged", unevaluated=True, plot=plot)
    assert PLOT.endswith(".png")


# -- notes of what was sent ---------------------------------------------------------------------

DIGEST = FileDigest(3, "a" * 64)


def test_a_journal_is_of_one_place_and_plan(tmp_path: Path) -> None:
    whose = ("https://hub.example", "org/a", "main", "d" * 64)
    journal = Journal(tmp_path, *whose)
    assert not journal.files
    journal.record("x", DIGEST)
    journal.record("y", DIGEST)
    assert Journal(tmp_path, *whose).files == {"x": DIGEST, "y": DIGEST}
    for place in range(4):
        assert not Journal(tmp_path, *(f"{one}2" if at == place else one for at, one in enumerate(whose))).files
    assert not Journal(tmp_path, *whose, newer_than=time.time_ns()).files
    journal.discard()
    assert not Journal(tmp_path, *whose).files
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("content", [b"", b"[]", b"{}", b"\xff", b'{"files": 1}', b"[" * 100_000])
def test_a_journal_that_is_none_counts_as_none(content: bytes, tmp_path: Path) -> None:
    journal = Journal(tmp_path, "e", "r", "b", "d")
    journal.record("x", DIGEST)
    (file,) = tmp_path.iterdir()
    file.write_bytes(content)
    assert not Journal(tmp_path, "e", "r", "b", "d").files


def test_journals_lie_in_the_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SAFEGRAFT_CACHE", str(tmp_path))
    assert default_folder() == tmp_path / "publishing"
