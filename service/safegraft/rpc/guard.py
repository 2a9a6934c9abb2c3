"""What happens around every call: is the caller allowed, is there room, and how does an error leave the server.

Knows the names of methods, not what they do.
"""

from __future__ import annotations

import hmac
import logging
from collections import Counter
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NoReturn, TypeAlias, cast

import grpc
import grpc.aio

from safegraft.errors import AuthenticationError, SafegraftError, ServerUnavailableError
from safegraft.rpc.status import DETAILS_KEY, code_of, to_status

OURS = "/safegraft.v1."
HEALTH = "/grpc.health.v1.Health/"  # open to everybody: load balancers and container runtimes have no token

# Calls of a method at the same time. Per method, so that watchers, who only wait, take no room from others.
LIMITS: Mapping[str, int] = MappingProxyType(
    {
        "/safegraft.v1.MergeService/WatchMerge": 512,
        "/safegraft.v1.MergeService/PlanMerge": 16,
        "/safegraft.v1.MergeService/CreateMerge": 16,
        "/safegraft.v1.ArtifactService/ReadFile": 64,
        "/safegraft.v1.ArtifactService/WriteBlob": 16,
    }
)
OTHER_LIMIT = 64

log = logging.getLogger(__name__)

if TYPE_CHECKING:  # gRPC's classes are generic in its stubs only
    Context: TypeAlias = grpc.aio.ServicerContext[Any, Any]
    Handler: TypeAlias = grpc.RpcMethodHandler[Any, Any]
    Around: TypeAlias = Callable[[Any, Context], Awaitable[Any]]


class Guard(grpc.aio.ServerInterceptor):
    """token: what callers must show; None lets everybody in."""

    def __init__(self, token: str | None, limits: Mapping[str, int] = LIMITS) -> None:
        self._expected = None if token is None else f"Bearer {token}".encode()
        self._limits = limits
        self._running: Counter[str] = Counter()

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Handler | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Handler | None:
        handler = await continuation(handler_call_details)
        method: str = handler_call_details.method
        if handler is None or method.startswith(HEALTH):
            return handler
        if not self._allows(handler_call_details):
            return _wrapped(handler, _refuse)
        if not method.startswith(OURS):
            return handler  # reflection brings its own errors
        return _wrapped(handler, self._guarded(method, _behaviour(handler)))

    def _allows(self, details: grpc.HandlerCallDetails) -> bool:
        if self._expected is None:
            return True
        shown = [value for key, value in details.invocation_metadata or () if key == "authorization"]
        return any(
            hmac.compare_digest(value if isinstance(value, bytes) else value.encode(), self._expected)
            for value in shown
        )

    def _guarded(self, method: str, behaviour: Around) -> Around:
        async def call(request: Any, context: Context) -> Any:
            try:
                async with self._room(method):
                    return await behaviour(request, context)
            except SafegraftError as error:
                await abort(context, error)
            except grpc.aio.AbortError:
                raise
            except Exception as error:  # a bug: the log gets it, the client a clear answer
                log.exception("%s failed", method)
                await abort(context, SafegraftError(f"internal error ({type(error).__name__}); see the server's log"))

        return call

    @asynccontextmanager
    async def _room(self, method: str) -> AsyncGenerator[None]:
        limit = self._limits.get(method, OTHER_LIMIT)
        if self._running[method] >= limit:
            raise ServerUnavailableError(
                f"{limit} calls of {method} are running, which is all this server takes; try again"
            )
        self._running[method] += 1
        try:
            yield
        finally:
            self._running[method] -= 1


async def abort(context: Context, error: SafegraftError) -> NoReturn:
    """End the call with an error's status and details."""
    status = to_status(error)
    await context.abort(code_of(error), status.message, ((DETAILS_KEY, status.SerializeToString()),))


async def _refuse(request: Any, context: Context) -> Any:
    message = (
        "this server wants its token, and got none or another: give --token-file or SAFEGRAFT_TOKEN, "
        "in other clients the header 'authorization: Bearer TOKEN'"
    )
    await abort(context, AuthenticationError(message))


def _behaviour(handler: Handler) -> Around:
    """The handler's own coroutine function. Our servicers write to streams instead of yielding."""
    kinds = (handler.unary_unary, handler.unary_stream, handler.stream_unary, handler.stream_stream)
    return next(cast("Around", kind) for kind in kinds if kind is not None)


def _wrapped(handler: Handler, behaviour: Around) -> Handler:
    """A handler of the same kind with another behaviour, whose answers may come encoded."""

    def serialize(answer: Any) -> bytes:
        return answer if isinstance(answer, bytes) else answer.SerializeToString()

    match handler.request_streaming, handler.response_streaming:
        case False, False:
            make = grpc.unary_unary_rpc_method_handler
        case False, True:
            make = grpc.unary_stream_rpc_method_handler
        case True, False:
            make = grpc.stream_unary_rpc_method_handler
        case _:
            make = grpc.stream_stream_rpc_method_handler
    return make(behaviour, handler.request_deserializer, serialize)
