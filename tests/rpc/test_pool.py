"""A worker as the server sees it: what comes over its pipe, in what portions."""

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from safegraft.errors import MergeCancelledError
from safegraft.rpc.messages import Answer, Block, Failed, ReadDone, Took
from safegraft.rpc.models import Models
from safegraft.rpc.pool import Worker
from safegraft.rpc.worker import WorkerSettings


@pytest.fixture
def worker(tmp_path: Path) -> Iterator[Worker]:
    """One whose process is never started: the test speaks at the other end of the pipe."""
    worker = Worker(WorkerSettings(Models(()), tmp_path, None, preload=False))
    worker.busy = True
    yield worker
    asyncio.run(worker.close())


def say(worker: Worker, *answers: Answer) -> None:
    for answer in answers:
        if isinstance(answer, Block):
            worker._ring.write(answer.slot, 0, memoryview(bytes([answer.slot]) * answer.size))
        worker._theirs.send(answer)


def heard(worker: Worker) -> list[object]:
    messages: list[object] = []
    while worker._theirs.poll():
        messages.append(worker._theirs.recv())
    return messages


def test_blocks_that_are_there_come_together(worker: Worker) -> None:
    say(worker, Block(3, 2, b"a"), Block(1, 1, b"b"))
    assert asyncio.run(worker.receive()) == [b"a\3\3", b"b\1"]
    assert heard(worker) == [Took((3, 1))]
    assert worker.busy


def test_what_follows_blocks_is_not_lost(worker: Worker) -> None:
    say(worker, Block(0, 1, b"a"), ReadDone({"file": "digest"}))
    assert asyncio.run(worker.receive()) == [b"a\0"]
    assert worker.busy, "its last answer has not been told yet"
    assert asyncio.run(worker.receive()) == ReadDone({"file": "digest"})
    assert not worker.busy


def test_an_error_after_blocks_is_raised_after_them(worker: Worker) -> None:
    say(worker, Block(0, 1, b"a"), Failed(MergeCancelledError("enough")))
    assert asyncio.run(worker.receive()) == [b"a\0"]
    with pytest.raises(MergeCancelledError):
        asyncio.run(worker.receive())
    assert not worker.busy
