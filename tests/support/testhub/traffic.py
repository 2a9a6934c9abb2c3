"""What went over the wire: one record a request, written before its answer leaves, so that a client that has its answer
finds the record complete."""

import re
import threading
from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(slots=True)
class Request:
    """One request. `path` has its query but no signature; bytes are those of bodies, without headers.

    `status` is 0 where the connection was dropped before any answer. `host` is the name asked: `localhost` for the Hub,
    `127.0.0.1` for its CDN, which must never see `authorized`.
    """

    method: str
    path: str
    host: str
    range: str | None = None
    authorized: bool = False
    status: int = 0
    bytes_sent: int = 0
    bytes_received: int = 0


class Traffic:
    """The requests so far, in order of arrival. It reads as a list and may be read while requests come in."""

    def __init__(self) -> None:
        self._requests: list[Request] = []
        self._lock = threading.Lock()

    def add(self, request: Request) -> None:
        with self._lock:
            self._requests.append(request)

    def clear(self) -> None:
        with self._lock:
            self._requests.clear()

    def matching(self, pattern: str, method: str | None = None) -> list[Request]:
        """The requests whose path holds this regular expression."""
        return [each for each in self if re.search(pattern, each.path) and method in (None, each.method)]

    def __iter__(self) -> Iterator[Request]:
        with self._lock:
            return iter(list(self._requests))

    def __len__(self) -> int:
        return len(self._requests)

    def __getitem__(self, index: int) -> Request:
        return self._requests[index]
