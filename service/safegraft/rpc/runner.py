"""Has queued merges computed: which one next, by which worker, and what becomes of the row and the folder.

    DATA/merges/ID/files                      the result, when complete
    DATA/merges/ID/.files.safegraft-partial   until then (see engine/staging.py)

Knows no gRPC.
"""

import asyncio
import logging
import shutil
from dataclasses import dataclass, field
from pathlib import Path

from safegraft.engine.staging import partial_path
from safegraft.errors import (
    ConflictError,
    MergeCancelledError,
    NotFoundError,
    Problem,
    SafegraftError,
    ServerError,
)
from safegraft.rpc.changes import Changes
from safegraft.rpc.job import Job, JobError, JobProgress, JobState
from safegraft.rpc.jobs import JobStore
from safegraft.rpc.messages import Order, Progressed, WriteTask, Written
from safegraft.rpc.pool import STOP_SECONDS, Worker, WorkerDiedError, WorkerPool

MAX_DEATHS = 2  # a merge may lose so many workers and be taken up again; one more and it has failed

log = logging.getLogger(__name__)


@dataclass(eq=False)
class _Run:
    """A merge in the hands of a worker."""

    cancelled: bool = False
    worker: Worker | None = None
    over: asyncio.Event = field(default_factory=asyncio.Event)

    async def stop(self) -> None:
        if self.worker is not None:
            await self.worker.cancel()

    def kill(self) -> None:
        if self.worker is not None:
            self.worker.kill()


def order_of(job: Job) -> Order:
    """What a worker must know of a merge to compute it."""
    plan = job.plan
    return Order(job.recipe, job.max_shard_size, job.threads, plan.digest, plan.modified, job.hub_credential, plan.pins)


