"""Publishing to a Hub: one commit or nothing, under every fault, sent once, and true in what it says."""

import dataclasses
import json
import re
import time
from collections.abc import Callable, Iterator
from hashlib import sha256
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from huggingface_hub import HfApi, constants
from huggingface_hub.utils import _http
from testhub import Fault, Hub, point_at

import safegraft
from safegraft.engine.execute import MergedCheckpoint
from safegraft.errors import (
    ConflictError,
    InputChangedError,
    InputError,
    MergeCancelledError,
    OutputError,
    UsageError,
)
from safegraft.hub import retrying, uploading
from safegraft.hub.evaluation import EvaluationDocument, read_evaluation
from safegraft.hub.publishing import Destination, Publication, preview, publish
from safegraft.hub.results import FolderResult, PlannedResult, Result
from safegraft.hub.verify import verify_repository
from safegraft.remote.access import HubAccess

REPO = "org/merged"
SHARD = 1500  # bytes; the tiny result has several shards of it
PNG = b"\x89PNG\r\n\x1a\n and a picture"
HERE = Destination(REPO)


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody waits: neither the library between its attempts nor we between ours."""
    monkeypatch.setattr(_http, "time", SimpleNamespace(**{**vars(time), "sleep": lambda _: None}))
    monkeypatch.setattr(retrying, "FIRST_PAUSE", 0.001)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with Hub.start() as hub:
        point_at(hub, monkeypatch, tmp_path / "cache")
        yield hub


@pytest.fixture(scope="module")
def plan(models) -> Iterator[Any]:
    planned = safegraft.plan(models.linear(), max_shard_size=SHARD)
    yield planned
    planned.close()


@pytest.fixture(scope="module")
def merged(models, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("out") / "merged"
    safegraft.merge(models.linear(), out=out, max_shard_size=SHARD)
    return out


@pytest.fixture
def push(tmp_path: Path, plan: Any) -> Callable[..., Publication]:
    """Publish the plan, or another result, unevaluated if nothing else is said."""

    def push(destination: Destination = HERE, result: Result | None = None, **more: Any) -> Publication:
        if "evaluation" not in more:
            more.setdefault("unevaluated", True)
        places = {"scratch": tmp_path / "scratch", "journal": tmp_path / "journal"}
        with result or PlannedResult(plan, threads=1) as opened:
            return publish(opened, destination, HubAccess(), **{**places, **more})

    return push


def evaluation_of(digest: str, attacked: float = 0.25) -> EvaluationDocument:
    low, high = attacked - 0.1, attacked + 0.1
    score = {"name": "advbench", "value": attacked, "low": low, "high": high, "n": 20, "axis": "text_safety"}
    score |= {"lower_is_better": True, "dataset": "walledai/AdvBench", "judge": "patterns", "images": False}
    one = {"model": "merged", "digest": digest, "settings": {"through": "transformers"}, "versions": {}, "suites": []}
    one |= {"judges": [], "scores": [score], "measured": [], "skipped": {}}
    return read_evaluation(json.dumps({"format": "safegraft-evaluation/1", "evaluations": [one]}).encode())


def shards(plan: Any) -> list[Any]:
    return [file for file in plan.files if file.kind == "weights"]


def sent(hub: Hub) -> list[int]:
    """Bytes of each upload that arrived whole."""
    return [one.bytes_received for one in hub.traffic.matching("^/upload/", "PUT") if one.status == 200]


def titles(hub: Hub, repo: str = REPO) -> list[str]:
    return [one.title for one in hub.repository(repo).commits]


def assert_published(hub: Hub, publication: Publication, repo: str = REPO) -> None:
    """One commit holds it, and every byte is what its safegraft.json says."""
    repository = hub.repository(repo)
    ours = [one for one in repository.commits if "plan digest" in one.message]
    assert [one.oid for one in ours] == [publication.commit] == [repository.head]
    found = verify_repository(repo, None, HubAccess(), download=True)
    assert found.ok, found.wrong()
    assert {status for _, status in found.files[:-1]} == {"same"}
    assert found.files[-1] == (".gitattributes", "extra")


# -- what is there then -------------------------------------------------------------------------


def test_a_plan_and_its_folder_are_published_alike(hub: Hub, push, plan, merged: Path, tmp_path: Path) -> None:
    assert len(shards(plan)) > 2
    planned = push(Destination("org/planned"))
    folder = push(Destination("org/folder"), FolderResult(merged))
    here, there = hub.repository("org/planned"), hub.repository("org/folder")
    told = {name for name in here.files if name in ("README.md", "safegraft.json")}  # the card says where it lies
    assert {name: one for name, one in here.files.items() if name not in told} == {
        name: one for name, one in there.files.items() if name not in told
    }
    assert here.read("README.md").replace(b"org/planned", b"org/folder") == there.read("README.md")
    for publication in (planned, folder):
        assert_published(hub, publication, publication.repo)
        assert publication.plan_digest == plan.digest
        assert (
            publication.bytes_total
            == publication.bytes_uploaded
            == sum(
                file.size for name, file in hub.repository(publication.repo).files.items() if name != ".gitattributes"
            )
        )
        assert (publication.private, hub.repository(publication.repo).private) == (True, True)
        assert Publication.from_dict(json.loads(json.dumps(publication.to_dict()))) == publication
    assert titles(hub, "org/planned") == ["Merge of aligned-llm and adapted-lvlm", "initial commit"]
    repository = hub.repository("org/folder")
    for name in {*repository.files} - {".gitattributes", *told}:
        assert repository.read(name) == (merged / name).read_bytes()
    assert not list((tmp_path / "scratch").iterdir())
    assert not list((tmp_path / "journal").rglob("*.json"))


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A recipe of two models that transformers can load: an LLM, and an LVLM around another."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM, LlavaConfig, LlavaForConditionalGeneration

    root = tmp_path_factory.mktemp("real")
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = {**sizes, "num_key_value_heads": 2, "vocab_size": 40, "tie_word_embeddings": False}
    vision = {"model_type": "clip_vision_model", **sizes, "image_size": 8, "patch_size": 4, "projection_dim": 16}
    torch.manual_seed(0)
    LlamaForCausalLM(LlamaConfig(**text)).save_pretrained(root / "llm")
    lvlm = LlavaConfig(text_config={"model_type": "llama", **text}, vision_config=vision, image_token_index=39)
    LlavaForConditionalGeneration(lvlm).save_pretrained(root / "lvlm")
    models = [{"model": str(root / name), "parameters": {"weight": 0.5}} for name in ("llm", "lvlm")]
    return {"models": models, "merge_method": "linear"}


@pytest.mark.slow
def test_what_was_pushed_loads_as_what_was_merged(hub: Hub, push, real: dict[str, Any], tmp_path: Path) -> None:
    import torch
    from transformers import AutoModelForImageTextToText

    push(result=PlannedResult(safegraft.plan(real, max_shard_size=8000), owns_plan=True))
    assert len(sent(hub)) > 2
    pushed = AutoModelForImageTextToText.from_pretrained(REPO)
    with safegraft.open(real) as merged:
        computed = type(pushed).from_pretrained(None, config=pushed.config, state_dict=dict(merged.tensors))
        assert sum(one.nbytes for one in merged.tensors.values()) == sum(one.nbytes for one in pushed.parameters())
    assert pushed.state_dict().keys() == computed.state_dict().keys()
    assert all(torch.equal(one, computed.state_dict()[name]) for name, one in pushed.state_dict().items())


def test_the_manifest_says_what_is_published_not_what_was_merged(hub: Hub, push, plan, merged: Path) -> None:
    evaluation = evaluation_of(plan.digest)
    publication = push(result=FolderResult(merged), evaluation=evaluation, plot=PNG, evaluation_digest="e" * 64)
    assert publication.evaluated
    assert not publication.notes
    repository = hub.repository(REPO)
    manifest = json.loads(repository.read("safegraft.json"))
    assert manifest["evaluation"] == "e" * 64
    assert manifest["files"].keys() == repository.files.keys() - {".gitattributes", "safegraft.json"}
    for name, entry in manifest["files"].items():
        content = repository.read(name)
        assert (entry["size"], entry["sha256"]) == (len(content), sha256(content).hexdigest())
    assert repository.read("trade-off.png") == PNG
    card = repository.read("README.md").decode()
    assert "(trade-off.png)" in card
    assert "has not been evaluated" not in card
    assert_published(hub, publication)


def test_without_an_evaluation_the_card_warns(hub: Hub, push, merged: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--unevaluated"):
        push(unevaluated=False)
    assert not hub.traffic.matching("/api/models")
    edited = tmp_path / "edited"
    edited.mkdir()
    for file in merged.iterdir():
        (edited / file.name).write_bytes(file.read_bytes() if file.name != "README.md" else b"# Mine\n")
    push(result=FolderResult(edited))
    card = hub.repository(REPO).read("README.md").decode()
    assert card.startswith("# Mine\n")
    assert "**This merge has not been evaluated.**" in card
    assert json.loads(hub.repository(REPO).read("safegraft.json"))["evaluation"] is None


def test_an_evaluation_of_another_model_is_refused(hub: Hub, push, merged: Path) -> None:
    with pytest.raises(InputError, match="another model"):
        push(result=FolderResult(merged), evaluation=evaluation_of("f" * 64))
    assert not hub.traffic.matching("/api/models")
    for more in ({"evaluation": evaluation_of("f" * 64), "unevaluated": True}, {"plot": PNG}):
        with pytest.raises(UsageError):
            push(result=FolderResult(merged), **more)


# -- faults -------------------------------------------------------------------------------------

FAULTS = {
    "whoami is busy": lambda: Fault.unavailable(2, "whoami"),
    "looking is busy": lambda: Fault.unavailable(1, r"/api/models/org/merged\?"),
    "creating is lost": lambda: Fault.lost_answer(1, "repos/create"),
    "preupload is busy": lambda: Fault.unavailable(2, "/preupload/"),
    "batch is busy": lambda: Fault.unavailable(2, "objects/batch"),
    "batch is limited": lambda: Fault.rate_limited(1, "objects/batch", retry_after=1),
    "upload is busy": lambda: Fault.unavailable(3, "^/upload/"),
    "upload is busy for long": lambda: Fault.unavailable(7, "^/upload/"),
    "upload breaks off": lambda: Fault.broken_upload(2, "^/upload/"),
    "upload is damaged": lambda: Fault.damaged_upload(2, "^/upload/"),
    "upload is slow": lambda: Fault.delayed(1, "^/upload/", seconds=0.3),
    "link has expired": lambda: Fault.unavailable(1, "^/upload/", status=403),
    "verifying is busy": lambda: Fault.unavailable(1, "objects/verify"),
    "card's check is busy": lambda: Fault.unavailable(1, "validate-yaml"),
    "commit is busy": lambda: Fault.unavailable(2, "/commit/"),
    "commit is limited": lambda: Fault.rate_limited(1, "/commit/", retry_after=0),
    "commit is dropped": lambda: Fault.dropped(1, "/commit/"),
    "commit is made and answered 503": lambda: Fault.lost_answer(1, "/commit/"),
    "commit is made and its answer dropped": lambda: Fault.lost_answer(1, "/commit/", status=0),
    "tag is busy": lambda: Fault.unavailable(1, "/tag/"),
    "tag is set and answered 503": lambda: Fault.lost_answer(1, "/tag/"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_it_gets_through(name: str, hub: Hub, push, plan) -> None:
    fault = hub.faults.add(FAULTS[name]())
    publication = push(Destination(REPO, tags=["v1"]))
    assert hub.faults.strikes(fault) == fault.times
    assert_published(hub, publication)
    assert hub.repository(REPO).tags == {"v1": publication.commit}


@pytest.mark.parametrize("status", [503, 0])
def test_a_pull_request_whose_answer_is_lost_is_not_opened_twice(status: int, hub: Hub, push, plan) -> None:
    hub.create(REPO, "tester", private=True)
    hub.faults.add(Fault.lost_answer(1, "/commit/", status=status))
    publication = push(Destination(REPO, pull_request=True))
    assert len(hub.repository(REPO).pull_requests) == 1
    assert publication.revision == "refs/pr/1"
    assert publication.pull_request == f"{hub.endpoint}/{REPO}/discussions/1"


BROKEN = {
    "no upload arrives": Fault.unavailable(None, "^/upload/"),
    "every upload is damaged": Fault.damaged_upload(None, "^/upload/"),
    "nothing can be committed": Fault.unavailable(None, "/commit/"),
    "no batch is offered": Fault.unavailable(None, "objects/batch"),
    "not allowed to upload": Fault.unavailable(None, "objects/batch", status=403),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_failure_leaves_nothing_that_can_be_seen(name: str, hub: Hub, push, tmp_path: Path) -> None:
    hub.faults.add(BROKEN[name])
    with pytest.raises(OutputError) as caught:
        push()
    assert REPO in str(caught.value)
    assert not any(secret in str(caught.value) for secret in (hub.token, "/upload/", str(tmp_path)))
    assert titles(hub) == ["initial commit"]
    assert not list((tmp_path / "scratch").iterdir())
    hub.faults.clear()
    assert_published(hub, push())


def test_somebody_else_is_never_overwritten(hub: Hub, push, plan) -> None:
    hub.faults.add(Fault.stale_parent(1, "/commit/"))
    with pytest.raises(ConflictError, match="run again"):
        push()
    assert titles(hub) == ["Another commit", "initial commit"]
    hub.clear_traffic()
    publication = push()
    assert publication.resumed
    assert sent(hub) == []
    assert hub.repository(REPO).read("another.txt")
    assert titles(hub)[1:] == ["Another commit", "initial commit"]


# -- again --------------------------------------------------------------------------------------


def counted(plan: Any, staged: list[str]) -> PlannedResult:
    """The plan's result; the shards that it computes are noted."""
    result = PlannedResult(plan, threads=1)
    stage = result.stage

    def noted(name: str, folder: Path, cancelled: Any) -> Any:
        staged.append(name)
        return stage(name, folder, cancelled)

    result.stage = noted
    return result


