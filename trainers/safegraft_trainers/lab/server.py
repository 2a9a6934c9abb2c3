"""Runs `safegraft serve` as a child process and says how much memory it took.

Knows the command line's promise ("listening on HOST:PORT" once the server answers) and /proc;
nothing of merging.
"""

import os
import re
import subprocess
import sys
import time
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from safegraft.errors import ServerError

START_SECONDS = 60.0  # importing torch in every worker can take half of that on a cold disk
STOP_SECONDS = 20.0
LISTENING = re.compile(r"^listening on (\S+)$", re.MULTILINE)
PROC = Path("/proc")


@dataclass(frozen=True, slots=True)
class PeakMemory:
    """Bytes of resident memory, at their highest so far."""

    server: int
    worker: int  # the largest of the processes that the server started


@dataclass(frozen=True, slots=True)
class Server:
    """A server that answers at `address`, as long as the `with` block lasts."""

    address: str
    pid: int

    def peak_memory(self) -> PeakMemory | None:
        """None where the system has no /proc."""
        own = peak_memory(self.pid)
        if own is None:
            return None
        workers = [peak_memory(pid) for pid in _children(self.pid)]
        return PeakMemory(own, max((size for size in workers if size is not None), default=0))


def peak_memory(pid: int | None = None) -> int | None:
    """A process's resident memory at its highest so far, in bytes; default: this process."""
    size = _status(os.getpid() if pid is None else pid, "VmHWM")
    return None if size is None else 1024 * size


@contextmanager
def running_server(roots: Sequence[Path], data: Path, log: Path) -> Generator[Server]:
    """Start a server for the models in the folders `roots` and stop it at the end, come what may.

    What the server prints goes to the file `log`. Raises ServerError when it does not come up.
    """
    command = [sys.executable, "-m", "safegraft", "serve", "--listen", "127.0.0.1:0", "--data", str(data)]
    for root in roots:
        command += ["--models", str(root)]
    # What the user has set for their own server (a token, a database) is not for this one.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("SAFEGRAFT_")}
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, env=environment, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT
        )
        try:
            yield Server(_address(process, log), process.pid)
        finally:
            _stop(process)


def _address(process: "subprocess.Popen[bytes]", log: Path) -> str:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        said = log.read_text(encoding="utf-8", errors="replace")
        if found := LISTENING.search(said):
            return found[1]
        if process.poll() is not None:
            raise ServerError(f"the server stopped with exit code {process.returncode} instead of starting:\n{said}")
        time.sleep(0.05)
    raise ServerError(f"the server did not start within {START_SECONDS:.0f} s; its log is {log}")


def _stop(process: "subprocess.Popen[bytes]") -> None:
    process.terminate()
    try:
        process.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _children(parent: int) -> list[int]:
    pids = [int(entry.name) for entry in PROC.iterdir() if entry.name.isdecimal()]
    return [pid for pid in pids if _status(pid, "PPid") == parent]


def _status(pid: int, field: str) -> int | None:
    """A number of /proc/PID/status, memory in KiB; None when there is no such process or field."""
    try:
        status = (PROC / str(pid) / "status").read_text(encoding="utf-8", errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return None
    found = re.search(rf"^{field}:\s*(\d+)", status, re.MULTILINE)
    return int(found[1]) if found else None
