"""Whole files into the Hugging Face cache: which, verified how, and what becomes of damaged ones."""

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest
from testhub import Fault, Hub, point_at

from safegraft.checkpoint.folder import FolderCheckpoint
from safegraft.errors import CheckpointError
from safegraft.remote.access import HubAccess
from safegraft.remote.cached import cache_hub, cached_snapshot
from safegraft.remote.http_ranges import Clock
from safegraft.remote.hub import HubStore, open_hub
from safegraft.testing import tiny_llm

FAST = Clock(sleep=lambda seconds: None)
WEIGHTS = "model.safetensors"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tiny_llm(tmp_path_factory.mktemp("models") / "llm")
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates" / "tools.jinja").write_text("{{ tools }}")
    return folder


@pytest.fixture
def hub(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with Hub.start(tmp_path / "hub") as running:
        point_at(running, monkeypatch, tmp_path / "cache", token=False)
        running.add_model("org/llm", model)
        yield running


@pytest.fixture
def store(hub: Hub) -> Iterator[HubStore]:
    opened = open_hub("org/llm", None, HubAccess())
    yield opened
    opened.close()


def bring(store: HubStore, *names: str, revision: str | None = None) -> Path:
    files = [store.listing.files[name] for name in names] or list(store.listing.files.values())
    return cache_hub("org/llm", store.commit, files, HubAccess(), revision=revision, clock=FAST)


def test_a_model_is_brought_whole_and_once(hub: Hub, store: HubStore, model: Path, tmp_path: Path) -> None:
    folder = bring(store, revision="main")
    assert folder == tmp_path / "cache" / "models--org--llm" / "snapshots" / store.commit
    for name in store.listing.files:
        assert (folder / name).read_bytes() == (hub.repository("org/llm").read(name) or (model / name).read_bytes())
    checkpoint = FolderCheckpoint(folder, store.listing.name)
    assert checkpoint.identity.scheme == "sha256"
    checkpoint.close()
    assert (folder.parent.parent / "refs" / "main").read_text() == store.commit
    hub.clear_traffic()
    assert bring(store) == folder
    assert len(hub.traffic) == 0


def test_only_what_is_missing_is_fetched(hub: Hub, store: HubStore) -> None:
    bring(store, WEIGHTS)
    files = store.listing.files
    assert cached_snapshot("org/llm", store.commit, [files[WEIGHTS]]) is not None
    assert cached_snapshot("org/llm", store.commit, [files[WEIGHTS], files["config.json"]]) is None
    hub.clear_traffic()
    bring(store)
    assert hub.traffic.matching(WEIGHTS) == []


@pytest.mark.parametrize("name", [WEIGHTS, "config.json"])  # by sha256, and by git's id
def test_what_arrives_damaged_does_not_stay(hub: Hub, store: HubStore, tmp_path: Path, name: str) -> None:
    hub.faults.add(Fault.flipped(1, name, offset=100, method="GET"))
    with pytest.raises(CheckpointError, match=f"{name}: arrived damaged: its hash is not the one that the Hub lists"):
        bring(store, name)
    left = [path for path in (tmp_path / "cache" / "models--org--llm").rglob("*") if not path.is_dir()]
    assert left == []
    folder = bring(store, name)
    assert (folder / name).stat().st_size == store.listing.files[name].size


def test_a_file_of_another_size_is_replaced(store: HubStore, model: Path) -> None:
    folder = bring(store)
    blob = (folder / WEIGHTS).resolve()
    blob.write_bytes(b"cut short")
    assert cached_snapshot("org/llm", store.commit, store.listing.files.values()) is None
    bring(store)
    assert (folder / WEIGHTS).read_bytes() == (model / WEIGHTS).read_bytes()


def test_faults_on_the_way_are_outlived_and_signatures_stay_out_of_the_log(
    hub: Hub, store: HubStore, model: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger("huggingface_hub"), "propagate", True)
    monkeypatch.setattr("huggingface_hub.file_download.time.sleep", lambda seconds: None)
    hub.faults.add(Fault.unavailable(2, "/cdn/"), Fault.dropped(1, "/cdn/", after=1000))
    folder = bring(store, WEIGHTS)
    assert (folder / WEIGHTS).read_bytes() == (model / WEIGHTS).read_bytes()
    assert "/cdn/" in caplog.text
    assert "?" not in caplog.text


def test_a_full_disk_is_told_without_a_path(store: HubStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "cache").mkdir(exist_ok=True)
    (tmp_path / "cache" / "models--org--llm").write_text("in the way")
    with pytest.raises(CheckpointError, match="cannot be written into the Hugging Face cache") as caught:
        bring(store, "config.json")
    assert str(tmp_path) not in str(caught.value)


def test_a_gated_model_is_told(hub: Hub, model: Path) -> None:
    hub.add_model("org/gated", model, gated=True)
    store = open_hub("org/gated", None, HubAccess())
    store.close()
    with pytest.raises(CheckpointError, match=r"ask for access at .*/org/gated, then log in"):
        cache_hub("org/gated", store.commit, [store.listing.files[WEIGHTS]], HubAccess(), clock=FAST)
