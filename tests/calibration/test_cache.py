"""The file of statistics: found again, found damaged, made once by two, left alone by who is cancelled."""

import multiprocessing
import os
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch

import safegraft.calibration
from safegraft.calibration import gather
from safegraft.calibration.cache import Drawer, default_folder
from safegraft.calibration.progress import Progress, never
from safegraft.errors import MergeCancelledError, OutputError
from safegraft.methods.contract import Statistic

SQUARE = Statistic.GRADIENT_SQUARE


@pytest.fixture
def request_(llm: Any, data: Any, request_of: Any) -> Any:
    return request_of(llm, SQUARE, data.prompts())


def counted(request: Any, cache: Path) -> tuple[Any, int]:
    """What is gathered, and in how many steps: none when it was there."""
    steps: list[Progress] = []
    return gather(request, cache, progress=steps.append), len(steps)


def test_the_name_stays_the_function(request_: Any, tmp_path: Path) -> None:
    """No module of the package may take its place when it is imported."""
    gather(request_, tmp_path)
    assert safegraft.calibration.gather is gather


def test_a_request_is_computed_once(request_: Any, tmp_path: Path) -> None:
    first, steps = counted(request_, tmp_path)
    assert steps
    again, steps = counted(request_, tmp_path)
    assert not steps
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == [f"{request_.digest}.safetensors"]
    for name in first.tensors:
        assert torch.equal(first.whole(name), again.whole(name))


def test_progress_ends_at_its_total(request_: Any, tmp_path: Path) -> None:
    steps: list[Progress] = []
    gather(request_, tmp_path, progress=steps.append)
    assert steps == sorted(steps, key=lambda step: step.done)
    assert steps[-1].done == steps[-1].total == 4 * 3 * 2  # samples, layers, there and back


def test_ranges_are_read_as_they_lie(request_: Any, tmp_path: Path) -> None:
    gathered = gather(request_, tmp_path)
    name = "model.layers.1.mlp.up_proj.weight"
    buffer = bytearray(20)
    gathered.read_into(name, 12, memoryview(buffer))
    assert torch.equal(torch.frombuffer(buffer, dtype=torch.float32), gathered.whole(name).flatten()[3:8])
    with pytest.raises(ValueError, match="out of range"):
        gathered.read_into(name, gathered.tensors[name].nbytes - 4, memoryview(buffer))


def test_the_same_request_gives_the_same_bytes(request_: Any, tmp_path: Path) -> None:
    for folder in ("one", "other"):
        gather(request_, tmp_path / folder)
    one, other = ((tmp_path / folder / f"{request_.digest}.safetensors").read_bytes() for folder in ("one", "other"))
    assert one == other


