"""The API against a real server: what it serves is what the engine computes, and every promise of the protos."""

import hashlib
import json
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2, status_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2

from safegraft.checkpoint.types import Checkpoint
from safegraft.engine.execute import MergedCheckpoint
from safegraft.engine.plan import make_plan
from safegraft.engine.task import Plan
from safegraft.errors import (
    CheckpointError,
    ConflictError,
    InputChangedError,
    InputError,
    NonFiniteError,
    NotFoundError,
    RecipeError,
    UsageError,
)
from safegraft.methods.registry import Registry
from safegraft.recipe import read_recipe
from safegraft.rpc.client import Client, Merge, MergeState
from safegraft.testing import tiny_llm
from safegraft.v1 import artifact_service_pb2, merge_service_pb2
from safegraft.v1.artifact_service_pb2_grpc import ArtifactServiceStub
from safegraft.v1.merge_service_pb2_grpc import MergeServiceStub

SHARD = 4000  # bytes: the tiny models take several files
Recipe = Callable[..., dict[str, Any]]


@pytest.fixture
def local(open_model: Callable[[str], Checkpoint], registry: Registry) -> Iterator[Callable[..., Plan]]:
    """Plan here what the server plans there."""
    plans: list[Plan] = []

    def plan(recipe: dict[str, Any], **more: Any) -> Plan:
        plans.append(make_plan(read_recipe(recipe), open_model, registry, **more))
        return plans[-1]

    yield plan
    for one in plans:
        one.close()


@pytest.fixture
def channel(server) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(server.target) as channel:
        yield channel


@pytest.fixture(scope="module")
def finished(server, linear: Recipe) -> Merge:
    """A merge of the larger models, done."""
    with Client(server.target) as client:
        merge = client.create(linear(llm="big-llm", lvlm="big-lvlm"))
        return client.wait(merge.id)


# -- what is served is what is computed -------------------------------------------------------------


@pytest.mark.parametrize("more", [{}, {"dtype": "bfloat16"}, {"embeddings": "host"}], ids=str)
def test_the_plan_is_the_local_one(client: Client, local: Callable[..., Plan], linear: Recipe, more: dict[str, Any]):
    recipe = linear(**more)
    assert client.plan(recipe, max_shard_size=SHARD) == local(recipe, max_shard_size=SHARD).to_dict()


@pytest.mark.parametrize("retention", ["keep", "none"])
def test_served_bytes_are_the_engine_s(
    client: Client, local: Callable[..., Plan], linear: Recipe, retention: Any, tmp_path: Path
):
    recipe = linear(0.3)
    plan = local(recipe, max_shard_size=SHARD)
    merge = client.create(recipe, max_shard_size=SHARD, retention=retention)
    assert merge.plan_digest == plan.digest
    assert [(file.name, file.size) for file in merge.files] == [(file.name, file.size) for file in plan.files]
    seen: list[int] = []
    result = client.pull(merge.id, tmp_path / "out", lambda progress: seen.append(progress.bytes_done))
    with MergedCheckpoint(plan) as merged:
        for name, file in merged.files.items():
            content = file.read()
            assert (tmp_path / "out" / name).read_bytes() == content
            assert result.files[name].sha256 == hashlib.sha256(content).hexdigest()
    assert {path.name for path in (tmp_path / "out").iterdir()} == set(merged.files)
    assert seen == sorted(seen)
    assert seen[-1] == result.bytes_received == plan.total_size


