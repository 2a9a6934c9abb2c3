"""PublishMerge: what a request asks for, checked as far as it can be without the Hub and the merge.

The caller's token is taken from the call's metadata here, and handed on in `Publicity` alone.
"""

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from hashlib import sha256

from safegraft.errors import InputError, Problem, UsageError
from safegraft.hub.publication import Destination
from safegraft.rpc import requests
from safegraft.rpc.options import ServerOptions
from safegraft.rpc.publication import TOKEN_HEADER, Asked, Publicity
from safegraft.rpc.remote_policy import matches
from safegraft.v1 import merge_service_pb2 as pb

MAX_EVALUATION_BYTES = 3 << 20
MAX_PLOT_BYTES = 512 << 10
_MAX_MESSAGE = 500  # characters
_TOKEN = re.compile(r"[!-~]{1,1024}")
_PNG = b"\x89PNG\r\n\x1a\n"


def read_request(
    request: pb.PublishMergeRequest, metadata: Iterable[tuple[str, str | bytes]], options: ServerOptions
) -> Asked:
    """Raises UsageError, and NotFoundError for a name that no merge can have. Blocking: an evaluation may be large."""
    merge = requests.merge_id(request.name)
    destination = _destination(request, options.publish_to)
    credential = requests.credential(request.credential, options, "credential")
    publicity = Publicity(_evaluation(request), _plot(request), None if credential else _token(metadata))
    return Asked(
        merge=merge,
        destination=destination,
        credential=credential,
        publicity=publicity,
        fingerprint=_fingerprint(destination, credential, publicity),
        request_id=requests.request_id(request.request_id),
    )


def _destination(request: pb.PublishMergeRequest, allowed: Sequence[str]) -> Destination:
    _check_repository(request.repository, allowed)
    if len(request.message) > _MAX_MESSAGE:
        raise UsageError(Problem("message", f"is longer than {_MAX_MESSAGE} characters"))
    destination = Destination(
        repo=request.repository,
        private=not request.public,
        revision=request.revision or None,
        pull_request=request.pull_request,
        tags=tuple(request.tags),
        message=request.message or None,
        replace=request.replace,
    )
    destination.check()
    return destination


def _check_repository(name: str, allowed: Sequence[str]) -> None:
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    if not allowed:
        message = "this server does not publish; its owner can allow repositories with --publish-to ORG/NAME"
        raise UsageError(Problem("repository", message))
    try:
        validate_repo_id(name)
    except HFValidationError as error:
        raise UsageError(Problem("repository", f"cannot be a repository's name: {error}")) from error
    if "/" not in name:
        raise UsageError(Problem("repository", f"must be ORG/NAME, not {name!r}"))
    if not matches(name, allowed):
        message = f"this server does not publish to {name}; it does to {', '.join(allowed)}"
        raise UsageError(Problem("repository", message))


def _evaluation(request: pb.PublishMergeRequest) -> bytes | None:
    from safegraft.hub.evaluation import read_evaluation

    if bool(request.evaluation) == request.unevaluated:
        message = (
            "is given, and `unevaluated`, too: leave one of them away"
            if request.unevaluated
            else "is missing: give what `safegraft evaluate` wrote about this result, or say `unevaluated`"
        )
        raise UsageError(Problem("evaluation", message))
    if request.unevaluated:
        return None
    if len(request.evaluation) > MAX_EVALUATION_BYTES:
        raise UsageError(
            Problem("evaluation", f"is longer than {MAX_EVALUATION_BYTES:,} bytes; leave the answers away")
        )
    try:
        read_evaluation(request.evaluation)
    except InputError as error:
        raise UsageError([Problem("evaluation", one.message) for one in error.problems]) from error
    return request.evaluation


def _plot(request: pb.PublishMergeRequest) -> bytes | None:
    if not request.plot:
        return None
    if request.unevaluated:
        raise UsageError(Problem("plot", "belongs to an evaluation, and none is given"))
    if len(request.plot) > MAX_PLOT_BYTES:
        raise UsageError(Problem("plot", f"is longer than {MAX_PLOT_BYTES:,} bytes"))
    if not request.plot.startswith(_PNG):
        raise UsageError(Problem("plot", "is no PNG"))
    return request.plot


def _token(metadata: Iterable[tuple[str, str | bytes]]) -> str:
    sent = {value for key, value in metadata if key == TOKEN_HEADER}
    if not sent:
        message = (
            "is missing: name one that this server has (ServerInfo lists them), or send your own token for the Hub in "
            f"the header {TOKEN_HEADER!r}"
        )
        raise UsageError(Problem("credential", message))
    token = sent.pop()
    if sent or not isinstance(token, str) or not _TOKEN.fullmatch(token):
        raise UsageError(Problem(TOKEN_HEADER, "must be one token of printable ASCII without spaces"))
    return token


def _fingerprint(destination: Destination, credential: str, publicity: Publicity) -> str:
    content = [sha256(one or b"").hexdigest() for one in (publicity.evaluation, publicity.plot)]
    asked = [asdict(destination), credential, publicity.evaluation is None, *content]
    return sha256(json.dumps(asked).encode()).hexdigest()
