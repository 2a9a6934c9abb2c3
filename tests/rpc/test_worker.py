"""What a worker does, in this process: plans that it keeps for the merge that follows."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from safegraft.errors import InputChangedError
from safegraft.rpc import worker as worker_module
from safegraft.rpc.checksum import crc32c
from safegraft.rpc.messages import Block, Failed, Order, Planned, PlanTask, ReadDone, ReadTask
from safegraft.rpc.models import ModelRoot, Models
from safegraft.rpc.ring import SLOT_BYTES
from safegraft.rpc.worker import WorkerSettings, _Work
from safegraft.testing import tiny_llm
from safegraft.v1 import artifact_service_pb2 as pb


class Server:
    """The other end of the pipe, and a ring of one slot: takes blocks at once."""

    def __init__(self) -> None:
        self.frames: list[pb.ReadFileResponse] = []
        self._slot = bytearray(SLOT_BYTES)

    def send(self, answer: Block) -> None:
        self.frames.append(pb.ReadFileResponse.FromString(answer.head + self._slot[: answer.size]))

    def free_slot(self) -> int:
        return 0

    def cancelled(self) -> bool:
        return False

    def write(self, slot: int, offset: int, data: memoryview) -> None:
        self._slot[offset : offset + len(data)] = data

    def view(self, slot: int, size: int) -> memoryview:
        return memoryview(self._slot)[:size]

    def close(self) -> None:
        pass


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "models"


@pytest.fixture
def server() -> Any:
    return Server()


@pytest.fixture
def work(server: Any, folder: Path, tmp_path: Path) -> _Work:
    for seed in (0, 1):
        tiny_llm(folder / f"m{seed}", vocab=2000, hidden=256, seed=seed)
    settings = WorkerSettings(Models((ModelRoot.parse(f"{folder}=zoo"),)), tmp_path / "data", None, preload=False)
    return _Work(server, server, server, settings)


RECIPE = json.dumps(
    {"merge_method": "linear", "models": [{"model": f"zoo/m{seed}", "parameters": {"weight": 0.5}} for seed in (0, 1)]}
)
SHARD = 10**9


def planned(work: _Work, *, keep: bool) -> Order:
    answer = work.do(PlanTask(RECIPE, SHARD, keep=keep))
    assert isinstance(answer, Planned)
    return Order(RECIPE, SHARD, 1, answer.document["digest"], answer.modified)


def read(work: _Work, order: Order, start: int = 0, stop: int = 100) -> Any:
    return work.do(ReadTask(order, "model.safetensors", start, stop, {}))


def test_bytes_come_as_messages_to_the_client(work: _Work, server: Server, folder: Path) -> None:
    size = (folder / "m0" / "model.safetensors").stat().st_size
    with work:
        order = planned(work, keep=True)
        assert isinstance(read(work, order, 0, size), ReadDone)
        whole = b"".join(frame.data for frame in server.frames)
        assert len(whole) == size > 3 * SLOT_BYTES
        server.frames.clear()
        assert isinstance(read(work, order, 1000, size - 1), ReadDone)
    at = 1000
    for frame in server.frames:
        assert (frame.offset, frame.crc32c) == (at, crc32c(frame.data))
        at += len(frame.data)
    assert b"".join(frame.data for frame in server.frames) == whole[1000:-1]


def test_a_kept_plan_is_not_made_again(work: _Work, monkeypatch: pytest.MonkeyPatch) -> None:
    with work:
        order = planned(work, keep=True)
        monkeypatch.setattr(worker_module, "make_plan", None)
        assert isinstance(read(work, order), ReadDone)


def test_another_merge_is_planned_anew(work: _Work) -> None:
    with work:
        order = planned(work, keep=True)
        other = Order(order.recipe, SHARD * 2, 1, order.digest, order.modified)
        assert isinstance(read(work, other), ReadDone | Failed)
        assert isinstance(read(work, order), ReadDone), "the plan that was kept is gone, and made again"


def test_a_kept_plan_of_a_model_that_changed_is_not_used(work: _Work, folder: Path) -> None:
    with work:
        order = planned(work, keep=True)
        tiny_llm(folder / "new", vocab=2000, hidden=256, seed=5)
        os.replace(folder / "new" / "model.safetensors", folder / "m1" / "model.safetensors")
        answer = read(work, order)
        assert isinstance(answer, Failed)
        assert isinstance(answer.error, InputChangedError)
        assert "the plan is another one" in str(answer.error)


def test_an_open_merge_survives_a_plan_that_is_not_kept(work: _Work, monkeypatch: pytest.MonkeyPatch) -> None:
    with work:
        order = planned(work, keep=True)
        read(work, order)
        planned(work, keep=False)
        monkeypatch.setattr(worker_module, "make_plan", None)
        assert isinstance(read(work, order), ReadDone)
