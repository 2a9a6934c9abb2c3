"""A command's time, memory and bytes, for the whole tree of its processes. Linux: everything comes out of /proc.

Knows nothing of merging.
"""

import os
import re
import resource
import select
import signal
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

PERIOD = 0.005  # seconds between two looks at the memory
FAMILY_PERIOD = 0.05  # ... and at which processes there are
_LOG_TAIL = 2000


class CommandFailedError(Exception):
    """The command ended with another exit code than 0, or ran out of its time. The message has the end of its log."""


@dataclass(frozen=True, slots=True)
class Figures:
    """What a command took. Seconds and bytes.

    cpu: user and system time, of children that were waited for too.
    peak_rss, peak_anonymous: resident memory of all processes together, with the files mapped into it and without.
    bytes_read, bytes_written: what system calls moved, cached or not; what is read through mmap is not in there.
    disk_read, disk_written: what the disk was asked for.
    """

    wall: float
    cpu: float
    peak_rss: int
    peak_anonymous: int
    bytes_read: int
    bytes_written: int
    disk_read: int
    disk_written: int


def run(
    command: Sequence[str],
    *,
    log: Path,
    cwd: Path | None = None,
    environment: Mapping[str, str] | None = None,
    timeout: float = 600.0,
) -> Figures:
    """Run a command to its end; what it prints goes to `log`. Raises CommandFailedError."""
    with log.open("wb") as output:
        began = time.perf_counter()
        # A group of its own, so that a command out of time goes with its children.
        process = subprocess.Popen(
            command,
            cwd=cwd,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            process_group=0,
        )
        try:
            family = _watch_until_end(process.pid, began + timeout)
            ended = time.perf_counter()
            moved = _counters(process.pid)  # still there: nobody has waited for it
        finally:
            # Harmless after the end: until it is waited for, the number is no other process's.
            os.killpg(process.pid, signal.SIGKILL)
            _, status, usage = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != 0:
        late = " (out of time)" if ended - began >= timeout else ""
        told = log.read_text(errors="replace")[-_LOG_TAIL:]
        raise CommandFailedError(f"exit code {process.returncode}{late}: {' '.join(command)}\n{told}")
    return Figures(
        wall=ended - began,
        cpu=_seconds(usage),
        peak_rss=family.peak_rss,
        peak_anonymous=family.peak_anonymous,
        bytes_read=moved["rchar"],
        bytes_written=moved["wchar"],
        disk_read=moved["read_bytes"],
        disk_written=moved["write_bytes"],
    )


def _watch_until_end(pid: int, deadline: float) -> "Family":
    """Look at the memory until the process has ended, or should have."""
    family = Family(pid)
    end = os.pidfd_open(pid)
    try:
        poll = select.poll()
        poll.register(end, select.POLLIN)
        while not poll.poll(1000 * PERIOD) and time.perf_counter() < deadline:
            family.look()
    finally:
        os.close(end)
    return family


class Family:
    """A process and its descendants: what memory they have taken so far, as `look` has seen it."""

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._pids = [pid]
        self._looked_around = 0.0
        self.peak_rss = 0
        self.peak_anonymous = 0

    def look(self) -> None:
        now = time.monotonic()
        if now - self._looked_around >= FAMILY_PERIOD:
            self._looked_around = now
            self._pids = descendants(self._pid)
        rss = anonymous = 0
        for pid in self._pids:
            memory = _memory(pid)
            rss += memory.get("VmRSS", 0)
            anonymous += memory.get("RssAnon", 0)
            # The kernel's own high-water mark misses nothing between two looks, but knows one process.
            self.peak_rss = max(self.peak_rss, memory.get("VmHWM", 0))
        self.peak_rss = max(self.peak_rss, rss)
        self.peak_anonymous = max(self.peak_anonymous, anonymous)


class Watch:
    """Looks at a process that runs on, as long as the `with` block lasts."""

    def __init__(self, pid: int) -> None:
        self.family = Family(pid)
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)

    def _look(self) -> None:
        while not self._over.wait(4 * PERIOD):  # a server and its workers are more to look at
            self.family.look()

    def __enter__(self) -> "Family":
        self._thread.start()
        return self.family

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()


def own_cpu() -> float:
    """Seconds of user and system time that this process and its children have taken."""
    return _seconds(resource.getrusage(resource.RUSAGE_SELF)) + _seconds(resource.getrusage(resource.RUSAGE_CHILDREN))


def family_cpu(pid: int) -> float:
    """The same of another process and its living descendants."""
    ticks = 0
    for one in descendants(pid):
        fields = _read(Path(f"/proc/{one}/stat")).rpartition(")")[2].split()
        ticks += sum(map(int, fields[11:15]))
    return ticks / os.sysconf("SC_CLK_TCK")


def descendants(pid: int) -> list[int]:
    """A process and its children and theirs."""
    found = [pid]
    for one in found:
        for task in _entries(Path(f"/proc/{one}/task")):
            found += map(int, _read(task / "children").split())
    return found


def _memory(pid: int) -> dict[str, int]:
    status = _read(Path(f"/proc/{pid}/status"))
    return {
        name: 1024 * int(size) for name, size in re.findall(r"^(VmHWM|VmRSS|RssAnon):\s*(\d+)", status, re.MULTILINE)
    }


def _counters(pid: int) -> dict[str, int]:
    return {name: int(count) for name, count in re.findall(r"(\w+): (\d+)", Path(f"/proc/{pid}/io").read_text())}


def _read(file: Path) -> str:
    """Nothing, when the process has gone meanwhile."""
    try:
        return file.read_text(errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return ""


def _entries(folder: Path) -> list[Path]:
    try:
        return list(folder.iterdir())
    except (FileNotFoundError, ProcessLookupError):
        return []


def _seconds(usage: resource.struct_rusage) -> float:
    return usage.ru_utime + usage.ru_stime
