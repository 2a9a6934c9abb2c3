"""ArtifactService: merged files out, blobs in. artifact_service.proto says what each call promises."""

import asyncio
import base64
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager

import grpc.aio

from safegraft.errors import DataCorruptedError, OutputError, Problem, ServerUnavailableError, UsageError
from safegraft.rpc import requests
from safegraft.rpc.blobs import Blob, IncomingBlob
from safegraft.rpc.checksum import crc32c
from safegraft.rpc.house import House
from safegraft.rpc.reading import FileReader
from safegraft.v1 import artifact_service_pb2 as pb
from safegraft.v1.artifact_service_pb2_grpc import ArtifactServiceServicer

MAX_BLOBS = 10_000  # in one FindMissingBlobs
MAX_WRITE_BYTES = 2 << 20  # in one WriteBlobRequest


class ArtifactServicer(ArtifactServiceServicer):
    """Answers streams by `context.write`: a generator would be left hanging when its call is cancelled."""

    def __init__(self, house: House) -> None:
        self._house = house
        self._writing: set[Blob] = set()
        self._quota = asyncio.Lock()

    async def ListFiles(
        self,
        request: pb.ListFilesRequest,
        context: "grpc.aio.ServicerContext[pb.ListFilesRequest, pb.ListFilesResponse]",
    ) -> pb.ListFilesResponse:
        job = await self._house.job(requests.merge_id(request.parent, "parent"))
        start = _read_token(request.page_token)
        stop = start + requests.page_size(request.page_size, 1000, 5000)
        files = await self._house.files(job)
        return pb.ListFilesResponse(files=files[start:stop], next_page_token=_token(stop) if stop < len(files) else "")

    async def ReadFile(
        self,
        request: pb.ReadFileRequest,
        context: "grpc.aio.ServicerContext[pb.ReadFileRequest, pb.ReadFileResponse | bytes]",
    ) -> None:
        await FileReader(self._house, context.write).read(request)

    async def FindMissingBlobs(
        self,
        request: pb.FindMissingBlobsRequest,
        context: "grpc.aio.ServicerContext[pb.FindMissingBlobsRequest, pb.FindMissingBlobsResponse]",
    ) -> pb.FindMissingBlobsResponse:
        if len(request.blobs) > MAX_BLOBS:
            raise UsageError(Problem("blobs", f"has more than {MAX_BLOBS} entries"))
        blobs = [requests.blob(digest) for digest in request.blobs]
        there = await asyncio.to_thread(lambda: [self._house.blobs.has(blob) for blob in blobs])
        missing = [digest for digest, has in zip(request.blobs, there, strict=True) if not has]
        return pb.FindMissingBlobsResponse(missing=missing)

    async def QueryWriteStatus(
        self,
        request: pb.QueryWriteStatusRequest,
        context: "grpc.aio.ServicerContext[pb.QueryWriteStatusRequest, pb.QueryWriteStatusResponse]",
    ) -> pb.QueryWriteStatusResponse:
        blob = requests.blob(request.blob)
        complete = await asyncio.to_thread(self._house.blobs.has, blob)
        committed = await asyncio.to_thread(self._house.blobs.committed, blob)
        return pb.QueryWriteStatusResponse(committed_size=committed, complete=complete)

    async def WriteBlob(
        self,
        request_iterator: AsyncIterator[pb.WriteBlobRequest],
        context: "grpc.aio.ServicerContext[pb.WriteBlobRequest, pb.WriteBlobResponse]",
    ) -> pb.WriteBlobResponse:
        first = await anext(request_iterator, None)
        if first is None:
            raise UsageError(Problem("blob", "is missing: the stream was empty"))
        blob = requests.blob(first.blob)
        async with self._sole_writer(blob):
            if await asyncio.to_thread(self._house.blobs.has, blob):
                return pb.WriteBlobResponse(committed_size=blob.size)
            await self._reserve(blob)
            incoming = self._house.blobs.receive(blob)
            try:
                await asyncio.to_thread(incoming.open)
                if first.offset != incoming.committed:
                    raise UsageError(
                        Problem("offset", f"must be the committed size, {incoming.committed}, not {first.offset}")
                    )
                await self._append(incoming, first)
                async for request in request_iterator:
                    self._house.refuse_when_stopping()
                    await self._append(incoming, request)
                if incoming.committed < blob.size:
                    message = f"ended after {incoming.committed} of {blob.size} bytes; continue there"
                    raise UsageError(Problem("data", message))
                await asyncio.to_thread(incoming.finish)
            finally:
                await asyncio.to_thread(incoming.close)  # waits for a write that a cancelled call has left behind
        return pb.WriteBlobResponse(committed_size=blob.size)

    @asynccontextmanager
    async def _sole_writer(self, blob: Blob) -> AsyncGenerator[None]:
        if blob in self._writing:
            raise ServerUnavailableError("another call is writing this blob; ask QueryWriteStatus where to continue")
        self._writing.add(blob)
        try:
            yield
        finally:
            self._writing.discard(blob)

    async def _reserve(self, blob: Blob) -> None:
        """Count the blob's size against the quota. Raises OutputError."""
        quota, blobs = self._house.options.max_upload_bytes, self._house.blobs
        async with self._quota:
            if not await asyncio.to_thread(blobs.reserved, blob):
                used = await asyncio.to_thread(blobs.used)
                if used + blob.size > quota:
                    raise OutputError(
                        f"the quota for uploads is {quota:,} bytes, {used:,} are used; this blob takes {blob.size:,}"
                        if quota
                        else "this server takes no uploads"
                    )
                await asyncio.to_thread(blobs.reserve, blob)

    async def _append(self, incoming: IncomingBlob, request: pb.WriteBlobRequest) -> None:
        if request.offset != incoming.committed:
            raise UsageError(Problem("offset", f"must be {incoming.committed}, without a gap, not {request.offset}"))
        await asyncio.to_thread(_check_and_append, incoming, request)


def _check_and_append(incoming: IncomingBlob, request: pb.WriteBlobRequest) -> None:
    data = request.data  # each look at it makes a copy
    if len(data) > MAX_WRITE_BYTES:
        raise UsageError(Problem("data", f"is longer than {MAX_WRITE_BYTES} bytes"))
    if crc32c(data) != request.crc32c:
        raise DataCorruptedError(
            f"the chunk at offset {request.offset} does not match its crc32c; send it again from the committed size"
        )
    incoming.append(data)


def _token(index: int) -> str:
    return base64.urlsafe_b64encode(f"file/{index}".encode()).decode()


def _read_token(token: str) -> int:
    if not token:
        return 0
    try:
        kind, index = base64.b64decode(token.encode(), altchars=b"-_", validate=True).decode().split("/")
        if kind == "file" and int(index) >= 0:
            return int(index)
    except ValueError:
        pass
    raise UsageError(Problem("page_token", "is not one that this server gave; begin anew without a token"))
