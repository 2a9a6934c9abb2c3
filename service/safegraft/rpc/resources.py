"""What the client hands out: the API's resources as plain Python values."""

import enum
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import MappingProxyType
from typing import Any

from safegraft.engine.staging import FileDigest
from safegraft.errors import SafegraftError
from safegraft.methods.registry import Plugin
from safegraft.rpc.methods import CalibrationInfo, MethodCatalogue, MethodInfo, ModifierInfo
from safegraft.rpc.status import from_status
from safegraft.v1 import merge_pb2, merge_service_pb2, plan_pb2


class MergeState(enum.StrEnum):
    """Where a merge is in its life; `merge.proto` says what each state means."""

    QUEUED = "queued"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def final(self) -> bool:
        return self not in (MergeState.QUEUED, MergeState.RUNNING)


@dataclass(frozen=True, slots=True)
class MergeFile:
    """One file of a result. Sizes in bytes; sha256 in hex, "" as long as the server does not know it."""

    name: str
    size: int
    sha256: str
    available: int


@dataclass(frozen=True, slots=True)
class MergeProgress:
    """How far a merge is, over all files."""

    bytes_done: int
    bytes_total: int
    tensors_done: int
    tensors_total: int
    current_file: str


class PublicationState(enum.StrEnum):
    """Where a publication is in its life; `merge.proto` says what each state means."""

    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def final(self) -> bool:
        return self is not PublicationState.RUNNING


@dataclass(frozen=True, slots=True)
class Publication:
    """A merge's result in a repository on the Hugging Face Hub, or on its way there.

    revision: the branch; for a pull request "refs/pr/N", once there is one. commit, url: "" unless it has succeeded.
    pull_request: its URL; None: none was asked for, or there is none yet. credential: the server's that is used; "":
    the caller's own token. bytes_done, bytes_total: over all files; what the Hub had already is done. error: why it
    failed, as the class that would have been raised; None unless `state` is FAILED. warnings: what whoever published it
    should know.
    """

    id: str
    merge: str
    state: PublicationState
    created: datetime
    updated: datetime
    repo: str
    revision: str
    commit: str
    url: str
    pull_request: str | None
    tags: tuple[str, ...]
    private: bool
    evaluated: bool
    credential: str
    bytes_done: int
    bytes_total: int
    current_file: str
    error: SafegraftError | None
    warnings: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Merge:
    """A merge on a server. `list` and `watch` leave `files`, `warnings`, `recipe` and `publications` empty.

    publications: the oldest first. hub_credential: the server's, with which inputs on the Hub are read; "": none.

    error: why it failed, as the class that would have been raised; None unless `state` is FAILED.
    inputs_modified: nanoseconds since the epoch; tells apart versions of inputs of which the digest covers a sample
        only. 0 when it covers every byte.
    """

    id: str
    state: MergeState
    revision: int
    created: datetime
    updated: datetime
    plan_digest: str
    host_model: str
    files: tuple[MergeFile, ...]
    warnings: tuple[str, ...]
    progress: MergeProgress
    error: SafegraftError | None
    recipe: str
    max_shard_size: int
    threads: int
    retention: str  # "keep" or "none"
    inputs_modified: int
    hub_credential: str
    publications: tuple[Publication, ...]


@dataclass(frozen=True, slots=True)
class ServerInfo:
    """What a server is and allows. Sizes in bytes.

    hub_models, publish_to: patterns of the Hub's names that recipes may name and results may go to. url_prefixes: below
    which recipes may name models. hub_credentials: names that requests may give.
    """

    version: str
    started: datetime
    model_roots: tuple[str, ...]
    workers: int
    max_upload_bytes: int
    used_upload_bytes: int
    upload_lifetime: timedelta
    free_disk_bytes: int
    hub_models: tuple[str, ...]
    url_prefixes: tuple[str, ...]
    hub_credentials: tuple[str, ...]
    publish_to: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class TransferProgress:
    """How far a transfer is: bytes over all files, and the file that is being transferred."""

    file: str
    bytes_done: int
    bytes_total: int


