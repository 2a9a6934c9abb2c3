"""Merges as the server remembers them: one row a merge.

Blocking code; the server calls it in threads. Knows no gRPC, no processes and no result files. Every change of a row
raises its revision, and only the transitions in `job.NEXT` are made.
"""

import base64
import json
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import sqlalchemy as sa
from sqlalchemy.exc import IntegrityError

from safegraft.errors import ConflictError, NotFoundError, Problem, UsageError
from safegraft.rpc.database import merges, publications
from safegraft.rpc.job import NEXT, Job, JobError, JobProgress, JobState, PlanSummary, now
from safegraft.rpc.publication import PublicationState

_UNFINISHED = [state.value for state in JobState if NEXT[state]]


class JobStore:
    """All merges of one data folder; `engine` is `open_database`'s."""

    def __init__(self, engine: sa.Engine) -> None:
        self._engine = engine

    def insert(self, job: Job) -> tuple[Job, bool]:
        """Store a new merge, or return the one that has its request id already; True for a new one.

        Raises UsageError when the request id was used for another request.
        """
        try:
            with self._engine.begin() as connection:
                connection.execute(merges.insert().values(**_to_row(job)))
        except IntegrityError:
            known = None if job.request_id is None else self.find_request(job.request_id, job.fingerprint)
            if known is None:
                raise
            return known, False
        return job, True

    def find_request(self, request_id: str, fingerprint: str) -> Job | None:
        """The merge that a request id made. Raises UsageError when that was another request."""
        query = sa.select(merges).where(merges.c.request_id == request_id)
        with self._engine.connect() as connection:
            row = connection.execute(query).mappings().one_or_none()
        return None if row is None else _same_request(_from_row(row), fingerprint)

    def get(self, id: str) -> Job:
        """Raises NotFoundError."""
        with self._engine.connect() as connection:
            return self._get(connection, id)

    def page(self, size: int, token: str) -> tuple[list[Job], str]:
        """Up to `size` merges, the newest first, and the token of the next page ("" after the last).

        Raises UsageError for a token that is not ours.
        """
        query = sa.select(merges).order_by(merges.c.created.desc(), merges.c.id.desc()).limit(size + 1)
        if token:
            created, id = _read_token(token)
            query = query.where(
                (merges.c.created < created) | ((merges.c.created == created) & (merges.c.id < id)),
            )
        with self._engine.connect() as connection:
            jobs = [_from_row(row) for row in connection.execute(query).mappings()]
        more = len(jobs) > size
        return jobs[:size], _token(jobs[size - 1]) if more else ""

    def unfinished(self) -> list[Job]:
        """Queued and running merges, the oldest first."""
        query = sa.select(merges).where(merges.c.state.in_(_UNFINISHED))
        with self._engine.connect() as connection:
            rows = connection.execute(query.order_by(merges.c.created, merges.c.id)).mappings()
            return [_from_row(row) for row in rows]

    def uploads_in_use(self) -> frozenset[str]:
        """Digests of uploaded checkpoints that merges may still have to read."""
        may_read = merges.c.state.in_(_UNFINISHED) | (merges.c.retention == "none")
        with self._engine.connect() as connection:
            plans = connection.execute(sa.select(merges.c.plan).where(may_read)).scalars()
            return frozenset(digest for plan in plans for digest in json.loads(plan)["uploads"])

    def update(
        self,
        id: str,
        *,
        state: JobState | None = None,
        progress: JobProgress | None = None,
        digests: Mapping[str, str] | None = None,
        error: JobError | None = None,
        deaths: int | None = None,
    ) -> Job:
        """Change what is given and raise the revision.

        Raises NotFoundError, and ConflictError when the merge's state does not lead to the new one.
        """
        changes: dict[str, Any] = {"revision": merges.c.revision + 1, "updated": now()}
        with self._engine.begin() as connection:
            current = self._get(connection, id, lock=True)
            if state is not None:
                if state not in NEXT[current.state]:
                    raise ConflictError(Problem(f"merges/{id}", f"is {current.state} and cannot become {state}"))
                changes["state"] = state.value
            if progress is not None:
                changes["progress"] = json.dumps(asdict(progress))
            if digests is not None:
                changes["digests"] = json.dumps({**current.digests, **digests})
            if error is not None:
                changes["error"] = json.dumps(asdict(error))
            if deaths is not None:
                changes["deaths"] = deaths
            connection.execute(merges.update().where(merges.c.id == id).values(**changes))
            return self._get(connection, id)

    def delete(self, id: str) -> Job:
        """Forget a merge in a final state, with its publications. Raises NotFoundError, ConflictError."""
        of_it = publications.c.merge == id
        running = sa.select(publications.c.id).where(of_it, publications.c.state == PublicationState.RUNNING.value)
        with self._engine.begin() as connection:
            job = self._get(connection, id, lock=True)
            if not job.state.final:
                raise ConflictError(Problem(f"merges/{id}", f"is {job.state}; cancel it first"))
            if publication := connection.execute(running).scalars().first():
                message = "is being published; cancel that first, or wait"
                raise ConflictError(Problem(f"merges/{id}/publications/{publication}", message))
            connection.execute(publications.delete().where(of_it))
            connection.execute(merges.delete().where(merges.c.id == id))
            return job

    def _get(self, connection: sa.Connection, id: str, *, lock: bool = False) -> Job:
        query = sa.select(merges).where(merges.c.id == id)
        row = connection.execute(query.with_for_update() if lock else query).mappings().one_or_none()
        if row is None:
            raise NotFoundError(f"merges/{id} is not on this server, or was deleted")
        return _from_row(row)