def test_a_second_run_sends_and_computes_what_is_missing(hub: Hub, push, plan) -> None:
    third = Fault.unavailable(None, "^/upload/", when=lambda _: len(sent(hub)) >= 2)
    hub.faults.add(third)
    with pytest.raises(OutputError):
        push()
    hub.faults.clear()
    assert sent(hub) == [one.size for one in shards(plan)[:2]]
    hub.clear_traffic()
    staged: list[str] = []
    publication = push(result=counted(plan, staged))
    assert staged == [one.name for one in shards(plan)[2:]]
    assert sent(hub) == [one.size for one in shards(plan)[2:]]
    assert publication.resumed
    assert publication.bytes_uploaded == publication.bytes_total - sum(one.size for one in shards(plan)[:2])
    assert_published(hub, publication)


def test_what_the_hub_has_lost_is_sent_again(hub: Hub, push, plan) -> None:
    hub.faults.add(Fault.unavailable(None, "/commit/"))
    with pytest.raises(OutputError):
        push()
    hub.faults.clear()
    lost = sha256_of(plan, 1)
    hub.repository(REPO).lfs.discard(lost)
    hub.clear_traffic()
    staged: list[str] = []
    assert_published(hub, push(result=counted(plan, staged)))
    assert staged == [shards(plan)[1].name]
    assert sent(hub) == [shards(plan)[1].size]


