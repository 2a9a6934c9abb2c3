"""Publications as the server remembers them: one row a publication, beside the merges in the same database.

Blocking code; the server calls it in threads. Knows no gRPC, no processes and no tokens. Every change of a row raises
its revision, and only the transitions in `publication.NEXT` are made.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import sqlalchemy as sa

from safegraft.errors import ConflictError, NotFoundError, Problem, SafegraftError
from safegraft.hub.publication import Destination
from safegraft.hub.publication import Publication as Outcome
from safegraft.rpc.database import merges, publications
from safegraft.rpc.job import JobError, now
from safegraft.rpc.publication import NEXT, Publication, PublicationState, PublishProgress

MAX_REMEMBERED = 100  # of one merge: their list must fit a message

_RUNNING = publications.c.state == PublicationState.RUNNING.value


class PublicationStore:
    """All publications of one data folder; `engine` is `open_database`'s."""

    def __init__(self, engine: sa.Engine) -> None:
        self._engine = engine

    def insert(self, publication: Publication) -> Publication:
        """Store a new publication of a merge that is there. Raises NotFoundError.

        When a merge has very many, the oldest that has ended is forgotten, best one that came to nothing.
        """
        with self._engine.begin() as connection:
            merge = sa.select(merges.c.id).where(merges.c.id == publication.merge)
            if connection.execute(merge.with_for_update()).one_or_none() is None:
                raise NotFoundError(f"merges/{publication.merge} is not on this server, or was deleted")
            ended = [one for one in self._of(connection, publication.merge) if one.state.final]
            if len(ended) >= MAX_REMEMBERED:
                least = min(ended, key=lambda one: (one.state is PublicationState.SUCCEEDED, one.created, one.id))
                connection.execute(publications.delete().where(publications.c.id == least.id))
            connection.execute(publications.insert().values(**_to_row(publication)))
        return publication

    def get(self, merge: str, id: str) -> Publication:
        """Raises NotFoundError."""
        with self._engine.connect() as connection:
            found = self._get(connection, id)
        if found.merge != merge:
            raise _not_found(f"merges/{merge}/publications/{id}")
        return found

    def of(self, merge: str) -> list[Publication]:
        """A merge's publications, the oldest first."""
        with self._engine.connect() as connection:
            return self._of(connection, merge)

    def update(
        self,
        id: str,
        *,
        state: PublicationState | None = None,
        progress: PublishProgress | None = None,
        outcome: Outcome | None = None,
        error: JobError | None = None,
        request: str | None = None,
    ) -> Publication:
        """Change what is given and raise the revision. One that runs again has no error any more.

        Args:
            request: a request id that means this publication, too.

        Raises NotFoundError, and ConflictError when the publication's state does not lead to the new one.
        """
        changes: dict[str, Any] = {"revision": publications.c.revision + 1, "updated": now()}
        with self._engine.begin() as connection:
            current = self._get(connection, id, lock=True)
            if state is not None:
                if state not in NEXT[current.state]:
                    raise ConflictError(Problem(current.name, f"has {current.state} and cannot become {state}"))
                changes |= {"state": state.value, "error": _error_json(error)}
            if progress is not None:
                changes["progress"] = json.dumps(asdict(progress))
            if outcome is not None:
                changes["outcome"] = json.dumps(outcome.to_dict())
            if request is not None and request not in current.requests:
                changes["requests"] = json.dumps([*current.requests, request][-MAX_REMEMBERED:])
            connection.execute(publications.update().where(publications.c.id == id).values(**changes))
            return self._get(connection, id)

    def interrupt(self, error: SafegraftError) -> list[Publication]:
        """End every one that is still running, as a server does that finds them at its start."""
        with self._engine.connect() as connection:
            running = connection.execute(sa.select(publications.c.id).where(_RUNNING)).scalars().all()
        return [self.update(id, state=PublicationState.FAILED, error=JobError.of(error)) for id in running]

    def _of(self, connection: sa.Connection, merge: str) -> list[Publication]:
        query = sa.select(publications).where(publications.c.merge == merge)
        rows = connection.execute(query.order_by(publications.c.created, publications.c.id)).mappings()
        return [_from_row(row) for row in rows]

    def _get(self, connection: sa.Connection, id: str, *, lock: bool = False) -> Publication:
        query = sa.select(publications).where(publications.c.id == id)
        row = connection.execute(query.with_for_update() if lock else query).mappings().one_or_none()
        if row is None:
            raise _not_found(f"publication {id}")
        return _from_row(row)


def _not_found(name: str) -> NotFoundError:
    return NotFoundError(f"{name} is not on this server, or was deleted with its merge")


def _error_json(error: JobError | None) -> str | None:
    return None if error is None else json.dumps(asdict(error))


def _to_row(publication: Publication) -> dict[str, Any]:
    return {
        "id": publication.id,
        "merge": publication.merge,
        "state": publication.state.value,
        "revision": publication.revision,
        "created": publication.created,
        "updated": publication.updated,
        "fingerprint": publication.fingerprint,
        "destination": json.dumps(asdict(publication.destination)),
        "credential": publication.credential,
        "evaluated": publication.evaluated,
        "progress": json.dumps(asdict(publication.progress)),
        "requests": json.dumps(publication.requests),
        "outcome": None if publication.outcome is None else json.dumps(publication.outcome.to_dict()),
        "error": _error_json(publication.error),
    }


def _from_row(row: Mapping[Any, Any]) -> Publication:
    destination: dict[str, Any] = json.loads(row["destination"])
    destination["tags"] = tuple(destination["tags"])
    error: dict[str, Any] | None = json.loads(row["error"]) if row["error"] else None
    return Publication(
        id=row["id"],
        merge=row["merge"],
        state=PublicationState(row["state"]),
        revision=row["revision"],
        created=row["created"],
        updated=row["updated"],
        fingerprint=row["fingerprint"],
        destination=Destination(**destination),
        credential=row["credential"],
        evaluated=row["evaluated"],
        progress=PublishProgress(**json.loads(row["progress"])),
        requests=tuple(json.loads(row["requests"])),
        outcome=Outcome.from_dict(json.loads(row["outcome"])) if row["outcome"] else None,
        error=None if error is None else JobError(error["reason"], tuple((w, m) for w, m in error["problems"])),
    )
