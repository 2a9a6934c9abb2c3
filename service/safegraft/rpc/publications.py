"""Has results published, one at a time, in a worker of their own; and keeps what becomes of them.

    DATA/merges/ID/publishing   what is on its way, a folder for each publication
    DATA/publishing/ID          what has been sent already, so that the next try goes on

What a caller sends along (a token, an evaluation) is held in memory until the end and written nowhere. Without it a
later server could not go on, so a publication that is interrupted fails, and the same call continues it. Knows no gRPC.
"""

import asyncio
import contextlib
import logging
import secrets
import shutil
from dataclasses import dataclass, field
from pathlib import Path

from safegraft.errors import (
    ConflictError,
    MergeCancelledError,
    NotFoundError,
    Problem,
    SafegraftError,
    ServerError,
    ServerUnavailableError,
    UsageError,
)
from safegraft.hub.publication import Publication as Outcome
from safegraft.rpc.changes import Changes
from safegraft.rpc.job import Job, JobError, JobState, now
from safegraft.rpc.jobs import JobStore
from safegraft.rpc.messages import Progressed, Published, PublishTask
from safegraft.rpc.pool import Worker, WorkerDiedError, WorkerPool
from safegraft.rpc.publication import Asked, Publication, PublicationState, Publicity, PublishProgress
from safegraft.rpc.publication_store import PublicationStore
from safegraft.rpc.runner import MergeRunner, order_of
from safegraft.rpc.status import restore

MAX_UNDER_WAY = 16  # publications that wait or run; each holds what its caller has sent along
MAX_DEATHS = 1  # a publication may lose so many workers and be taken up again; one more and it has failed
STOP_SECONDS = 5.0  # how long a worker may take to heed a cancellation: a request to the Hub should get its answer
SCRATCH = "publishing"  # within a merge's folder
GOES_ON = "call again: it continues"
INTERRUPTED = f"the server stopped in the middle; {GOES_ON}"

_STOPPED = (MergeCancelledError, WorkerDiedError, ServerUnavailableError)  # what a cancellation looks like from within

log = logging.getLogger(__name__)


@dataclass(eq=False)
class _Run:
    """A publication under way, with what is known of it in memory only.

    work: all that may be interrupted. life: that, and what is recorded of it. over: nothing of it is left to be done.
    """

    publicity: Publicity = field(repr=False)
    cancelled: bool = False
    worker: Worker | None = None
    work: asyncio.Task[Outcome] | None = None
    life: asyncio.Task[None] | None = None
    over: asyncio.Event = field(default_factory=asyncio.Event)

    def interrupt(self) -> None:
        """Stop at once, unless it has come to its end anyway."""
        if self.work is not None:
            self.work.cancel()

    async def cancel(self) -> None:
        """Stop, and return when that is done. What the worker completes meanwhile counts."""
        self.cancelled = True
        if self.worker is None:
            self.interrupt()
        else:
            await self.worker.cancel()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(STOP_SECONDS):
                await self.over.wait()
        if self.worker is not None:
            self.worker.kill()
        await self.over.wait()


