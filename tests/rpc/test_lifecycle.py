"""When workers die, servers stop, disks fill and people change their minds, nothing is lost and nothing lingers."""

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import pytest

from safegraft.engine.staging import partial_path
from safegraft.errors import MergeCancelledError, OutputError, ServerError, ServerUnavailableError
from safegraft.rpc.client import Client, MergeState
from safegraft.rpc.ring import SLOT_BYTES, SLOTS
from safegraft.testing import tiny_llm, tiny_lvlm
from safegraft.v1 import merge_service_pb2
from safegraft.v1.merge_service_pb2_grpc import MergeServiceStub

Recipe = Callable[..., dict[str, Any]]
Until = Callable[..., Any]

LAST = "model.norm.weight"  # the last tensor that is merged
SHARD = 2000  # bytes: several files come before it


def data(server) -> Path:
    return server.log.parent / "data"


def inodes(server, id: str) -> dict[str, int]:
    """Inode by name of a merge's files."""
    return {path.name: path.stat().st_ino for path in (data(server) / "merges" / id / "files").iterdir()}


def hold(client: Client, server, held: Recipe, gate: Path, until: Until) -> tuple[str, dict[str, int]]:
    """A merge that waits at its last tensor; returns what it has finished before, with inodes."""
    merge = client.create(held(gate=gate, tensor=LAST), max_shard_size=SHARD)
    partial = partial_path(data(server) / "merges" / merge.id / "files")
    done = until(lambda: [file.name for file in client.files(merge.id) if file.sha256][:2])
    until(gate.with_name("gate.reached").exists)
    return merge.id, {name: (partial / name).stat().st_ino for name in done}


def test_a_killed_worker_s_merge_continues_where_it_was(
    client: Client, server, held: Recipe, gate: Path, until: Until, tmp_path: Path
):
    id, before = hold(client, server, held, gate, until)
    assert before
    (worker,) = server.workers()
    os.kill(worker, signal.SIGKILL)
    gate.unlink()
    assert client.wait(id).state is MergeState.SUCCEEDED
    assert before.items() <= inodes(server, id).items(), "what was finished was not made again"
    client.pull(id, tmp_path / "out")


def test_a_merge_that_kills_its_workers_fails_in_the_end(
    client: Client, server, held: Recipe, gate: Path, until: Until
):
    id, _ = hold(client, server, held, gate, until)
    others = server.children() - server.workers()
    for _ in range(3):
        worker = until(lambda: server.children() - others).pop()
        os.kill(worker, signal.SIGKILL)
        others.add(worker)
    merge = client.wait(id)
    assert merge.state is MergeState.FAILED
    assert isinstance(merge.error, ServerError)
    assert "lost 3 workers" in str(merge.error)
    assert "SIGKILL" in str(merge.error)
    assert not (data(server) / "merges" / id).exists()


def test_a_running_merge_is_cancelled_within_a_second(client: Client, server, held: Recipe, until: Until):
    merge = client.create(held(delay=0.2), threads=1, max_shard_size=SHARD)
    until(lambda: client.get(merge.id).progress.bytes_done)
    workers = server.workers()
    began = time.monotonic()
    assert client.cancel(merge.id).state is MergeState.CANCELLED
    assert time.monotonic() - began < 1.0
    assert server.workers() == workers, "the worker stopped by itself and is at hand for the next merge"
    assert not (data(server) / "merges" / merge.id).exists()
    assert client.cancel(merge.id).state is MergeState.CANCELLED, "cancelling again is no error"
    with pytest.raises(MergeCancelledError):
        list(client.read(merge.id, "safegraft.json"))


def test_a_worker_that_does_not_stop_is_killed(client: Client, server, held: Recipe, gate: Path, until: Until):
    id, _ = hold(client, server, held, gate, until)
    began = time.monotonic()
    assert client.cancel(id).state is MergeState.CANCELLED
    assert time.monotonic() - began < 3.0
    assert client.get(id).error is None


def test_a_cancellation_takes_its_course_when_its_caller_has_gone(
    client: Client, server, held: Recipe, gate: Path, until: Until
):
    id, _ = hold(client, server, held, gate, until)
    with grpc.insecure_channel(server.target) as channel, pytest.raises(grpc.RpcError) as caught:
        MergeServiceStub(channel).CancelMerge(merge_service_pb2.CancelMergeRequest(name=f"merges/{id}"), timeout=0.3)
    assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED, "the worker is stuck for longer than that"
    until(lambda: client.get(id).state is MergeState.CANCELLED)


