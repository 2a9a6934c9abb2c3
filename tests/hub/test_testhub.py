"""The test Hub speaks as the real one does: huggingface_hub and transformers themselves are what asks here."""

import contextlib
import hashlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
import tracemalloc
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx2
import pytest
import torch
from huggingface_hub import (
    CommitOperationAdd,
    CommitOperationCopy,
    CommitOperationDelete,
    HfApi,
    HfFileSystem,
    ModelCard,
    hf_hub_download,
    snapshot_download,
)
from huggingface_hub.errors import (
    BadRequestError,
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import _http, get_session, hf_raise_for_status
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from testhub import Fault, Faults, Hub, Request, point_at

# huggingface_hub uploads in a way that its HTTP library calls old
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=<...>' to upload:DeprecationWarning")

BLOB = bytes(range(256)) * 40
CARD = "---\nlicense: mit\nbase_model:\n- org/a\n- org/b\nbase_model_relation: merge\ntags:\n- merge\n---\n# Grafted\n"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    (folder / "config.json").write_text('{"model_type": "llama", "architectures": ["LlamaForCausalLM"]}')
    (folder / "model.safetensors").write_bytes(BLOB)
    (folder / "deep" / "er").mkdir(parents=True)
    (folder / "deep" / "er" / "notes.txt").write_text("café\n")
    return folder


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with Hub.start() as hub:
        point_at(hub, monkeypatch, tmp_path / "cache")
        yield hub
        point_at(hub, monkeypatch, tmp_path / "cache")  # closes the session, so that no connection outlives the test


@pytest.fixture
def api(hub: Hub) -> HfApi:
    return HfApi()


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The client waits no longer between tries; what it would have waited is listed."""
    waited: list[float] = []
    clock = SimpleNamespace(sleep=waited.append, time=time.time, monotonic=time.monotonic)
    monkeypatch.setattr(_http, "time", clock)
    monkeypatch.setattr("huggingface_hub.file_download.time", clock)
    return waited


def get(url: str, **headers: str) -> httpx2.Response:
    return get_session().get(url, headers={name.replace("_", "-"): value for name, value in headers.items()})


def link(hub: Hub, name: str = "org/m", path: str = "model.safetensors") -> str:
    """A signed URL of an LFS file."""
    answer = get_session().get(f"{hub.endpoint}/{name}/resolve/main/{path}", follow_redirects=False)
    return answer.headers["Location"]


# Reading


def test_info_listings_and_refs_describe_what_was_committed(hub: Hub, api: HfApi, folder: Path) -> None:
    commit = hub.add_model("org/m", folder, card=CARD)
    info = api.model_info("org/m", files_metadata=True)
    assert (info.id, info.sha, info.private, info.gated, info.author) == ("org/m", commit, False, False, "org")
    assert info.card_data is not None
    assert info.card_data.license == "mit"
    assert info.tags is not None
    assert {"merge", "base_model:org/a", "base_model:merge:org/b", "license:mit"} <= set(info.tags)
    siblings = {each.rfilename: each for each in info.siblings or []}
    assert set(siblings) == {".gitattributes", "README.md", "config.json", "model.safetensors", "deep/er/notes.txt"}
    weights = siblings["model.safetensors"].lfs
    assert weights is not None
    assert (weights.sha256, weights.size) == (hashlib.sha256(BLOB).hexdigest(), len(BLOB))
    assert siblings["config.json"].lfs is None
    tree = {each.path for each in api.list_repo_tree("org/m", recursive=True)}
    assert tree == {*siblings, "deep", "deep/er"}
    assert {each.path for each in api.list_repo_tree("org/m", "deep")} == {"deep/er"}
    assert [each.path for each in api.get_paths_info("org/m", ["deep", "config.json", "absent"])] == [
        "deep",
        "config.json",
    ]
    assert [each.target_commit for each in api.list_repo_refs("org/m").branches] == [commit]
    assert [each.title for each in api.list_repo_commits("org/m")] == ["Add model", "initial commit"]
    with pytest.raises(RemoteEntryNotFoundError):
        list(api.list_repo_tree("org/m", "additional_chat_templates"))


def test_ids_are_those_of_git_and_of_no_clock(hub: Hub, api: HfApi, folder: Path, tmp_path: Path) -> None:
    commit = hub.add_model("org/m", folder)
    snapshot = Path(snapshot_download("org/m"))
    subprocess.run(["git", "init", "-q", tmp_path], check=True, capture_output=True)
    run = {"cwd": tmp_path, "check": True, "capture_output": True, "text": True}
    for path in ("config.json", "deep/er/notes.txt"):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_bytes((snapshot / path).read_bytes())
    subprocess.run(["git", "add", "config.json", "deep"], **run)
    root = subprocess.run(["git", "write-tree"], **run).stdout.strip()
    told = dict(line.split("\t")[::-1] for line in subprocess.run(["git", "ls-tree", root], **run).stdout.splitlines())
    oids = {each.path: getattr(each, "blob_id", None) or each.tree_id for each in api.list_repo_tree("org/m")}
    assert {path: words.split()[2] for path, words in told.items()} == {
        path: oids[path] for path in ("config.json", "deep")
    }
    with Hub.start() as other:
        assert other.add_model("org/m", folder) == commit


def test_a_snapshot_is_the_folder_and_the_cdn_sees_no_token(hub: Hub, folder: Path) -> None:
    commit = hub.add_model("org/m", folder)
    snapshot = Path(snapshot_download("org/m"))
    assert snapshot.name == commit
    for path in folder.rglob("*"):
        if path.is_file():
            assert (snapshot / path.relative_to(folder)).read_bytes() == path.read_bytes()
    assert [each.path for each in hub.traffic if each.host == "127.0.0.1"] == [
        f"/cdn/org/m/{hashlib.sha256(BLOB).hexdigest()}/model.safetensors"
    ]
    assert not [each for each in hub.traffic if each.host == "127.0.0.1" and each.authorized]
    assert all(each.authorized for each in hub.traffic if each.host == "localhost")
    assert hub.bytes_sent(r"^/cdn/") == len(BLOB)
    hub.clear_traffic()
    hf_hub_download("org/m", "model.safetensors")
    assert [(each.method, each.status, each.bytes_sent) for each in hub.traffic] == [("HEAD", 302, 0)]


def test_listings_come_in_pages(hub: Hub, api: HfApi, folder: Path) -> None:
    hub.add_model("org/m", folder)
    whole = [each.path for each in api.list_repo_tree("org/m", recursive=True)]
    hub.page_size = 2
    hub.clear_traffic()
    assert [each.path for each in api.list_repo_tree("org/m", recursive=True)] == whole
    assert len(hub.traffic) == 3
    assert len(api.list_repo_commits("org/m")) == 2


RANGES = st.one_of(
    st.tuples(st.integers(0, 12000), st.integers(0, 12000)).map(lambda ends: f"bytes={ends[0]}-{ends[1]}"),
    st.integers(0, 12000).map(lambda start: f"bytes={start}-"),
    st.integers(0, 12000).map(lambda count: f"bytes=-{count}"),
    st.sampled_from(["bytes=-", "bytes=5-3", "lines=1-2", "bytes=0-1,4-5", "bytes=x-y"]),
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(asked=RANGES, path=st.sampled_from(["model.safetensors", "config.json"]))
def test_ranges_are_those_of_rfc_9110(hub: Hub, folder: Path, asked: str, path: str) -> None:
    if "org/m" not in hub.repositories:
        hub.add_model("org/m", folder)
    data = (folder / path).read_bytes()
    answer = get(f"{hub.endpoint}/org/m/resolve/main/{path}", Range=asked)
    first, _, last = asked.removeprefix("bytes=").partition("-")
    invalid = not asked.startswith("bytes=") or not (first + last).isdigit() or 0 <= number(last) < number(first)
    start = 0 if invalid else int(first) if first else max(0, len(data) - int(last))
    stop = min(len(data), int(last) + 1) if first and last and not invalid else len(data)
    if invalid:
        assert (answer.status_code, answer.content) == (200, data)
        assert "Content-Range" not in answer.headers
    elif start >= len(data) or (last == "0" and not first):
        assert answer.status_code == 416
        assert answer.headers["Content-Range"] == f"bytes */{len(data)}"
    else:
        assert (answer.status_code, answer.content) == (206, data[start:stop])
        assert answer.headers["Content-Range"] == f"bytes {start}-{stop - 1}/{len(data)}"
    assert hub.traffic[-1].range == asked


def number(words: str) -> int:
    return int(words) if words.isdigit() else -1


def test_conditions_hold_for_the_etag_of_the_content(hub: Hub, folder: Path) -> None:
    hub.add_model("org/m", folder)
    url = link(hub)
    etag = get(url).headers["ETag"]
    assert etag == f'"{hashlib.sha256(BLOB).hexdigest()}"'
    assert get(url, If_Match=etag, Range="bytes=1-2").content == BLOB[1:3]
    assert get(url, If_Match='"other"').status_code == 412
    assert get(url, If_None_Match=f'"x", {etag}').status_code == 304
    assert get(url, If_Range=etag, Range="bytes=1-2").status_code == 206
    assert get(url, If_Range='"other"', Range="bytes=1-2").status_code == 200


def test_links_to_the_cdn_are_signed_and_expire(hub: Hub, folder: Path) -> None:
    hub.add_model("org/m", folder)
    url = link(hub)
    assert get(url).status_code == 200
    assert get(url, Authorization="Bearer hf_wrong").status_code == 200  # no token is looked at here, but it is noticed
    assert (hub.traffic[-1].host, hub.traffic[-1].authorized) == ("127.0.0.1", True)
    assert get(url.partition("?")[0]).status_code == 403
    assert get(url.replace("/cdn/org/m", "/cdn/org/n")).status_code == 403
    hub.expire_links()
    assert get(url).status_code == 403
    hub.signer.lifetime = 0
    assert get(link(hub)).status_code == 403
    hub.signer.lifetime = 60
    assert get(link(hub)).status_code == 200
    assert all("Signature" not in each.path for each in hub.traffic)


def test_raw_is_what_git_holds(hub: Hub, folder: Path) -> None:
    hub.add_model("org/m", folder)
    assert get(f"{hub.endpoint}/org/m/raw/main/config.json").content == (folder / "config.json").read_bytes()
    pointer = get(f"{hub.endpoint}/org/m/raw/main/model.safetensors").text
    assert pointer.splitlines()[1:] == [f"oid sha256:{hashlib.sha256(BLOB).hexdigest()}", f"size {len(BLOB)}"]


def test_the_file_system_reads_ranges(hub: Hub, folder: Path) -> None:
    hub.add_model("org/m", folder)
    fs = HfFileSystem()
    assert {Path(each).name for each in fs.ls("org/m", detail=False)} >= {"config.json", "model.safetensors", "deep"}
    hub.clear_traffic()
    with fs.open("org/m/model.safetensors", cache_type="none") as file:
        file.seek(300)
        assert file.read(20) == BLOB[300:320]
    assert hub.bytes_sent("/cdn/") == 20


# Writing


def test_a_commit_adds_copies_and_deletes(hub: Hub, api: HfApi) -> None:
    assert api.create_repo("org/new", private=True) == f"{hub.endpoint}/org/new"
    add = [
        CommitOperationAdd("a.txt", b"text"),
        CommitOperationAdd("w.safetensors", BLOB),
        CommitOperationAdd("sub/x.txt", b"x"),
        CommitOperationAdd("image.tiff", b"II*\0" + b"\0" * 100),
        CommitOperationAdd("empty.bin", b""),
    ]
    first = api.create_commit("org/new", add, commit_message="Add", commit_description="All of it")
    repository = hub.repository("org/new")
    assert first.oid == repository.head
    assert repository.private
    assert {path for path, file in repository.files.items() if file.sha256} == {"w.safetensors", "image.tiff"}
    assert repository.read("w.safetensors") == BLOB
    assert (repository.commits[0].title, repository.commits[0].message) == ("Add", "All of it")
    hub.clear_traffic()
    change = [
        CommitOperationDelete("sub/", is_folder=True),
        CommitOperationDelete("a.txt"),
        CommitOperationCopy("w.safetensors", "copy.safetensors"),
        CommitOperationAdd("again.safetensors", BLOB),
    ]
    api.create_commit("org/new", change, commit_message="Change", parent_commit=first.oid)
    assert set(repository.files) == {
        ".gitattributes", "image.tiff", "empty.bin", "w.safetensors", "copy.safetensors", "again.safetensors",
    }  # fmt: skip
    assert not hub.traffic.matching("/upload/")
    with pytest.raises(HfHubHTTPError, match="absent"):
        api.create_commit("org/new", [CommitOperationDelete("absent")], commit_message="No")


def test_an_unchanged_file_makes_no_commit(hub: Hub, api: HfApi, folder: Path) -> None:
    commit = hub.add_model("org/m", folder)
    assert api.upload_folder(repo_id="org/m", folder_path=folder).oid == commit
    assert not hub.traffic.matching("/commit/")


def test_a_stale_parent_is_refused_and_nothing_changes(hub: Hub, api: HfApi, folder: Path) -> None:
    first = hub.add_model("org/m", folder)
    add = lambda: [CommitOperationAdd("new.txt", b"new")]  # noqa: E731
    hub.faults.add(Fault.stale_parent())
    with pytest.raises(HfHubHTTPError) as refused:
        api.create_commit("org/m", add(), commit_message="New", parent_commit=first)
    assert refused.value.response.status_code == 412
    repository = hub.repository("org/m")
    assert "new.txt" not in repository.files
    assert [each.title for each in repository.commits[:2]] == ["Another commit", "Add model"]
    made = api.create_commit("org/m", add(), commit_message="New", parent_commit=repository.head[:7])
    assert made.oid == repository.head


@pytest.mark.parametrize("sha256", ["0" * 64, hashlib.sha256(BLOB).hexdigest()])
def test_a_commit_needs_objects_of_its_own(hub: Hub, api: HfApi, folder: Path, sha256: str) -> None:
    hub.add_model("vendor/other", folder)  # its objects are not there for everybody
    api.create_repo("org/m")
    lines = [
        {"key": "header", "value": {"summary": "Add"}},
        {"key": "lfsFile", "value": {"path": "w.bin", "algo": "sha256", "oid": sha256, "size": len(BLOB)}},
    ]
    answer = get_session().post(
        f"{hub.endpoint}/api/models/org/m/commit/main",
        content="\n".join(json.dumps(line) for line in lines),
        headers={"Authorization": f"Bearer {hub.token}", "Content-Type": "application/x-ndjson"},
    )
    with pytest.raises(BadRequestError, match=r"w\.bin"):
        hf_raise_for_status(answer)
    assert set(hub.repository("org/m").files) == {".gitattributes"}


@pytest.mark.parametrize("part_size", [None, 1000, len(BLOB), 5000])
def test_uploads_come_whole_or_in_parts(hub: Hub, api: HfApi, waits: list[float], part_size: int | None) -> None:
    hub.part_size = part_size
    api.create_repo("org/m")
    hub.faults.add(Fault.lost_answer(match="/complete"))
    api.upload_file(path_or_fileobj=BLOB, path_in_repo="w.safetensors", repo_id="org/m")
    puts = [each for each in hub.traffic if each.method == "PUT"]
    whole = part_size is None or part_size >= len(BLOB)
    assert len(puts) == (1 if whole else -(-len(BLOB) // part_size))
    assert sum(each.bytes_received for each in puts) == len(BLOB)
    assert not any(each.authorized for each in puts)
    assert hub.repository("org/m").read("w.safetensors") == BLOB
    assert len(hub.traffic.matching("/complete")) == (0 if whole else 2)
    assert not list(hub.objects.parts.iterdir())


def test_parts_are_put_together_only_if_they_are_those_received(hub: Hub) -> None:
    hub.part_size = 6000
    hub.create("org/m", "tester")
    sha256 = hashlib.sha256(BLOB).hexdigest()
    with httpx2.Client(headers={"Authorization": f"Bearer {hub.token}"}) as client:
        asked = {"operation": "upload", "transfers": ["multipart"], "objects": [{"oid": sha256, "size": len(BLOB)}]}
        batch = client.post(f"{hub.endpoint}/org/m.git/info/lfs/objects/batch", json=asked).json()
        upload = batch["objects"][0]["actions"]["upload"]
        pieces = {1: BLOB[:6000], 2: BLOB[6000:]}
        etags = {
            part: client.put(upload["header"][f"{part:05}"], content=pieces[part]).headers["ETag"] for part in (1, 2)
        }
        for told, status in (({**etags, 2: etags[1]}, 400), ({**etags, 3: etags[1]}, 400), (etags, 200)):
            parts = [{"partNumber": part, "etag": etag} for part, etag in told.items()]
            assert client.post(upload["href"], json={"oid": sha256, "parts": parts}).status_code == status
    assert hub.objects.size(sha256) == len(BLOB)


def test_branches_and_tags(hub: Hub, api: HfApi, folder: Path) -> None:
    first = hub.add_model("org/m", folder)
    api.create_tag("org/m", tag="v1", tag_message="One")
    api.create_branch("org/m", branch="feature/x")
    second = api.upload_file(path_or_fileobj=b"1", path_in_repo="n.txt", repo_id="org/m", revision="feature/x").oid
    refs = api.list_repo_refs("org/m")
    assert {each.name: each.target_commit for each in refs.branches} == {"main": first, "feature/x": second}
    assert [(each.ref, each.target_commit) for each in refs.tags] == [("refs/tags/v1", first)]
    assert Path(hf_hub_download("org/m", "n.txt", revision="feature/x")).read_text() == "1"
    assert api.model_info("org/m", revision="v1").sha == first
    for again in (
        lambda: api.create_tag("org/m", tag="v1"),
        lambda: api.create_branch("org/m", branch="feature/x"),
        lambda: api.create_repo("org/m"),
    ):
        with pytest.raises(HfHubHTTPError) as conflict:
            again()
        assert conflict.value.response.status_code == 409
    api.create_repo("org/m", exist_ok=True)
    api.delete_tag("org/m", tag="v1")
    api.delete_branch("org/m", branch="feature/x")
    with pytest.raises(RevisionNotFoundError):
        api.model_info("org/m", revision="v1")
    with pytest.raises(HfHubHTTPError):
        api.delete_branch("org/m", branch="main")


def test_a_pull_request_from_its_commit_to_its_merge(hub: Hub, api: HfApi, folder: Path) -> None:
    base = hub.add_model("org/m", folder)
    stranger = HfApi(token=hub.stranger_token)
    opened = stranger.create_commit(
        "org/m", [CommitOperationAdd("w2.safetensors", BLOB[::-1])], commit_message="Better", create_pr=True
    )
    assert (opened.pr_num, opened.pr_revision) == (1, "refs/pr/1")
    assert opened.pr_url == f"{hub.endpoint}/org/m/discussions/1"
    assert hub.repository("org/m").head == base
    stranger.upload_file(path_or_fileobj=b"2", path_in_repo="n.txt", repo_id="org/m", revision="refs/pr/1")
    assert Path(hf_hub_download("org/m", "n.txt", revision="refs/pr/1")).read_text() == "2"
    assert [each.ref for each in api.list_repo_refs("org/m", include_pull_requests=True).pull_requests or []] == [
        "refs/pr/1"
    ]
    with pytest.raises(HfHubHTTPError, match="403"):
        stranger.merge_pull_request("org/m", 1)
    api.upload_file(path_or_fileobj=b"3", path_in_repo="meanwhile.txt", repo_id="org/m")
    api.merge_pull_request("org/m", 1, comment="Thanks")
    details = api.get_discussion_details("org/m", 1)
    assert (details.status, details.author, details.merge_commit_oid) == (
        "merged",
        "stranger",
        hub.repository("org/m").head,
    )
    assert {"w2.safetensors", "n.txt", "meanwhile.txt"} <= set(hub.repository("org/m").files)
    api.create_discussion("org/m", title="A question")
    assert [(each.num, each.is_pull_request) for each in api.get_repo_discussions("org/m")] == [(2, False), (1, True)]
    assert [each.num for each in api.get_repo_discussions("org/m", discussion_type="pull_request")] == [1]
    conflicting = stranger.create_commit(
        "org/m", [CommitOperationAdd("n.txt", b"4")], commit_message="One", create_pr=True, parent_commit=base
    )
    with pytest.raises(HfHubHTTPError, match="conflicting"):
        api.merge_pull_request("org/m", conflicting.pr_num or 0)


def test_settings_moves_and_deletions(hub: Hub, api: HfApi, folder: Path) -> None:
    hub.add_model("org/m", folder)
    api.update_repo_settings("org/m", private=True, gated="manual")
    info = api.model_info("org/m")
    assert (info.private, info.gated) == (True, "manual")
    api.move_repo("org/m", "tester/n")
    assert api.repo_exists("tester/n")
    api.delete_repo("tester/n")
    assert not api.repo_exists("tester/n")
    api.delete_repo("tester/n", missing_ok=True)
    with pytest.raises(RepositoryNotFoundError):
        api.delete_repo("tester/n")


def test_cards_are_validated_and_pushed(hub: Hub, api: HfApi) -> None:
    api.create_repo("org/m")
    ModelCard(CARD).push_to_hub("org/m")
    assert hub.repository("org/m").read("README.md").decode() == CARD
    assert ModelCard.load("org/m").data.base_model == ["org/a", "org/b"]
    for head, word in (("base_model: ./models/a", "base_model"), ("pipeline_tag: [a, b]", "pipeline_tag")):
        with pytest.raises(ValueError, match=word):
            ModelCard(f"---\n{head}\n---\nx").push_to_hub("org/m")
    results = b"- dataset: {id: org/d, task_id: t}\n  value: 0.5\n  date: 2026-01-02\n"
    api.upload_file(path_or_fileobj=results, path_in_repo=".eval_results/a.yaml", repo_id="org/m")
    told = api.model_info("org/m", expand=["evalResults"]).eval_results
    assert told is not None
    assert (told[0].dataset_id, told[0].value, told[0].date) == ("org/d", 0.5, "2026-01-02")


def test_datasets_live_beside_models(hub: Hub, api: HfApi, folder: Path) -> None:
    hub.add_model("org/m", folder)
    api.create_repo("org/m", repo_type="dataset")
    api.upload_file(path_or_fileobj=BLOB, path_in_repo="d.parquet", repo_id="org/m", repo_type="dataset")
    assert Path(hf_hub_download("org/m", "d.parquet", repo_type="dataset")).read_bytes() == BLOB
    assert api.dataset_info("org/m").sha == hub.repository("datasets/org/m").head
    assert not api.file_exists("org/m", "d.parquet")


@pytest.mark.parametrize("path", ["../out", "a/../b", "/etc/x", ".git/config", "", "config.json/x", "deep"])
def test_no_commit_leaves_the_tree(hub: Hub, folder: Path, path: str) -> None:
    first = hub.add_model("org/m", folder)
    lines = [
        {"key": "header", "value": {"summary": "Add"}},
        {"key": "file", "value": {"path": path, "content": "eA==", "encoding": "base64"}},
    ]
    answer = get_session().post(
        f"{hub.endpoint}/api/models/org/m/commit/main",
        content="\n".join(json.dumps(line) for line in lines),
        headers={"Authorization": f"Bearer {hub.token}"},
    )
    assert (answer.status_code, hub.repository("org/m").head) == (400, first)


# Rights


def test_rights_are_refused_in_the_librarys_own_errors(hub: Hub, api: HfApi, folder: Path) -> None:
    hub.add_model("org/private", folder, private=True)
    hub.add_model("vendor/gated", folder, gated=True)
    hub.add_model("vendor/private", folder, private=True)
    nobody, stranger, reader = HfApi(token=False), HfApi(token=hub.stranger_token), HfApi(token=hub.read_token)
    for who, status in ((nobody, 401), (stranger, 404)):
        for name in ("org/private", "vendor/private", "org/absent"):
            with pytest.raises(RepositoryNotFoundError) as missing:
                who.model_info(name)
            assert missing.value.response.status_code == status
    assert reader.model_info("org/private").private
    with pytest.raises(RepositoryNotFoundError):
        api.model_info("vendor/private")

    assert api.model_info("vendor/gated").gated == "manual"
    for who, status in ((nobody, 401), (api, 403)):
        with pytest.raises(GatedRepoError) as gated:
            who.auth_check("vendor/gated")
        assert gated.value.response.status_code == status
        with pytest.raises(GatedRepoError):
            who.get_hf_file_metadata(url=f"{hub.endpoint}/vendor/gated/resolve/main/config.json", token=who.token)
    hub.repository("vendor/gated").granted.add("tester")
    assert hf_hub_download("vendor/gated", "config.json")

    for refused in (
        lambda: reader.upload_file(path_or_fileobj=b"1", path_in_repo="n.txt", repo_id="org/private"),
        lambda: reader.create_repo("org/new"),
        lambda: api.create_repo("vendor/new"),
        lambda: api.create_tag("vendor/gated", tag="v1"),
        lambda: api.upload_file(path_or_fileobj=b"1", path_in_repo="n.txt", repo_id="vendor/gated"),
    ):
        with pytest.raises(HfHubHTTPError) as forbidden:
            refused()
        assert forbidden.value.response.status_code == 403
    with pytest.raises(HfHubHTTPError) as unknown:
        HfApi(token="hf_wrong").whoami()
    assert unknown.value.response.status_code == 401
    assert (api.whoami()["name"], reader.whoami()["auth"]["accessToken"]["role"]) == ("tester", "read")


def test_what_is_missing_is_told_apart(hub: Hub, api: HfApi, folder: Path) -> None:
    hub.add_model("org/m", folder)
    with pytest.raises(RevisionNotFoundError):
        hf_hub_download("org/m", "config.json", revision="absent")
    with pytest.raises(RemoteEntryNotFoundError):
        hf_hub_download("org/m", "absent.json")
    with pytest.raises(RepositoryNotFoundError):
        api.model_info("no-namespace")
    assert not api.file_exists("org/m", "absent.json")


# Faults


def test_unavailable_is_outlasted_and_counted(hub: Hub, folder: Path, waits: list[float]) -> None:
    hub.add_model("org/m", folder)
    fault = hub.faults.add(Fault.unavailable(times=3, match="/tree/", method="GET"))
    fs = HfFileSystem()
    statuses = [get(f"{hub.endpoint}/api/models/org/m/tree/main").status_code for _ in range(5)]
    assert statuses == [503, 503, 503, 200, 200]
    assert hub.faults.strikes(fault) == 3
    hub.faults.add(Fault.unavailable(times=2, match="/resolve/"))
    with fs.open("org/m/config.json", cache_type="none") as file:
        assert file.read() == (folder / "config.json").read_bytes()
    assert waits == [1, 2]


def test_a_rate_limit_tells_when_to_come_back(hub: Hub, folder: Path, waits: list[float]) -> None:
    hub.add_model("org/m", folder)
    hub.faults.add(Fault.rate_limited(times=1, match="/cdn/", retry_after=7))
    hf_hub_download("org/m", "model.safetensors")
    assert waits == [8]


def test_a_dropped_download_is_resumed(hub: Hub, folder: Path, waits: list[float], monkeypatch: Any) -> None:
    hub.add_model("org/m", folder)
    monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", 1000)
    hub.faults.add(Fault.dropped(match="/cdn/"), Fault.dropped(match="/cdn/", after=2500))
    assert Path(hf_hub_download("org/m", "model.safetensors")).read_bytes() == BLOB
    told = [(each.status, each.range, each.bytes_sent) for each in hub.traffic.matching("/cdn/")]
    assert told == [(0, None, 0), (200, None, 2500), (206, "bytes=2000-", len(BLOB) - 2000)]


def test_damaged_ranges(hub: Hub, folder: Path) -> None:
    hub.add_model("org/m", folder)
    url = link(hub)
    flip = hub.faults.add(Fault.flipped(match="model", offset=300))
    assert get(url, Range="bytes=0-299").content == BLOB[:300]
    assert hub.faults.strikes(flip) == 0
    assert get(url, Range="bytes=299-301").content == bytes([BLOB[299], BLOB[300] ^ 0xFF, BLOB[301]])
    assert get(url, Range="bytes=299-301").content == BLOB[299:302]

    hub.faults.add(Fault.truncated(match="model", after=5))
    short = get(url, Range="bytes=10-29")
    assert (short.status_code, short.content) == (206, BLOB[10:15])
    assert short.headers["Content-Range"] == f"bytes 10-29/{len(BLOB)}"

    hub.faults.add(Fault.ignored_range())
    whole = get(url, Range="bytes=10-29")
    assert (whole.status_code, whole.content) == (200, BLOB)
    hub.faults.add(Fault.expired())
    assert [get(url).status_code for _ in range(2)] == [403, 200]


def test_gated_all_of_a_sudden(hub: Hub, folder: Path) -> None:
    hub.add_model("org/m", folder)
    hub.faults.add(Fault.gated(match="/resolve/"))
    with pytest.raises((GatedRepoError, LocalEntryNotFoundError)):
        hf_hub_download("org/m", "config.json")
    assert hf_hub_download("org/m", "config.json")


def test_slowness_is_what_was_asked_for(hub: Hub, folder: Path) -> None:
    hub.add_model("org/m", folder)
    hub.faults.add(Fault.slow(match="/cdn/", bytes_per_second=len(BLOB) * 4))
    hub.faults.add(Fault.delayed(match="/cdn/", seconds=0.1))
    url, start = link(hub), time.monotonic()
    assert get(url).content == BLOB
    assert 0.3 < time.monotonic() - start < 3


def test_a_lost_answer_hides_a_commit_that_was_made(hub: Hub, api: HfApi, folder: Path) -> None:
    first = hub.add_model("org/m", folder)
    repository = hub.repository("org/m")

    def commit() -> None:
        api.create_commit("org/m", [CommitOperationAdd("n.txt", b"1")], commit_message="N", parent_commit=first)

    hub.faults.add(Fault.unavailable(match="/commit/"))
    with pytest.raises(HfHubHTTPError) as refused:
        commit()
    assert (refused.value.response.status_code, repository.head) == (503, first)
    hub.faults.add(Fault.lost_answer(match="/commit/"))
    with pytest.raises(HfHubHTTPError) as lost:
        commit()
    assert (lost.value.response.status_code, repository.commits[1].oid) == (503, first)
    hub.faults.add(Fault.lost_answer(match="/tag/", status=0))
    with pytest.raises(httpx2.RemoteProtocolError):
        api.create_tag("org/m", tag="v1")
    assert repository.tags == {"v1": repository.head}


def test_uploads_that_break_or_are_damaged(hub: Hub, api: HfApi, waits: list[float]) -> None:
    api.create_repo("org/m")
    fault = hub.faults.add(Fault.broken_upload())
    api.upload_file(path_or_fileobj=BLOB, path_in_repo="a.safetensors", repo_id="org/m")
    assert hub.faults.strikes(fault) == 1
    assert [each.status for each in hub.traffic if each.method == "PUT"] == [0, 200]
    hub.create("org/other", "tester").lfs.add(hashlib.sha256(BLOB[::-1]).hexdigest())
    hub.objects.add_lfs([BLOB[::-1]])  # that another repository has it whole does not mend what comes here
    hub.faults.add(Fault.damaged_upload(offset=9))
    with pytest.raises(RuntimeError) as damaged:
        api.upload_file(path_or_fileobj=BLOB[::-1], path_in_repo="b.safetensors", repo_id="org/m")
    assert isinstance(damaged.value.__cause__, BadRequestError)
    assert "b.safetensors" not in hub.repository("org/m").files
    api.upload_file(path_or_fileobj=BLOB[::-1], path_in_repo="b.safetensors", repo_id="org/m")
    assert hub.repository("org/m").read("b.safetensors") == BLOB[::-1]
    assert not list((hub.folder / "incoming").iterdir())


def test_faults_strike_as_often_as_told_however_many_ask(hub: Hub, folder: Path) -> None:
    hub.add_model("org/m", folder)
    fault = hub.faults.add(Fault.unavailable(times=5))
    with ThreadPoolExecutor(8) as pool:
        told = list(pool.map(lambda _: get(f"{hub.endpoint}/api/models/org/m").status_code, range(40)))
    assert (told.count(503), told.count(200), hub.faults.strikes(fault)) == (5, 35, 5)


def test_a_refused_body_does_not_run_into_the_next_request(hub: Hub) -> None:
    hub.faults.add(Fault.unavailable(method="POST"))
    with httpx2.Client(headers={"Authorization": f"Bearer {hub.token}"}) as client:
        assert client.post(f"{hub.endpoint}/api/models/org/m/tag/main", json={"tag": "v1"}).status_code == 503
        assert client.get(f"{hub.endpoint}/api/whoami-v2").status_code == 200


def test_faults_are_chosen_by_predicate_and_given_at_the_start(folder: Path) -> None:
    def ranged(request: Request) -> bool:
        return request.range is not None

    with Hub.start(faults=Faults([Fault.unavailable(times=None, when=ranged, status=502)])) as hub:
        hub.add_model("org/m", folder)
        with httpx2.Client() as client:
            url = f"{hub.endpoint}/org/m/resolve/main/config.json"
            assert client.get(url).status_code == 200
            assert client.get(url, headers={"Range": "bytes=0-1"}).status_code == 502
            hub.faults.clear()
            assert client.get(url, headers={"Range": "bytes=0-1"}).status_code == 206


# Sturdiness


def test_many_upload_at_once(hub: Hub, api: HfApi) -> None:
    api.create_repo("org/m")

    def upload(number: int) -> None:
        data = BLOB + bytes([number])
        while True:  # others commit as well: the parent that was meant may be gone
            head = api.model_info("org/m").sha
            with contextlib.suppress(HfHubHTTPError):
                add = [CommitOperationAdd(f"{number}.safetensors", data)]
                api.create_commit("org/m", add, commit_message=f"{number}", parent_commit=head)
                return

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(upload, range(12)))
    repository = hub.repository("org/m")
    assert [each.parent for each in repository.commits[:-1]] == [each.oid for each in repository.commits[1:]]
    assert {each.title for each in repository.commits} == {*map(str, range(12)), "initial commit"}
    assert all(repository.read(f"{number}.safetensors")[-1] == number for number in range(12))


def test_bodies_may_come_in_chunks_of_unknown_number(hub: Hub, api: HfApi) -> None:
    api.create_repo("org/m")
    sha256 = hashlib.sha256(BLOB).hexdigest()
    with httpx2.Client(headers={"Authorization": f"Bearer {hub.token}"}) as client:
        asked = {"operation": "upload", "objects": [{"oid": sha256, "size": len(BLOB)}]}
        batch = client.post(f"{hub.endpoint}/org/m.git/info/lfs/objects/batch", json=asked).json()
        href = batch["objects"][0]["actions"]["upload"]["href"]
        assert client.put(href, content=iter([BLOB[:7], BLOB[7:9000], BLOB[9000:]])).status_code == 200
        assert (
            "actions"
            not in client.post(f"{hub.endpoint}/org/m.git/info/lfs/objects/batch", json=asked).json()["objects"][0]
        )
        assert client.get(f"{hub.endpoint}/api/models/org/m").status_code == 200  # on the same connection
    assert hub.objects.size(sha256) == len(BLOB)


@pytest.mark.parametrize("part_size", [None, 15 << 20])
def test_large_objects_never_lie_in_memory(hub: Hub, api: HfApi, tmp_path: Path, part_size: int | None) -> None:
    size, hub.part_size = 40 << 20, part_size
    (tmp_path / "m").mkdir()
    with (tmp_path / "m" / "w.safetensors").open("wb") as out:
        out.truncate(size)
    api.create_repo("org/m")
    tracemalloc.start()
    api.upload_folder(repo_id="org/m", folder_path=tmp_path / "m")
    with get_session().stream("GET", link(hub, path="w.safetensors")) as answer:
        assert sum(len(piece) for piece in answer.iter_raw(1 << 16)) == size
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert hub.bytes_sent("/cdn/") == size
    assert peak < 12 << 20  # what the client holds is in it, too


def test_it_runs_as_a_process_and_stops_when_told(folder: Path, tmp_path: Path) -> None:
    support = Path(sys.modules["testhub"].__file__ or "").parents[1]
    process = subprocess.Popen(
        [sys.executable, "-m", "testhub", "--folder", tmp_path, "--model", f"org/m={folder}", "--token", "hf_other"],
        env={**os.environ, "PYTHONPATH": str(support)},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    with process.stdout as lines:
        line = lines.readline()
        assert line.startswith("listening on http://localhost:")
        with httpx2.Client() as client:
            url = f"{line.split()[-1]}/org/m/resolve/main/model.safetensors"
            assert client.get(url, follow_redirects=True).content == BLOB
            process.send_signal(signal.SIGTERM)
            assert process.wait(10) == 0


def test_a_subprocess_finds_it_by_its_environment(hub: Hub, folder: Path, tmp_path: Path) -> None:
    hub.add_model("org/m", folder, private=True)
    script = "import huggingface_hub as h; print(h.whoami()['name'], h.snapshot_download('org/m'))"
    environment = {**os.environ, **hub.environment(tmp_path / "home")}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True)
    name, snapshot = done.stdout.split()
    assert name == "tester"
    assert (tmp_path / "home") in Path(snapshot).parents


def test_a_bug_of_the_hub_fails_the_test() -> None:
    hub = Hub.start()
    with httpx2.Client() as client:
        answer = client.post(f"{hub.endpoint}/api/repos/create", headers={"Authorization": f"Bearer {hub.token}"})
    assert answer.status_code == 500
    with pytest.raises(RuntimeError, match="KeyError"), hub:
        pass


def test_nothing_is_left_behind(folder: Path) -> None:
    before = threading.active_count()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with Hub.start() as hub, httpx2.Client() as client:
            hub.add_model("org/m", folder)
            kept = hub.folder
            client.get(f"{hub.endpoint}/api/models/org/m")
            hub.faults.add(Fault.delayed(seconds=60))
            with pytest.raises(httpx2.ReadTimeout):
                client.get(f"{hub.endpoint}/api/models/org/m", timeout=0.05)
        assert not kept.exists()
    assert threading.active_count() == before


def test_transformers_loads_a_language_model_that_was_pushed(hub: Hub, api: HfApi, models: Any) -> None:
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    api.create_repo("org/llm")
    api.upload_folder(repo_id="org/llm", folder_path=models.llm)
    assert AutoConfig.from_pretrained("org/llm").model_type == "llama"
    here, there = (AutoModelForCausalLM.from_pretrained(name) for name in (models.llm, "org/llm"))
    assert same(here, there)
    assert AutoTokenizer.from_pretrained("org/llm").get_vocab() == AutoTokenizer.from_pretrained(models.llm).get_vocab()
    assert not hub.repository("org/llm").discussions


def test_transformers_pushes_and_loads_a_vision_language_model(hub: Hub, models: Any) -> None:
    from transformers import AutoModelForImageTextToText, CLIPVisionConfig, LlamaConfig, LlavaConfig
    from transformers import LlavaForConditionalGeneration as Llava

    small = {"hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    vision = CLIPVisionConfig(**small, image_size=8, patch_size=4)
    model = Llava(
        LlavaConfig(vision_config=vision, text_config=LlamaConfig(**small, vocab_size=24), image_token_index=23)
    )
    model.push_to_hub("org/lvlm", max_shard_size="8KB", private=True)
    repository = hub.repository("org/lvlm")
    assert repository.private
    assert len([path for path, file in repository.files.items() if file.sha256]) > 1
    assert same(model, AutoModelForImageTextToText.from_pretrained("org/lvlm"))
    commit = hub.add_model("org/checkpoint", models.lvlm)
    snapshot = Path(snapshot_download("org/checkpoint", revision=commit))
    assert all((snapshot / path.name).read_bytes() == path.read_bytes() for path in models.lvlm.iterdir())


def same(one: torch.nn.Module, other: torch.nn.Module) -> bool:
    """Whether two models have the same weights under the same names."""
    ours, theirs = one.state_dict(), other.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)
