"""A PEFT adapter behind a network: what a local adapter folder is to a model that it is added to."""

import threading
from contextlib import ExitStack

from safegraft.checkpoint.adapter import ADAPTER_WEIGHTS, Adapter
from safegraft.checkpoint.identity import HASHED_BYTES, identify
from safegraft.checkpoint.types import TensorInfo
from safegraft.remote.files import ListedFiles
from safegraft.remote.store import Store
from safegraft.remote.weights import RemoteWeights
from safegraft.remote.window import MEMORY


class RemoteAdapter(Adapter):
    """Opens the adapter in `store`, which is closed with it, or at once when something is wrong with it.

    Adapters are small, and all of one is needed: from the first byte that is read on, the whole file is fetched in its
    order, in the memory there is, and so verified. One of unknown sha256 is read whole for its identity, as from a
    folder, if it has no more than HASHED_BYTES.

    Raises CheckpointError when it is no LoRA that can be added to weights, or not sound; InputChangedError.
    """

    def __init__(self, store: Store, *, memory: int = MEMORY) -> None:
        self.name = store.listing.name
        self._store = store
        self._weights = RemoteWeights(store, memory)
        self._reading = threading.Lock()
        self._expected = ExitStack()
        self._begun = True  # from here on: what an identity reads is no reason to fetch it all
        try:
            files = ListedFiles(store)
            self._read_config(files.names, files.read)
            header = self._weights.read_header(ADAPTER_WEIGHTS)
            self._header_size = header.size
            self._read_tensors(header)
            listed = store.listing.files[ADAPTER_WEIGHTS]
            unknown = listed.sha256 is None and listed.size <= HASHED_BYTES
            sha256 = self._weights.sha256(ADAPTER_WEIGHTS) if unknown else None
            self.identity = identify(self, [self._weights.described(ADAPTER_WEIGHTS, header, sha256)])
            self._begun = False
        except BaseException:
            self.close()
            raise

    def read_into(self, tensor: TensorInfo, start: int, buffer: memoryview) -> None:
        with self._reading:
            if not self._begun:
                self._expected.enter_context(self._weights.expecting_file(ADAPTER_WEIGHTS, self._header_size))
                self._begun = True
        self._weights.read_into(tensor, start, buffer)

    def modified_ns(self) -> int:
        return self._store.listing.modified_ns

    def verify_unchanged(self) -> None:
        self._weights.verify_unchanged()

    def verified(self) -> dict[str, bool]:
        """As RemoteCheckpoint.verified."""
        return self._weights.verified()

    def close(self) -> None:
        self._weights.close()
        self._expected.close()
