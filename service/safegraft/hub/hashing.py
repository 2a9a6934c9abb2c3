"""Hashes streams of bytes one after the other, and says how far all of them are. Stops when it is asked to."""

from collections.abc import Callable, Iterable

from safegraft.engine.hashing import ThreadedSha256
from safegraft.errors import MergeCancelledError

Progress = Callable[[int, int, str], None]  # bytes done, in all, the file
Never = Callable[[], bool]


def silent(done: int, total: int, doing: str) -> None:
    """The default for `progress`."""


class Meter:
    """Hashes, tells how far it is, and stops when it is asked to."""

    def __init__(self, total: int, progress: Progress, cancelled: Never) -> None:
        self._total, self._progress, self._cancelled = total, progress, cancelled
        self._done = 0

    def sha256(self, name: str, chunks: Iterable[bytes | memoryview]) -> str:
        """Of chunks that do not change any more."""
        with ThreadedSha256() as digest:
            for chunk in chunks:
                if self._cancelled():
                    raise MergeCancelledError("stopped; nothing was changed")
                digest.update(chunk)
                self._done += len(chunk)
                self._progress(self._done, self._total, name)
            return digest.hexdigest()

    def pass_over(self, size: int) -> None:
        self._done += size
