"""The sha256 of files whose bytes pass in pieces: read once, and known to be the right ones at the end.

A digest has to be taken from the first byte to the last. Pieces that come too early wait, for as long as whoever has
them keeps them; what is let go before its turn has to pass again. Reads nothing, and keeps nothing of its own alive.
"""

import hashlib
import threading

from safegraft.errors import InputChangedError, Problem

WRONG = (
    "does not have the sha256 that is listed for it: it was changed, or damaged on its way. Nothing made of it can be "
    "used; start again"
)


class Verifier:
    """Compares files with the sha256s that are known of them. Safe to use from several threads.

    where: what the files' folder is called in messages.
    """

    def __init__(self, where: str) -> None:
        self._where = where
        self._running: dict[str, _Running] = {}

    def add(self, file: str, size: int, sha256: str) -> None:
        """Watch a file of so many bytes that should have this digest (hex). Pieces of others are ignored."""
        self._running[file] = _Running(size, sha256)

    def arrived(self, file: str, start: int, content: bytes) -> None:
        """These bytes are here, and stay until they are `left`. Costs next to nothing."""
        if running := self._running.get(file):
            running.arrived(start, content)

    def digest(self, file: str) -> None:
        """Hash what can be by now; returns when every piece whose turn it is has been."""
        if running := self._running.get(file):
            running.digest()

    def left(self, file: str, start: int, content: bytes) -> None:
        """What has `arrived` is let go. If it is its turn, it is hashed first; whoever lets it go waits for that."""
        if running := self._running.get(file):
            running.left(start, content)

    def verified(self) -> dict[str, bool]:
        """File -> whether all its bytes have passed in their order and are the right ones."""
        self._digest_all()
        return {file: running.agrees is True for file, running in self._running.items()}

    def position(self, file: str) -> int:
        """How many of a file's first bytes have been hashed."""
        return self._running[file].position

    def require_sound(self, file: str) -> None:
        """Raise InputChangedError when a file is known by now to be another than was listed. Costs next to nothing."""
        if (running := self._running.get(file)) and running.agrees is False:
            raise InputChangedError(Problem(f"{self._where}/{file}", WRONG))

    def require_all_sound(self) -> None:
        """Raise one InputChangedError with every file that is, with all that has arrived, another than was listed."""
        self._digest_all()
        wrong = [file for file, running in self._running.items() if running.agrees is False]
        if wrong:
            raise InputChangedError([Problem(f"{self._where}/{file}", WRONG) for file in wrong])

    def _digest_all(self) -> None:
        for running in self._running.values():
            running.digest()


class _Running:
    """One file's digest. agrees: None until all bytes have passed."""

    def __init__(self, size: int, sha256: str) -> None:
        self.agrees: bool | None = None
        self._size = size
        self._sha256 = sha256
        self._digest = hashlib.sha256()
        self._position = 0  # everything before it has been hashed
        self._waiting: dict[int, bytes] = {}  # by first byte
        self._noting = threading.Lock()  # never held for long, so that pieces can arrive while others are hashed
        self._hashing = threading.Lock()

    @property
    def position(self) -> int:
        return self._position

    def arrived(self, start: int, content: bytes) -> None:
        with self._noting:
            before = self._waiting.get(start, b"")
            if start + len(content) > self._position and len(content) > len(before):
                self._waiting[start] = content

    def left(self, start: int, content: bytes) -> None:
        if self._waiting.get(start) is content:
            self.digest()
        with self._noting:
            if self._waiting.get(start) is content:
                del self._waiting[start]

    def digest(self) -> None:
        with self._hashing:
            while (piece := self._next()) is not None:
                self._digest.update(piece)
                self._position += len(piece)
            if self._position == self._size and self.agrees is None:
                self.agrees = self._digest.hexdigest() == self._sha256

    def _next(self) -> memoryview | None:
        """The bytes whose turn it is, as far as they are here."""
        with self._noting:
            for start in [start for start, piece in self._waiting.items() if start + len(piece) <= self._position]:
                del self._waiting[start]
            start = next((start for start in self._waiting if start <= self._position), None)
            return None if start is None else memoryview(self._waiting.pop(start))[self._position - start :]