def _same_request(known: Job, fingerprint: str) -> Job:
    if known.fingerprint != fingerprint:
        raise UsageError(
            Problem("request_id", f"was used for another request, which made merges/{known.id}; take a fresh one")
        )
    return known


def _token(job: Job) -> str:
    return base64.urlsafe_b64encode(f"{job.created}/{job.id}".encode()).decode()


def _read_token(token: str) -> tuple[int, str]:
    try:
        created, id = base64.b64decode(token.encode(), altchars=b"-_", validate=True).decode().split("/")
        return int(created), id
    except ValueError:
        raise UsageError(
            Problem("page_token", "is not one that this server gave; begin anew without a token")
        ) from None


def _to_row(job: Job) -> dict[str, Any]:
    return {
        "id": job.id,
        "state": job.state.value,
        "revision": job.revision,
        "created": job.created,
        "updated": job.updated,
        "request_id": job.request_id,
        "fingerprint": job.fingerprint,
        "recipe": job.recipe,
        "max_shard_size": job.max_shard_size,
        "threads": job.threads,
        "retention": job.retention,
        "plan": json.dumps(asdict(job.plan)),
        "progress": json.dumps(asdict(job.progress)),
        "digests": json.dumps(dict(job.digests)),
        "error": None if job.error is None else json.dumps(asdict(job.error)),
        "deaths": job.deaths,
        "hub_credential": job.hub_credential,
    }


def _from_row(row: Mapping[Any, Any]) -> Job:
    plan: dict[str, Any] = json.loads(row["plan"])
    error: dict[str, Any] | None = json.loads(row["error"]) if row["error"] else None
    return Job(
        id=row["id"],
        state=JobState(row["state"]),
        revision=row["revision"],
        created=row["created"],
        updated=row["updated"],
        request_id=row["request_id"],
        fingerprint=row["fingerprint"],
        recipe=row["recipe"],
        max_shard_size=row["max_shard_size"],
        threads=row["threads"],
        retention=row["retention"],
        plan=PlanSummary(
            digest=plan["digest"],
            host_model=plan["host_model"],
            files=tuple((name, size) for name, size in plan["files"]),
            warnings=tuple(plan["warnings"]),
            tensors=plan["tensors"],
            uploads=tuple(plan["uploads"]),
            modified=plan["modified"],
            pins=tuple((model, commit) for model, commit in plan.get("pins", ())),  # none in those of schema version 1
        ),
        progress=JobProgress(**json.loads(row["progress"])),
        digests=json.loads(row["digests"]),
        error=None if error is None else JobError(error["reason"], tuple((w, m) for w, m in error["problems"])),
        deaths=row["deaths"],
        hub_credential=row["hub_credential"],
    )