def sha256_of(plan: Any, place: int) -> str:
    with MergedCheckpoint(plan) as merged:
        return sha256(merged.files[shards(plan)[place].name].read()).hexdigest()


def test_notes_from_before_an_input_was_modified_are_not_used(hub: Hub, push, plan) -> None:
    hub.faults.add(Fault.unavailable(None, "/commit/"))
    with pytest.raises(OutputError):
        push()
    hub.faults.clear()
    staged: list[str] = []
    result = counted(plan, staged)
    result.newer_than = time.time_ns()
    assert not push(result=result).resumed
    assert staged == [one.name for one in shards(plan)]


def test_the_same_again_makes_no_commit_but_sets_tags(hub: Hub, push, plan) -> None:
    first = push()
    hub.clear_traffic()
    staged: list[str] = []
    again = push(Destination(REPO, tags=["v1"]), counted(plan, staged))
    assert (again.unchanged, again.commit, again.bytes_uploaded) == (True, first.commit, 0)
    assert staged == []
    assert {one.method for one in hub.traffic if "/tag/" not in one.path} == {"GET"}
    assert hub.repository(REPO).tags == {"v1": first.commit}
    assert push(Destination(REPO, tags=["v1"])).unchanged


def test_an_evaluation_that_comes_later_is_all_that_is_sent(hub: Hub, push, plan) -> None:
    push()
    hub.clear_traffic()
    staged: list[str] = []
    later = push(result=counted(plan, staged), evaluation=evaluation_of(plan.digest))
    assert (staged, sent(hub), later.evaluated, later.unchanged) == ([], [], True, False)
    assert len(titles(hub)) == 3
    assert verify_repository(REPO, None, HubAccess(), download=True).ok
    assert push(evaluation=evaluation_of(plan.digest)).unchanged


