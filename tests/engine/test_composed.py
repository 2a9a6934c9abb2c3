"""Tensors put together from matrices in others: any range, on any number of threads, and every byte read once."""

import threading
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from safegraft.checkpoint.dtypes import DType
from safegraft.checkpoint.types import Checkpoint, Identity, TensorInfo
from safegraft.engine import composed
from safegraft.engine.composed import STRIP_ROWS, Block, ComposedCheckpoint, ComposedTensor, Matrix
from safegraft.engine.once import Once
from safegraft.errors import CheckpointError


class Stored(Checkpoint):
    """Tensors in memory; counts the bytes that are read of each."""

    def __init__(self, tensors: Mapping[str, torch.Tensor]) -> None:
        self.name = "stored"
        self.identity = Identity("stored", "sha256", "0" * 64)
        self.config = {"model_type": "test"}
        self.sidecars = {"config.json": b"{}"}
        self.data = {name: raw(tensor) for name, tensor in tensors.items()}
        self.tensors = {
            name: TensorInfo(name, {one.torch: one for one in DType}[tensor.dtype], tuple(tensor.shape), "model", 0)
            for name, tensor in tensors.items()
        }
        self.read: dict[str, int] = dict.fromkeys(tensors, 0)
        self.calls: list[str] = []
        self.lock = threading.Lock()

    def read_into(self, tensor: TensorInfo, start: int, buffer: memoryview) -> None:
        data = self.data[tensor.name][start : start + buffer.nbytes]
        buffer.cast("B")[:] = data
        with self.lock:
            self.read[tensor.name] += len(data)

    def tokens(self) -> Mapping[str, int] | None:
        return {"word": 0}

    def modified_ns(self) -> int:
        return 0

    def verify_unchanged(self) -> None:
        self.calls.append("verify_unchanged")

    def close(self) -> None:
        self.calls.append("close")


def raw(tensor: torch.Tensor) -> bytes:
    return tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes()


