"""Transfers over connections that break, stall and damage bytes; and transfers that are taken up by another process."""

import contextlib
import json
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from safegraft.engine.staging import partial_path
from safegraft.errors import DataCorruptedError, OutputError, ServerUnavailableError
from safegraft.rpc.client import Client, Merge
from safegraft.rpc.upload import checkpoint_files

Recipe = Callable[..., dict[str, Any]]


@pytest.fixture(scope="module")
def finished(server, linear: Recipe) -> Merge:
    with Client(server.target) as client:
        return client.wait(client.create(linear(llm="big-llm", lvlm="big-lvlm")).id)


@pytest.fixture(scope="module")
def weights(server, finished: Merge) -> tuple[str, bytes]:
    """Name and content of the largest file."""
    file = max(finished.files, key=lambda one: one.size)
    with Client(server.target) as client:
        return file.name, b"".join(client.read(finished.id, file.name))


@pytest.fixture
def through(proxy) -> Iterator[Client]:
    """A client whose connections the test can break."""
    with Client(proxy.target, patience=5.0) as client:
        yield client


@pytest.mark.parametrize("retention", ["keep", "none"])
def test_a_read_survives_connections_that_break(
    through: Client, proxy, finished: Merge, weights: tuple[str, bytes], linear: Recipe, retention: Any
):
    id = finished.id
    if retention == "none":
        id = through.create(linear(llm="big-llm", lvlm="big-lvlm"), retention="none").id
    proxy.budget = 800_000  # every connection carries a chunk, and part of the next
    name, content = weights
    assert b"".join(through.read(id, name)) == content
    assert proxy.cuts >= 2


def test_a_read_resumes_at_the_byte_where_it_was_cut(through: Client, proxy, finished: Merge, weights):
    name, content = weights
    reading = through.read(finished.id, name, 1000, len(content) - 1000)
    parts = [next(reading)]
    proxy.cut()
    parts += reading
    assert b"".join(parts) == content[1000:-1000]


def test_a_damaged_chunk_is_asked_for_again(through: Client, proxy, finished: Merge, weights):
    name, content = weights
    proxy.twist = content[700_000:700_040]
    assert b"".join(through.read(finished.id, name)) == content
    assert proxy.twist == b"", "the damage was done"


def test_a_read_gives_up_when_nothing_comes(proxy, finished: Merge, weights):
    proxy.budget = 1000  # ends every connection before a whole message is through
    with Client(proxy.target, patience=1.0) as client, pytest.raises(ServerUnavailableError):
        list(client.read(finished.id, weights[0]))
    assert proxy.cuts > 1, "it tried again"


def test_no_server_is_said_at_once(proxy):
    proxy.close()
    with Client(proxy.target) as client, pytest.raises(ServerUnavailableError):
        client.health()


def test_a_watch_continues_over_a_new_connection(through: Client, proxy, held: Recipe, gate: Path):
    merge = through.create(held(gate=gate, tensor="model.norm.weight"))
    revisions = []
    for one in through.watch(merge.id):
        revisions.append(one.revision)
        if len(revisions) == 1:
            proxy.cut()
            threading.Timer(0.3, gate.unlink).start()
    assert revisions == sorted(set(revisions))
    assert through.get(merge.id).state == "succeeded"


def test_a_read_follows_a_merge_from_before_it_begins(client: Client, held: Recipe, gate: Path):
    merge = client.create(held(gate=gate, tensor="model.norm.weight"), max_shard_size=2000)
    first, last = merge.files[0], merge.files[-1]
    content = b"".join(client.read(merge.id, first.name))
    assert len(content) == first.size
    assert not client.get(merge.id).state.final, "the first file is there while the merge is held up"
    late = client.read(merge.id, last.name)
    threading.Timer(0.3, gate.unlink).start()
    assert json.loads(b"".join(late))["plan_digest"] == merge.plan_digest


def test_a_pull_appears_when_complete_and_is_not_repeated(client: Client, finished: Merge, tmp_path: Path):
    out = tmp_path / "out"
    first = client.pull(finished.id, out)
    assert not partial_path(out).exists()
    again = client.pull(finished.id, out)
    assert (again.bytes_received, again.resumed, again.files) == (0, True, first.files)