@dataclass(frozen=True, slots=True)
class PullResult:
    """A result that lies in a local folder now.

    bytes_received, seconds: of this run. resumed: whether an earlier one's bytes were used.
    """

    out: Path
    digest: str
    files: Mapping[str, FileDigest]
    bytes_received: int
    seconds: float
    resumed: bool
    warnings: tuple[str, ...]


_STATES: Mapping[int, MergeState] = MappingProxyType(
    {
        merge_pb2.MERGE_STATE_QUEUED: MergeState.QUEUED,
        merge_pb2.MERGE_STATE_RUNNING: MergeState.RUNNING,
        merge_pb2.MERGE_STATE_SUCCEEDED: MergeState.SUCCEEDED,
        merge_pb2.MERGE_STATE_FAILED: MergeState.FAILED,
        merge_pb2.MERGE_STATE_CANCELLED: MergeState.CANCELLED,
    }
)
_PUBLICATION_STATES: Mapping[int, PublicationState] = MappingProxyType(
    {
        merge_pb2.PUBLICATION_STATE_RUNNING: PublicationState.RUNNING,
        merge_pb2.PUBLICATION_STATE_SUCCEEDED: PublicationState.SUCCEEDED,
        merge_pb2.PUBLICATION_STATE_FAILED: PublicationState.FAILED,
        merge_pb2.PUBLICATION_STATE_CANCELLED: PublicationState.CANCELLED,
    }
)
_ACTIONS = {plan_pb2.PlannedTensor.ACTION_MERGE: "merge", plan_pb2.PlannedTensor.ACTION_COPY: "copy"}
_BASES = {
    merge_service_pb2.MergeMethod.BASE_REQUIRED: "required",
    merge_service_pb2.MergeMethod.BASE_OPTIONAL: "optional",
    merge_service_pb2.MergeMethod.BASE_IGNORED: "ignored",
    merge_service_pb2.MergeMethod.BASE_FORBIDDEN: "forbidden",
}


def merge_of(message: merge_pb2.Merge) -> Merge:
    progress = message.progress
    return Merge(
        id=message.name.removeprefix("merges/"),
        state=_STATES[message.state],
        revision=message.revision,
        created=message.create_time.ToDatetime(UTC),
        updated=message.update_time.ToDatetime(UTC),
        plan_digest=message.plan_digest,
        host_model=message.host_model,
        files=files_of(message.files),
        warnings=tuple(message.warnings),
        progress=MergeProgress(
            progress.bytes_done,
            progress.bytes_total,
            progress.tensors_done,
            progress.tensors_total,
            progress.current_file,
        ),
        error=from_status(message.error) if message.HasField("error") else None,
        recipe=message.recipe,
        max_shard_size=message.max_shard_size,
        threads=message.threads,
        retention="none" if message.retention == merge_pb2.RETENTION_NONE else "keep",
        inputs_modified=message.inputs_modify_time.ToNanoseconds(),
        hub_credential=message.hub_credential,
        publications=tuple(map(publication_of, message.publications)),
    )


def publication_of(message: merge_pb2.Publication) -> Publication:
    _, merge, _, id = message.name.split("/")
    return Publication(
        id=id,
        merge=merge,
        state=_PUBLICATION_STATES[message.state],
        created=message.create_time.ToDatetime(UTC),
        updated=message.update_time.ToDatetime(UTC),
        repo=message.repository,
        revision=message.revision,
        commit=message.commit,
        url=message.url,
        pull_request=message.pull_request_url or None,
        tags=tuple(message.tags),
        private=message.private,
        evaluated=message.evaluated,
        credential=message.credential,
        bytes_done=message.bytes_done,
        bytes_total=message.bytes_total,
        current_file=message.current_file,
        error=from_status(message.error) if message.HasField("error") else None,
        warnings=tuple(message.warnings),
    )


