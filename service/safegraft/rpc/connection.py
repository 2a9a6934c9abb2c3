"""A client's channel: typed stubs, errors as SafegraftError, and patience with a server that is away for a while.

Knows no single call.
"""

from __future__ import annotations  # gRPC's classes are generic in its stubs only

import random
import re
import time
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol, TypeVar, cast

import grpc
from google.protobuf.empty_pb2 import Empty
from grpc_health.v1 import health_pb2, health_pb2_grpc

from safegraft.errors import SafegraftError, ServerUnavailableError, UsageError
from safegraft.rpc.status import from_rpc_error
from safegraft.v1 import (
    artifact_service_pb2,
    artifact_service_pb2_grpc,
    merge_pb2,
    merge_service_pb2,
    merge_service_pb2_grpc,
    plan_pb2,
)

UNARY_ATTEMPTS = 4

CHANNEL_OPTIONS = (
    ("grpc.keepalive_time_ms", 60_000),  # a call may wait long for a merge; a server that vanished must be noticed
    ("grpc.keepalive_timeout_ms", 20_000),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 2_000),
)

_LOOPBACK = re.compile(r"(localhost|127(\.\d+){3}|\[::1\])(:\d+)?$")

Request = TypeVar("Request")
Response = TypeVar("Response")


class MergeStub(Protocol):
    """MergeService as this client calls it; the generated stub carries no types."""

    GetServerInfo: grpc.UnaryUnaryMultiCallable[merge_service_pb2.GetServerInfoRequest, merge_service_pb2.ServerInfo]
    ListMethods: grpc.UnaryUnaryMultiCallable[
        merge_service_pb2.ListMethodsRequest, merge_service_pb2.ListMethodsResponse
    ]
    GetMethod: grpc.UnaryUnaryMultiCallable[merge_service_pb2.GetMethodRequest, merge_service_pb2.MergeMethod]
    PlanMerge: grpc.UnaryStreamMultiCallable[merge_service_pb2.PlanMergeRequest, plan_pb2.Plan]
    CreateMerge: grpc.UnaryUnaryMultiCallable[merge_service_pb2.CreateMergeRequest, merge_pb2.Merge]
    GetMerge: grpc.UnaryUnaryMultiCallable[merge_service_pb2.GetMergeRequest, merge_pb2.Merge]
    ListMerges: grpc.UnaryUnaryMultiCallable[merge_service_pb2.ListMergesRequest, merge_service_pb2.ListMergesResponse]
    WatchMerge: grpc.UnaryStreamMultiCallable[merge_service_pb2.WatchMergeRequest, merge_service_pb2.WatchMergeResponse]
    CancelMerge: grpc.UnaryUnaryMultiCallable[merge_service_pb2.CancelMergeRequest, merge_pb2.Merge]
    DeleteMerge: grpc.UnaryUnaryMultiCallable[merge_service_pb2.DeleteMergeRequest, Empty]
    PublishMerge: grpc.UnaryStreamMultiCallable[
        merge_service_pb2.PublishMergeRequest, merge_service_pb2.PublishMergeResponse
    ]
    CancelPublication: grpc.UnaryUnaryMultiCallable[merge_service_pb2.CancelPublicationRequest, merge_pb2.Publication]


class ArtifactStub(Protocol):
    """ArtifactService as this client calls it."""

    ListFiles: grpc.UnaryUnaryMultiCallable[
        artifact_service_pb2.ListFilesRequest, artifact_service_pb2.ListFilesResponse
    ]
    ReadFile: grpc.UnaryStreamMultiCallable[artifact_service_pb2.ReadFileRequest, artifact_service_pb2.ReadFileResponse]
    FindMissingBlobs: grpc.UnaryUnaryMultiCallable[
        artifact_service_pb2.FindMissingBlobsRequest, artifact_service_pb2.FindMissingBlobsResponse
    ]
    WriteBlob: grpc.StreamUnaryMultiCallable[
        artifact_service_pb2.WriteBlobRequest, artifact_service_pb2.WriteBlobResponse
    ]
    QueryWriteStatus: grpc.UnaryUnaryMultiCallable[
        artifact_service_pb2.QueryWriteStatusRequest, artifact_service_pb2.QueryWriteStatusResponse
    ]


