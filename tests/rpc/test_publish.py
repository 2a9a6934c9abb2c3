"""PublishMerge against a real server and a Hub: all of a result in one commit, whatever comes in between."""

import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from testhub import Fault, Hub

from safegraft.errors import (
    ConflictError,
    InputError,
    MergeCancelledError,
    OutputError,
    ServerUnavailableError,
    UsageError,
)
from safegraft.rpc.client import Client, Publication, PublicationState
from safegraft.testing import tiny_llm

Recipe = Callable[..., dict[str, Any]]
Until = Callable[..., Any]

SHARD = 2000  # bytes: the tiny models take several files
LAST = "model.norm.weight"  # the last tensor that is merged
SLOW = 30.0  # seconds: longer than anybody waits here
PNG = b"\x89PNG\r\n\x1a\n" + bytes(100)
TEAM = "team"


@pytest.fixture(scope="module")
def shared_hub() -> Iterator[Hub]:
    with Hub.start(token="hf_ownToken0123456789") as hub:
        yield hub


@pytest.fixture
def hub(shared_hub: Hub) -> Hub:
    """With no faults and nothing that has happened yet, but for repositories."""
    shared_hub.faults.clear()
    shared_hub.clear_traffic()
    return shared_hub


@pytest.fixture(scope="module")
def options(shared_hub: Hub, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """For a server that publishes to this Hub, and has no token of its own but a named one."""
    folder = tmp_path_factory.mktemp("publish")
    secret = folder / "secret"
    secret.write_text(shared_hub.token)
    secret.chmod(0o600)
    environment = {**shared_hub.environment(folder / "home"), "HF_TOKEN": ""}
    return {"publish_to": ["org/*"], "hub_credentials": [f"{TEAM}={secret}"], "environment": environment}


@pytest.fixture(scope="module")
def server(start_server, options: dict[str, Any]) -> Any:
    """One for all tests that do not break it."""
    return start_server(**options)


@pytest.fixture
def client(server) -> Iterator[Client]:
    with Client(server.target, patience=10.0) as client:
        yield client


@pytest.fixture
def background() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(4) as threads:
        yield threads


def data(server) -> Path:
    return server.log.parent / "data"


def files_of(hub: Hub, name: str, revision: str = "main") -> dict[str, bytes]:
    repository = hub.repository(name)
    names = repository.commit_at(revision).files.keys() - {".gitattributes"}
    return {path: repository.read(path, revision) for path in names}


def uploads(hub: Hub) -> list[str]:
    return [request.path for request in hub.traffic.matching("/upload/", "PUT")]


def running(client: Client, id: str) -> Publication | None:
    found = client.get(id).publications
    return found[0] if found and found[0].state is PublicationState.RUNNING else None


@pytest.mark.parametrize("retention", ["keep", "none"])
def test_a_result_is_published_in_one_commit(
    client: Client, server, hub: Hub, linear: Recipe, retention: Any, tmp_path: Path
):
    merge = client.create(linear(), max_shard_size=SHARD, retention=retention)
    seen: list[int] = []
    progress = lambda one: seen.append(one.bytes_done)  # noqa: E731
    name = f"org/{retention}"
    published = client.publish(
        merge.id, name, tags=["v1"], message="Ours", unevaluated=True, token=hub.token, progress=progress
    )
    client.pull(merge.id, tmp_path / "out")
    there = files_of(hub, name)
    small = {"README.md", "safegraft.json"}  # the card says that nobody has evaluated it
    local = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    assert {name: there[name] for name in there.keys() - small} == {name: local[name] for name in local.keys() - small}
    assert json.loads(there["safegraft.json"])["plan_digest"] == merge.plan_digest
    repository = hub.repository(name)
    head = repository.commit_at("main")
    assert (published.state, published.commit, published.revision) == (PublicationState.SUCCEEDED, head.oid, "main")
    assert head.title == "Ours"
    assert repository.private
    assert published.private
    assert repository.tags["v1"] == head.oid
    assert (published.bytes_done, published.bytes_total) == (sum(map(len, there.values())),) * 2
    assert seen == sorted(seen)
    assert client.get(merge.id).publications == (published,)
    assert not (data(server) / "merges" / merge.id / "publishing").exists()
    assert (data(server) / "merges" / merge.id).exists() == (retention == "keep")

    sent = len(uploads(hub))
    again = client.publish(merge.id, name, tags=["v1"], message="Ours", unevaluated=True, token=hub.token)
    assert again.commit == published.commit, "it is there already"
    assert len(uploads(hub)) == sent
    client.delete(merge.id)
    assert not (data(server) / "publishing" / merge.id).exists()
    assert files_of(hub, name) == there


def test_a_named_credential_publishes_an_evaluation_in_a_pull_request(client: Client, hub: Hub, linear: Recipe):
    merge = client.create(linear(), retention="none")
    assert client.server_info().hub_credentials == (TEAM,)
    score = {"value": 0.25, "low": 0.2, "high": 0.3, "n": 50, "lower_is_better": True}
    axis = {"axis": "text_safety", "dataset": "p", "judge": None, "images": False}
    subject = {
        "model": "merged",
        "digest": merge.plan_digest,
        "settings": {"through": "transformers"},
        "versions": {},
        "suites": [{"name": "p", "digest": "e" * 64, "n": 50}],
        "judges": [],
        "scores": [{"name": "p", **score, **axis}],
        "measured": [],
        "skipped": {},
        "answers": ["a" * 100] * 50_000,  # more than a request may have
    }
    evaluation = json.dumps({"format": "safegraft-evaluation/1", "evaluations": [subject]}).encode()
    asked: dict[str, Any] = {"credential": TEAM, "evaluation": evaluation, "plot": PNG, "pull_request": True}
    client.publish(merge.id, "org/card", credential=TEAM, unevaluated=True)
    published = client.publish(merge.id, "org/card", **asked)
    assert (published.evaluated, published.credential, published.warnings) == (True, TEAM, ())
    assert published.revision == "refs/pr/1"
    assert published.pull_request == published.url
    there = files_of(hub, "org/card", "refs/pr/1")
    assert "25.0" in there["README.md"].decode()
    assert there["trade-off.png"] == PNG
    assert "trade-off.png" not in files_of(hub, "org/card"), "it is proposed only"
    assert [one.evaluated for one in client.get(merge.id).publications] == [False, True]


def test_what_is_wrong_is_said_before_anything_happens(client: Client, hub: Hub, linear: Recipe):
    merge = client.create(linear(), retention="none")
    refusals: list[tuple[str, dict[str, Any]]] = [
        ("credential.*x-hub-token", {"unevaluated": True}),
        ("no credential 'other'; it has team", {"unevaluated": True, "credential": "other"}),
        ("evaluation.*is missing", {"credential": TEAM}),
    ]
    for words, more in refusals:
        with pytest.raises(UsageError, match=words):
            client.publish(merge.id, "org/refused", **more)
    with pytest.raises(UsageError, match=r"does not publish to elsewhere/merged; it does to org/\*"):
        client.publish(merge.id, "elsewhere/merged", unevaluated=True, credential=TEAM)
    assert client.get(merge.id).publications == ()
    assert not hub.traffic.matching("")
    assert client.server_info().publish_to == ("org/*",)


def test_tokens_are_shown_and_stored_nowhere(start_server, options: dict[str, Any], hub: Hub, linear: Recipe):
    server = start_server(**options)
    wrong = ("hf_wrongToken9876543210", "odd-token-of-no-kind")
    with Client(server.target) as client:
        merge = client.create(linear(), retention="none")
        for token in wrong:
            with pytest.raises(OutputError, match="org/shown") as caught:
                client.publish(merge.id, "org/shown", unevaluated=True, token=token)
            failed = client.get(merge.id).publications[0]
            assert failed.state is PublicationState.FAILED
            assert str(failed.error) == str(caught.value)
            assert token not in str(caught.value)
        done = client.publish(merge.id, "org/shown", unevaluated=True, token=hub.token)
        assert done.id == failed.id, "continued"
        client.publish(merge.id, "org/shown", unevaluated=True, credential=TEAM)
    server.stop()
    written = b"".join(path.read_bytes() for path in data(server).rglob("*") if path.is_file())
    written += server.log.read_bytes()
    assert b"org/shown" in written
    for token in (*wrong, hub.token):
        assert token.encode() not in written


def test_a_running_merge_is_published_once_it_has_succeeded(
    client: Client, hub: Hub, held: Recipe, gate: Path, until: Until, background: ThreadPoolExecutor
):
    merge = client.create(held(gate=gate, tensor=LAST), max_shard_size=SHARD)
    publishing = background.submit(client.publish, merge.id, "org/waits", unevaluated=True, credential=TEAM)
    until(lambda: running(client, merge.id))
    time.sleep(0.2)
    assert not hub.traffic.matching("")
    gate.unlink()
    assert publishing.result(30).state is PublicationState.SUCCEEDED


def test_a_publication_fails_with_a_merge_that_is_cancelled(
    client: Client, held: Recipe, gate: Path, until: Until, background: ThreadPoolExecutor
):
    merge = client.create(held(gate=gate, tensor=LAST), max_shard_size=SHARD)
    publishing = background.submit(client.publish, merge.id, "org/lost", unevaluated=True, credential=TEAM)
    until(lambda: running(client, merge.id))
    client.cancel(merge.id)
    with pytest.raises(MergeCancelledError, match=f"merges/{merge.id}"):
        publishing.result(30)
    with pytest.raises(ConflictError, match="nothing to publish"):
        client.publish(merge.id, "org/lost", unevaluated=True, credential=TEAM)


@pytest.mark.slow  # the worker is killed, after having been waited for
def test_clients_join_and_one_cancels(
    client: Client, server, hub: Hub, linear: Recipe, until: Until, background: ThreadPoolExecutor
):
    merge = client.create(linear(), max_shard_size=SHARD, retention="none")
    fault = hub.faults.add(Fault.delayed(1, "/upload/", seconds=SLOW, when=lambda _: len(uploads(hub)) > 1))
    asked: dict[str, Any] = {"unevaluated": True, "credential": TEAM}
    both: list[Future[Publication]] = [
        background.submit(client.publish, merge.id, "org/joined", **asked) for _ in range(2)
    ]
    until(lambda: hub.faults.strikes(fault))
    until(lambda: client.get(merge.id).publications[0].bytes_done)
    (one,) = client.get(merge.id).publications
    assert one.state is PublicationState.RUNNING
    with pytest.raises(ConflictError, match="other settings"):
        client.publish(merge.id, "org/joined", tags=["v1"], **asked)
    with pytest.raises(ConflictError, match="being published"):
        client.delete(merge.id)

    began = time.monotonic()
    assert client.cancel_publication(merge.id, one.id).state is PublicationState.CANCELLED
    assert time.monotonic() - began < 8
    for each in both:
        with pytest.raises(MergeCancelledError, match="org/joined was cancelled"):
            each.result(10)
    assert client.cancel_publication(merge.id, one.id).state is PublicationState.CANCELLED, "again is no error"
    assert not (data(server) / "merges" / merge.id).exists()
    assert files_of(hub, "org/joined") == {}, "nothing can be seen"

    sent = uploads(hub)
    hub.clear_traffic()
    done = client.publish(merge.id, "org/joined", **asked)
    assert done.id == one.id
    assert sent[:-1]
    assert not set(sent[:-1]) & set(uploads(hub)), "what the Hub had was not sent again"
    with pytest.raises(ConflictError, match="has succeeded"):
        client.cancel_publication(merge.id, one.id)


def test_a_killed_worker_s_publication_goes_on(
    start_server, options: dict[str, Any], hub: Hub, held: Recipe, gate: Path, until: Until
):
    server = start_server(**options)
    with Client(server.target) as client, ThreadPoolExecutor(1) as threads:
        merge = client.create(held(gate=gate, tensor=LAST), max_shard_size=SHARD, retention="none")
        idle = server.children()
        publishing = threads.submit(client.publish, merge.id, "org/killed", unevaluated=True, token=hub.token)
        until(gate.with_name("gate.reached").exists)
        until(lambda: uploads(hub))
        (worker,) = server.children() - idle
        os.kill(worker, signal.SIGKILL)
        gate.unlink()
        assert publishing.result(30).state is PublicationState.SUCCEEDED
    server.close()
    sent = uploads(hub)
    assert len(sent) == len(set(sent)), "each file once"


@pytest.mark.slow
def test_a_client_waits_for_a_server_that_is_stopped_and_one_that_is_killed(
    start_server, options: dict[str, Any], hub: Hub, held: Recipe, gate: Path, until: Until, tmp_path: Path
):
    options = {**options, "data": str(tmp_path / "data")}
    first = start_server(**options)
    options["listen"] = first.target
    found: list[Any] = []

    def publish() -> None:
        with Client(first.target, patience=60.0) as client:
            found.append(client.publish(merge.id, "org/stopped", unevaluated=True, token=hub.token))

    with Client(first.target) as client:
        merge = client.create(held(gate=gate, tensor=LAST), max_shard_size=SHARD, retention="none")
    thread = threading.Thread(target=publish)
    thread.start()
    reached = gate.with_name("gate.reached")
    until(reached.exists)
    until(lambda: uploads(hub))
    assert first.stop(signal.SIGTERM) == 0
    assert "Traceback" not in first.log.read_text()

    reached.unlink()
    second = start_server(**options)
    until(reached.exists)
    with Client(second.target) as client:
        (one,) = client.get(merge.id).publications
        assert one.state is PublicationState.RUNNING
    second.stop(signal.SIGKILL)

    gate.unlink()
    third = start_server(**options)
    thread.join(60)
    (done,) = found
    assert (done.state, done.id) == (PublicationState.SUCCEEDED, one.id)
    sent = uploads(hub)
    assert len(sent) == len(set(sent)), "each file once"
    assert not (tmp_path / "data" / "merges" / merge.id).exists()
    third.close()


@pytest.mark.slow
def test_after_a_crash_it_has_failed_and_can_be_called_for_again(
    start_server, options: dict[str, Any], hub: Hub, held: Recipe, gate: Path, until: Until, tmp_path: Path
):
    options = {**options, "data": str(tmp_path / "data")}
    first = start_server(**options)
    with Client(first.target, patience=0.1) as client, ThreadPoolExecutor(1) as threads:
        merge = client.create(held(gate=gate, tensor=LAST), max_shard_size=SHARD, retention="none")
        publishing = threads.submit(client.publish, merge.id, "org/crash", unevaluated=True, credential=TEAM)
        until(gate.with_name("gate.reached").exists)
        first.stop(signal.SIGKILL)
        with pytest.raises(ServerUnavailableError):
            publishing.result(30)
    second = start_server(**options)
    with Client(second.target) as client:
        (one,) = client.get(merge.id).publications
        assert one.state is PublicationState.FAILED
        assert isinstance(one.error, ServerUnavailableError)
        assert "call again: it continues" in str(one.error)
        gate.unlink()
        assert client.publish(merge.id, "org/crash", unevaluated=True, credential=TEAM).id == one.id
    second.close()


def test_a_broken_connection_makes_no_second_pull_request(
    server, hub: Hub, linear: Recipe, proxy: Any, background: ThreadPoolExecutor, until: Until
):
    with Client(proxy.target, patience=20.0) as client, Client(server.target) as direct:
        merge = direct.create(linear(), retention="none")
        direct.publish(merge.id, "org/pulled", unevaluated=True, credential=TEAM)
        asked: dict[str, Any] = {"unevaluated": True, "credential": TEAM, "pull_request": True, "message": "Again"}
        other = direct.create(linear(0.75), retention="none")
        fault = hub.faults.add(Fault.delayed(1, r"/commit/", seconds=1.0))
        publishing = background.submit(client.publish, other.id, "org/pulled", **asked)
        until(lambda: hub.faults.strikes(fault))
        while not direct.get(other.id).publications[0].state.final:
            proxy.cut()
            time.sleep(0.05)
        assert publishing.result(20).revision == "refs/pr/1"
        assert len(direct.get(other.id).publications) == 1
    assert len(hub.repository("org/pulled").pull_requests) == 1


def test_inputs_on_the_hub_are_read_with_the_credential_that_was_named(
    start_server, options: dict[str, Any], hub: Hub, root: Path, linear: Recipe, tmp_path: Path
):
    hub.add_model("org/llm", root / "llm", private=True)
    hub.add_model("org/lvlm", root / "lvlm", private=True)
    server = start_server(hub=["org/*"], **options)
    recipe = linear(llm="org/llm", lvlm="org/lvlm")
    with Client(server.target) as client:
        with pytest.raises(InputError, match="org/llm"):
            client.create(recipe)
        with pytest.raises(UsageError, match="no credential 'other'; it has team"):
            client.plan(recipe, hub_credential="other")
        digest = client.plan(recipe, hub_credential=TEAM)["digest"]
        merge = client.create(recipe, hub_credential=TEAM, retention="none", request_id="r")
        assert (merge.plan_digest, merge.hub_credential) == (digest, TEAM)
        with pytest.raises(UsageError, match="request_id"):
            client.create(recipe, retention="none", request_id="r")
        # The branch moves on. Whoever publishes plans again, and stays with the commit that was there.
        tiny_llm(tmp_path / "newer", seed=9)
        hub.add_model("org/llm", tmp_path / "newer")
        client.pull(merge.id, tmp_path / "out")
        client.publish(merge.id, "org/inputs", unevaluated=True, credential=TEAM)
    there = files_of(hub, "org/inputs")
    assert there["model.safetensors"] == (tmp_path / "out" / "model.safetensors").read_bytes()
    server.close()
