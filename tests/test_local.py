"""Model references on this machine: folders, the Hugging Face cache, the Hub, URLs, and what is not there."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest
from testhub import Fault, Hub, point_at

from safegraft.checkpoint.folder import FolderCheckpoint
from safegraft.checkpoint.lora import LoraCheckpoint
from safegraft.errors import CheckpointError
from safegraft.local import is_adapter_here, open_adapter, open_model
from safegraft.remote.checkpoint import RemoteCheckpoint
from safegraft.remote.http_ranges import Clock
from safegraft.testing import tiny_llm

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def test_a_folder_goes_by_its_reference(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny_llm(tmp_path / "llm")
    monkeypatch.chdir(tmp_path)
    with_dot = open_model("./llm")
    assert with_dot.name == "./llm"
    with_dot.close()


def test_a_model_in_the_hub_cache_goes_by_its_name_and_commit(tmp_path: Path) -> None:
    folder = tiny_llm(tmp_path / "models--org--name" / "snapshots" / COMMIT)
    checkpoint = open_model(str(folder))
    assert checkpoint.name == f"org/name@{COMMIT}"
    checkpoint.close()


@pytest.mark.parametrize("reference", ["~no-such-user-here/llm", "x" * 300, "nul\0"])
def test_what_cannot_even_be_looked_up(reference: str) -> None:
    with pytest.raises(CheckpointError):
        open_model(reference)


@pytest.mark.parametrize(
    ("reference", "advice"),
    [
        ("nowhere", "relative paths start at the current directory"),
        ("org/name", "the Hub is not asked, because HF_HUB_OFFLINE is set; the Hugging Face cache does not hold it"),
        ("./org/name", "relative paths start at the current directory"),
    ],
)
def test_what_is_not_there(reference: str, advice: str) -> None:
    with pytest.raises(CheckpointError, match="no such folder") as caught:
        open_model(reference)
    assert advice in str(caught.value)


# -- revisions in the Hub cache -------------------------------------------------------------------


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache in which org/name's main is COMMIT."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    repository = tmp_path / "models--org--name"
    tiny_llm(repository / "snapshots" / COMMIT)
    (repository / "refs" / "refs" / "pr").mkdir(parents=True)
    for ref in ("main", "v1.0", "refs/pr/1"):
        (repository / "refs" / ref).write_text(COMMIT)
    (repository / "refs" / "other").write_text("f" * 40)
    (repository / "refs" / "broken").write_text("../../../models--org--name/snapshots/" + COMMIT)
    return tmp_path


@pytest.mark.parametrize("revision", ["", "@main", "@v1.0", "@refs/pr/1", f"@{COMMIT}"])
def test_without_the_hub_a_revision_is_what_the_cache_says(cache: Path, revision: str) -> None:
    checkpoint = open_model(f"org/name{revision}")
    assert checkpoint.name == f"org/name@{COMMIT}"
    (note,) = checkpoint.remarks
    assert "could not ask the Hub (the Hub is not asked, because HF_HUB_OFFLINE is set); used" in note
    checkpoint.close()


@pytest.mark.parametrize("revision", ["v2", "other", "f" * 40, "../v1.0", "refs/../main", "/etc"])
def test_a_revision_that_neither_has(cache: Path, revision: str) -> None:
    with pytest.raises(CheckpointError) as caught:
        open_model(f"org/name@{revision}")
    assert str(caught.value) == (
        f"org/name@{revision}: no such folder here, and the Hub is not asked, because HF_HUB_OFFLINE is set; "
        "the Hugging Face cache does not hold it either"
    )


def test_a_snapshot_without_weights_is_none(cache: Path) -> None:
    (cache / "models--org--name" / "snapshots" / COMMIT / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="HF_HUB_OFFLINE is set; the Hugging Face cache holds it without its"):
        open_model("org/name")


def test_a_damaged_ref_is_told(cache: Path) -> None:
    with pytest.raises(CheckpointError, match=r"org/name@broken: .*no commit: download it again"):
        open_model("org/name@broken")


def test_a_folder_has_no_revisions(tmp_path: Path) -> None:
    folder = tiny_llm(tmp_path / "llm")
    with pytest.raises(CheckpointError, match="has no revisions; leave @main away"):
        open_model(f"{folder}@main")
    with pytest.raises(CheckpointError, match="no such folder, and no Hub name"):
        open_model(f"{folder}-2@main")


def test_an_adapter_in_the_cache(cache: Path, write_lora: Any) -> None:
    base = cache / "models--org--name" / "snapshots" / COMMIT
    commit = "8" * 40
    folder = cache / "models--me--lora" / "snapshots" / commit
    folder.parent.mkdir(parents=True)
    write_lora(folder, base)
    checkpoint = open_model(f"org/name@v1.0+me/lora@{commit}")
    assert checkpoint.sources == (f"org/name@{COMMIT}", f"me/lora@{commit}")
    checkpoint.close()


def test_a_folder_with_a_plus_in_its_name_comes_first(tmp_path: Path) -> None:
    folder = tiny_llm(tmp_path / "llm+lora@1")
    checkpoint = open_model(str(folder))
    assert checkpoint.sources == (str(folder),)
    checkpoint.close()


# -- the Hub --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def llm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tiny_llm(tmp_path_factory.mktemp("models") / "llm", shards=2)
    (folder / "LICENSE").write_text("free")
    (folder / "README.md").write_text("---\nlicense: mit\n---\n")
    return folder


@pytest.fixture
def hub(llm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A Hub with org/llm, and an empty cache."""
    with Hub.start(tmp_path / "hub") as running:
        point_at(running, monkeypatch, tmp_path / "cache", token=False)
        running.add_model("org/llm", llm)
        yield running


