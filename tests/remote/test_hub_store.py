"""A model's files on a Hub: one commit, what of it counts, ranges with a token or without, and refusals in words."""

import json
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from scripted_server import Reply, scripted_server
from testhub import Fault, Hub, point_at

from safegraft.errors import CheckpointError, InputChangedError
from safegraft.remote.access import HubAccess
from safegraft.remote.checkpoint import RemoteCheckpoint
from safegraft.remote.errors import is_missing, is_unreachable
from safegraft.remote.http_ranges import Clock
from safegraft.remote.hub import open_hub
from safegraft.testing import tiny_llm

FAST = Clock(sleep=lambda seconds: None)
WEIGHTS = "model.safetensors"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tiny_llm(tmp_path_factory.mktemp("models") / "llm")
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates" / "tools.jinja").write_text("{{ tools }}")
    (folder / "runs").mkdir()
    (folder / "runs" / "log.txt").write_text("not a part of the model")
    return folder


@pytest.fixture
def hub(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with Hub.start(tmp_path / "hub") as running:
        point_at(running, monkeypatch, tmp_path / "cache", token=False)
        running.add_model("org/llm", model)
        yield running


def test_a_store_is_one_commit(hub: Hub, model: Path) -> None:
    first = hub.repository("org/llm").head
    store = open_hub("org/llm", None, HubAccess())
    assert store.listing.name == f"org/llm@{first}"
    assert len(hub.traffic.matching("/api/models/org/llm")) == 1
    assert "additional_chat_templates/tools.jinja" in store.listing.files
    assert not any(name.startswith("runs") for name in store.listing.files)
    # What comes later changes nothing.
    (model / "config.json").write_bytes((model / "config.json").read_bytes() + b"\n")
    second = hub.add_model("org/llm", model)
    for name in (WEIGHTS, "additional_chat_templates/tools.jinja"):
        file, content = store.listing.files[name], (model / name).read_bytes()
        assert file.size == len(content)
        assert store.read(file, 3, 11) == content[3:11]
    config = store.listing.files["config.json"]
    assert store.read(config, 0, config.size) + b"\n" == (model / "config.json").read_bytes()
    store.close()
    for revision in ("main", second):
        again = open_hub("org/llm", revision, HubAccess())
        assert again.listing.name == f"org/llm@{second}"
        again.close()


def test_only_what_is_asked_for_moves(hub: Hub, model: Path) -> None:
    store = open_hub("org/llm", None, HubAccess())
    weights = store.listing.files[WEIGHTS]
    assert weights.sha256 is not None
    assert weights.version == weights.sha256
    hub.clear_traffic()
    read = [store.read(weights, start, start + 100) for start in (0, 2_000, 8_000)]
    assert read == [(model / WEIGHTS).read_bytes()[start : start + 100] for start in (0, 2_000, 8_000)]
    assert store.bytes_read == hub.bytes_sent("/cdn/") == 300
    assert len(hub.traffic.matching("/resolve/")) == 1  # the signed URL is used again
    store.close()


def test_a_hub_under_every_fault_gives_the_same_bytes(hub: Hub, model: Path) -> None:
    hub.faults.add(
        Fault.unavailable(1, "/api/models"),
        Fault.rate_limited(1, "/api/models"),
        Fault.unavailable(2, "/resolve/"),
        Fault.rate_limited(2, "/cdn/"),
        Fault.expired(1, "/cdn/"),
        Fault.dropped(1, "/cdn/"),
        Fault.dropped(2, "/cdn/", after=700),
        Fault.truncated(1, "/cdn/", after=100),
        Fault.ignored_range(1, "/cdn/"),
    )
    store = open_hub("org/llm", None, HubAccess(), clock=FAST)
    weights = store.listing.files[WEIGHTS]
    content = (model / WEIGHTS).read_bytes()
    assert (
        b"".join(
            store.read(weights, start, min(start + 2_000, weights.size)) for start in range(0, weights.size, 2_000)
        )
        == content
    )
    hub.expire_links()
    assert store.read(weights, 0, 10) == content[:10]
    store.close()


def test_the_token_goes_to_the_hub_alone(hub: Hub, model: Path) -> None:
    hub.add_model("org/secret", model, private=True)
    store = open_hub("org/secret", None, HubAccess(hub.endpoint, hub.read_token))
    file = store.listing.files[WEIGHTS]
    assert store.read(file, 0, 8) == (model / WEIGHTS).read_bytes()[:8]
    store.close()
    seen = {(one.host, one.authorized) for one in hub.traffic}
    assert seen == {("localhost", True), ("127.0.0.1", False)}


def test_a_token_of_the_environment_is_used_unless_none_is_to_be(
    hub: Hub, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", hub.read_token)
    hub.add_model("org/secret", model, private=True)
    open_hub("org/secret", None, HubAccess()).close()
    with pytest.raises(CheckpointError, match="or it is private"):
        open_hub("org/secret", None, HubAccess(token=False))


# -- refusals -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "revision", "words"),
    [
        ("org/nothing", None, "org/nothing: the Hub has nothing of this name, or it is private: check the name"),
        ("org/llm", "v9", "org/llm@v9: the Hub has no such revision"),
        ("org/llm", "f" * 40, "the Hub has no such revision"),
        ("org/llm/more", None, "is not a name that the Hub can have"),
        ("org/a--b", None, "is not a name that the Hub can have"),
    ],
)
def test_what_the_hub_does_not_have(hub: Hub, name: str, revision: str | None, words: str) -> None:
    with pytest.raises(CheckpointError, match=words) as caught:
        open_hub(name, revision, HubAccess())
    assert is_missing(caught.value) == (name == "org/nothing")
    assert not is_unreachable(caught.value)


def test_a_gated_model_says_where_to_ask(hub: Hub, model: Path) -> None:
    hub.add_model("org/gated", model, gated=True)
    store = open_hub("org/gated", None, HubAccess(token=hub.stranger_token))
    with closing(store), pytest.raises(CheckpointError) as caught:
        store.read(store.listing.files[WEIGHTS], 0, 8)
    assert f"ask for it at {hub.endpoint}/org/gated" in str(caught.value)
    store = open_hub("org/gated", None, HubAccess(token=False))
    with closing(store), pytest.raises(CheckpointError) as caught:
        store.read(store.listing.files[WEIGHTS], 0, 8)
    assert f"ask for access at {hub.endpoint}/org/gated, then log in with `hf auth login`" in str(caught.value)


def test_a_wrong_token_is_told_and_not_shown(hub: Hub) -> None:
    with pytest.raises(CheckpointError, match="the Hub does not accept the token") as caught:
        open_hub("org/llm", None, HubAccess(token="hf_wrong_token"))
    assert "hf_wrong" not in str(caught.value)


def test_no_answer_can_be_told_from_a_refusal(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.faults.add(Fault.unavailable(None))
    with pytest.raises(CheckpointError, match=r"the Hub answers with status 503 \(4 attempts") as caught:
        open_hub("org/llm", None, HubAccess(), clock=FAST)
    assert is_unreachable(caught.value)
    with scripted_server() as gone:
        endpoint = gone.url()
    with pytest.raises(CheckpointError, match=r"the Hub does not answer: .*connection refused") as caught:
        open_hub("org/llm", None, HubAccess(endpoint))
    assert is_unreachable(caught.value)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(CheckpointError, match="HF_HUB_OFFLINE is set") as caught:
        open_hub("org/llm", None, HubAccess())
    assert is_unreachable(caught.value)


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"<html>Sign in to the network</html>", "what answers is no Hub"),
        (b'{"id": "org/llm", "siblings": []}', "does not say which commit"),
        (b'{"id": "org/llm", "sha": "%s", "siblings": [{"rfilename": "config.json"}]}' % (b"a" * 40), "size"),
    ],
)
def test_what_is_no_hub_is_told(hub: Hub, body: bytes, words: str) -> None:
    with scripted_server() as server:
        server.otherwise = lambda asked: Reply(200, {"Content-Type": "application/json"}, body)
        with pytest.raises(CheckpointError, match=words):
            open_hub("org/llm", None, HubAccess(server.url()))


def test_thousands_of_files(hub: Hub) -> None:
    siblings = [{"rfilename": f"model-{one:05}.safetensors", "size": 9, "blobId": "b"} for one in range(9000)]
    body = json.dumps({"id": "org/llm", "sha": "a" * 40, "siblings": siblings}).encode()
    with scripted_server() as server:
        server.otherwise = lambda asked: Reply(200, {}, body)
        store = open_hub("org/llm", None, HubAccess(server.url()))
    assert len(store.listing.files) == 9000
    store.close()


def test_a_small_file_damaged_on_its_way_is_noticed_by_its_git_id(hub: Hub) -> None:
    hub.faults.add(Fault.flipped(1, "config.json", offset=3))
    with pytest.raises(InputChangedError, match=r"config\.json: does not have the git id"):
        RemoteCheckpoint(open_hub("org/llm", None, HubAccess()))