def filled(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.arange(torch.Size(shape).numel(), dtype=torch.float64).reshape(shape).to(dtype)


def block(stored: Stored, *names: str, turned: bool) -> Block:
    infos = [stored.tensors[name] for name in names]
    return Block(tuple(Matrix(info, 0, *info.shape) for info in infos), turned)


def read(checkpoint: Checkpoint, name: str, start: int = 0, stop: int | None = None) -> bytes:
    tensor = checkpoint.tensors[name]
    out = bytearray((tensor.nbytes if stop is None else stop) - start)
    checkpoint.read_into(tensor, start, memoryview(out))
    return bytes(out)


def pairs(turned: bool, count: int = 3, rows: int = 5, columns: int = 7) -> tuple[Stored, ComposedCheckpoint, bytes]:
    """`whole`: for each of `count` numbers, a[number] over b[number]; and what it must hold."""
    a, b = filled(count, rows, columns), -filled(count, rows + 1, columns)
    stored = Stored({**{f"a{i}": a[i] for i in range(count)}, **{f"b{i}": b[i] for i in range(count)}})
    blocks = tuple(block(stored, f"a{i}", f"b{i}", turned=turned) for i in range(count))
    together = torch.cat([a, b], dim=1)
    expected = together.transpose(1, 2) if turned else together
    info = TensorInfo("whole", DType.F32, tuple(expected.shape), "model", 0)
    return stored, ComposedCheckpoint(stored, [ComposedTensor(info, blocks)]), raw(expected)


@pytest.mark.parametrize("turned", [False, True])
@given(data=st.data())
@settings(max_examples=60, deadline=None)
def test_any_range_of_bytes(turned: bool, data: st.DataObject) -> None:
    sizes = st.sampled_from([1, 2, 3, STRIP_ROWS - 1, STRIP_ROWS, STRIP_ROWS + 1])
    count, rows, columns = data.draw(st.integers(1, 4)), data.draw(sizes), data.draw(st.integers(1, 6))
    _, checkpoint, expected = pairs(turned, count, rows, columns)
    for _ in range(3):
        start = data.draw(st.integers(0, len(expected)))
        stop = data.draw(st.integers(start, len(expected)))
        assert read(checkpoint, "whole", start, stop) == expected[start:stop]


@pytest.mark.parametrize("dtype", [torch.uint8, torch.bfloat16, torch.float32, torch.float64])
def test_bits_of_every_size_stay_as_they_are(dtype: torch.dtype) -> None:
    matrix = filled(9, 4, dtype=dtype)
    stored = Stored({"a": matrix})
    info = TensorInfo("turned", stored.tensors["a"].dtype, (4, 9), "model", 0)
    checkpoint = ComposedCheckpoint(stored, [ComposedTensor(info, (block(stored, "a", turned=True),))])
    assert read(checkpoint, "turned") == raw(matrix.T)


@pytest.mark.parametrize("turned", [False, True])
def test_skipping_into_the_first_block(turned: bool) -> None:
    """Two tensors out of one matrix: its first rows, and its last; or its columns, as rows."""
    matrix = filled(6, 4)
    stored = Stored({"a": matrix})
    one = (block(stored, "a", turned=turned),)
    expected = matrix.T if turned else matrix
    width = expected.shape[1]
    first = ComposedTensor(TensorInfo("first", DType.F32, (1, width), "model", 0), one)
    last = ComposedTensor(TensorInfo("last", DType.F32, (3, width), "model", 0), one, skip=width * 4)
    checkpoint = ComposedCheckpoint(stored, [first, last])
    assert read(checkpoint, "first") == raw(expected[:1])
    assert read(checkpoint, "last") == raw(expected[1:4])
    assert read(checkpoint, "last", 5, 21) == raw(expected[1:4])[5:21]


def test_out_of_range_is_an_error() -> None:
    _, checkpoint, expected = pairs(turned=False)
    for start, size in ((-1, 4), (0, len(expected) + 1), (len(expected), 1)):
        with pytest.raises(ValueError, match="out of range"):
            checkpoint.read_into(checkpoint.tensors["whole"], start, memoryview(bytearray(size)))


def test_everything_else_is_the_stored_checkpoint_s() -> None:
    stored = Stored({"layer.10": filled(2), "layer.2": filled(3), "a": filled(3, 2)})
    info = TensorInfo("layer.3", DType.F32, (2, 3), "model", 0)
    checkpoint = ComposedCheckpoint(stored, [ComposedTensor(info, (block(stored, "a", turned=True),))])
    assert list(checkpoint.tensors) == ["layer.2", "layer.3", "layer.10"]  # what it is made from is gone
    assert read(checkpoint, "layer.10") == raw(filled(2))
    for name in ("name", "identity", "config", "sidecars"):
        assert getattr(checkpoint, name) is getattr(stored, name)
    assert checkpoint.tokens() == stored.tokens()
    checkpoint.verify_unchanged()
    checkpoint.close()
    assert stored.calls == ["verify_unchanged", "close"]


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("step", [4, 92, 10_000])
def test_reading_in_order_reads_every_stored_byte_once(turned: bool, step: int) -> None:
    stored, checkpoint, expected = pairs(turned)
    for start in range(0, len(expected), step):
        stop = min(start + step, len(expected))
        assert read(checkpoint, "whole", start, stop) == expected[start:stop]
    assert stored.read == {name: len(data) for name, data in stored.data.items()}


def test_threads_read_the_same_and_transpose_each_block_once() -> None:
    stored, checkpoint, expected = pairs(turned=True, count=6, rows=40, columns=30)
    threads = 8
    gate = threading.Barrier(threads)

    def run(thread: int) -> bool:
        gate.wait()
        steps = range(0, len(expected), 1000)
        return all(
            read(checkpoint, "whole", start, min(start + 1000, len(expected))) == expected[start : start + 1000]
            for start in (steps if thread % 2 else reversed(steps))
        )

    with ThreadPoolExecutor(threads) as pool:
        assert all(pool.map(run, range(threads)))
    assert stored.read == {name: len(data) for name, data in stored.data.items()}


def test_memory_is_bounded_by_bytes_and_two_blocks_are_always_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(composed, "KEPT_BYTES", 1)
    stored, checkpoint, expected = pairs(turned=True, count=3)
    size = len(expected) // 3
    once = {name: len(data) for name, data in stored.data.items()}
    for number in (0, 1, 0, 1):  # two threads on both sides of a border
        read(checkpoint, "whole", number * size, (number + 1) * size)
    assert stored.read == {**once, "a2": 0, "b2": 0}
    for number in (2, 0):  # the third takes the place of the first
        read(checkpoint, "whole", number * size, (number + 1) * size)
    assert stored.read == {**once, "a0": 2 * once["a0"], "b0": 2 * once["b0"]}


# -- values made once -----------------------------------------------------------------------------


def test_a_failure_reaches_who_waits_and_is_not_kept() -> None:
    once: Once[int] = Once(2)
    begun, go = threading.Event(), threading.Event()

    def fail() -> int:
        begun.set()
        go.wait()
        raise CheckpointError("ends early")

    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(once.get, "key", fail)
        begun.wait()
        second = pool.submit(once.get, "key", fail)
        go.set()
        for one in (first, second):
            with pytest.raises(CheckpointError, match="ends early"):
                one.result()
    assert once.get("key", lambda: 7) == 7


def test_the_latest_are_kept() -> None:
    once: Once[str] = Once(2)
    made: list[str] = []

    def make(key: str) -> str:
        made.append(key)
        return key.upper()

    assert [once.get(key, lambda key=key: make(key)) for key in "abaca"] == list("ABACA")
    assert made == ["a", "b", "c", "a"]
