"""A gRPC server and client that move bytes and do nothing else: what a merge server could reach at most.

    python -m bench.raw        # serves on a free loopback port until it is terminated

Messages, frame sizes, channel options and the allocator's settings are those of the real server. Its answers are made
once and sent again and again; nothing is read, computed, checked or stored.
"""

import asyncio
import signal
from collections.abc import AsyncIterator, Iterator
from typing import Any, cast

import grpc
import grpc.aio

from safegraft.rpc.allocator import keep_freed_memory
from safegraft.rpc.connection import CHANNEL_OPTIONS as CLIENT_OPTIONS
from safegraft.rpc.reading import CHUNK_BYTES as FRAME_BYTES
from safegraft.rpc.server import CHANNEL_OPTIONS as SERVER_OPTIONS
from safegraft.rpc.upload import CHUNK_BYTES as UPLOAD_BYTES
from safegraft.v1 import artifact_service_pb2 as pb
from safegraft.v1 import artifact_service_pb2_grpc

_stubs = cast(Any, artifact_service_pb2_grpc)  # generated code carries no types


class _Servicer(_stubs.ArtifactServiceServicer):
    async def ReadFile(self, request: pb.ReadFileRequest, context: Any) -> AsyncIterator[pb.ReadFileResponse]:
        whole = pb.ReadFileResponse(data=bytes(FRAME_BYTES))
        for _ in range(request.limit // FRAME_BYTES):
            yield whole
        yield pb.ReadFileResponse(data=bytes(request.limit % FRAME_BYTES))

    async def WriteBlob(self, request_iterator: AsyncIterator[pb.WriteBlobRequest], context: Any) -> Any:
        received = 0
        async for request in request_iterator:
            received += len(request.data)
        return pb.WriteBlobResponse(committed_size=received)


class RawClient:
    """Moves bytes to and from such a server."""

    def __init__(self, address: str) -> None:
        self._channel = grpc.insecure_channel(address, options=(*CLIENT_OPTIONS, ("grpc.enable_http_proxy", 0)))
        self._stub = _stubs.ArtifactServiceStub(self._channel)

    def download(self, size: int) -> int:
        """Returns how many bytes came."""
        return sum(len(frame.data) for frame in self._stub.ReadFile(pb.ReadFileRequest(limit=size)))

    def upload(self, size: int) -> int:
        """Returns how many bytes the server has got."""
        return self._stub.WriteBlob(self._requests(size)).committed_size

    def close(self) -> None:
        self._channel.close()

    def _requests(self, size: int) -> Iterator[pb.WriteBlobRequest]:
        whole = pb.WriteBlobRequest(data=bytes(UPLOAD_BYTES))
        for _ in range(size // UPLOAD_BYTES):
            yield whole
        yield pb.WriteBlobRequest(data=bytes(size % UPLOAD_BYTES))


async def _serve() -> None:
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    server = grpc.aio.server(options=SERVER_OPTIONS)
    _stubs.add_ArtifactServiceServicer_to_server(_Servicer(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    print(f"listening on 127.0.0.1:{port}", flush=True)
    await stop.wait()
    await server.stop(None)


if __name__ == "__main__":
    keep_freed_memory()
    asyncio.run(_serve())