@pytest.mark.parametrize("retention", ["keep", "none"])
def test_any_range_of_a_file_can_be_read(client: Client, linear: Recipe, finished: Merge, retention: Any):
    merge = finished
    if retention == "none":
        merge = client.create(linear(llm="big-llm", lvlm="big-lvlm"), retention="none")
    file = max(finished.files, key=lambda one: one.size)
    whole = b"".join(client.read(finished.id, file.name))
    assert hashlib.sha256(whole).hexdigest() == file.sha256
    assert len(whole) > 2 * 512 * 1024
    draw = random.Random(7)
    ranges = [(0, None), (0, 0), (0, 1), (file.size - 1, None), (file.size, None), (5, 5)]
    ranges += [tuple(sorted(draw.choices(range(file.size + 1), k=2))) for _ in range(6)]
    for start, stop in ranges:
        chunks = list(client.read(merge.id, file.name, start, stop))
        assert b"".join(chunks) == whole[start:stop]
        assert all(0 < len(chunk) <= 512 * 1024 for chunk in chunks)


def test_a_chunk_carries_what_the_client_needs_to_verify_it(channel: grpc.Channel, finished: Merge):
    file = max(finished.files, key=lambda one: one.size)
    request = artifact_service_pb2.ReadFileRequest(name=f"merges/{finished.id}", file=file.name)
    first, *chunks, last = ArtifactServiceStub(channel).ReadFile(request)
    assert (first.offset, first.size, first.data) == (0, file.size, b"")
    assert (last.offset, last.sha256, last.data) == (file.size, file.sha256, b"")
    assert [chunk.offset for chunk in chunks] == [sum(len(c.data) for c in chunks[:n]) for n in range(len(chunks))]
    assert max(chunk.ByteSize() for chunk in chunks) <= 512 * 1024


def test_a_range_that_stops_early_promises_no_digest(channel: grpc.Channel, finished: Merge):
    request = artifact_service_pb2.ReadFileRequest(name=f"merges/{finished.id}", file=finished.files[0].name, limit=10)
    *_, last = ArtifactServiceStub(channel).ReadFile(request)
    assert (last.offset, last.sha256) == (10, "")


@pytest.mark.parametrize(("start", "stop"), [(-1, None), (5, 4)])
def test_a_range_must_be_one(client: Client, finished: Merge, start: int, stop: int | None):
    with pytest.raises(UsageError):
        client.read(finished.id, "config.json", start, stop)


def test_the_server_refuses_ranges_outside_the_file(client: Client, finished: Merge):
    with pytest.raises(UsageError, match="offset"):
        list(client.read(finished.id, "config.json", 10**6))


@pytest.mark.parametrize("file", ["nothing", "", "../../safegraft.db", "config.json.part", ".journal.json"])
def test_only_the_merge_s_own_files_can_be_read(client: Client, finished: Merge, file: str):
    with pytest.raises(NotFoundError, match="no file"):
        list(client.read(finished.id, file))


def test_files_are_listed_with_digests(client: Client, finished: Merge):
    files = client.files(finished.id)
    assert files == finished.files
    assert files[-1].name == "safegraft.json"
    manifest = json.loads(b"".join(client.read(finished.id, "safegraft.json")))
    assert {file.name: file.sha256 for file in files[:-1]} == {
        name: entry["sha256"] for name, entry in manifest["files"].items()
    }
    assert all(file.available == file.size for file in files)


def test_files_are_paged(channel: grpc.Channel, finished: Merge):
    stub, names, token = ArtifactServiceStub(channel), [], ""
    while True:
        request = artifact_service_pb2.ListFilesRequest(parent=f"merges/{finished.id}", page_size=2, page_token=token)
        page = stub.ListFiles(request)
        assert 1 <= len(page.files) <= 2
        names += [file.name for file in page.files]
        token = page.next_page_token
        if not token:
            break
    assert names == [file.name for file in finished.files]


def test_what_is_not_kept_takes_no_disk(client: Client, server, linear: Recipe, tmp_path: Path):
    merge = client.create(linear(0.9), retention="none")
    assert merge.state is MergeState.SUCCEEDED
    data = server.log.parent / "data"
    client.pull(merge.id, tmp_path / "out")
    assert not (data / "merges" / merge.id).exists()
    known = client.get(merge.id)
    assert all(file.sha256 for file in known.files), "what was read once is known"