class Publisher:
    """Publishes merges' results. `pool` has one worker, so that uploads do not share the line.

    A publication waits for its merge, then for the worker, in the order in which the merges were ready.
    """

    def __init__(
        self,
        data: Path,
        jobs: JobStore,
        store: PublicationStore,
        runner: MergeRunner,
        pool: WorkerPool,
        changes: Changes,
    ) -> None:
        self._merges, self._journals = data / "merges", data / "publishing"
        self._jobs, self._store, self._runner, self._pool, self._changes = jobs, store, runner, pool, changes
        self._runs: dict[str, _Run] = {}
        self._deciding = asyncio.Lock()

    async def start(self) -> None:
        """End what an earlier server did not: it had what this one has not."""
        for one in await asyncio.to_thread(self._store.interrupt, ServerUnavailableError(INTERRUPTED)):
            log.info("%s was interrupted", one.name)
        await asyncio.to_thread(self._tidy)

    async def publish(self, asked: Asked) -> Publication:
        """Start, continue or join a publication, or find the one that the request id means.

        Raises NotFoundError, ConflictError, ServerUnavailableError when too many are under way, and UsageError when the
        request id was used for another request.
        """
        async with self._deciding:
            job = await asyncio.to_thread(self._jobs.get, asked.merge)
            known = await asyncio.to_thread(self._store.of, asked.merge)
            meant = _meant(asked, known)
            if meant is not None:
                return meant
            _require_hope(job)
            running = _in_the_way(asked, known)
            if running is not None and asked.request_id is None:
                return running
            if running is not None:
                return await asyncio.to_thread(self._store.update, running.id, request=asked.request_id)
            if len(self._runs) >= MAX_UNDER_WAY:
                raise ServerUnavailableError(f"{MAX_UNDER_WAY} publications are under way here; try again later")
            begun = await asyncio.to_thread(self._begin, job, asked, known)
            run = self._runs[begun.id] = _Run(asked.publicity)
            run.work = asyncio.create_task(self._published(begun, run))
            run.life = asyncio.create_task(self._live(begun, run, run.work))
            self._changes.announce(begun.id)
            return begun

    async def cancel(self, merge: str, id: str) -> Publication:
        """Stop a publication. Raises NotFoundError, and ConflictError when it has ended otherwise."""
        found = await asyncio.to_thread(self._store.get, merge, id)
        run = self._runs.get(id)
        if run is not None:
            await run.cancel()
            found = await asyncio.to_thread(self._store.get, merge, id)
        if not found.state.final:  # its end could not be recorded
            found = await asyncio.to_thread(self._store.update, id, state=PublicationState.CANCELLED)
        if found.state is not PublicationState.CANCELLED:
            raise ConflictError(Problem(found.name, f"has {found.state} and cannot be cancelled"))
        return found

    async def forget(self, merge: str) -> None:
        """Remove what is kept of a deleted merge's publications."""
        await asyncio.to_thread(shutil.rmtree, self._journals / merge, ignore_errors=True)

    async def stop(self) -> None:
        """End everything, for callers to continue it with the next server."""
        runs = list(self._runs.values())
        for run in runs:
            run.interrupt()
        await asyncio.gather(*(run.over.wait() for run in runs))

    def _begin(self, job: Job, asked: Asked, known: list[Publication]) -> Publication:
        """The row of one that starts now: what failed before with the same settings is taken up again."""
        progress = PublishProgress(0, job.plan.total_size)
        for one in reversed(known):
            if one.fingerprint == asked.fingerprint and one.state is not PublicationState.SUCCEEDED:
                running = PublicationState.RUNNING
                return self._store.update(one.id, state=running, progress=progress, request=asked.request_id)
        return self._store.insert(
            Publication(
                id=secrets.token_hex(8),
                merge=job.id,
                state=PublicationState.RUNNING,
                revision=1,
                created=(created := now()),
                updated=created,
                fingerprint=asked.fingerprint,
                destination=asked.destination,
                credential=asked.credential,
                evaluated=asked.publicity.evaluation is not None,
                progress=progress,
                requests=() if asked.request_id is None else (asked.request_id,),
            )
        )

    async def _live(self, one: Publication, run: _Run, work: asyncio.Task[Outcome]) -> None:
        """A publication's life in this server."""
        try:
            await self._conclude(one, run, work)
        except Exception:  # the database is gone; the next server ends it
            log.exception("%s cannot even be ended", one.name)
        finally:
            if self._runs.get(one.id) is run:  # it may have been taken up again since it was recorded as ended
                del self._runs[one.id]
            run.over.set()

    async def _conclude(self, one: Publication, run: _Run, work: asyncio.Task[Outcome]) -> None:
        """Record how the work went."""
        ended: Outcome | SafegraftError
        try:
            ended = await work
        except asyncio.CancelledError:  # by `stop`, or by `cancel` before a worker had it
            ended = ServerUnavailableError(INTERRUPTED)
        except SafegraftError as error:
            ended = error
        except Exception:  # a bug, or the database is gone: this one stops here, the others go on
            log.exception("%s cannot be run", one.name)
            ended = SafegraftError("internal error; see the server's log")
        await asyncio.to_thread(self._remove_scratch, one)
        if isinstance(ended, Outcome):
            done = PublishProgress(ended.bytes_total, ended.bytes_total)
            await self._update(one, state=PublicationState.SUCCEEDED, progress=done, outcome=ended)
        elif run.cancelled and isinstance(ended, _STOPPED):
            await self._update(one, state=PublicationState.CANCELLED)
        else:
            log.info("%s failed: %s", one.name, ended)
            await self._update(one, state=PublicationState.FAILED, error=JobError.of(ended))

    async def _published(self, one: Publication, run: _Run) -> Outcome:
        job = await self._merged(one.merge)
        deaths = 0
        while True:
            try:
                return await self._attempt(job, one, run)
            except WorkerDiedError as error:
                if run.cancelled:
                    raise
                deaths += 1
                log.warning("%s: %s (%d of at most %d times)", one.name, error, deaths, MAX_DEATHS)
                if deaths > MAX_DEATHS:
                    message = f"the publication has lost {deaths} workers. The last: {error}; {GOES_ON}"
                    raise ServerError(message) from error

    async def _merged(self, id: str) -> Job:
        """The merge once it has succeeded. Raises why it never will."""
        while True:
            change = self._changes.next(id)
            job = await asyncio.to_thread(self._jobs.get, id)
            if job.state is JobState.SUCCEEDED:
                return job
            if job.state is JobState.CANCELLED:
                raise MergeCancelledError(f"merges/{id} was cancelled; create it again if it is still wanted")
            if job.error is not None:
                raise restore(job.error.reason, job.error.problems)
            await change.wait()

    async def _attempt(self, job: Job, one: Publication, run: _Run) -> Outcome:
        """Have a worker do it."""
        task = PublishTask(
            order=order_of(job),
            out=self._runner.files(job.id) if job.retention == "keep" else None,
            destination=one.destination,
            credential=one.credential,
            publicity=run.publicity,
            scratch=self._scratch(one),
            journal=self._journals / job.id,
        )
        async with self._pool.lease() as worker:
            run.worker = worker
            try:
                await worker.assign(task)
                if run.cancelled:  # before the worker had the task, so that it has not heard of it
                    await worker.cancel()
                while True:
                    answer = await worker.receive()
                    if isinstance(answer, Progressed):
                        progress = PublishProgress(answer.bytes_done, answer.bytes_total, answer.file)
                        await self._update(one, progress=progress)
                    elif isinstance(answer, Published):
                        return answer.publication
            finally:
                run.worker = None

    async def _update(
        self,
        one: Publication,
        *,
        state: PublicationState | None = None,
        progress: PublishProgress | None = None,
        outcome: Outcome | None = None,
        error: JobError | None = None,
    ) -> None:
        await asyncio.to_thread(
            self._store.update, one.id, state=state, progress=progress, outcome=outcome, error=error
        )
        self._changes.announce(one.id)

    def _scratch(self, one: Publication) -> Path:
        return self._merges / one.merge / SCRATCH / one.id

    def _remove_scratch(self, one: Publication) -> None:
        scratch = self._scratch(one)
        shutil.rmtree(scratch, ignore_errors=True)  # a killed worker leaves something behind
        with contextlib.suppress(OSError):  # never made, or in use: by another publication, or by the result
            scratch.parent.rmdir()
            scratch.parent.parent.rmdir()

    def _tidy(self) -> None:
        """Remove what an earlier server's worker left. It may live a moment longer and still be writing: never mind."""
        for scratch in self._merges.glob(f"*/{SCRATCH}"):
            shutil.rmtree(scratch, ignore_errors=True)
        for journal in self._journals.glob("*"):
            try:
                self._jobs.get(journal.name)
            except NotFoundError:
                shutil.rmtree(journal, ignore_errors=True)


def _meant(asked: Asked, known: list[Publication]) -> Publication | None:
    """The publication that a request id means."""
    for one in known:
        if asked.request_id in one.requests:
            if one.fingerprint != asked.fingerprint:
                message = f"was used for another request, which made {one.name}; take a fresh one"
                raise UsageError(Problem("request_id", message))
            return one
    return None


def _require_hope(job: Job) -> None:
    if job.state in (JobState.FAILED, JobState.CANCELLED):
        raise ConflictError(Problem(f"merges/{job.id}", f"was {job.state}, so there is nothing to publish"))


def _in_the_way(asked: Asked, known: list[Publication]) -> Publication | None:
    """The running publication to the same place. Raises ConflictError when it is not the one that is asked for."""
    for one in known:
        if not one.state.final and one.place == asked.place:
            if one.fingerprint != asked.fingerprint:
                message = "is under way to the same revision with other settings; wait for it or cancel it"
                raise ConflictError(Problem(one.name, message))
            return one
    return None