def test_a_pull_continues_what_another_process_left(proxy, client: Client, finished: Merge, tmp_path: Path):
    out = tmp_path / "out"
    total = sum(file.size for file in finished.files)
    with Client(proxy.target, patience=0.3) as fragile:

        def cut(progress: Any) -> None:
            if progress.bytes_done > total // 2:
                proxy.close()

        with pytest.raises(ServerUnavailableError):
            fragile.pull(finished.id, out, cut)
    assert not out.exists()
    result = client.pull(finished.id, out)
    assert result.resumed
    assert 0 < result.bytes_received < 0.75 * total
    assert {path.name for path in out.iterdir()} == {file.name for file in finished.files}


def test_a_pull_over_a_damaged_remainder_starts_that_file_again(client: Client, finished: Merge, tmp_path: Path):
    out = tmp_path / "out"
    client.pull(finished.id, out)
    name = max(finished.files, key=lambda one: one.size).name
    content = (out / name).read_bytes()
    out.rename(partial_path(out))
    (partial_path(out) / name).rename(partial_path(out) / f"{name}.part")
    (partial_path(out) / f"{name}.part").write_bytes(b"\0" + content[1 : len(content) // 2])
    (partial_path(out) / ".journal.json").write_text(json.dumps({"digest": finished.plan_digest, "files": {}}))
    client.pull(finished.id, out)
    assert (out / name).read_bytes() == content


def test_a_pull_does_not_touch_a_folder_in_use(client: Client, finished: Merge, tmp_path: Path):
    (tmp_path / "thesis.tex").write_text("important")
    with pytest.raises(OutputError, match="not empty"):
        client.pull(finished.id, tmp_path)
    assert (tmp_path / "thesis.tex").read_text() == "important"


def test_merging_into_a_folder_is_one_call_and_can_be_repeated(client: Client, linear: Recipe, tmp_path: Path):
    before = len(list(client.list()))
    first = client.merge(linear(0.6), tmp_path / "one")
    again = client.merge(linear(0.6), tmp_path / "two")
    assert first.files == again.files
    assert len(list(client.list())) == before + 1, "the second call found the first one's merge"


def test_a_merge_that_was_cancelled_is_made_anew(client: Client, held: Recipe, gate: Path, tmp_path: Path):
    seen: list[str] = []

    def cancel(progress: Any) -> None:
        if not seen:
            seen.append("cancelled")
            (running,) = (merge for merge in client.list() if not merge.state.final)
            client.cancel(running.id)

    recipe = held(gate=gate, tensor="model.norm.weight")
    with pytest.raises(Exception, match="was cancelled"):
        client.merge(recipe, tmp_path / "out", cancel, max_shard_size=2000)
    gate.unlink()
    assert client.merge(recipe, tmp_path / "out", max_shard_size=2000).files


def test_readers_that_vanish_free_their_workers(through: Client, proxy, client: Client, held: Recipe, gate: Path):
    merge = client.create(held(gate=gate), retention="none")
    readers = [
        threading.Thread(target=exhaust, args=(through, merge)) for _ in range(2)
    ]  # as many as there are workers
    for reader in readers:
        reader.start()
    time.sleep(0.5)
    proxy.close()
    gate.unlink()
    assert b"".join(client.read(merge.id, merge.files[0].name))
    for reader in readers:
        reader.join()


def exhaust(client: Client, merge: Merge) -> None:
    with contextlib.suppress(ServerUnavailableError):
        list(client.read(merge.id, merge.files[0].name))


# -- uploads ----------------------------------------------------------------------------------------------


def test_an_uploaded_model_merges_like_one_on_the_server(client: Client, root: Path, linear: Recipe, tmp_path: Path):
    reference = client.upload(root / "llm")
    uploaded = client.merge(linear(0.4, llm=reference), tmp_path / "uploaded")
    there = client.merge(linear(0.4), tmp_path / "there")
    weights = [name for name in there.files if name.endswith(".safetensors")]
    assert [uploaded.files[name] for name in weights] == [there.files[name] for name in weights]


def test_an_upload_sends_each_file_once(client: Client, server, root: Path):
    reference = client.upload(root / "lvlm")
    used = client.server_info().used_upload_bytes
    blobs = server.log.parent / "data" / "blobs"
    before = {path.name: path.stat().st_ino for path in blobs.iterdir()}
    assert client.upload(root / "lvlm") == reference
    assert {path.name: path.stat().st_ino for path in blobs.iterdir()} == before
    assert client.server_info().used_upload_bytes == used


def test_only_the_checkpoint_s_files_are_sent(root: Path, tmp_path: Path):
    for file in (root / "llm").iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "modeling_evil.py").write_text("import os")
    (tmp_path / "secrets.txt").write_text("hunter2")
    (tmp_path / "optimizer.pt").write_bytes(b"x")
    assert checkpoint_files(tmp_path) == sorted(file.name for file in (root / "llm").iterdir())


def test_an_upload_survives_connections_that_break(through: Client, proxy, client: Client, root: Path):
    sent: list[int] = []

    def cut(progress: Any) -> None:
        if progress.bytes_done > 400_000 * (len(sent) + 1) and len(sent) < 3:
            sent.append(progress.bytes_done)
            proxy.cut()

    reference = through.upload(root / "big-llm", cut)
    assert len(sent) >= 1
    assert client.upload(root / "big-llm") == reference


def test_an_upload_reports_its_progress(client: Client, root: Path):
    seen: list[tuple[int, int]] = []
    client.upload(root / "big-lvlm", lambda progress: seen.append((progress.bytes_done, progress.bytes_total)))
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    assert seen[-1][0] == seen[-1][1] > 1_000_000


def test_damage_on_the_way_is_found_by_the_server(server, root: Path):
    import grpc

    from safegraft.v1 import artifact_service_pb2 as pb
    from safegraft.v1.artifact_service_pb2_grpc import ArtifactServiceStub

    blob = pb.BlobDigest(sha256="1" * 64, size=4)
    with grpc.insecure_channel(server.target) as channel:
        stub = ArtifactServiceStub(channel)

        def write(*requests: pb.WriteBlobRequest) -> grpc.StatusCode:
            with pytest.raises(grpc.RpcError) as caught:
                stub.WriteBlob(iter(requests), timeout=10)
            return caught.value.code()

        def committed() -> int:
            return stub.QueryWriteStatus(pb.QueryWriteStatusRequest(blob=blob)).committed_size

        good = pb.WriteBlobRequest(blob=blob, data=b"abcd", crc32c=0x92C80A31)
        assert write(pb.WriteBlobRequest(blob=blob, data=b"abcd", crc32c=1)) is grpc.StatusCode.DATA_LOSS
        assert committed() == 0
        assert write(good) is grpc.StatusCode.DATA_LOSS, "the chunk is right, the whole is not what was promised"
        assert committed() == 0
        assert write(pb.WriteBlobRequest(blob=blob, offset=1, data=b"b")) is grpc.StatusCode.INVALID_ARGUMENT
        assert write(pb.WriteBlobRequest(data=b"b")) is grpc.StatusCode.INVALID_ARGUMENT
        assert write() is grpc.StatusCode.INVALID_ARGUMENT
        half = pb.WriteBlobRequest(blob=blob, data=b"ab", crc32c=0xE2A22936)
        assert write(half) is grpc.StatusCode.INVALID_ARGUMENT, "it stopped short"
        assert committed() == 2, "and may continue"


def test_a_file_that_changes_while_it_is_sent_is_noticed(through: Client, root: Path, tmp_path: Path):
    from safegraft.errors import InputChangedError

    for file in (root / "llm").iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    weights = tmp_path / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)  # a file that the server does not have yet

    def change(progress: Any) -> None:
        weights.write_bytes(bytes(len(content)))

    with pytest.raises(InputChangedError, match="changed"):
        through.upload(tmp_path, change)


def test_three_damaged_chunks_in_a_row_are_no_accident(server, finished: Merge, monkeypatch: pytest.MonkeyPatch):
    from safegraft.rpc import download

    monkeypatch.setattr(download, "crc32c", lambda data: 0)
    with Client(server.target) as client, pytest.raises(DataCorruptedError, match="checksum"):
        list(client.read(finished.id, "config.json"))


def test_the_example_in_the_documentation_runs(server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    text = (Path(__file__).parents[2] / "docs" / "api.md").read_text()
    code = text.split("```python\n")[1].split("```")[0]
    for there, here in (("127.0.0.1:50051", server.target), ("aligned-llm", "llm"), ("adapted-lvlm", "lvlm")):
        assert there in code
        code = code.replace(there, here)
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "docs/api.md", "exec"), {})
    assert (tmp_path / "merged" / "model.safetensors").is_file()