def test_a_tag_that_fails_is_mended_by_another_run(hub: Hub, push) -> None:
    hub.faults.add(Fault.unavailable(None, "/tag/"))
    with pytest.raises(OutputError, match=r"is published, as commit [0-9a-f]{40}, but without the tag v1"):
        push(Destination(REPO, tags=["v1"]))
    hub.faults.clear()
    assert push(Destination(REPO, tags=["v1"])).unchanged
    assert hub.repository(REPO).tags == {"v1": hub.repository(REPO).head}


def test_stopping_leaves_what_was_sent_for_the_next_run(hub: Hub, push, plan, tmp_path: Path) -> None:
    with pytest.raises(MergeCancelledError):
        push(cancelled=lambda: len(sent(hub)) >= 2)
    assert titles(hub) == ["initial commit"]
    assert not list((tmp_path / "scratch").iterdir())
    hub.clear_traffic()
    assert push().resumed
    assert len(sent(hub)) <= len(shards(plan)) - 1


def test_a_change_of_the_inputs_found_at_the_end_stops_it(hub: Hub, push, plan, tmp_path: Path) -> None:
    class Late(PlannedResult):
        def verify(self) -> None:
            if len(sent(hub)) == len(shards(plan)):
                raise InputChangedError("an input changed")
            super().verify()

    with pytest.raises(InputChangedError):
        push(result=Late(plan))
    assert titles(hub) == ["initial commit"]
    assert not list((tmp_path / "journal").rglob("*.json"))  # it may be of either version


