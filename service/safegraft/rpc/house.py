"""What the two services share: the stores, the runners, the pools of workers, the uploads."""

import asyncio
from dataclasses import dataclass, field

from safegraft.errors import ServerUnavailableError
from safegraft.rpc import kept_files
from safegraft.rpc.blobs import BlobStore
from safegraft.rpc.changes import Changes
from safegraft.rpc.job import Job, JobState, now
from safegraft.rpc.jobs import JobStore
from safegraft.rpc.options import ServerOptions
from safegraft.rpc.pool import WorkerPool
from safegraft.rpc.publication import Publication
from safegraft.rpc.publication_store import PublicationStore
from safegraft.rpc.publications import Publisher
from safegraft.rpc.runner import MergeRunner
from safegraft.v1 import merge_pb2


@dataclass(frozen=True)
class House:
    """plans: workers that plan and list methods. reads: workers that compute bytes on demand."""

    options: ServerOptions
    store: JobStore
    published: PublicationStore
    runner: MergeRunner
    publisher: Publisher
    changes: Changes
    plans: WorkerPool
    reads: WorkerPool
    blobs: BlobStore
    started: int = field(default_factory=now)

    async def job(self, id: str) -> Job:
        """Raises NotFoundError."""
        return await asyncio.to_thread(self.store.get, id)

    async def files(self, job: Job) -> list[merge_pb2.MergeFile]:
        """The files of a merge with what is known of them now."""
        return await asyncio.to_thread(self._files, job)

    async def publications(self, merge: str) -> list[Publication]:
        """A merge's publications, the oldest first."""
        return await asyncio.to_thread(self.published.of, merge)

    async def publication(self, merge: str, id: str) -> Publication:
        """Raises NotFoundError."""
        return await asyncio.to_thread(self.published.get, merge, id)

    async def delete(self, merge: str) -> None:
        """Forget a merge that has ended, and remove its files. Raises NotFoundError, ConflictError."""
        await self.runner.delete(merge)
        await self.publisher.forget(merge)

    def refuse_when_stopping(self) -> None:
        """For calls that last: end them when the server does. Raises ServerUnavailableError."""
        if self.changes.stopping:
            raise ServerUnavailableError(
                "the server is stopping; call again when it is back, and continue where you are"
            )

    def _files(self, job: Job) -> list[merge_pb2.MergeFile]:
        running = job.state in (JobState.QUEUED, JobState.RUNNING)
        out = self.runner.files(job.id)
        finished = kept_files.finished(out) if running else {}
        return [
            merge_pb2.MergeFile(
                name=name,
                size=size,
                sha256=job.digests.get(name) or finished.get(name, ""),
                available_bytes=size
                if job.state is JobState.SUCCEEDED
                else kept_files.available(out, name, size)
                if running
                else 0,
            )
            for name, size in job.plan.files
        ]