def test_the_manifest_of_a_merge_that_is_not_kept_can_be_read_first(client: Client, linear: Recipe, finished: Merge):
    merge = client.create(linear(llm="big-llm", lvlm="big-lvlm"), retention="none")
    assert b"".join(client.read(merge.id, "safegraft.json")) == b"".join(client.read(finished.id, "safegraft.json"))


def test_a_merge_that_is_not_kept_reports_a_bad_weight_when_read(client: Client, root: Path, linear: Recipe):
    poisoned = root / "poisoned"
    if not poisoned.exists():
        poison(root / "llm", poisoned)
    merge = client.create(linear(llm="poisoned"), retention="none")
    with pytest.raises(NonFiniteError):
        list(client.read(merge.id, merge.files[0].name))


def poison(source: Path, target: Path) -> None:
    """A copy whose every weight is NaN."""
    target.mkdir()
    for file in source.iterdir():
        content = file.read_bytes()
        if file.suffix == ".safetensors":
            header = 8 + int.from_bytes(content[:8], "little")
            content = content[:header] + b"\xff" * (len(content) - header)
        (target / file.name).write_bytes(content)


# -- merges as resources ------------------------------------------------------------------------------


def test_a_failed_merge_says_why_and_leaves_nothing(client: Client, server, root: Path, linear: Recipe):
    if not (root / "poisoned").exists():
        poison(root / "llm", root / "poisoned")
    merge = client.wait(client.create(linear(llm="poisoned")).id)
    assert merge.state is MergeState.FAILED
    assert isinstance(merge.error, NonFiniteError)
    with pytest.raises(NonFiniteError):
        list(client.read(merge.id, merge.files[0].name))
    assert not (server.log.parent / "data" / "merges" / merge.id).exists()
    with pytest.raises(ConflictError, match="has failed"):
        client.cancel(merge.id)


def test_the_same_request_id_gives_the_same_merge(client: Client, linear: Recipe):
    merge = client.create(linear(), request_id="mine", max_shard_size=SHARD)
    assert client.create(linear(), request_id="mine", max_shard_size=SHARD).id == merge.id
    for other in ({"recipe": linear(0.5)}, {"max_shard_size": SHARD + 1}, {"threads": 1}, {"retention": "none"}):
        asked: dict[str, Any] = {"recipe": linear(), "max_shard_size": SHARD, **other}
        with pytest.raises(UsageError, match="request_id"):
            client.create(request_id="mine", **asked)
    client.wait(merge.id)
    assert client.create(linear(), request_id="mine", max_shard_size=SHARD).state is MergeState.SUCCEEDED
    client.delete(merge.id)
    assert client.create(linear(0.5), request_id="mine").id != merge.id


def test_without_a_request_id_each_call_makes_a_merge(client: Client, linear: Recipe):
    assert client.create(linear()).id != client.create(linear()).id


def test_validating_stores_nothing(client: Client, linear: Recipe):
    before = [merge.id for merge in client.list()]
    merge = client.create(linear(0.7), validate_only=True, request_id="dry")
    assert merge.id == ""
    assert merge.files
    assert [merge.id for merge in client.list()] == before
    with pytest.raises(RecipeError):
        client.create(linear(0.7, merge_method="linaer"), validate_only=True)
    assert client.create(linear(0.2), request_id="dry").id, "the id was not used"


def test_lists_are_newest_first_and_brief(client: Client, channel: grpc.Channel, linear: Recipe):
    made = [client.create(linear(), retention="none").id for _ in range(5)]
    found = [merge for merge in client.list() if merge.id in made]
    assert [merge.id for merge in found] == made[::-1]
    assert all(not (merge.files or merge.recipe or merge.warnings) for merge in found)
    stub, token, ids = MergeServiceStub(channel), "", []
    while True:
        page = stub.ListMerges(merge_service_pb2.ListMergesRequest(page_size=2, page_token=token))
        assert len(page.merges) <= 2
        ids += [merge.name.removeprefix("merges/") for merge in page.merges]
        token = page.next_page_token
        if not token:
            break
    assert ids == [merge.id for merge in client.list()]