# -- room and progress --------------------------------------------------------------------------


def test_two_shards_at_most_lie_on_disk(hub: Hub, push, plan, tmp_path: Path) -> None:
    most, told = [0, 0], list[tuple[int, int, str]]()
    hub.faults.add(Fault.delayed(None, "objects/batch", seconds=0.05))  # so that the next one is ready before

    def look(done: int, total: int, doing: str) -> None:
        told.append((done, total, doing))
        sizes = [file.stat().st_size for file in (tmp_path / "scratch").rglob("*.safetensors")]
        most[:] = max(most[0], len(sizes)), max(most[1], sum(sizes))

    publication = push(progress=look)
    assert most[0] == 2
    assert most[1] <= 2 * max(one.size for one in shards(plan))
    assert told[-1] == (publication.bytes_total, publication.bytes_total, "")
    assert {total for _, total, _ in told} == {publication.bytes_total}
    assert [done for done, _, _ in told] == sorted(done for done, _, _ in told)
    assert {doing for _, _, doing in told} >= {one.name for one in shards(plan)}


def test_a_full_disk_is_found_before_anything_is_computed(
    hub: Hub, push, plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=1 << 20))
    staged: list[str] = []
    with pytest.raises(OutputError, match="--scratch"):
        push(result=counted(plan, staged))
    assert not staged


def test_two_processes_do_not_publish_the_same(hub: Hub, push, plan, tmp_path: Path) -> None:
    refused: list[str] = []

    def again(done: int, total: int, doing: str) -> None:
        if not refused and doing.endswith(".safetensors"):
            with pytest.raises(OutputError, match="another process") as caught:
                push()
            refused.append(str(caught.value))

    assert_published(hub, push(progress=again))
    assert refused


# -- where it goes ------------------------------------------------------------------------------


def test_a_new_public_repository_only_when_asked(hub: Hub, push) -> None:
    assert not push(Destination(REPO, private=False)).private
    assert not hub.repository(REPO).private


def test_visibility_is_never_changed(hub: Hub, push) -> None:
    hub.create(REPO, "tester")
    with pytest.raises(OutputError, match="--public"):
        push()
    assert titles(hub) == ["initial commit"]
    push(Destination(REPO, private=False))
    hub.create("org/hidden", "tester", private=True)
    assert push(Destination("org/hidden", private=False)).private
    assert hub.repository("org/hidden").private
    assert not hub.traffic.matching("/settings")


def test_a_branch_is_made_with_the_commit(hub: Hub, push) -> None:
    hub.create(REPO, "tester", private=True)
    before = hub.repository(REPO).head
    publication = push(Destination(REPO, revision="next/try", tags=["v2"]))
    repository = hub.repository(REPO)
    assert repository.head == before
    assert repository.branches["next/try"] == repository.tags["v2"] == publication.commit
    assert publication.url == f"{hub.endpoint}/{REPO}/tree/next/try"
    assert verify_repository(REPO, "next/try", HubAccess()).ok
    assert push(Destination(REPO, revision="next/try")).unchanged


