"""Which weights a checkpoint holds, as a digest that depends on content and file names alone.

Not on the path, modification times or the order of a directory. It is an identity of files: the
same tensors in other shards are another identity. Sidecar files count too, because the tokenizer
decides how vocabulary rows are aligned.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from safegraft.checkpoint.types import Checkpoint, Identity, TensorInfo

HASHED_BYTES = 256 << 20  # a checkpoint up to this size is hashed in full: half a second at most
SAMPLED_TENSORS = 1024
SAMPLED_BYTES = 4096


@dataclass(frozen=True, slots=True)
class WeightFile:
    """One weight file.

    sha256: in hex, when the source vouches for it. version: what changes with the content, such as an ETag; "" where
    nobody tells.
    """

    name: str
    size: int  # bytes
    header_sha256: str
    sha256: str | None
    version: str = ""


def identify(checkpoint: Checkpoint, files: Sequence[WeightFile]) -> Identity:
    """Compute the identity of a checkpoint whose tensors, sidecars and name are set.

    With a sha256 for every file (scheme "sha256") no weight is read. Otherwise ("sampled-sha256")
    up to 1024 tensors, evenly chosen, each give the 4096 bytes in their middle. A sample can miss an edit
    of a few values: what relies on it also looks at `modified_ns`.
    """
    files = sorted(files, key=lambda file: file.name)
    complete = all(file.sha256 is not None for file in files)
    scheme = "sha256" if complete else "sampled-sha256"
    if complete:
        return Identity(checkpoint.name, scheme, full_digest(files, checkpoint.sidecars))
    digest = _Digest()
    digest.line("safegraft", scheme, 1)
    for file in files:
        digest.line("weights", file.name, file.size, file.header_sha256, *([file.version] if file.version else []))
    _sample(checkpoint, digest)
    digest.sidecars(checkpoint.sidecars)
    return Identity(checkpoint.name, scheme, digest.hex())


def full_digest(files: Sequence[WeightFile], sidecars: Mapping[str, bytes]) -> str:
    """The digest of scheme "sha256". Every file has its sha256."""
    digest = _Digest()
    digest.line("safegraft", "sha256", 1)
    for file in sorted(files, key=lambda file: file.name):
        digest.line("weights", file.name, file.size, file.sha256)
    digest.sidecars(sidecars)
    return digest.hex()


class _Digest:
    def __init__(self) -> None:
        self._total = hashlib.sha256()

    def line(self, *fields: str | int | None) -> None:
        self._total.update(json.dumps(fields).encode() + b"\n")

    def data(self, content: memoryview) -> None:
        self._total.update(content)

    def sidecars(self, sidecars: Mapping[str, bytes]) -> None:
        for name, content in sorted(sidecars.items()):
            self.line("sidecar", name, len(content), hashlib.sha256(content).hexdigest())

    def hex(self) -> str:
        return self._total.hexdigest()


def samples(tensors: Mapping[str, TensorInfo]) -> list[tuple[TensorInfo, int, int]]:
    """What an identity without every file's sha256 reads of the weights: bytes [start, stop) of tensors."""
    everything = list(tensors.values())
    count = min(len(everything), SAMPLED_TENSORS)
    chosen: list[tuple[TensorInfo, int, int]] = []
    for index in range(count):
        tensor = everything[index * len(everything) // count]
        length = min(SAMPLED_BYTES, tensor.nbytes)
        start = (tensor.nbytes - length) // 2
        chosen.append((tensor, start, start + length))
    return chosen


def _sample(checkpoint: Checkpoint, digest: _Digest) -> None:
    buffer = memoryview(bytearray(SAMPLED_BYTES))
    for tensor, start, stop in samples(checkpoint.tensors):
        length = stop - start
        checkpoint.read_into(tensor, start, buffer[:length])
        digest.line("sample", tensor.name, length)
        digest.data(buffer[:length])
