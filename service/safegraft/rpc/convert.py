"""Server-side data as messages of the API. Decides nothing: each function fills one message."""

import json
from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any

from google.protobuf.timestamp_pb2 import Timestamp

from safegraft.rpc.job import Job, JobState
from safegraft.rpc.methods import MethodCatalogue, MethodInfo
from safegraft.rpc.publication import Publication, PublicationState
from safegraft.rpc.status import restore, to_status
from safegraft.v1 import merge_pb2, merge_service_pb2, plan_pb2

MAX_WARNINGS = 100
_PART_BYTES = 1 << 20  # of a streamed plan, well below gRPC's message limit of 4 MiB

_STATES: Mapping[JobState, merge_pb2.MergeState] = MappingProxyType(
    {
        JobState.QUEUED: merge_pb2.MERGE_STATE_QUEUED,
        JobState.RUNNING: merge_pb2.MERGE_STATE_RUNNING,
        JobState.SUCCEEDED: merge_pb2.MERGE_STATE_SUCCEEDED,
        JobState.FAILED: merge_pb2.MERGE_STATE_FAILED,
        JobState.CANCELLED: merge_pb2.MERGE_STATE_CANCELLED,
    }
)
_PUBLICATION_STATES: Mapping[PublicationState, merge_pb2.PublicationState] = MappingProxyType(
    {
        PublicationState.RUNNING: merge_pb2.PUBLICATION_STATE_RUNNING,
        PublicationState.SUCCEEDED: merge_pb2.PUBLICATION_STATE_SUCCEEDED,
        PublicationState.FAILED: merge_pb2.PUBLICATION_STATE_FAILED,
        PublicationState.CANCELLED: merge_pb2.PUBLICATION_STATE_CANCELLED,
    }
)
_RETENTIONS = {"keep": merge_pb2.RETENTION_KEEP, "none": merge_pb2.RETENTION_NONE}
_ACTIONS = {"merge": plan_pb2.PlannedTensor.ACTION_MERGE, "copy": plan_pb2.PlannedTensor.ACTION_COPY}
_BASES = {
    "required": merge_service_pb2.MergeMethod.BASE_REQUIRED,
    "optional": merge_service_pb2.MergeMethod.BASE_OPTIONAL,
    "ignored": merge_service_pb2.MergeMethod.BASE_IGNORED,
    "forbidden": merge_service_pb2.MergeMethod.BASE_FORBIDDEN,
}


def brief_merge(job: Job) -> merge_pb2.Merge:
    """A merge as ListMerges and WatchMerge show it: without files, warnings, recipe and publications."""
    merge = merge_pb2.Merge(
        name=f"merges/{job.id}" if job.id else "",
        state=_STATES[job.state],
        revision=job.revision,
        create_time=_timestamp(job.created),
        update_time=_timestamp(job.updated),
        plan_digest=job.plan.digest,
        host_model=job.plan.host_model,
        progress=merge_pb2.MergeProgress(
            bytes_done=job.progress.bytes_done,
            bytes_total=job.plan.total_size,
            tensors_done=job.progress.tensors_done,
            tensors_total=job.plan.tensors,
            current_file=job.progress.current_file,
        ),
        max_shard_size=job.max_shard_size,
        threads=job.threads,
        retention=_RETENTIONS[job.retention],
        hub_credential=job.hub_credential,
    )
    if job.plan.modified:
        merge.inputs_modify_time.FromNanoseconds(job.plan.modified)
    if job.error is not None:
        merge.error.CopyFrom(to_status(restore(job.error.reason, job.error.problems)))
    return merge


def full_merge(
    job: Job, files: Sequence[merge_pb2.MergeFile], publications: Sequence[Publication] = ()
) -> merge_pb2.Merge:
    """A merge with everything."""
    merge = brief_merge(job)
    merge.files.extend(files)
    merge.publications.extend(map(publication, publications))
    merge.warnings.extend(job.plan.warnings[:MAX_WARNINGS])
    merge.recipe = job.recipe
    return merge


def publication(one: Publication) -> merge_pb2.Publication:
    """A publication as it is."""
    destination, outcome = one.destination, one.outcome
    message = merge_pb2.Publication(
        name=one.name,
        state=_PUBLICATION_STATES[one.state],
        create_time=_timestamp(one.created),
        update_time=_timestamp(one.updated),
        repository=destination.repo,
        revision=destination.branch,
        tags=destination.tags,
        private=destination.private,
        evaluated=one.evaluated,
        credential=one.credential,
        bytes_done=one.progress.bytes_done,
        bytes_total=one.progress.bytes_total,
        current_file=one.progress.current_file,
    )
    if outcome is not None:
        message.revision, message.commit, message.url = outcome.revision, outcome.commit, outcome.url
        message.pull_request_url = outcome.pull_request or ""
        message.private, message.evaluated = outcome.private, outcome.evaluated
        message.warnings.extend(outcome.notes)
    if one.error is not None:
        message.error.CopyFrom(to_status(restore(one.error.reason, one.error.problems)))
    return message