def downloaded(name: str, *patterns: str) -> Path:
    from huggingface_hub import snapshot_download

    return Path(snapshot_download(name, allow_patterns=list(patterns) or None))


def test_a_model_on_the_hub_is_read_by_range_and_is_the_same_model(hub: Hub, llm: Path, tmp_path: Path) -> None:
    head = hub.repository("org/llm").head
    remote, local = open_model("org/llm@main"), open_model(str(llm))
    assert isinstance(remote, RemoteCheckpoint)
    assert remote.name == f"org/llm@{head}"
    assert remote.identity.digest == local.identity.digest
    assert remote.remarks == ()
    assert not (tmp_path / "cache").exists()
    remote.close()
    local.close()


@pytest.mark.parametrize("how", ["argument", "environment"])
def test_a_model_on_the_hub_is_cached_when_asked(hub: Hub, how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if how == "environment":
        monkeypatch.setenv("SAFEGRAFT_HUB_CACHE", "1")
    checkpoint = open_model("org/llm", cache=True if how == "argument" else None)
    assert isinstance(checkpoint, FolderCheckpoint)
    assert checkpoint.licence is not None
    checkpoint.close()
    hub.clear_traffic()
    again = open_model("org/llm", cache=False)
    assert isinstance(again, FolderCheckpoint)
    again.close()
    assert {request.path for request in hub.traffic} == {"/api/models/org/llm?blobs=true"}


def test_what_the_cache_holds_whole_is_used_from_there(hub: Hub) -> None:
    downloaded("org/llm")
    hub.clear_traffic()
    for reference in (f"org/llm@{hub.repository('org/llm').head}", "org/llm"):
        checkpoint = open_model(reference)
        assert isinstance(checkpoint, FolderCheckpoint)
        checkpoint.close()
    # A commit whose files are all known to be there needs no Hub at all.
    assert len(hub.traffic.matching("/api/models")) == 1
    assert hub.bytes_sent("/cdn/") == 0


def test_small_files_that_others_did_not_need_are_brought_to_the_weights(hub: Hub, llm: Path) -> None:
    downloaded("org/llm", "*.safetensors", "*.index.json", "config.json")
    hub.clear_traffic()
    checkpoint, local = open_model("org/llm"), open_model(str(llm))
    assert isinstance(checkpoint, FolderCheckpoint)
    assert checkpoint.identity.digest == local.identity.digest
    assert hub.bytes_sent("/cdn/") == 0
    checkpoint.close()
    local.close()


def test_a_branch_is_what_the_hub_says_now(hub: Hub, llm: Path) -> None:
    downloaded("org/llm")
    hub.add_model("org/llm", llm, card="---\nlicense: mit\n---\nnewer")
    checkpoint = open_model("org/llm")
    assert checkpoint.name == f"org/llm@{hub.repository('org/llm').head}"
    checkpoint.close()


def test_a_hub_that_does_not_answer_leaves_the_cache(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    first = hub.repository("org/llm").head
    downloaded("org/llm")
    monkeypatch.setattr("safegraft.remote.hub.Clock", lambda: Clock(sleep=lambda seconds: None))
    hub.faults.add(Fault.unavailable(None, "/api/models"))
    checkpoint = open_model("org/llm")
    assert checkpoint.name == f"org/llm@{first}"
    (note,) = checkpoint.remarks
    assert "used the commit of the last download" in note
    checkpoint.close()
    with pytest.raises(CheckpointError, match=r"status 503 .*; the Hugging Face cache does not hold it either"):
        open_model("org/llm@v2")


def test_what_the_hub_refuses_is_not_hidden_by_the_cache(hub: Hub) -> None:
    downloaded("org/llm")
    with pytest.raises(CheckpointError, match=r"org/llm@v2: the Hub has no such revision"):
        open_model("org/llm@v2")
    with pytest.raises(CheckpointError, match=r"org/none: no such folder here, and the Hub has nothing of this name"):
        open_model("org/none")


def test_an_adapter_on_the_hub(hub: Hub, llm: Path, tmp_path: Path, write_lora: Any) -> None:
    folder = write_lora(tmp_path / "lora", llm)
    commit = hub.add_model("me/lora", folder)
    head = hub.repository("org/llm").head
    remote, local = open_model("org/llm+me/lora@main"), open_model(f"{llm}+{folder}")
    assert isinstance(remote, LoraCheckpoint)
    assert remote.sources == (f"org/llm@{head}", f"me/lora@{commit}")
    assert remote.identity.digest == local.identity.digest
    remote.close()
    local.close()
    adapter = open_adapter("me/lora")
    assert adapter.name == f"me/lora@{commit}"
    adapter.close()
    assert is_adapter_here("me/lora")
    assert not is_adapter_here("org/llm")
    assert not is_adapter_here("org/none")


# -- URLs ---------------------------------------------------------------------------------------


def test_a_model_at_a_url(llm: Path) -> None:
    memory: Any = fsspec.filesystem("memory")
    for path in llm.iterdir():
        memory.pipe_file(f"/place/llm/{path.name}", path.read_bytes())
    try:
        checkpoint = open_model("memory://place/llm")
        assert checkpoint.name == "memory://place/llm"
        checkpoint.close()
        assert not is_adapter_here("memory://place/llm")
        with pytest.raises(CheckpointError, match="there is nothing at this URL"):
            open_model("memory://place/none")
    finally:
        memory.rm("/place", recursive=True)


def test_folders_need_no_network_code(llm: Path) -> None:
    program = (
        "import sys; from safegraft.local import open_model; "
        f"open_model({str(llm)!r}).close(); "
        "assert not {'huggingface_hub', 'httpx2', 'fsspec', 'safegraft.remote'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