def test_a_queued_merge_is_cancelled_without_a_worker(client: Client, server, held: Recipe, gate: Path, until: Until):
    running, _ = hold(client, server, held, gate, until)
    queued = client.create(held())
    assert client.cancel(queued.id).state is MergeState.CANCELLED
    assert client.get(running).state is MergeState.RUNNING
    gate.unlink()
    assert client.wait(running).state is MergeState.SUCCEEDED
    assert client.get(queued.id).state is MergeState.CANCELLED


def test_a_reader_of_a_merge_that_is_cancelled_is_told(client: Client, server, held: Recipe, gate: Path, until: Until):
    id, _ = hold(client, server, held, gate, until)
    reading = client.read(id, "safegraft.json")
    client.cancel(id)
    with pytest.raises(MergeCancelledError):
        list(reading)


def test_merges_run_in_the_order_of_their_creation(client: Client, server, held: Recipe, gate: Path, until: Until):
    hold(client, server, held, gate, until)
    waiting = [client.create(held()).id for _ in range(3)]
    assert [client.get(id).state for id in waiting] == [MergeState.QUEUED] * 3
    gate.unlink()
    assert all(client.wait(id).state is MergeState.SUCCEEDED for id in waiting)
    ended = [client.get(id).updated for id in waiting]
    assert ended == sorted(ended)


def test_servers_that_are_killed_and_stopped_hand_their_merges_on(
    start_server, held: Recipe, gate: Path, until: Until, tmp_path: Path
):
    first = start_server()
    with Client(first.target) as client:
        id, before = hold(client, first, held, gate, until)
        queued = client.create(held()).id
        kept = client.create(held(), request_id="kept").id
        orphans = first.workers()
    first.stop(signal.SIGKILL)

    second = start_server(data=str(data(first)))  # at once: the orphan may still be writing
    until(lambda: not any(Path(f"/proc/{pid}/cmdline").exists() for pid in orphans), seconds=10)
    with Client(second.target, patience=0.3) as client, grpc.insecure_channel(second.target) as channel:
        until(lambda: client.get(id).state is MergeState.RUNNING)
        watching = MergeServiceStub(channel).WatchMerge(merge_service_pb2.WatchMergeRequest(name=f"merges/{id}"))
        next(watching)
        reading = client.read(id, "safegraft.json")
        second.process.send_signal(signal.SIGTERM)
        began = time.monotonic()
        with pytest.raises(grpc.RpcError) as caught:
            list(watching)
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        assert "grpc-status-details-bin" in dict(caught.value.trailing_metadata()), "with RetryInfo"
        with pytest.raises(ServerUnavailableError):
            list(reading)
        assert second.process.wait(10) == 0
        assert time.monotonic() - began < 6
    assert "Traceback" not in second.log.read_text()

    gate.unlink()
    third = start_server(data=str(data(first)))
    with Client(third.target) as client:
        assert client.wait(id).state is MergeState.SUCCEEDED
        assert client.wait(queued).state is MergeState.SUCCEEDED
        assert client.create(held(), request_id="kept").id == kept
        assert before.items() <= inodes(first, id).items(), "what was finished was never made again"
        client.pull(id, tmp_path / "out")
    assert third.stop(signal.SIGINT) == 0


def test_two_servers_do_not_share_a_data_folder(start_server, server):
    second = start_server(data=str(data(server)))
    assert second.failed
    assert "in use by another server" in second.log.read_text()


def test_two_servers_do_not_share_a_port(start_server, server, tmp_path: Path):
    second = start_server(listen=server.target, data=str(tmp_path / "data"))
    assert second.failed
    assert "cannot listen" in second.log.read_text()


def test_a_file_that_cannot_be_written_fails_the_merge(start_server, linear: Recipe, root: Path, tmp_path: Path):
    limit = 2 * SLOTS * SLOT_BYTES  # what workers share with the server counts as a file, too
    tiny_llm(root / "fat-llm", vocab=20_000, hidden=64, seed=4)
    tiny_lvlm(root / "fat-lvlm", vocab=20_004, hidden=64, seed=5)
    recipe = linear(llm="fat-llm", lvlm="fat-lvlm")
    server = start_server(limit=limit, data=str(tmp_path / "data"))
    with Client(server.target) as client:
        merge = client.wait(client.create(recipe).id)
        assert merge.state is MergeState.FAILED
        assert isinstance(merge.error, OutputError)
        assert str(tmp_path) not in str(merge.error), "where the data lies is no client's business"
        assert not list((tmp_path / "data" / "merges").iterdir())
        # Nothing is written for this one.
        assert client.merge(recipe, tmp_path / "out", retention="none").bytes_received > limit
