"""A checkpoint behind a network, read by byte ranges: to the engine it is what a local folder is.

Opening it reads the index, config and sidecar files and the weight files' headers. Weights move when they are read, and
only those that are. Knows stores, and not which places they stand for.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import AbstractContextManager

from safegraft.checkpoint.contents import Contents, read_contents
from safegraft.checkpoint.findings import Findings
from safegraft.checkpoint.header import Header
from safegraft.checkpoint.identity import identify, samples
from safegraft.checkpoint.licence import CARD_FILE, MAX_CARD_BYTES
from safegraft.checkpoint.sidecars import MAX_SIDECAR_BYTES, MAX_SIDECARS_BYTES, collect_sidecars
from safegraft.checkpoint.types import Checkpoint, TensorInfo
from safegraft.checkpoint.vocabulary import read_tokens
from safegraft.checkpoint.weights import INDEX_FILE, MAX_INDEX_BYTES
from safegraft.remote.files import ListedFiles
from safegraft.remote.store import Store
from safegraft.remote.weights import RemoteWeights
from safegraft.remote.window import CONNECTIONS, MEMORY


class RemoteCheckpoint(Checkpoint):
    """Opens what lies in `store`, which is closed with it, or at once when something is wrong with it.

    Its identity is that of a local folder with the same content, when the store knows the sha256 of every weight file.
    Otherwise ("sampled-sha256") a sample of the tensors is read for it, however small the files are: nothing is moved
    as a whole only to name it.

    memory: bytes that weights may take here at a time, read ahead or kept after reading.

    Raises CheckpointError with everything that is wrong with it, InputChangedError.
    """

    def __init__(self, store: Store, *, memory: int = MEMORY) -> None:
        self.name = store.listing.name
        self._store = store
        self._weights = RemoteWeights(store, memory)
        try:
            contents = self._read_contents()
            self.config, self.sidecars, self.licence = contents.config, contents.sidecars, contents.licence
            self.tensors = contents.tensors
            files = [self._weights.described(file, header) for file, header in contents.headers.items()]
            sampled = any(file.sha256 is None for file in files)
            with self.expecting(samples(self.tensors) if sampled else []):
                self.identity = identify(self, files)
        except BaseException:
            self.close()
            raise

    def read_into(self, tensor: TensorInfo, start: int, buffer: memoryview) -> None:
        self._weights.read_into(tensor, start, buffer)

    def expecting(self, ranges: Sequence[tuple[TensorInfo, int, int]]) -> AbstractContextManager[None]:
        return self._weights.expecting(ranges)

    def tokens(self) -> Mapping[str, int] | None:
        return self._tokens

    @functools.cached_property
    def _tokens(self) -> Mapping[str, int] | None:
        return read_tokens(self.sidecars, self.name)

    def modified_ns(self) -> int:
        return self._store.listing.modified_ns

    def verify_unchanged(self) -> None:
        self._weights.verify_unchanged()

    def interrupt(self) -> None:
        self._store.interrupt()

    def verify_all(self, cancelled: Callable[[], bool]) -> None:
        self._weights.verify_all(cancelled)

    def verified(self) -> Mapping[str, bool]:
        return self._weights.verified()

    def close(self) -> None:
        self._weights.close()

    def _read_contents(self) -> Contents:
        files = ListedFiles(self._store)
        pool = ThreadPoolExecutor(CONNECTIONS, thread_name_prefix="safegraft-open")
        try:
            sidecars = collect_sidecars(self._store.listing.files)
            if sum(self._store.listing.files[one].size for one in sidecars) <= MAX_SIDECARS_BYTES:  # else it is refused
                limits = {INDEX_FILE: MAX_INDEX_BYTES, CARD_FILE: MAX_CARD_BYTES}
                files.begin({**limits, **dict.fromkeys(sidecars, MAX_SIDECAR_BYTES)}, pool)
            return read_contents(files, lambda names, findings: self._read_headers(names, findings, pool))
        finally:
            pool.shutdown(cancel_futures=True)

    def _read_headers(self, names: Sequence[str], findings: Findings, pool: Executor) -> dict[str, Header]:
        headers: dict[str, Header] = {}
        begun = [(name, pool.submit(self._weights.read_header, name)) for name in names]
        for name, header in begun:
            with findings.catching():
                headers[name] = header.result()
        return headers