class MergeRunner:
    """Computes merges with RETENTION_KEEP, `size` at a time, in the order of their creation."""

    def __init__(self, data: Path, store: JobStore, pool: WorkerPool, changes: Changes, size: int) -> None:
        self._merges = data / "merges"
        self._store, self._pool, self._changes, self._size = store, pool, changes, size
        self._queue: asyncio.Queue[str] = asyncio.Queue()
        self._queued: set[str] = set()  # those in the queue that are still wanted
        self._runs: dict[str, _Run] = {}
        self._loops: list[asyncio.Task[None]] = []

    def files(self, id: str) -> Path:
        """Where a merge's result appears."""
        return self._merges / id / "files"

    async def start(self) -> None:
        """Take up what an earlier server left, then work."""
        unfinished = await asyncio.to_thread(self._store.unfinished)
        await asyncio.to_thread(self._tidy, {job.id for job in unfinished})
        for job in unfinished:
            if job.state is JobState.RUNNING:
                await self._update(job.id, state=JobState.QUEUED)
            self.submit(job.id)
        self._loops = [asyncio.create_task(self._work()) for _ in range(self._size)]

    def submit(self, id: str) -> None:
        """Queue a stored merge."""
        self._queued.add(id)
        self._queue.put_nowait(id)

    async def cancel(self, id: str) -> Job:
        """Stop a merge. Raises NotFoundError, and ConflictError when it has ended otherwise."""
        self._queued.discard(id)  # from here on it is in the hands of a worker, of this call, or over
        run = self._runs.get(id)
        if run is not None:
            run.cancelled = True
            try:
                async with asyncio.timeout(STOP_SECONDS):
                    await run.stop()
                    await run.over.wait()
            except TimeoutError:
                log.warning("merges/%s does not stop and its worker is killed", id)
                run.kill()
                await run.over.wait()
        job = await asyncio.to_thread(self._store.get, id)
        if not job.state.final:
            job = await self._end(id, JobState.CANCELLED)
        if job.state is not JobState.CANCELLED:
            raise ConflictError(Problem(f"merges/{id}", f"has {job.state} and cannot be cancelled; delete it instead"))
        return job

    async def delete(self, id: str) -> None:
        """Forget a merge that has ended, and remove its files. Raises NotFoundError, ConflictError."""
        await asyncio.to_thread(self._store.delete, id)
        self._changes.announce(id)
        await asyncio.to_thread(self._remove, id)

    async def stop(self) -> None:
        """Release what is running: it stays as far as it is, queued for the next server."""
        for loop in self._loops:
            loop.cancel()
        await asyncio.gather(*self._loops, return_exceptions=True)

    async def _work(self) -> None:
        while True:
            id = await self._queue.get()
            if id not in self._queued:
                continue  # it was cancelled
            self._queued.remove(id)
            run = self._runs[id] = _Run()
            try:
                while await self._attempt(id, run):
                    pass
            except Exception:  # a bug, or the database is gone: this merge stops here, the others go on
                log.exception("merges/%s cannot be run", id)
                await self._give_up(id)
            finally:
                del self._runs[id]
                run.over.set()

    async def _attempt(self, id: str, run: _Run) -> bool:
        """Give the merge to a worker. True if the worker died and another should go on."""
        job = await asyncio.to_thread(self._store.get, id)
        try:
            async with self._pool.lease(order_of(job)) as worker:
                await self._update(id, state=JobState.RUNNING)
                run.worker = worker
                await self._write(job, run, worker)
        except asyncio.CancelledError:
            await asyncio.shield(self._release(id))
            raise
        except WorkerDiedError as error:
            if run.cancelled:
                await self._end(id, JobState.CANCELLED)
                return False
            return await self._survive(job, error)
        except MergeCancelledError:
            await self._end(id, JobState.CANCELLED)
        except SafegraftError as error:
            await self._end(id, JobState.FAILED, error)
        return False

    async def _write(self, job: Job, run: _Run, worker: Worker) -> None:
        await worker.assign(WriteTask(order_of(job), self.files(job.id)))
        if run.cancelled:  # before the worker had the task, so that it has not heard of it
            await worker.cancel()
        while True:
            answer = await worker.receive()
            if isinstance(answer, Progressed):
                progress = JobProgress(answer.bytes_done, answer.tensors_done, answer.file)
                await self._update(job.id, progress=progress)
            elif isinstance(answer, Written):
                done = JobProgress(job.plan.total_size, job.plan.tensors)
                await self._update(job.id, state=JobState.SUCCEEDED, progress=done, digests=answer.digests)
                return

    async def _survive(self, job: Job, error: WorkerDiedError) -> bool:
        deaths = job.deaths + 1
        log.warning("merges/%s: %s (%d of at most %d times)", job.id, error, deaths, MAX_DEATHS)
        if deaths <= MAX_DEATHS:
            await self._update(job.id, state=JobState.QUEUED, deaths=deaths)
            return True
        final = ServerError(
            f"the merge has lost {deaths} workers and is given up. The last: {error}. "
            "Try fewer threads, or a server with more memory"
        )
        await self._end(job.id, JobState.FAILED, final)
        return False

    async def _give_up(self, id: str) -> None:
        """End a merge that the runner itself has failed, so that nobody waits for it."""
        try:
            await self._end(id, JobState.FAILED, SafegraftError("internal error; see the server's log"))
        except Exception:  # the database is still gone; the next server takes the merge up again
            log.exception("merges/%s cannot even be ended", id)

    async def _release(self, id: str) -> None:
        """Put a running merge back. Its worker is settled by the pool; what it has finished stays."""
        job = await asyncio.to_thread(self._store.get, id)
        if job.state is JobState.RUNNING:
            await self._update(id, state=JobState.QUEUED)

    async def _end(self, id: str, state: JobState, error: SafegraftError | None = None) -> Job:
        """Free a merge's disk space and record that it has ended without a result."""
        cause = None
        if error is not None:
            log.info("merges/%s failed: %s", id, error)
            cause = JobError.of(error)
        await asyncio.to_thread(self._remove, id)
        return await self._update(id, state=state, error=cause)

    async def _update(
        self,
        id: str,
        *,
        state: JobState | None = None,
        progress: JobProgress | None = None,
        digests: dict[str, str] | None = None,
        error: JobError | None = None,
        deaths: int | None = None,
    ) -> Job:
        job = await asyncio.to_thread(
            self._store.update, id, state=state, progress=progress, digests=digests, error=error, deaths=deaths
        )
        self._changes.announce(id)
        return job

    def _remove(self, id: str) -> None:
        folder = self._merges / id
        if folder.exists():
            shutil.rmtree(folder)

    def _tidy(self, unfinished: set[str]) -> None:
        """Remove what no merge owns, and half-written files: after a power cut their last bytes may be wrong."""
        self._merges.mkdir(exist_ok=True)
        for folder in self._merges.iterdir():
            if folder.name in unfinished:
                for part in partial_path(folder / "files").rglob("*.part"):
                    part.unlink()
            elif not (folder / "files").is_dir() or not self._is_known(folder.name):
                shutil.rmtree(folder)

    def _is_known(self, id: str) -> bool:
        try:
            self._store.get(id)
        except NotFoundError:
            return False
        return True
