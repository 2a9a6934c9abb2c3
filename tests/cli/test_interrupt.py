"""A merge that is stopped leaves nothing at DIR, says how to go on, and goes on where it stopped."""

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from safegraft.engine.staging import JOURNAL

COMMAND = ["merge", "slow.yml", "--max-shard-size", "2KB", "--threads", "1"]


def wait_for(condition: Callable[[], bool], process: "subprocess.Popen[str]") -> None:
    """Until the condition holds; an AssertionError when the process ends first."""
    deadline = time.monotonic() + 60
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)


def finished_shards(workplace: Path) -> list[Path]:
    """Those that the journal records: only they outlive a stop."""
    journal = workplace / ".merged.safegraft-partial" / JOURNAL
    files = json.loads(journal.read_bytes())["files"] if journal.exists() else {}
    return sorted(journal.parent / name for name in files if name.endswith(".safetensors"))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_merge_continues_to_the_same_bytes(number: signal.Signals, processes: Any, workplace: Path) -> None:
    stopped = processes.start(*COMMAND, "--out", "merged", cwd=workplace, seconds="0.1")
    wait_for(lambda: len(finished_shards(workplace)) >= 1, stopped)
    stopped.send_signal(number)
    out, err = stopped.communicate(timeout=60)
    assert stopped.returncode == 1
    assert "run the same command again" in err
    assert "Traceback" not in err
    assert out == ""
    assert not (workplace / "merged").exists()
    kept = {path.name: path.stat().st_mtime_ns for path in finished_shards(workplace)}
    assert kept

    again = processes.start(*COMMAND, "--out", "merged", "--json", cwd=workplace)
    fresh = processes.start(*COMMAND, "--out", "fresh", cwd=workplace)
    said = json.loads(again.communicate(timeout=60)[0])
    fresh.communicate(timeout=60)
    assert (again.returncode, fresh.returncode) == (0, 0)
    assert said["resumed"]
    assert said["bytes_written"] < sum(file["size_bytes"] for file in said["files"])
    assert {name: (workplace / "merged" / name).stat().st_mtime_ns for name in kept} == kept
    assert content(workplace / "merged") == content(workplace / "fresh")


def test_the_second_signal_stops_at_once(processes: Any, workplace: Path) -> None:
    process = processes.start(*COMMAND, "--out", "merged", cwd=workplace, seconds="30")
    wait_for(lambda: (workplace / ".merged.safegraft-partial").exists(), process)
    assert process.stderr is not None
    process.send_signal(signal.SIGINT)
    assert any("once more to stop at once" in line for line in iter(process.stderr.readline, ""))
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=10) == 1
    assert "run the same command again" in process.stderr.read()
    assert not (workplace / "merged").exists()


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


STUCK = """
import signal, time
from safegraft.cli import interrupt

interrupt.STUCK_SECONDS = 0.3
departure = interrupt.Departure()
try:
    with departure.on_signal("stopped; run it again"):
        print("ready", flush=True)
        time.sleep(60)
except KeyboardInterrupt:
    time.sleep({seconds})  # as when the exception broke into something that now waits for ever
    departure.call_off()
print("went on", flush=True)
"""


@pytest.mark.parametrize(
    ("seconds", "code", "out", "err"), [(60, 1, "", "stopped; run it again\n"), (0, 0, "went on\n", "")]
)
def test_a_signal_that_leaves_something_stuck_ends_the_process_all_the_same(
    seconds: int, code: int, out: str, err: str
) -> None:
    script = STUCK.format(seconds=seconds)
    with subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGINT)
        assert process.communicate(timeout=30) == (out, err)
    assert process.returncode == code
