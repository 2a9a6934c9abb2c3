"""Errors on the wire: every SafegraftError class has exactly one gRPC status, and comes back as itself.

Knows no service and no method. `merge_service.proto` documents the table for clients.
"""

from collections.abc import Iterable, Mapping
from types import MappingProxyType

import grpc
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2, status_pb2  # pyright: ignore[reportMissingTypeStubs] (stubs ship inside)

from safegraft import errors
from safegraft.errors import Problem, SafegraftError

DOMAIN = "safegraft"
DETAILS_KEY = "grpc-status-details-bin"
MAX_VIOLATIONS = 20
RETRY_AFTER_SECONDS = 1.0

# Details and message travel in trailing metadata, of which clients take 8 KiB by default: the message twice, once with
# each byte that is not plain ASCII as three, and all but that in base64.
_DETAILS_BYTES = 2816
_MESSAGE_BYTES = 768

CODES: Mapping[type[SafegraftError], grpc.StatusCode] = MappingProxyType(
    {
        errors.SafegraftError: grpc.StatusCode.INTERNAL,
        errors.RecipeError: grpc.StatusCode.INVALID_ARGUMENT,
        errors.UsageError: grpc.StatusCode.INVALID_ARGUMENT,
        errors.InputError: grpc.StatusCode.FAILED_PRECONDITION,
        errors.CheckpointError: grpc.StatusCode.FAILED_PRECONDITION,
        errors.AlignmentError: grpc.StatusCode.FAILED_PRECONDITION,
        errors.NonFiniteError: grpc.StatusCode.FAILED_PRECONDITION,
        errors.InputChangedError: grpc.StatusCode.ABORTED,
        errors.OutputError: grpc.StatusCode.RESOURCE_EXHAUSTED,
        errors.PluginError: grpc.StatusCode.INTERNAL,
        errors.MergeCancelledError: grpc.StatusCode.ABORTED,
        errors.ServerError: grpc.StatusCode.INTERNAL,
        errors.ServerUnavailableError: grpc.StatusCode.UNAVAILABLE,
        errors.NotFoundError: grpc.StatusCode.NOT_FOUND,
        errors.ConflictError: grpc.StatusCode.FAILED_PRECONDITION,
        errors.AuthenticationError: grpc.StatusCode.UNAUTHENTICATED,
        errors.DataCorruptedError: grpc.StatusCode.DATA_LOSS,
    }
)

CLASSES: Mapping[str, type[SafegraftError]] = MappingProxyType({cls.reason: cls for cls in CODES})

# What an error without our details means: it comes from gRPC itself or from something between client and server.
_FOREIGN: Mapping[grpc.StatusCode, type[SafegraftError]] = MappingProxyType(
    {
        grpc.StatusCode.UNAVAILABLE: errors.ServerUnavailableError,
        grpc.StatusCode.DEADLINE_EXCEEDED: errors.ServerUnavailableError,
        grpc.StatusCode.CANCELLED: errors.ServerUnavailableError,
        grpc.StatusCode.ABORTED: errors.ServerUnavailableError,
        grpc.StatusCode.UNAUTHENTICATED: errors.AuthenticationError,
        grpc.StatusCode.PERMISSION_DENIED: errors.AuthenticationError,
        grpc.StatusCode.NOT_FOUND: errors.NotFoundError,
        grpc.StatusCode.INVALID_ARGUMENT: errors.UsageError,
        grpc.StatusCode.DATA_LOSS: errors.DataCorruptedError,
    }
)

_NUMBERS: Mapping[int, grpc.StatusCode] = MappingProxyType({code.value[0]: code for code in grpc.StatusCode})


def code_of(error: SafegraftError) -> grpc.StatusCode:
    """The status of an error's class, or of the nearest parent for a class from elsewhere (a plugin's own)."""
    return next(CODES[cls] for cls in type(error).__mro__ if cls in CODES)


def restore(reason: str, problems: Iterable[tuple[str, str]]) -> SafegraftError:
    """An error that was stored as its reason and its problems (where, message)."""
    return CLASSES.get(reason, errors.SafegraftError)([Problem(where, message) for where, message in problems])