@pytest.mark.parametrize("place", ["header", "data", "end"])
def test_a_damaged_file_is_computed_again(place: str, request_: Any, tmp_path: Path) -> None:
    gather(request_, tmp_path)
    path = tmp_path / f"{request_.digest}.safetensors"
    sound = path.read_bytes()
    damaged = bytearray(sound)
    damaged[{"header": 20, "data": len(sound) // 2, "end": -1}[place]] ^= 1
    path.write_bytes(damaged if place != "end" else sound[:-1])
    _, steps = counted(request_, tmp_path)
    assert steps
    assert path.read_bytes() == sound


def test_a_file_of_other_versions_is_not_used(request_: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gather(request_, tmp_path)
    monkeypatch.setattr("safegraft.calibration.gathering.version", lambda package: "0")
    assert counted(request_, tmp_path)[1]


def test_what_was_gathered_before_a_model_changed_is_not_used(tmp_path: Path) -> None:
    drawer = Drawer(tmp_path, "0" * 64, "torch 1", 0)
    with drawer.filled({"w": (2,)}) as sheet:
        sheet.add("w", torch.ones(2))
        sheet.add("w", torch.ones(2))
    found = drawer.find()
    assert found is not None
    assert found.whole("w").tolist() == [2, 2]
    assert Drawer(tmp_path, "0" * 64, "torch 1", time.time_ns() + 10**9).find() is None
    assert Drawer(tmp_path, "1" * 64, "torch 1", 0).find() is None


def test_cancelling_leaves_nothing(request_: Any, tmp_path: Path) -> None:
    threads = threading.active_count()
    calls = 0

    def cancelled() -> bool:
        nonlocal calls
        calls += 1
        return calls > 12  # in the middle of the passes

    with pytest.raises(MergeCancelledError):
        gather(request_, tmp_path, cancelled=cancelled)
    assert list(tmp_path.iterdir()) == [tmp_path / "data"]
    assert threading.active_count() == threads
    gather(request_, tmp_path)


def test_two_processes_make_it_once(request_: Any, tmp_path: Path) -> None:
    """The second waits at the lock, then finds the file."""
    drawer = Drawer(tmp_path, request_.digest, "x", 0)
    with drawer.held(never):
        waiting = multiprocessing.get_context("fork").Process(target=_hold_and_note, args=(tmp_path, request_.digest))
        waiting.start()
        time.sleep(0.3)
        assert not (tmp_path / "note").exists()
    waiting.join(10)
    assert waiting.exitcode == 0
    assert (tmp_path / "note").exists()
    assert not list(tmp_path.glob(".*.lock"))


def _hold_and_note(folder: Path, digest: str) -> None:
    with Drawer(folder, digest, "x", 0).held(never):
        (folder / "note").touch()


def test_threads_that_ask_at_once_get_the_same(request_: Any, tmp_path: Path) -> None:
    found: list[tuple[Any, int]] = []
    askers = [threading.Thread(target=lambda: found.append(counted(request_, tmp_path))) for _ in range(3)]
    for asker in askers:
        asker.start()
    for asker in askers:
        asker.join()
    assert sorted(bool(steps) for _, steps in found) == [False, False, True]


def test_who_waits_can_be_cancelled(request_: Any, tmp_path: Path) -> None:
    with Drawer(tmp_path, request_.digest, "x", 0).held(never), pytest.raises(MergeCancelledError):
        gather(request_, tmp_path, cancelled=iter([False, *[True] * 99]).__next__)


def test_leftovers_of_a_killed_process_are_removed(request_: Any, tmp_path: Path) -> None:
    leftover = tmp_path / f".{request_.digest}.abc.part"
    leftover.write_bytes(b"half")
    gather(request_, tmp_path)
    assert not leftover.exists()


def test_a_full_disk_is_said_before_the_work(request_: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("safegraft.calibration.cache.RESERVE", 1 << 60)
    with pytest.raises(OutputError, match=r"the statistics take .* set SAFEGRAFT_CACHE"):
        gather(request_, tmp_path)


def test_a_cache_that_cannot_be_written(request_: Any, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="cannot"):
        gather(request_, tmp_path / "file")


def test_where_the_cache_lies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SAFEGRAFT_CACHE", str(tmp_path))
    assert default_folder() == tmp_path / "statistics"
    monkeypatch.delenv("SAFEGRAFT_CACHE")
    assert default_folder() == Path(os.path.expanduser("~")) / ".cache/safegraft/statistics"


def test_digests_tell_requests_apart(llm: Any, other_llm: Any, data: Any, request_of: Any) -> None:
    opened = data.prompts()
    requests = [
        request_of(llm, SQUARE, opened),
        request_of(other_llm, SQUARE, opened),
        request_of(llm, Statistic.SALIENCY, opened),
        request_of(llm, SQUARE, data.open([{"text": "w1 w2"}])),
        request_of(llm, SQUARE, opened, tensors=["lm_head.weight"]),
        request_of(llm, SQUARE, opened, reference=other_llm.checkpoint),
    ]
    assert len({request.digest for request in requests}) == len(requests)
    assert request_of(llm, SQUARE, data.prompts()).digest == requests[0].digest