def test_deleting_forgets_a_merge_and_its_files(client: Client, server, linear: Recipe):
    merge = client.wait(client.create(linear()).id)
    folder = server.log.parent / "data" / "merges" / merge.id
    assert (folder / "files" / "config.json").exists()
    client.delete(merge.id)
    assert not folder.exists()
    for call in (client.get, client.delete, client.cancel, client.files, client.wait):
        with pytest.raises(NotFoundError):
            call(merge.id)


def test_a_merge_that_has_succeeded_cannot_be_cancelled(client: Client, finished: Merge):
    with pytest.raises(ConflictError, match="has succeeded"):
        client.cancel(finished.id)


@pytest.mark.parametrize("id", ["nothing", "..", "a/b", "x" * 100, "%00"])
def test_unknown_merges_are_not_found(client: Client, id: str):
    with pytest.raises(NotFoundError):
        client.get(id)


def test_a_watch_begins_with_the_merge_and_ends_with_its_end(client: Client, linear: Recipe):
    merge = client.create(linear(), max_shard_size=SHARD)
    seen = list(client.watch(merge.id))
    revisions = [one.revision for one in seen]
    assert revisions == sorted(set(revisions))
    assert [one.state.final for one in seen] == [False] * (len(seen) - 1) + [True]
    done = [one.progress.bytes_done for one in seen]
    assert done == sorted(done)
    assert seen[-1].progress.bytes_done == seen[-1].progress.bytes_total


def test_a_watch_of_the_past_sends_a_heartbeat_and_ends(channel: grpc.Channel, finished: Merge):
    request = merge_service_pb2.WatchMergeRequest(name=f"merges/{finished.id}", after_revision=finished.revision)
    answers = list(MergeServiceStub(channel).WatchMerge(request, timeout=5))
    assert [answer.HasField("merge") for answer in answers] == [False]


@pytest.mark.parametrize("ahead", [-1, 1000])
def test_a_watch_from_a_revision_that_never_was_is_refused(client: Client, finished: Merge, ahead: int):
    with pytest.raises(UsageError, match="after_revision"):
        list(client.watch(finished.id, finished.revision + ahead if ahead > 0 else ahead))


# -- errors ---------------------------------------------------------------------------------------------


def test_all_of_a_recipe_s_problems_come_at_once_with_their_places(client: Client, tmp_path: Path):
    path = tmp_path / "mine.yml"
    path.write_text(
        "models:\n"
        "  - model: llm\n    parameters: {wieght: 1}\n"
        "  - model: nowhere\n    parameters: {weight: 1}\n"
        "merge_method: linear\n"
    )
    with pytest.raises(RecipeError) as caught:
        client.plan(path)
    places = [problem.where for problem in caught.value.problems]
    assert places[0].startswith("mine.yml:3"), "the caller's name for the recipe, and the line"
    assert "nowhere" in places


def test_bad_requests_name_their_field(channel: grpc.Channel, linear: Recipe):
    stub = MergeServiceStub(channel)
    text = read_recipe(linear()).text
    for field, request in {
        "recipe": merge_service_pb2.CreateMergeRequest(),
        "max_shard_size": merge_service_pb2.CreateMergeRequest(recipe=text, max_shard_size=-1),
        "threads": merge_service_pb2.CreateMergeRequest(recipe=text, threads=-1),
        "retention": merge_service_pb2.CreateMergeRequest(recipe=text, retention=9),  # type: ignore[arg-type]
        "request_id": merge_service_pb2.CreateMergeRequest(recipe=text, request_id="a\nb"),
    }.items():
        status = refusal(stub.CreateMerge, request)
        assert status.code == grpc.StatusCode.INVALID_ARGUMENT.value[0]
        detail = error_details_pb2.BadRequest()
        assert any(one.Unpack(detail) for one in status.details)
        assert [one.field for one in detail.field_violations] == [field]
    status = refusal(stub.CreateMerge, merge_service_pb2.CreateMergeRequest(recipe="a" * (1 << 20) + "b"))
    assert "longer than" in status.message
    for request in (
        merge_service_pb2.ListMergesRequest(page_size=-1),
        merge_service_pb2.ListMergesRequest(page_token="x"),
    ):
        assert refusal(stub.ListMerges, request).code == grpc.StatusCode.INVALID_ARGUMENT.value[0]
    assert refusal(stub.GetMerge, merge_service_pb2.GetMergeRequest(name="nonsense")).code == 3