def test_a_pull_request_leaves_main_alone(hub: Hub, push, plan) -> None:
    hub.create(REPO, "tester", private=True)
    publication = push(Destination(REPO, pull_request=True, message="Please take it"))
    repository = hub.repository(REPO)
    assert titles(hub) == ["initial commit"]
    (pull,) = repository.pull_requests
    assert (pull.title, pull.ref) == ("Please take it", publication.revision)
    assert publication.url == publication.pull_request
    assert verify_repository(REPO, publication.revision, HubAccess(), download=True).ok
    hub.clear_traffic()
    assert push(Destination(REPO, pull_request=True)).commit == publication.commit  # it is proposed already
    assert len(repository.pull_requests) == 1
    with pytest.raises(OutputError, match="no such repository"):
        push(Destination("org/nothing", pull_request=True))


def test_a_tag_never_moves(hub: Hub, push, plan) -> None:
    push(Destination(REPO, tags=["v1"]))
    before = hub.repository(REPO).head
    hub.clear_traffic()
    with pytest.raises(OutputError, match=r"has this tag already \(v1 at"):
        push(Destination(REPO, tags=["v1", "v2"]), evaluation=evaluation_of(plan.digest))
    assert hub.repository(REPO).head == before
    assert hub.repository(REPO).tags == {"v1": before}


def test_shards_of_an_earlier_publication_go_with_the_same_commit(hub: Hub, push, models) -> None:
    push()
    old = set(hub.repository(REPO).files)
    publication = push(result=PlannedResult(safegraft.plan(models.slerp()), owns_plan=True))
    files = set(hub.repository(REPO).files)
    assert "model.safetensors" in files
    assert not any("-of-" in name or name.endswith(".index.json") for name in files)
    assert files <= old | {"model.safetensors"}
    assert len(titles(hub)) == 3
    assert verify_repository(REPO, None, HubAccess(), download=True).ok
    assert publication.commit == hub.repository(REPO).head


def test_what_is_not_safegrafts_is_replaced_only_when_asked(hub: Hub, push, plan, tmp_path: Path) -> None:
    there = tmp_path / "there"
    (there / "onnx").mkdir(parents=True)
    gone = [
        "pytorch_model.bin",
        "pytorch_model.bin.index.json",
        "onnx/model.onnx",
        "vocab.json",
        "adapter_config.json",
        "code.py",
    ]
    kept = ["LICENSE", "training.log", "figures.png"]
    for name in (*gone, *kept, "config.json"):
        (there / name).write_text("{}")
    before = hub.add_model(REPO, there, private=True)
    with pytest.raises(OutputError, match="--replace"):
        push()
    assert hub.repository(REPO).head == before
    with PlannedResult(plan) as result:
        told = preview(result, Destination(REPO, replace=True), HubAccess(), unevaluated=True)
    assert sorted(told.removed) == sorted(gone)
    push(Destination(REPO, replace=True))
    files = hub.repository(REPO).files.keys()
    assert not files & set(gone)
    assert files >= {*kept, ".gitattributes"}
    assert hub.repository(REPO).read("config.json") != b"{}"


def test_foreign_weights_beside_a_publication_are_not_left_to_be_loaded(hub: Hub, push, tmp_path: Path) -> None:
    push()
    (tmp_path / "more").mkdir()
    (tmp_path / "more" / "model.safetensors").write_bytes(b"\0" * 20)
    (tmp_path / "more" / "notes.md").write_text("mine")
    hub.add_model(REPO, tmp_path / "more")
    with pytest.raises(OutputError, match=r"\(model\.safetensors\)"):
        push()
    push(Destination(REPO, replace=True))
    assert "model.safetensors" not in hub.repository(REPO).files
    assert "notes.md" in hub.repository(REPO).files


# -- who may ------------------------------------------------------------------------------------


def test_who_may_not_is_told_in_words(hub: Hub, plan, tmp_path: Path) -> None:
    hub.create("org/there", "tester")
    cases = {
        (False, REPO): "needs a token",
        ("hf_unknown_token", REPO): "does not accept the token",
        (hub.read_token, REPO): "may only read",
        (hub.stranger_token, REPO): "may not make a repository under org",
        (hub.stranger_token, "org/there"): "the token does not allow this",
        (hub.token, "nobody/merged"): "may not make a repository under nobody",
    }
    for (token, repo), words in cases.items():
        with PlannedResult(plan) as result, pytest.raises(OutputError, match=words) as caught:
            publish(
                result,
                Destination(repo, private=False),
                HubAccess(token=token),
                unevaluated=True,
                scratch=tmp_path / "scratch",
                journal=tmp_path / "journal",
            )
        assert not token or token not in str(caught.value)
    assert not hub.traffic.matching("repos/create|preupload|batch|/commit/")


