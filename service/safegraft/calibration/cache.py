"""The file that statistics are kept in: a safetensors file in float32 called by the request's digest.

Its size is known before the first value: values are added in place as they come, under a temporary name. It gets
its own name when it is complete and on the disk, with a checksum over its data, so that a file of that name is
either whole or found out. Knows nothing of models.
"""

import contextlib
import fcntl
import math
import os
import secrets
import shutil
import time
from collections.abc import Generator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, cast

import google_crc32c

from safegraft.calibration.progress import Cancelled, stop_if
from safegraft.checkpoint.dtypes import DType
from safegraft.checkpoint.files import OpenFile
from safegraft.checkpoint.header import read_header
from safegraft.checkpoint.types import TensorInfo
from safegraft.checkpoint.write import encode_header
from safegraft.errors import CheckpointError, InputError, OutputError, Problem, output_errors

if TYPE_CHECKING:
    import torch

CHUNK = 8 << 20
NO_CHECKSUM = "0" * 8  # of the length of one: the header keeps its size when it comes
RESERVE = 16 << 20  # bytes that stay free on the disk
POLL_SECONDS = 0.1

Shapes = Mapping[str, tuple[int, ...]]


def default_folder() -> Path:
    """$SAFEGRAFT_CACHE/statistics, else ~/.cache/safegraft/statistics."""
    root = os.environ.get("SAFEGRAFT_CACHE")
    return (Path(root) if root else Path.home() / ".cache" / "safegraft") / "statistics"


class Gathered:
    """Statistics by the checkpoint's own tensor names: those for which the statistic is defined.

    `tensors` tells dtype (F32) and shape. Safe to use from several threads, except `close`.
    """

    def __init__(self, file: OpenFile, tensors: Mapping[str, TensorInfo]) -> None:
        self.tensors = tensors
        self._file = file

    def read_into(self, name: str, start_byte: int, buffer: memoryview) -> None:
        """Fill `buffer` with the bytes of `name` from `start_byte` on, float32 in C order."""
        info = self.tensors[name]
        if start_byte < 0 or start_byte + buffer.nbytes > info.nbytes:
            raise ValueError(f"{name} has {info.nbytes} bytes: {buffer.nbytes} from {start_byte} are out of range")
        if buffer.nbytes and self._file.read_into(buffer.cast("B"), info.offset + start_byte) < buffer.nbytes:
            raise InputError(Problem(self._file.where, "was cut short while in use: run the merge again"))

    def whole(self, name: str) -> "torch.Tensor":
        """The statistic of one tensor, a new tensor each time."""
        import torch

        value = torch.empty(self.tensors[name].shape, dtype=torch.float32)
        self.read_into(name, 0, _bytes_of(value))
        return value

    def close(self) -> None:
        self._file.close()


class Drawer:
    """One request's place in the cache. Whoever holds it is the only process that computes this request.

    made_by: versions of what computes; a file of others is not used. newer_than: nanoseconds since the epoch;
    nor is a file from before.
    """

    def __init__(self, folder: Path, digest: str, made_by: str, newer_than: int) -> None:
        self.path = folder / f"{digest}.safetensors"
        self._digest = digest
        self._made_by = made_by
        self._newer_than = newer_than

    def find(self) -> Gathered | None:
        """What lies there, if it is whole and of this request; a damaged file counts as none."""
        where = f"statistics {self._digest[:12]}"
        try:
            descriptor = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise OutputError(f"{self.path}: cannot be read: {error.strerror}; use another cache folder") from error
        file = OpenFile(where, os.fspath(self.path), descriptor)
        try:
            header = read_header(file.read, file.size, self.path.name, where)
            kept = {"digest": self._digest, "made_by": self._made_by, "crc32c": _checksum(file, header.size)}
            if header.metadata == kept and file.signature.mtime_ns >= self._newer_than:
                return Gathered(file, header.tensors)
        except CheckpointError:
            pass  # not a sound file: it is computed again
        file.close()
        return None

    @contextlib.contextmanager
    def held(self, cancelled: Cancelled) -> Generator[None]:
        """Wait until no other process computes this request; raises MergeCancelledError."""
        path = self.path.with_name(f".{self._digest}.lock")
        with output_errors(self.path.parent):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            while (lock := _take_lock(path)) is None:
                stop_if(cancelled)
                time.sleep(POLL_SECONDS)
        try:
            yield
        finally:
            path.unlink(missing_ok=True)
            os.close(lock)

    @contextlib.contextmanager
    def filled(self, shapes: Shapes) -> Generator["Sheet"]:
        """A sheet of zeros to add to. It becomes the file when the block ends well, else it is thrown away."""
        for leftover in self.path.parent.glob(f".{self._digest}.*.part"):
            leftover.unlink(missing_ok=True)  # of a process that was killed: this one holds the lock
        metadata = {"digest": self._digest, "made_by": self._made_by}
        part = self.path.with_name(f".{self._digest}.{secrets.token_hex(4)}.part")
        sheet = Sheet(part, list(shapes.items()), metadata)
        try:
            yield sheet
            with output_errors(self.path):
                sheet.finish()
                now = max(time.time_ns(), self._newer_than)  # a model's files may come from a clock ahead of this one
                os.utime(part, ns=(now, now))
                os.rename(part, self.path)
                _fsync_folder(self.path.parent)
        except BaseException:
            part.unlink(missing_ok=True)
            raise
        finally:
            sheet.close()


