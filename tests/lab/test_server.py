"""The demo's server comes up, goes down with the block, and says why it cannot."""

import os
from pathlib import Path

import pytest

from safegraft import Client
from safegraft.errors import ServerError, ServerUnavailableError
from safegraft_trainers.lab.pairings import PAIRINGS
from safegraft_trainers.lab.server import PeakMemory, Server, peak_memory, running_server
from safegraft_trainers.lab.shipped import CHECKPOINTS


def test_server_answers_within_the_block_and_is_gone_after_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Settings for the user's own server must not reach this one.
    monkeypatch.setenv("SAFEGRAFT_TOKEN", "secret")
    monkeypatch.setenv("SAFEGRAFT_DATABASE", "sqlite:////nowhere/at/all.db")
    started: list[Server] = []

    def use_and_interrupt() -> None:
        with (
            running_server([CHECKPOINTS], tmp_path / "data", tmp_path / "log") as server,
            Client(server.address) as client,
        ):
            started.append(server)
            assert client.server_info().model_roots == (CHECKPOINTS.name,)
            client.plan(PAIRINGS[0].recipe(0.5))
            memory = server.peak_memory()
            assert isinstance(memory, PeakMemory)
            assert memory.server > 20e6
            assert memory.worker > 20e6
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        use_and_interrupt()
    (server,) = started
    with pytest.raises(ProcessLookupError):
        os.kill(server.pid, 0)
    with Client(server.address) as client, pytest.raises(ServerUnavailableError):
        client.health()


def test_a_server_that_cannot_start_says_why(tmp_path: Path) -> None:
    (tmp_path / "data").write_text("a file where the folder should be")
    with (
        pytest.raises(ServerError, match=r"(?s)stopped with exit code \d.*--data"),
        running_server([CHECKPOINTS], tmp_path / "data", tmp_path / "log"),
    ):
        pass


def test_peak_memory_is_the_process_own_and_none_without_one() -> None:
    own = peak_memory()
    assert own is not None
    assert 20e6 < own < 100e9
    assert peak_memory(2**30) is None  # beyond the largest process id that Linux gives