def refusal(method: Any, request: Any) -> status_pb2.Status:
    """The google.rpc.Status of a call that must fail."""
    with pytest.raises(grpc.RpcError) as caught:
        method(request, timeout=10)
    metadata = dict(caught.value.trailing_metadata())
    status = status_pb2.Status.FromString(metadata["grpc-status-details-bin"])
    info = error_details_pb2.ErrorInfo()
    assert status.details[0].Unpack(info)
    assert info.domain == "safegraft"
    assert status.code == caught.value.code().value[0]
    assert status.message == caught.value.details()
    return status


@pytest.mark.parametrize("reference", ["/etc", "../llm", "llm/../../x", "~root", "missing"])
def test_recipes_reach_nothing_outside_the_roots(client: Client, root: Path, linear: Recipe, reference: str):
    with pytest.raises(InputError, match="root 'models'") as caught:
        client.plan(linear(llm=reference))
    assert str(root) not in str(caught.value)


def test_an_input_error_s_message_hides_where_models_lie(client: Client, root: Path, linear: Recipe):
    (root / "broken").mkdir(exist_ok=True)
    (root / "broken" / "model.safetensors").write_bytes(b"\xff" * 100)
    with pytest.raises(InputError) as caught:
        client.plan(linear(llm="broken"))
    assert "broken" in str(caught.value)
    assert str(root) not in str(caught.value)


def test_a_model_of_the_recipe_that_is_an_upload_must_be_there(client: Client, linear: Recipe):
    with pytest.raises(InputError, match="upload it"):
        client.plan(linear(llm="upload:" + "0" * 64))
    assert issubclass(CheckpointError, InputError)


# -- the server itself ------------------------------------------------------------------------------------


def test_the_server_says_what_it_is(client: Client):
    info = client.server_info()
    assert info.model_roots == ("models",)
    assert info.workers == 1
    assert info.free_disk_bytes > 0


def test_methods_and_plugins_are_those_installed_there(client: Client, registry: Registry):
    found = client.methods()
    assert {method.name for method in found.methods} == {*registry.names(), "held"}
    linear = next(method for method in found.methods if method.name == "linear")
    here = registry.get("linear")
    assert here is not None
    assert linear.parameters == here.Parameters.model_json_schema()
    assert linear.input_parameters == here.InputParameters.model_json_schema()
    assert (linear.granularity, linear.plugin) == (here.granularity, "linear")
    assert any(plugin.distribution == "held-plugin" for plugin in found.plugins)


@pytest.mark.parametrize("service", ["", "safegraft.v1.MergeService", "safegraft.v1.ArtifactService"])
def test_health_is_told_per_service(client: Client, channel: grpc.Channel, service: str):
    assert client.health()
    answer = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(service=service))
    assert answer.status == health_pb2.HealthCheckResponse.SERVING


@pytest.mark.parametrize("version", ["v1", "v1alpha"])
def test_reflection_lists_and_describes_the_services(channel: grpc.Channel, version: str):
    ask = channel.stream_stream(
        f"/grpc.reflection.{version}.ServerReflection/ServerReflectionInfo",
        request_serializer=reflection_pb2.ServerReflectionRequest.SerializeToString,
        response_deserializer=reflection_pb2.ServerReflectionResponse.FromString,
    )
    (listed,) = ask(iter([reflection_pb2.ServerReflectionRequest(list_services="")]), timeout=5)
    names = {service.name for service in listed.list_services_response.service}
    assert names >= {"safegraft.v1.MergeService", "safegraft.v1.ArtifactService", "grpc.health.v1.Health"}
    for name in names:
        (found,) = ask(iter([reflection_pb2.ServerReflectionRequest(file_containing_symbol=name)]), timeout=5)
        assert found.file_descriptor_response.file_descriptor_proto, name


