"""CreateMerge: from a request to a stored merge, with everything checked that can be before work begins."""

import asyncio
import json
import secrets
import shutil
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

from safegraft.errors import OutputError, Problem, UsageError
from safegraft.rpc import requests
from safegraft.rpc.house import House
from safegraft.rpc.job import Job, JobProgress, JobState, PlanSummary, now
from safegraft.rpc.messages import Order, Planned, PlanTask
from safegraft.rpc.options import cores
from safegraft.v1 import merge_service_pb2 as pb

_MAX_FILES = 10_000  # of a merge: their list must fit a message
_RESERVE_BYTES = 64 << 20  # disk space that no merge may count on


async def plan_recipe(
    house: House, recipe: str, max_shard_size: int, credential: str = "", threads: int | None = None
) -> Planned:
    """Plan in a worker; if `threads` says how it will be merged, best in one that can go on with that.

    Raises what make_plan raises, and UsageError for a result of absurdly many files.
    """
    if threads is not None and house.reads.has_idle:
        async with house.reads.lease() as worker:
            await worker.assign(PlanTask(recipe, max_shard_size, keep=True, hub_credential=credential))
            planned = await worker.receive()
            assert isinstance(planned, Planned)
            digest = planned.document["digest"]
            worker.affinity = Order(recipe, max_shard_size, threads, digest, planned.modified, credential, planned.pins)
    else:
        planned = await house.plans.run(PlanTask(recipe, max_shard_size, hub_credential=credential))
    assert isinstance(planned, Planned)
    count = len(planned.document["files"])
    if count > _MAX_FILES:
        message = f"the result would have {count} files, more than {_MAX_FILES}; allow larger ones"
        raise UsageError(Problem("max_shard_size", message))
    return planned


async def prepare(house: House, request: pb.CreateMergeRequest) -> Job:
    """The merge that a request describes: a known one, by its request id, or a planned one without an id.

    Raises what planning raises, UsageError, and OutputError when the disk has no room for the result.
    """
    recipe = requests.recipe_text(request.recipe)
    shard_size = requests.shard_size(request.max_shard_size)
    threads = requests.thread_count(request.threads, cores())
    retention = requests.retention(request.retention)
    request_id = requests.request_id(request.request_id)
    credential = requests.credential(request.hub_credential, house.options, "hub_credential")
    fingerprint = _fingerprint(recipe, shard_size, request.threads, retention, credential)
    if request_id is not None and not request.validate_only:
        known = await asyncio.to_thread(house.store.find_request, request_id, fingerprint)
        if known is not None:
            return known
    planned = await plan_recipe(house, recipe, shard_size, credential, None if request.validate_only else threads)
    created = now()
    plan = _summary(planned)
    job = Job(
        id="",
        state=JobState.QUEUED,
        revision=1,
        created=created,
        updated=created,
        request_id=request_id,
        fingerprint=fingerprint,
        recipe=recipe,
        max_shard_size=shard_size,
        threads=threads,
        retention=retention,
        plan=plan,
        hub_credential=credential,
    )
    if retention == "none":  # there is nothing to do until somebody reads
        return replace(job, state=JobState.SUCCEEDED, progress=JobProgress(plan.total_size, plan.tensors))
    await asyncio.to_thread(_require_space, house, plan)
    return job


async def store(house: House, job: Job) -> Job:
    """Give a prepared merge an id, store it and have it computed. A known one is returned as it is."""
    if job.id:
        return job
    stored, new = await asyncio.to_thread(house.store.insert, replace(job, id=secrets.token_hex(8)))
    if new and not stored.state.final:
        house.runner.submit(stored.id)
    return stored


def free_bytes(data: Path) -> int:
    """Free space on the data folder's disk."""
    return shutil.disk_usage(data).free


def _require_space(house: House, plan: PlanSummary) -> None:
    promised = sum(
        max(0, job.plan.total_size - job.progress.bytes_done)
        for job in house.store.unfinished()
        if job.retention == "keep"
    )
    free = free_bytes(house.options.data) - promised - _RESERVE_BYTES
    if plan.total_size > free:
        raise OutputError(
            f"the result takes {plan.total_size:,} bytes and the server's disk has {max(0, free):,} to spare"
            + (f", beside {promised:,} for merges under way" if promised else "")
            + "; delete merges, or ask for a merge that is not kept (RETENTION_NONE)"
        )


def _fingerprint(recipe: str, shard_size: int, threads: int, retention: str, credential: str) -> str:
    """Tells requests apart that use the same request id. Without a credential as it was before there were any."""
    named = [credential] if credential else []
    return sha256(json.dumps([recipe, shard_size, threads, retention, *named]).encode()).hexdigest()


def _summary(planned: Planned) -> PlanSummary:
    document: dict[str, Any] = planned.document
    return PlanSummary(
        digest=document["digest"],
        host_model=document["host_model"],
        files=tuple((file["name"], file["size_bytes"]) for file in document["files"]),
        warnings=tuple(document["warnings"]),
        tensors=len(document["tensors"]),
        uploads=planned.uploads,
        modified=planned.modified,
        pins=planned.pins,
    )