def to_status(error: SafegraftError) -> status_pb2.Status:
    """An error as google.rpc.Status with ErrorInfo and the details that its code calls for."""
    code = code_of(error)
    status = status_pb2.Status(code=code.value[0], message=_shorten(str(error), _MESSAGE_BYTES))
    info = error_details_pb2.ErrorInfo(reason=error.reason, domain=DOMAIN)
    if len(error.problems) > 1:
        info.metadata["problems"] = str(len(error.problems))
    status.details.add().Pack(info)
    if code is grpc.StatusCode.INVALID_ARGUMENT:
        status.details.add().Pack(_bad_request(error))
    elif code in (grpc.StatusCode.FAILED_PRECONDITION, grpc.StatusCode.ABORTED):
        status.details.add().Pack(_precondition_failure(error))
    elif code is grpc.StatusCode.UNAVAILABLE:
        retry = error_details_pb2.RetryInfo()
        retry.retry_delay.FromMilliseconds(int(RETRY_AFTER_SECONDS * 1000))
        status.details.add().Pack(retry)
    return status


def from_status(status: status_pb2.Status) -> SafegraftError:
    """The error that `to_status` was given; its problems may be shortened."""
    info = error_details_pb2.ErrorInfo()
    problems: list[Problem] = []
    reason = ""
    for detail in status.details:
        bad_request, precondition = error_details_pb2.BadRequest(), error_details_pb2.PreconditionFailure()
        if detail.Unpack(info) and info.domain == DOMAIN:
            reason = info.reason
        elif detail.Unpack(bad_request):
            problems += [Problem(one.field, one.description) for one in bad_request.field_violations]
        elif detail.Unpack(precondition):
            problems += [Problem(one.subject, one.description) for one in precondition.violations]
    if reason in CLASSES:
        return CLASSES[reason](problems or status.message)
    code = _NUMBERS.get(status.code, grpc.StatusCode.UNKNOWN)
    return _foreign(code)(f"{code.name}: {status.message}")


def from_rpc_error(error: grpc.RpcError) -> SafegraftError:
    """What a failed call means to a caller who knows no gRPC."""
    if not isinstance(error, grpc.Call):
        return errors.ServerError(f"the call failed before it reached the network: {error}")
    for key, value in _metadata(error):
        if key == DETAILS_KEY and isinstance(value, bytes):
            try:
                return from_status(status_pb2.Status.FromString(value))
            except DecodeError:
                break  # not ours: a proxy's, perhaps; the bare code has to do
    code = error.code()
    if code is grpc.StatusCode.UNIMPLEMENTED:
        return errors.ServerError(
            f"the server does not offer this call; is it a safegraft server, and recent? ({error.details()})"
        )
    return _foreign(code)(f"{code.name}: {error.details()}")


def _foreign(code: grpc.StatusCode) -> type[SafegraftError]:
    return _FOREIGN.get(code, errors.ServerError)


def _metadata(call: grpc.Call) -> Iterable[tuple[str, str | bytes]]:
    return call.trailing_metadata() or ()


def _bad_request(error: SafegraftError) -> error_details_pb2.BadRequest:
    detail = error_details_pb2.BadRequest()
    for problem in _fitting(error.problems):
        detail.field_violations.add(field=problem.where, description=problem.message, reason=error.reason)
    return detail


def _precondition_failure(error: SafegraftError) -> error_details_pb2.PreconditionFailure:
    detail = error_details_pb2.PreconditionFailure()
    for problem in _fitting(error.problems):
        detail.violations.add(type=error.reason, subject=problem.where, description=problem.message)
    return detail


def _fitting(problems: tuple[Problem, ...]) -> list[Problem]:
    """As many problems as the details have room for; the last one says how many are missing."""
    room = _DETAILS_BYTES
    fitting: list[Problem] = []
    for problem in problems[:MAX_VIOLATIONS]:
        short = Problem(_shorten(problem.where, 256), _shorten(problem.message, _MESSAGE_BYTES))
        room -= len(short.where.encode()) + len(short.message.encode()) + 32  # with the reason and the framing
        if room < 0:
            break
        fitting.append(short)
    if missing := len(problems) - len(fitting):
        del fitting[MAX_VIOLATIONS - 1 :]
        fitting.append(Problem("", f"and {len(problems) - len(fitting)} more" if fitting else f"{missing} problems"))
    return fitting


def _shorten(text: str, limit: int) -> str:
    """At most `limit` bytes of UTF-8, cut at a character. Half of a surrogate, as from a file's name, is spelt out."""
    encoded = text.encode(errors="backslashreplace")
    if len(encoded) <= limit:
        return encoded.decode()
    return encoded[: limit - 3].decode(errors="ignore") + "..."