@pytest.mark.parametrize(
    "more",
    [
        {"repo": "name"},
        {"repo": "a/b/c"},
        {"revision": "a b"},
        {"revision": "x..y"},
        {"tags": ["-v1"]},
        {"tags": ["v1.lock"]},
        {"tags": [str(one) for one in range(21)]},
        {"message": "two\nlines"},
        {"pull_request": True, "revision": "next"},
        {"pull_request": True, "tags": ["v1"]},
    ],
)
def test_what_cannot_be_asked_is_refused_before_the_hub_is(more: dict[str, Any], hub: Hub, push) -> None:
    with pytest.raises(UsageError):
        push(dataclasses.replace(HERE, **more))
    assert not len(hub.traffic)


def test_a_preview_changes_nothing(hub: Hub, push, plan, merged: Path, tmp_path: Path) -> None:
    with FolderResult(merged) as result:
        told = preview(result, Destination(REPO, tags=["v1"]), HubAccess(), unevaluated=True)
        assert (told.exists, told.private, told.parent, told.bytes_there) == (False, True, None, 0)
        assert {one.method for one in hub.traffic} == {"GET"}
        assert REPO not in hub.repositories
        publication = push()
        repository = hub.repository(REPO)
        assert dict(told.files) == {name: one.size for name, one in repository.files.items() if name[0] != "."}
        assert told.bytes_total == publication.bytes_total
        there = preview(result, HERE, HubAccess(), unevaluated=True)
        assert (there.unchanged, there.parent) == (True, publication.commit)
        assert json.loads(json.dumps(there.to_dict()))["unchanged"] is True


# -- how it is sent -----------------------------------------------------------------------------