def files_of(messages: Iterable[merge_pb2.MergeFile]) -> tuple[MergeFile, ...]:
    return tuple(MergeFile(one.name, one.size, one.sha256, one.available_bytes) for one in messages)


def server_info_of(message: merge_service_pb2.ServerInfo) -> ServerInfo:
    return ServerInfo(
        version=message.version,
        started=message.start_time.ToDatetime(UTC),
        model_roots=tuple(message.model_roots),
        workers=message.workers,
        max_upload_bytes=message.max_upload_bytes,
        used_upload_bytes=message.used_upload_bytes,
        upload_lifetime=message.upload_lifetime.ToTimedelta(),
        free_disk_bytes=message.free_disk_bytes,
        hub_models=tuple(message.hub_models),
        url_prefixes=tuple(message.url_prefixes),
        hub_credentials=tuple(message.hub_credentials),
        publish_to=tuple(message.publish_to),
    )


def catalogue_of(message: merge_service_pb2.ListMethodsResponse) -> MethodCatalogue:
    plugins = tuple(
        Plugin(
            one.name,
            one.module,
            one.distribution,
            one.version,
            tuple(one.methods),
            one.error or None,
            tuple(one.modifiers),
            tuple(one.tensor_maps),
            tuple(one.checkpoint_sources),
            tuple(one.publishers),
        )
        for one in message.plugins
    )
    modifiers = tuple(
        ModifierInfo(one.name, one.summary, one.reference, json.loads(one.parameters_schema), one.plugin)
        for one in message.modifiers
    )
    return MethodCatalogue(tuple(method_of(one) for one in message.methods), plugins, modifiers)


def method_of(message: merge_service_pb2.MergeMethod) -> MethodInfo:
    return MethodInfo(
        name=message.name,
        summary=message.summary,
        reference=message.reference,
        granularity=message.granularity,
        base=_BASES[message.base],
        min_inputs=message.min_inputs,
        max_inputs=message.max_inputs if message.HasField("max_inputs") else None,
        parameters=json.loads(message.parameters_schema),
        input_parameters=json.loads(message.input_parameters_schema),
        plugin=message.plugin,
        roles=tuple(message.roles),
        calibration=tuple(
            CalibrationInfo(one.name, one.statistic, one.model, tuple(one.data)) for one in message.calibration
        ),
    )


def plan_document(plan: plan_pb2.Plan) -> dict[str, Any]:
    """The document that `safegraft plan --json` prints, as engine/task.py makes it."""
    return {
        "digest": plan.digest,
        "host_model": plan.host_model,
        "models": [{"reference": one.reference, "name": one.name} for one in plan.models],
        "files": [{"name": file.name, "size_bytes": file.size_bytes} for file in plan.files],
        "tensors": [_tensor_document(tensor) for tensor in plan.tensors],
        "warnings": list(plan.warnings),
        "cost": {
            "bytes_read": plan.cost.bytes_read,
            "bytes_written": plan.cost.bytes_written,
            "peak_memory_bytes": plan.cost.peak_memory_bytes,
            "merged_elements": plan.cost.merged_elements,
            "seconds": plan.cost.seconds,
        },
    }


def _tensor_document(tensor: plan_pb2.PlannedTensor) -> dict[str, Any]:
    document: dict[str, Any] = {
        "name": tensor.name,
        "action": _ACTIONS[tensor.action],
        "method": tensor.method or None,
        "dtype": tensor.dtype,
        "shape": list(tensor.shape),
        "inputs": [_input_document(one) for one in tensor.inputs],
        "base": _input_document(tensor.base) if tensor.HasField("base") else None,
    }
    if tensor.HasField("rows_merged"):
        document["rows_merged"] = tensor.rows_merged
    if tensor.note:
        document["note"] = tensor.note
    return document


def _input_document(one: plan_pb2.TensorInput) -> dict[str, str]:
    return {"model": one.model, "tensor": one.tensor}