class Sheet:
    """A safetensors file of float32 being filled. Not for several threads at once."""

    def __init__(self, path: Path, tensors: Sequence[tuple[str, tuple[int, ...]]], metadata: Mapping[str, str]) -> None:
        self._path = path
        self._entries = [(name, DType.F32, shape) for name, shape in tensors]
        self._metadata = dict(metadata)
        header, begins = encode_header(self._entries, {**self._metadata, "crc32c": NO_CHECKSUM})
        self._begins = {entry[0]: len(header) + begin for entry, begin in zip(self._entries, begins, strict=True)}
        self.shapes = dict(tensors)
        self._data_start = len(header)
        size = len(header) + sum(4 * math.prod(shape) for _, shape in tensors)
        with output_errors(path):
            free = shutil.disk_usage(path.parent).free
            if size + RESERVE > free:
                raise OutputError(
                    f"{path.parent}: the statistics take {size:,} bytes and the disk has {free:,} free; free some "
                    "space, or set SAFEGRAFT_CACHE to a folder on another disk"
                )
            self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
            os.ftruncate(self._descriptor, size)
            _write(self._descriptor, memoryview(header), 0)

    def add(self, name: str, value: "torch.Tensor") -> None:
        """Add to what is there."""
        import torch

        there = torch.empty(self.shapes[name], dtype=torch.float32)
        _read(self._descriptor, _bytes_of(there), self._begins[name])
        self.put(name, there.add_(value))

    def put(self, name: str, value: "torch.Tensor") -> None:
        """Replace what is there."""
        if tuple(value.shape) != self.shapes[name]:
            raise ValueError(f"{name} is {list(self.shapes[name])}, not {list(value.shape)}")
        with output_errors(self._path):
            _write(self._descriptor, _bytes_of(value.float().contiguous()), self._begins[name])

    def scale(self, name: str, factor: float) -> None:
        """Multiply what is there."""
        import torch

        there = torch.empty(self.shapes[name], dtype=torch.float32)
        _read(self._descriptor, _bytes_of(there), self._begins[name])
        self.put(name, there.mul_(factor))

    def finish(self) -> None:
        """Write the checksum and bring everything to the disk."""
        file = OpenFile(self._path.name, os.fspath(self._path), os.dup(self._descriptor))
        checksum = _checksum(file, self._data_start)
        file.close()
        header, _ = encode_header(self._entries, {**self._metadata, "crc32c": checksum})
        _write(self._descriptor, memoryview(header), 0)
        os.fsync(self._descriptor)

    def close(self) -> None:
        os.close(self._descriptor)


def _take_lock(path: Path) -> int | None:
    """The descriptor of a lock file that is now this process's, or None while it is another's. Whoever had it before
    removed it, so it counts only if it is still the one under that name."""
    lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.path.samestat(os.fstat(lock), os.lstat(path)):
            return lock
    except (BlockingIOError, FileNotFoundError):
        pass  # it is another's, or was removed between the two looks at it
    os.close(lock)
    return None


def _checksum(file: OpenFile, start: int) -> str:
    """CRC32C of the file from `start` on, in hex. It finds damage, not malice."""
    value = 0
    buffer = memoryview(bytearray(CHUNK))
    for offset in range(start, file.size, CHUNK):
        count = file.read_into(buffer[: min(CHUNK, file.size - offset)], offset)
        value = cast(int, google_crc32c.extend(value, bytes(buffer[:count])))  # pyright: ignore[reportUnknownMemberType] (untyped library)
    return f"{value:08x}"


def _bytes_of(value: "torch.Tensor") -> memoryview:
    return value.reshape(-1).numpy().data.cast("B")


def _write(descriptor: int, content: memoryview, offset: int) -> None:
    while content:
        count = os.pwrite(descriptor, content, offset)
        content = content[count:]
        offset += count


def _read(descriptor: int, into: memoryview, offset: int) -> None:
    while into:
        count = os.preadv(descriptor, [into], offset)
        if count == 0:
            raise OutputError("the file of statistics was cut short while it was being written")
        into = into[count:]
        offset += count


def _fsync_folder(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