def plan_parts(document: Mapping[str, Any]) -> Iterator[plan_pb2.Plan]:
    """The plan that `safegraft plan --json` prints, in parts that each fit a message."""
    cost = document["cost"]
    part = plan_pb2.Plan(
        digest=document["digest"],
        host_model=document["host_model"],
        models=[plan_pb2.PlannedModel(reference=one["reference"], name=one["name"]) for one in document["models"]],
        cost=plan_pb2.PlanCost(
            bytes_read=cost["bytes_read"],
            bytes_written=cost["bytes_written"],
            peak_memory_bytes=cost["peak_memory_bytes"],
            merged_elements=cost["merged_elements"],
            seconds=cost["seconds"],
        ),
    )
    room = _PART_BYTES
    for addition in _additions(document):
        room -= addition.ByteSize()
        if room < 0:
            yield part
            part, room = plan_pb2.Plan(), _PART_BYTES
        part.MergeFrom(addition)
    yield part


def _additions(document: Mapping[str, Any]) -> Iterator[plan_pb2.Plan]:
    for file in document["files"]:
        yield plan_pb2.Plan(files=[plan_pb2.PlannedFile(name=file["name"], size_bytes=file["size_bytes"])])
    for tensor in document["tensors"]:
        yield plan_pb2.Plan(tensors=[_planned_tensor(tensor)])
    for warning in document["warnings"]:
        yield plan_pb2.Plan(warnings=[warning])


def _planned_tensor(tensor: Mapping[str, Any]) -> plan_pb2.PlannedTensor:
    message = plan_pb2.PlannedTensor(
        name=tensor["name"],
        action=_ACTIONS[tensor["action"]],
        method=tensor["method"] or "",
        inputs=[plan_pb2.TensorInput(model=one["model"], tensor=one["tensor"]) for one in tensor["inputs"]],
        dtype=tensor["dtype"],
        shape=tensor["shape"],
        rows_merged=tensor.get("rows_merged"),
        note=tensor.get("note", ""),
    )
    if tensor["base"] is not None:
        message.base.model, message.base.tensor = tensor["base"]["model"], tensor["base"]["tensor"]
    return message


def method_list(found: MethodCatalogue) -> merge_service_pb2.ListMethodsResponse:
    """The answer to ListMethods."""
    plugins = [
        merge_service_pb2.Plugin(
            name=plugin.name,
            module=plugin.module,
            distribution=plugin.distribution,
            version=plugin.version,
            methods=plugin.methods,
            error=plugin.error or "",
            modifiers=plugin.modifiers,
            tensor_maps=plugin.tensor_maps,
            checkpoint_sources=plugin.checkpoint_sources,
            publishers=plugin.publishers,
        )
        for plugin in found.plugins
    ]
    modifiers = [
        merge_service_pb2.Modifier(
            name=one.name,
            summary=one.summary,
            reference=one.reference,
            parameters_schema=json.dumps(one.parameters, sort_keys=True),
            plugin=one.plugin,
        )
        for one in found.modifiers
    ]
    methods = [_method(one) for one in found.methods]
    return merge_service_pb2.ListMethodsResponse(methods=methods, plugins=plugins, modifiers=modifiers)


def _method(info: MethodInfo) -> merge_service_pb2.MergeMethod:
    return merge_service_pb2.MergeMethod(
        name=info.name,
        summary=info.summary,
        reference=info.reference,
        granularity=info.granularity,
        base=_BASES[info.base],
        min_inputs=info.min_inputs,
        max_inputs=info.max_inputs,
        parameters_schema=json.dumps(info.parameters, sort_keys=True),
        input_parameters_schema=json.dumps(info.input_parameters, sort_keys=True),
        plugin=info.plugin,
        roles=info.roles,
        calibration=[
            merge_service_pb2.Calibration(name=one.name, statistic=one.statistic, model=one.model, data=one.data)
            for one in info.calibration
        ],
    )


def _timestamp(microseconds: int) -> Timestamp:
    return Timestamp(seconds=microseconds // 1_000_000, nanos=microseconds % 1_000_000 * 1000)