def test_calls_beyond_the_limit_are_told_to_come_back(
    channel: grpc.Channel, client: Client, held: Recipe, gate: Path, until: Callable[..., Any]
):
    merge = client.create(held(gate=gate))
    stub = ArtifactServiceStub(channel)
    request = artifact_service_pb2.ReadFileRequest(name=f"merges/{merge.id}", file="safegraft.json")
    waiting = [stub.ReadFile(request) for _ in range(64)]
    try:
        for call in waiting:
            next(call)  # it runs
        with pytest.raises(grpc.RpcError) as caught:
            list(stub.ReadFile(request))
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        assert client.get(merge.id), "other calls have room"
    finally:
        for call in waiting:
            call.cancel()
    until(lambda: not refused(stub, request))
    gate.unlink()
    client.wait(merge.id)


def refused(stub: ArtifactServiceStub, request: artifact_service_pb2.ReadFileRequest) -> bool:
    call = stub.ReadFile(request)
    try:
        next(call)
    except grpc.RpcError:
        return True
    finally:
        call.cancel()
    return False


def test_importing_the_service_is_cheap():
    """Neither the server's own process nor a client has a use for torch."""
    names = ("safegraft.rpc.client", "safegraft.rpc.server", "safegraft.rpc.worker")
    code = f"import sys, {', '.join(names)}; print([name for name in ('torch', 'transformers') if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


# -- inputs that change under a merge -----------------------------------------------------------------


@pytest.fixture
def edited(root: Path, linear: Recipe) -> Iterator[tuple[dict[str, Any], Callable[[], None]]]:
    """A recipe, and a way to change one of its inputs as nothing but its time of modification tells."""
    folder = tiny_llm(root / "edited", vocab=20_000, hidden=64)
    weights = folder / "model.safetensors"

    def edit() -> None:
        moment = weights.stat().st_mtime_ns + 10**9
        os.utime(weights, ns=(moment, moment))

    yield linear(llm="edited", lvlm="big-lvlm"), edit
    shutil.rmtree(folder)


def test_a_merge_does_not_mix_two_versions_of_an_input(client: Client, edited):
    recipe, edit = edited
    merge = client.create(recipe, retention="none")
    assert merge.inputs_modified
    assert b"".join(client.read(merge.id, merge.files[0].name))
    edit()
    with pytest.raises(InputChangedError):
        list(client.read(merge.id, merge.files[0].name))
    assert client.create(recipe, retention="none").inputs_modified == merge.inputs_modified + 10**9


def test_a_queued_merge_whose_input_is_modified_fails(client: Client, held: Recipe, gate: Path, edited):
    recipe, edit = edited
    before = client.create(held(gate=gate))
    merge = client.create(recipe)
    edit()
    gate.unlink()
    client.wait(before.id)
    assert isinstance(client.wait(merge.id).error, InputChangedError)


def test_merging_again_after_an_edit_makes_a_new_merge(client: Client, edited, tmp_path: Path):
    recipe, edit = edited
    client.merge(recipe, tmp_path / "one")
    edit()
    count = len(list(client.list()))
    client.merge(recipe, tmp_path / "two")
    assert len(list(client.list())) == count + 1


def test_a_digest_over_every_byte_needs_no_time(client: Client, root: Path, linear: Recipe):
    references = {"llm": client.upload(root / "llm"), "lvlm": client.upload(root / "lvlm")}
    assert client.create(linear(**references), validate_only=True).inputs_modified == 0