def test_a_hub_without_xet_is_served_though_the_client_has_it(
    hub: Hub, push, plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", False)
    assert_published(hub, push())
    assert len(hub.traffic.matching("xet-write-token")) == 1
    assert sent(hub) == [one.size for one in shards(plan)]


def test_a_hub_with_xet_gets_paths_whose_hash_is_known(hub: Hub, push, plan, monkeypatch: pytest.MonkeyPatch) -> None:
    handed: dict[str, tuple[type, bool]] = {}
    preupload = HfApi.preupload_lfs_files

    def noting(api: HfApi, repo_id: str, additions: Any, **more: Any) -> None:
        for one in additions:  # by us first, then by the commit, which has nothing left to send
            handed.setdefault(one.path_in_repo, (type(one.path_or_fileobj), one.upload_info.is_hashed))
        preupload(api, repo_id, additions, **more)

    monkeypatch.setattr(HfApi, "preupload_lfs_files", noting)
    monkeypatch.setattr(uploading.Uploads, "_offers_xet", lambda _: True)
    assert_published(hub, push())
    assert {handed[one.name] for one in shards(plan)} == {(str, True)}
    assert handed["config.json"] == (bytes, True)


def test_large_files_go_in_parts_and_shards_are_read_but_once_by_the_client(
    hub: Hub, push, plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.part_size = 1500
    hashed: list[int] = []
    monkeypatch.setattr("huggingface_hub.lfs.sha_fileobj", lambda file: hashed.append(1))
    publication = push()
    assert_published(hub, publication)
    assert hashed == []
    assert publication.bytes_uploaded == publication.bytes_total


def test_a_gitignore_on_the_hub_leaves_nothing_out(hub: Hub, push, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str | None] = []
    preupload = HfApi.preupload_lfs_files

    def noting(api: HfApi, repo_id: str, additions: Any, **more: Any) -> None:
        asked.append(more.get("gitignore_content"))
        preupload(api, repo_id, additions, **more)

    monkeypatch.setattr(HfApi, "preupload_lfs_files", noting)
    push()
    ours = [one for one in asked if one is not None]
    assert ours == [""] * len(ours)
    preuploads = hub.traffic.matching("/preupload/")
    assert len(preuploads) == len(ours)  # the commit itself asks no more, and so leaves nothing out either


def test_from_the_hub_to_the_hub_with_two_shards_on_disk(hub: Hub, push, models, plan, tmp_path: Path) -> None:
    for name in ("llm", "lvlm"):
        hub.add_model(f"team/{name}", getattr(models, name), private=True)
    recipe = models.linear()
    for entry, name in zip(recipe["models"], ("llm", "lvlm"), strict=True):
        entry["model"] = f"team/{name}"
    most = 0

    def look(done: int, total: int, doing: str) -> None:
        nonlocal most
        files = [one for one in tmp_path.rglob("*") if one.is_file() and hub.folder not in one.parents]
        most = max(most, sum(one.stat().st_size for one in files))

    on_hub = safegraft.plan(recipe, max_shard_size=SHARD)
    publication = push(result=PlannedResult(on_hub, owns_plan=True), progress=look)
    assert_published(hub, publication)
    journal = 4096
    assert most <= 2 * max(one.size for one in shards(plan)) + journal
    for place, file in enumerate(shards(plan)):  # the same weights as of the same models in folders
        assert hub.repository(REPO).files[file.name].sha256 == sha256_of(plan, place)
    card = hub.repository(REPO).read("README.md").decode()
    assert f"team/llm@{hub.repository('team/llm').head}" in card


# -- what a first user stumbled over --------------------------------------------------------------


def test_whose_evaluation_it_is_shows_at_the_latest_when_the_weights_are_known(hub: Hub, push, plan) -> None:
    with pytest.raises(InputError, match="is of another model"):
        push(evaluation=evaluation_of("d" * 64))
    assert titles(hub) == ["initial commit"]
    inputs = [one.identity.digest for one in plan.checkpoints.values()]
    with pytest.raises(InputError, match="of what was merged, not of the merge"):
        push(evaluation=evaluation_of(inputs[0]))


def test_an_evaluation_of_the_same_files_elsewhere_is_this_models(hub: Hub, push, plan, merged: Path) -> None:
    with FolderResult(merged) as folder:
        known = folder.known_digests({})
    publication = push(evaluation=evaluation_of(known["sha256"]))
    assert publication.evaluated
    assert publication.notes == ()


def test_a_branch_is_made_for_what_main_holds_already(hub: Hub, push) -> None:
    first = push()
    branched = push(Destination(REPO, revision="v2"))
    assert branched.unchanged
    assert hub.repository(REPO).branches["v2"] == first.commit
    push(Destination(REPO, tags=["v1"]))
    with pytest.raises(OutputError, match="v1 is a tag there"):
        push(Destination(REPO, revision="v1"))


@pytest.mark.parametrize("name", ["refs/pr/1", "HEAD", "pr/1", "a" * 40, "x..y"])
def test_names_that_mean_something_else_are_no_branches_and_no_tags(name: str) -> None:
    for destination in (Destination(REPO, revision=name), Destination(REPO, tags=[name])):
        with pytest.raises(UsageError, match="is no name of a"):
            destination.check()
    with pytest.raises(UsageError, match="is the branch"):
        Destination(REPO, tags=["main"]).check()


def test_what_is_replaced_is_told(hub: Hub, push, plan, merged: Path, models, tmp_path: Path) -> None:
    push(evaluation=evaluation_of(plan.digest))
    edited = tmp_path / "edited"
    edited.mkdir()
    (edited / "README.md").write_text("---\nlicense: mit\n---\nMine")
    hub.add_model(REPO, edited)
    other = safegraft.merge(models.linear(0.4), out=tmp_path / "other").out
    told = push(result=FolderResult(other)).notes
    assert [words in " ".join(told) for words in ("replaced by another", "was edited", "was evaluated")] == [True] * 3


def test_notes_that_cannot_be_kept_are_noticed_before_anything_is_made(hub: Hub, push, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OutputError):
        push(journal=tmp_path / "file" / "journal")
    assert REPO not in hub.repositories


def test_a_journal_that_was_damaged_is_none(hub: Hub, push, tmp_path: Path) -> None:
    hub.faults.add(Fault.unavailable(None, "/commit/"))
    with pytest.raises(OutputError):
        push()
    hub.faults.clear()
    (journal,) = (tmp_path / "journal").rglob("*.json")
    journal.write_text(re.sub(r'"sha256": "[0-9a-f]{64}"', '"sha256": "no hex"', journal.read_text()))
    assert push().commit == hub.repository(REPO).head
