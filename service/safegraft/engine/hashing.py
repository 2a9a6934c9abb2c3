"""sha256 in a thread of its own: it takes longer than most of what is done with the bytes meanwhile."""

import hashlib
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor

AT_ONCE = 1 << 16  # bytes: less is not worth another thread
WAITING = 8  # blocks


class ThreadedSha256:
    """Like hashlib's, but `update` does not wait, unless WAITING blocks do. They must not change any more.

    Close it, or use it as a context manager: it has a thread.
    """

    def __init__(self) -> None:
        self._hash = hashlib.sha256()
        self._thread: ThreadPoolExecutor | None = None
        self._waiting: deque[Future[None]] = deque()

    def __enter__(self) -> "ThreadedSha256":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def update(self, data: bytes | memoryview) -> None:
        if len(data) < AT_ONCE and not self._waiting:
            self._hash.update(data)
            return
        if self._thread is None:
            self._thread = ThreadPoolExecutor(1, thread_name_prefix="safegraft-sha256")
        self._waiting.append(self._thread.submit(self._hash.update, data))
        while len(self._waiting) > WAITING:
            self._waiting.popleft().result()

    def hexdigest(self) -> str:
        """Of all that was given so far."""
        while self._waiting:
            self._waiting.popleft().result()
        return self._hash.hexdigest()

    def close(self) -> None:
        """End the thread. What waits is not computed any more."""
        self._waiting.clear()
        if self._thread is not None:
            self._thread.shutdown(cancel_futures=True)
