"""A store in memory that counts, delays, fails and remembers: what a network does, under a test's control."""

import hashlib
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from safegraft.remote.store import Listing, RemoteFile, Store


class Content(bytes):
    """Bytes that a store has handed out, for as long as anybody keeps them."""

    store: "MemoryStore"

    def __del__(self) -> None:
        with self.store.counting:
            self.store.live -= len(self)


class MemoryStore(Store):
    """`files` behind a network.

    sha256: whether the listing knows digests. before: called with (file, start, stop) before a range is answered; what
    it raises is raised.
    requests: all ranges asked for. live, peak: bytes handed out or on their way, that somebody still has.
    """

    def __init__(
        self,
        files: Mapping[str, bytes],
        name: str = "org/model@" + "c" * 40,
        *,
        sha256: bool = True,
        modified_ns: int = 0,
        before: Callable[[str, int, int], None] = lambda file, start, stop: None,
    ) -> None:
        self.contents = dict(files)
        listed = {
            file: RemoteFile(file, len(content), hashlib.sha256(content).hexdigest() if sha256 else None, "1")
            for file, content in files.items()
        }
        self.listing = Listing(name, listed, modified_ns)
        self.before = before
        self.requests: list[tuple[str, int, int]] = []
        self.live = self.peak = self.reading = self.most_reading = 0
        self.closed = 0
        self.counting = threading.RLock()  # a garbage collection may come while it is held

    @classmethod
    def of(cls, folder: Path, name: str = "org/model@" + "c" * 40, **options) -> "MemoryStore":
        files = {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}
        return cls(files, name, **options)

    def read(self, file: RemoteFile, start: int, stop: int) -> bytes:
        assert self.listing.files[file.name] is file
        assert 0 <= start < stop <= file.size
        with self.counting:
            self.requests.append((file.name, start, stop))
            self.live += stop - start
            self.peak = max(self.peak, self.live)
            self.reading += 1
            self.most_reading = max(self.most_reading, self.reading)
        try:
            self.before(file.name, start, stop)
        except BaseException:
            with self.counting:
                self.live -= stop - start
            raise
        finally:
            with self.counting:
                self.reading -= 1
        content = Content(self.contents[file.name][start:stop])
        content.store = self
        with self.counting:
            self.bytes_read += stop - start
        return content

    def close(self) -> None:
        self.closed += 1

    def times(self, file: str) -> list[int]:
        """How often each byte of a file has been asked for."""
        counts = [0] * len(self.contents[file])
        for name, start, stop in self.requests:
            if name == file:
                for at in range(start, stop):
                    counts[at] += 1
        return counts


def together(tasks: Sequence[Callable[[], None]], timeout: float = 60) -> None:
    """Run all at once, each in a thread; raises what the first of them raised."""
    errors: list[BaseException] = []

    def run(task: Callable[[], None]) -> None:
        try:
            task()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(task,), daemon=True) for task in tasks]
    for thread in threads:
        thread.start()
    deadline = time.monotonic() + timeout
    for thread in threads:
        thread.join(max(0, deadline - time.monotonic()))
    assert not any(thread.is_alive() for thread in threads), "a thread hangs"
    if errors:
        raise errors[0]


def wait_until(holds: Callable[[], bool], timeout: float = 20) -> None:
    """Until other threads have come so far."""
    deadline = time.monotonic() + timeout
    while not holds():
        assert time.monotonic() < deadline, "it never came true"
        time.sleep(0.001)
