"""The weight files of a store: their headers, their tensors' bytes, and whether they are the files that were listed.

Of a weight file the header is read when it is opened, and nothing else. What the tensors mean is somebody else's
business.
"""

import hashlib
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager

from safegraft.checkpoint.header import Header, read_header
from safegraft.checkpoint.identity import WeightFile
from safegraft.checkpoint.types import TensorInfo
from safegraft.errors import MergeCancelledError
from safegraft.remote.store import RemoteFile, Store
from safegraft.remote.verifying import Verifier
from safegraft.remote.window import ReadAhead

HASH_CHUNK = 1 << 20


class RemoteWeights:
    """Opens weight files one by one. Safe to use from several threads. Closing it closes the store.

    memory: bytes that blocks of the files may take, see ReadAhead.
    """

    def __init__(self, store: Store, memory: int) -> None:
        self._store = store
        self._files: dict[str, RemoteFile] = {}
        self._verifier = Verifier(store.listing.name)
        self._ahead = ReadAhead(self._read, self._verifier, memory=memory)

    def read_header(self, name: str) -> Header:
        """Open a file of the listing. Raises CheckpointError with all problems of its header."""
        file = self._store.listing.files[name]
        content = b""

        def read(offset: int, length: int) -> bytes:
            """What has come once is not asked for again."""
            nonlocal content
            stop = min(offset + length, file.size)
            if stop > len(content):
                content += self._store.read(file, len(content), stop)
            return content[offset:stop]

        header = read_header(read, file.size, name, self._store.listing.name)
        self._files[name] = file
        if file.sha256 is not None:
            self._verifier.add(name, file.size, file.sha256)
            self._verifier.arrived(name, 0, content)
            self._verifier.digest(name)
        return header

    def described(self, name: str, header: Header, sha256: str | None = None) -> WeightFile:
        """A file as its checkpoint's identity has it. sha256: where the listing has none."""
        file = self._store.listing.files[name]
        return WeightFile(name, file.size, header.sha256, file.sha256 or sha256, file.version)

    def read_into(self, tensor: TensorInfo, start: int, buffer: memoryview) -> None:
        """See Checkpoint.read_into."""
        if start < 0 or start + buffer.nbytes > tensor.nbytes:
            raise ValueError(f"{tensor.name} has {tensor.nbytes} bytes: {buffer.nbytes} from {start} are out of range")
        if not buffer.nbytes:
            return
        self._ahead.read_into(tensor.file, tensor.offset + start, buffer.cast("B"))
        self._verifier.require_sound(tensor.file)

    def expecting(self, ranges: Iterable[tuple[TensorInfo, int, int]]) -> AbstractContextManager[None]:
        """See Checkpoint.expecting."""
        places = [(tensor.file, tensor.offset + start, tensor.offset + stop) for tensor, start, stop in ranges]
        return self._ahead.expecting(places)

    def expecting_file(self, name: str, start: int) -> AbstractContextManager[None]:
        """Within the block a whole file is going to be read, from byte `start` on."""
        return self._ahead.expecting([(name, start, self._files[name].size)])

    def sha256(self, name: str) -> str:
        """Of a whole file, in hex: it is read for that."""
        size = self._files[name].size
        digest = hashlib.sha256()
        with self.expecting_file(name, 0):
            for start in range(0, size, HASH_CHUNK):
                chunk = bytearray(min(HASH_CHUNK, size - start))
                self._ahead.read_into(name, start, memoryview(chunk))
                digest.update(chunk)
        return digest.hexdigest()

    def verify_unchanged(self) -> None:
        """Raise InputChangedError when the bytes of a file have passed and are not those that were listed.

        Otherwise every byte came from a file of the listed version: the store sees to that with each request.
        """
        self._verifier.require_all_sound()

    def verify_all(self, cancelled: Callable[[], bool]) -> None:
        """See Checkpoint.verify_all. Files are read on from where their hashing got stuck."""
        for name, verified in self.verified().items():
            if not verified:
                self._read_on(name, self._verifier.position(name), cancelled)
        self._verifier.require_all_sound()

    def _read_on(self, name: str, start: int, cancelled: Callable[[], bool]) -> None:
        size = self._files[name].size
        with self.expecting_file(name, start):
            for begin in range(start, size, HASH_CHUNK):
                if cancelled():
                    raise MergeCancelledError("stopped while inputs were being verified")
                self._ahead.read_into(name, begin, memoryview(bytearray(min(HASH_CHUNK, size - begin))))

    def verified(self) -> dict[str, bool]:
        """See Checkpoint.verified."""
        return dict(sorted(self._verifier.verified().items()))

    def close(self) -> None:
        self._ahead.close()
        self._store.close()

    def _read(self, name: str, start: int, stop: int) -> bytes:
        return self._store.read(self._files[name], start, stop)
