"""ReadFile: a range of a file's bytes, from disk while they are being written, or computed for the call."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from typing import TypeVar

from safegraft.errors import MergeCancelledError, NotFoundError, SafegraftError, ServerError
from safegraft.rpc import kept_files, requests
from safegraft.rpc.changes import wait
from safegraft.rpc.frames import encode
from safegraft.rpc.house import House
from safegraft.rpc.job import Job, JobState
from safegraft.rpc.messages import ReadDone, ReadTask
from safegraft.rpc.ring import SLOT_BYTES
from safegraft.rpc.runner import order_of
from safegraft.rpc.status import restore
from safegraft.v1 import artifact_service_pb2 as pb

CHUNK_BYTES = SLOT_BYTES  # of a message
_BATCH_BYTES = 8 * CHUNK_BYTES  # read from disk in one go, to spare changes of thread
_FIRST_POLL, _LONGEST_POLL = 0.005, 0.25  # seconds to wait for a file to grow ...
_SLOWER = 1.3  # ... each time longer by this factor
_PATIENCE_SECONDS = 30.0  # for a worker that computes on demand

Found = TypeVar("Found", list[bytes], dict[str, str])
Item = TypeVar("Item")


class FileReader:
    """One ReadFile call."""

    def __init__(self, house: House, send: Callable[[pb.ReadFileResponse | bytes], Awaitable[None]]) -> None:
        self._house, self._send = house, send

    async def read(self, request: pb.ReadFileRequest) -> None:
        """Answer the whole call."""
        job = await self._house.job(requests.merge_id(request.name))
        size = job.plan.size_of(request.file)
        if size is None:
            raise NotFoundError(f"{request.name} has no file {request.file!r}; ListFiles names those it has")
        start, stop = requests.span(request.offset, request.limit, size)
        await self._send(pb.ReadFileResponse(offset=start, size=size))
        digests: Mapping[str, str] = {}
        if job.retention == "none":
            digests = await self._compute(job, request.file, start, stop)
        else:
            await self._follow(job, request.file, start, stop)
            if stop == size:
                digests = await self._digests_on_disk(job, request.file)
        sha256 = digests.get(request.file, "") if stop == size else ""
        await self._send(pb.ReadFileResponse(offset=stop, sha256=sha256))

    async def _follow(self, job: Job, file: str, start: int, stop: int) -> None:
        """Send what is on disk, and what is added to it, until the range is complete."""
        out = self._house.runner.files(job.id)

        at = start

        def messages() -> list[bytes]:
            nonlocal at
            found: list[bytes] = []
            for chunk in kept_files.read(out, file, at, min(stop, at + _BATCH_BYTES), CHUNK_BYTES):
                found.append(encode(chunk, at))
                at += len(chunk)
            return found

        async def batches() -> AsyncGenerator[list[bytes]]:
            while at < stop:
                yield await self._when_there(job, messages)

        await self._send_all(batches())

    async def _send_all(self, batches: AsyncGenerator[list[bytes]]) -> None:
        async with contextlib.aclosing(_one_ahead(batches)) as ready:
            async for batch in ready:
                for message in batch:
                    await self._send(message)

    async def _digests_on_disk(self, job: Job, file: str) -> dict[str, str]:
        """The digests of finished files, once `file` is one of them: its last byte is there a little earlier."""
        out = self._house.runner.files(job.id)

        def finished() -> dict[str, str]:
            digests = {**kept_files.finished(out), **self._house.store.get(job.id).digests}
            return digests if file in digests else {}

        return await self._when_there(job, finished)

    async def _when_there(self, job: Job, look: Callable[[], Found]) -> Found:
        """What `look` finds, as soon as it finds something. Raises why it never will."""
        pause = _FIRST_POLL
        self._house.refuse_when_stopping()
        if found := await asyncio.to_thread(look):  # most often
            return found
        while True:
            self._house.refuse_when_stopping()
            change = self._house.changes.next(job.id)
            now = await self._house.job(job.id)  # before looking: a merge that has succeeded by now has all its bytes
            while not change.is_set():
                if found := await asyncio.to_thread(look):
                    return found
                if now.state.final:
                    raise _ending(now)
                if await wait(change, pause):
                    break
                pause = min(_SLOWER * pause, _LONGEST_POLL)

    async def _compute(self, job: Job, file: str, start: int, stop: int) -> Mapping[str, str]:
        """Send the range as a worker computes it; the digests known afterwards."""
        order = order_of(job)
        async with self._house.reads.lease(order, _PATIENCE_SECONDS) as worker:
            await worker.assign(ReadTask(order, file, start, stop, job.digests))
            done: ReadDone | None = None

            async def batches() -> AsyncGenerator[list[bytes]]:
                nonlocal done
                while done is None:
                    self._house.refuse_when_stopping()
                    answer = await worker.receive()
                    if isinstance(answer, list):
                        yield answer
                    elif isinstance(answer, ReadDone):
                        done = answer

            await self._send_all(batches())
        assert done is not None  # the last answer
        return await self._learn(job, done.digests)

    async def _learn(self, job: Job, digests: Mapping[str, str]) -> Mapping[str, str]:
        """Keep what is known of a merge's files by now."""
        if digests.items() <= job.digests.items():
            return job.digests
        return (await asyncio.to_thread(self._house.store.update, job.id, digests=dict(digests))).digests


async def _one_ahead(items: AsyncGenerator[Item]) -> AsyncGenerator[Item]:
    """The same items; while one is being used, the next is made."""

    async def following() -> Item | None:
        return await anext(items, None)

    try:
        coming = asyncio.create_task(following())
        try:
            while (item := await coming) is not None:
                coming = asyncio.create_task(following())
                yield item
        finally:
            coming.cancel()
            with contextlib.suppress(asyncio.CancelledError, SafegraftError):
                await coming
    finally:
        await items.aclose()


def _ending(job: Job) -> SafegraftError:
    """Why a merge that has ended has no more bytes."""
    if job.state is JobState.CANCELLED:
        return MergeCancelledError(f"merges/{job.id} was cancelled; create it again if it is still wanted")
    if job.error is not None:
        return restore(job.error.reason, job.error.problems)
    return ServerError(f"merges/{job.id} has succeeded, but its files are gone from the server's disk; delete it")