class HealthStub(Protocol):
    """grpc.health.v1.Health."""

    Check: grpc.UnaryUnaryMultiCallable[health_pb2.HealthCheckRequest, health_pb2.HealthCheckResponse]


class Connection:
    """Args: see `Client`. Nothing is sent before the first call."""

    def __init__(self, target: str, *, token: str | None, ca: Path | None, timeout: float, patience: float) -> None:
        self.patience = patience
        self._timeout = timeout
        self._metadata = () if token is None else (("authorization", f"Bearer {token}"),)
        self._channel = _open_channel(target, ca)
        self.merges = cast(MergeStub, cast(Any, merge_service_pb2_grpc).MergeServiceStub(self._channel))
        self.artifacts = cast(ArtifactStub, cast(Any, artifact_service_pb2_grpc).ArtifactServiceStub(self._channel))
        self._health = cast(HealthStub, cast(Any, health_pb2_grpc).HealthStub(self._channel))

    def close(self) -> None:
        self._channel.close()

    def call(self, method: grpc.UnaryUnaryMultiCallable[Request, Response], request: Request) -> Response:
        """One call that may safely be repeated, a few times when the server does not answer."""
        for attempt in range(1, UNARY_ATTEMPTS + 1):
            try:
                with rpc_errors():
                    return method(request, timeout=self._timeout, metadata=self._metadata)
            except ServerUnavailableError:
                if attempt == UNARY_ATTEMPTS:
                    raise
                time.sleep(_delay(attempt))
        raise AssertionError("the loop returns or raises")

    def stream(
        self,
        method: grpc.UnaryStreamMultiCallable[Request, Response],
        request: Request,
        timeout: float | None = None,
        headers: tuple[tuple[str, str], ...] = (),
    ) -> Iterator[Response]:
        """The answers of a streaming call, which ends when the caller stops taking them. Once: see `Backoff`."""
        with rpc_errors():
            call = method(request, timeout=timeout, metadata=(*self._metadata, *headers))
            try:
                yield from call
            finally:
                call.cancel()

    def send(self, method: grpc.StreamUnaryMultiCallable[Request, Response], requests: Iterator[Request]) -> Response:
        """A call that streams to the server. Once: see `Backoff`."""
        with rpc_errors():
            call = method.future(requests, metadata=self._metadata)
            try:
                return call.result()
            finally:
                call.cancel()

    def healthy(self) -> bool:
        """What the server's health check says. Raises ServerUnavailableError when there is no server."""
        with rpc_errors():
            answer = self._health.Check(health_pb2.HealthCheckRequest(), timeout=self._timeout)
        return answer.status == health_pb2.HealthCheckResponse.SERVING


class Backoff:
    """Waits between attempts, longer each time, and gives up when `patience` seconds bring no progress."""

    def __init__(self, patience: float) -> None:
        self._patience = patience
        self._attempt = 0
        self._since = time.monotonic()

    def progressed(self) -> None:
        """Something arrived: start counting anew."""
        self._attempt, self._since = 0, time.monotonic()

    def wait(self, error: SafegraftError) -> None:
        """Sleep before the next attempt, or raise `error` if there should be none."""
        self._attempt += 1
        delay = _delay(self._attempt)
        if time.monotonic() + delay - self._since > self._patience:
            raise error
        time.sleep(delay)


@contextmanager
def rpc_errors() -> Generator[None]:
    """gRPC's errors leave as SafegraftErrors."""
    try:
        yield
    except grpc.RpcError as error:
        raise from_rpc_error(error) from error


def _delay(attempt: int) -> float:
    """0.1 s, doubling up to 5 s, with a spread so that many clients do not come back at the same moment."""
    return min(0.1 * 2 ** (attempt - 1), 5.0) * random.uniform(0.75, 1.25)


def _open_channel(target: str, ca: Path | None) -> grpc.Channel:
    # gRPC would send even this machine's own addresses through an HTTP proxy that the environment names.
    options = (*CHANNEL_OPTIONS, ("grpc.enable_http_proxy", 0)) if _LOOPBACK.match(target) else CHANNEL_OPTIONS
    if ca is None:
        return grpc.insecure_channel(target, options=options)
    try:
        certificates = ca.read_bytes()
    except OSError as error:
        raise UsageError(f"the certificate file {ca} cannot be read: {error.strerror}") from error
    return grpc.secure_channel(target, grpc.ssl_channel_credentials(certificates), options=options)
