"""What can go wrong, on demand: each fault strikes requests that match it, a set number of times, without chance.

This module decides which request is struck; the modules that serve it know what the fault does there.
"""

import re
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from testhub.traffic import Request


@dataclass(frozen=True, slots=True, eq=False)
class Fault:
    """One fault: make it with the constructors below.

    `match` is a regular expression on the path, `method` an HTTP method, `when` any other question about the request;
    all must hold. It strikes `times` times (None: until it is removed). A request that the fault could not change (a
    range that does not hold the flipped byte, a body shorter than the point of the drop) does not count.
    """

    kind: str
    times: int | None = 1
    match: str = ""
    method: str | None = None
    when: Callable[[Request], bool] | None = None
    status: int = 503
    after: int | None = None
    seconds: float = 0.0
    bytes_per_second: float = 0.0
    offset: int = 0
    retry_after: int | None = None

    @classmethod
    def unavailable(cls, times: int | None = 1, match: str = "", *, status: int = 503, **more: Any) -> "Fault":
        """Answers 503 and does nothing (`retry_after=` seconds to wait)."""
        return cls("unavailable", times, match, status=status, **more)

    @classmethod
    def rate_limited(cls, times: int | None = 1, match: str = "", *, retry_after: int = 0, **more: Any) -> "Fault":
        """Answers 429 with Retry-After and the Hub's RateLimit headers."""
        return cls("rate_limited", times, match, status=429, retry_after=retry_after, **more)

    @classmethod
    def gated(cls, times: int | None = 1, match: str = "", **more: Any) -> "Fault":
        """Answers 403 as for a gated repository to which nobody was let in."""
        return cls("gated", times, match, status=403, **more)

    @classmethod
    def expired(cls, times: int | None = 1, match: str = "", **more: Any) -> "Fault":
        """Answers 403 to a signed URL, as when its time is over."""
        return cls("expired", times, match, status=403, **more)

    @classmethod
    def dropped(cls, times: int | None = 1, match: str = "", *, after: int | None = None, **more: Any) -> "Fault":
        """Closes the connection after so many bytes of the answer's body (None: before any answer)."""
        return cls("dropped", times, match, after=after, **more)

    @classmethod
    def delayed(cls, times: int | None = 1, match: str = "", *, seconds: float, **more: Any) -> "Fault":
        """Waits before the answer."""
        return cls("delayed", times, match, seconds=seconds, **more)

    @classmethod
    def slow(cls, times: int | None = 1, match: str = "", *, bytes_per_second: float, **more: Any) -> "Fault":
        """Sends the body of the answer at a pace."""
        return cls("slow", times, match, bytes_per_second=bytes_per_second, **more)

    @classmethod
    def flipped(cls, times: int | None = 1, match: str = "", *, offset: int = 0, **more: Any) -> "Fault":
        """Serves a file with all bits of the byte at this offset turned over; names, sizes and hashes stay."""
        return cls("flipped", times, match, offset=offset, **more)

    @classmethod
    def truncated(cls, times: int | None = 1, match: str = "", *, after: int = 0, **more: Any) -> "Fault":
        """Answers a range with its first `after` bytes only, as a well-formed answer that promised them all."""
        return cls("truncated", times, match, after=after, **more)

    @classmethod
    def ignored_range(cls, times: int | None = 1, match: str = "", **more: Any) -> "Fault":
        """Answers a range request with 200 and the whole file."""
        return cls("ignored_range", times, match, **more)

    @classmethod
    def stale_parent(cls, times: int | None = 1, match: str = "", **more: Any) -> "Fault":
        """Another commit (it adds `another.txt`) comes just before this one."""
        return cls("stale_parent", times, match, **more)

    @classmethod
    def lost_answer(cls, times: int | None = 1, match: str = "", *, status: int = 503, **more: Any) -> "Fault":
        """Does what was asked and answers 503 all the same (status 0: drops the connection)."""
        return cls("lost_answer", times, match, status=status, **more)

    @classmethod
    def damaged_upload(cls, times: int | None = 1, match: str = "", *, offset: int = 0, **more: Any) -> "Fault":
        """Stores an uploaded object with one byte turned over: the upload succeeds, its verification does not."""
        return cls("damaged_upload", times, match, offset=offset, **more)

    @classmethod
    def broken_upload(cls, times: int | None = 1, match: str = "", *, after: int | None = None, **more: Any) -> "Fault":
        """Closes the connection once so many bytes of an upload have come in (None: half of them)."""
        return cls("broken_upload", times, match, after=after, **more)

    def strikes(self, request: Request) -> bool:
        """Whether it is meant for this request."""
        if self.method not in (None, request.method) or not re.search(self.match, request.path):
            return False
        return self.when is None or self.when(request)


class Faults:
    """The faults that are switched on, in order; add and remove them at any time, from any thread."""

    def __init__(self, faults: Iterable[Fault] = ()) -> None:
        self._lock = threading.Lock()
        self._active: list[Fault] = list(faults)
        self._strikes: dict[Fault, int] = {}

    def add(self, *faults: Fault) -> Fault:
        """Switch on; returns the last one, a handle for `remove` and `strikes`."""
        with self._lock:
            self._active.extend(faults)
        return faults[-1]

    def remove(self, fault: Fault) -> None:
        with self._lock:
            self._active.remove(fault)

    def clear(self) -> None:
        with self._lock:
            self._active.clear()

    def strikes(self, fault: Fault) -> int:
        """How often it has struck."""
        with self._lock:
            return self._strikes.get(fault, 0)

    def take(self, request: Request, *kinds: str, suits: Callable[[Fault], bool] | None = None) -> Fault | None:
        """The first fault of these kinds that strikes this request; it has struck once more then."""
        with self._lock:
            for fault in self._active:
                if fault.kind in kinds and fault.strikes(request) and (suits is None or suits(fault)):
                    self._strikes[fault] = struck = self._strikes.get(fault, 0) + 1
                    if struck == fault.times:
                        self._active.remove(fault)
                    return fault
        return None


def damaged(pieces: Iterable[bytes], fault: Fault | None, start: int = 0) -> Iterator[bytes]:
    """These pieces of a file from `start` on, with the byte that a fault turns over."""
    for piece in pieces:
        if fault is not None and start <= fault.offset < start + len(piece):
            at = fault.offset - start
            piece = piece[:at] + bytes([piece[at] ^ 0xFF]) + piece[at + 1 :]
        start += len(piece)
        yield piece
