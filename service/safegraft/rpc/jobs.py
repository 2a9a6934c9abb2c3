"""Merges as the server remembers them: one row a merge, in SQLite or, by URL, in PostgreSQL.

Blocking code; the server calls it in threads. Knows no gRPC, no processes and no result files. Every change of a row
raises its revision, and only the transitions in `job.NEXT` are made.
"""

import base64
import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.exc import ArgumentError, IntegrityError, OperationalError

from safegraft.errors import ConflictError, NotFoundError, Problem, ServerError, UsageError
from safegraft.rpc.job import NEXT, Job, JobError, JobProgress, JobState, PlanSummary, now

SCHEMA_VERSION = 1

_UNFINISHED = [state.value for state in JobState if NEXT[state]]

_metadata = sa.MetaData()

_facts = sa.Table(
    "safegraft_facts",
    _metadata,
    sa.Column("name", sa.String(64), primary_key=True),
    sa.Column("value", sa.Text, nullable=False),
)

_merges = sa.Table(
    "safegraft_merges",
    _metadata,
    sa.Column("id", sa.String(64), primary_key=True),
    sa.Column("state", sa.String(16), nullable=False, index=True),
    sa.Column("revision", sa.BigInteger, nullable=False),
    sa.Column("created", sa.BigInteger, nullable=False, index=True),
    sa.Column("updated", sa.BigInteger, nullable=False),
    sa.Column("request_id", sa.String(128), unique=True),
    sa.Column("fingerprint", sa.String(64), nullable=False),
    sa.Column("recipe", sa.Text, nullable=False),
    sa.Column("max_shard_size", sa.BigInteger, nullable=False),
    sa.Column("threads", sa.Integer, nullable=False),
    sa.Column("retention", sa.String(8), nullable=False),
    sa.Column("plan", sa.Text, nullable=False),
    sa.Column("progress", sa.Text, nullable=False),
    sa.Column("digests", sa.Text, nullable=False),
    sa.Column("error", sa.Text),
    sa.Column("deaths", sa.Integer, nullable=False),
)


class JobStore:
    """All merges of one data folder.

    Args:
        url: an SQLAlchemy URL.
        data_id: names the data folder. A database serves one folder only, since rows speak of files there.

    Raises UsageError for a URL that cannot be used, ServerError when the database does not answer, or is another
    version's or another folder's.
    """

    def __init__(self, url: str, data_id: str) -> None:
        try:
            self._engine = sa.create_engine(url)
        except (ArgumentError, ModuleNotFoundError) as error:
            raise UsageError(f"the database's URL cannot be used: {error}") from error
        if self._engine.dialect.name == "sqlite":
            _prepare_sqlite(self._engine)
        try:
            self._open(data_id)
        except OperationalError as error:
            raise ServerError(f"the database {self._engine.url!r} cannot be opened: {error.orig}") from error

    def _open(self, data_id: str) -> None:
        with self._engine.begin() as connection:
            _metadata.create_all(connection)
            self._claim(
                connection, "schema_version", str(SCHEMA_VERSION), "was written by another version of safegraft"
            )
            self._claim(connection, "data_id", data_id, "belongs to another --data folder")

    @classmethod
    def in_folder(cls, data: Path, data_id: str) -> "JobStore":
        """The default: an SQLite file within the data folder."""
        return cls(f"sqlite:///{data / 'safegraft.db'}", data_id)

    def close(self) -> None:
        self._engine.dispose()

    def insert(self, job: Job) -> tuple[Job, bool]:
        """Store a new merge, or return the one that has its request id already; True for a new one.

        Raises UsageError when the request id was used for another request.
        """
        try:
            with self._engine.begin() as connection:
                connection.execute(_merges.insert().values(**_to_row(job)))
        except IntegrityError:
            known = None if job.request_id is None else self.find_request(job.request_id, job.fingerprint)
            if known is None:
                raise
            return known, False
        return job, True

    def find_request(self, request_id: str, fingerprint: str) -> Job | None:
        """The merge that a request id made. Raises UsageError when that was another request."""
        query = sa.select(_merges).where(_merges.c.request_id == request_id)
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
        query = sa.select(_merges).order_by(_merges.c.created.desc(), _merges.c.id.desc()).limit(size + 1)
        if token:
            created, id = _read_token(token)
            query = query.where(
                (_merges.c.created < created) | ((_merges.c.created == created) & (_merges.c.id < id)),
            )
        with self._engine.connect() as connection:
            jobs = [_from_row(row) for row in connection.execute(query).mappings()]
        more = len(jobs) > size
        return jobs[:size], _token(jobs[size - 1]) if more else ""

    def unfinished(self) -> list[Job]:
        """Queued and running merges, the oldest first."""
        query = sa.select(_merges).where(_merges.c.state.in_(_UNFINISHED))
        with self._engine.connect() as connection:
            rows = connection.execute(query.order_by(_merges.c.created, _merges.c.id)).mappings()
            return [_from_row(row) for row in rows]

    def uploads_in_use(self) -> frozenset[str]:
        """Digests of uploaded checkpoints that merges may still have to read."""
        may_read = _merges.c.state.in_(_UNFINISHED) | (_merges.c.retention == "none")
        with self._engine.connect() as connection:
            plans = connection.execute(sa.select(_merges.c.plan).where(may_read)).scalars()
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
        changes: dict[str, Any] = {"revision": _merges.c.revision + 1, "updated": now()}
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
            connection.execute(_merges.update().where(_merges.c.id == id).values(**changes))
            return self._get(connection, id)

    def delete(self, id: str) -> Job:
        """Forget a merge in a final state. Raises NotFoundError, ConflictError."""
        with self._engine.begin() as connection:
            job = self._get(connection, id, lock=True)
            if not job.state.final:
                raise ConflictError(Problem(f"merges/{id}", f"is {job.state}; cancel it first"))
            connection.execute(_merges.delete().where(_merges.c.id == id))
            return job

    def _get(self, connection: sa.Connection, id: str, *, lock: bool = False) -> Job:
        query = sa.select(_merges).where(_merges.c.id == id)
        row = connection.execute(query.with_for_update() if lock else query).mappings().one_or_none()
        if row is None:
            raise NotFoundError(f"merges/{id} is not on this server, or was deleted")
        return _from_row(row)

    def _claim(self, connection: sa.Connection, name: str, value: str, otherwise: str) -> None:
        found = connection.execute(sa.select(_facts.c.value).where(_facts.c.name == name)).scalar_one_or_none()
        if found is None:
            connection.execute(_facts.insert().values(name=name, value=value))
        elif found != value:
            raise ServerError(f"the database {otherwise} ({name} {found}, not {value}); give the server another one")


def _prepare_sqlite(engine: sa.Engine) -> None:
    """WAL, patience with other writers, and transactions that lock before they read."""

    def on_connect(connection: Any, _record: object) -> None:
        connection.isolation_level = None  # the driver must not begin transactions of its own
        connection.execute("PRAGMA busy_timeout = 30000")
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")

    def on_begin(connection: sa.Connection) -> None:
        connection.exec_driver_sql("BEGIN IMMEDIATE")

    event.listen(engine, "connect", on_connect)
    event.listen(engine, "begin", on_begin)


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
        ),
        progress=JobProgress(**json.loads(row["progress"])),
        digests=json.loads(row["digests"]),
        error=None if error is None else JobError(error["reason"], tuple((w, m) for w, m in error["problems"])),
        deaths=row["deaths"],
    )
