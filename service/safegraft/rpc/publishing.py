"""Has a server publish, over connections that break and servers that stop in the middle."""

import uuid
from collections.abc import Callable

from safegraft.errors import MergeCancelledError, ServerUnavailableError, UsageError
from safegraft.rpc.connection import Backoff, Connection
from safegraft.rpc.publication import TOKEN_HEADER
from safegraft.rpc.resources import Publication, PublicationState, TransferProgress, publication_of
from safegraft.v1 import merge_service_pb2 as pb

_INTERRUPTIONS = 4  # that publication may have without getting any further, before we give up


class Publishing:
    """One publication, followed until it has ended.

    The request id ties the calls together: a call after a broken connection follows what the first one began, also when
    that has ended meanwhile. A publication that the server could not go on with is begun again, with another id.
    """

    def __init__(
        self,
        connection: Connection,
        request: pb.PublishMergeRequest,
        token: str | None,
        progress: Callable[[TransferProgress], None] | None,
    ) -> None:
        self._connection, self._request, self._progress = connection, request, progress
        self._headers = () if token is None else ((TOKEN_HEADER, _checked(token)),)
        self._backoff = Backoff(connection.patience)
        self._furthest = 0

    def run(self) -> Publication:
        """The publication, when it has succeeded. Raises why it has not."""
        interruptions = 0
        while True:
            furthest = self._furthest
            self._request.request_id = str(uuid.uuid4())
            ended = self._follow()
            if ended.state is PublicationState.SUCCEEDED:
                return ended
            if ended.error is None:
                raise MergeCancelledError(f"the publication to {ended.repo} was cancelled")
            interruptions = 1 if self._furthest > furthest else interruptions + 1
            if not isinstance(ended.error, ServerUnavailableError) or interruptions == _INTERRUPTIONS:
                raise ended.error
            self._backoff.wait(ended.error)

    def _follow(self) -> Publication:
        """The publication as it ended."""
        while True:
            try:
                last: Publication | None = None
                publish = self._connection.merges.PublishMerge
                for answer in self._connection.stream(publish, self._request, headers=self._headers):
                    self._backoff.progressed()
                    if answer.HasField("publication"):
                        last = publication_of(answer.publication)
                        self._report(last)
                if last is not None and last.state.final:
                    return last
                raise ServerUnavailableError("the server ended the call before the publication had ended")
            except ServerUnavailableError as error:
                self._backoff.wait(error)

    def _report(self, publication: Publication) -> None:
        self._furthest = max(self._furthest, publication.bytes_done)
        if self._progress:
            self._progress(TransferProgress(publication.current_file, publication.bytes_done, publication.bytes_total))


def _checked(token: str) -> str:
    """gRPC's own complaint about a header would show what is in it."""
    if not (token.isascii() and token.isprintable() and token.strip()):
        raise UsageError("the token for the Hub must be printable ASCII and not empty")
    return token
