"""Merges read through a server while they are computed, and uploads; in turn with the same bytes through gRPC alone.

    python -m bench.served JOB        # a JSON object; prints a line of JSON a measurement

Runs in a process of its own, beside the servers it starts, so that the client is one as users have it.
"""

import contextlib
import json
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from bench import cases
from bench.measure import CommandFailedError, Watch
from bench.sets import Sets
from bench.sides import ENVIRONMENT, ROOT, TRIAL_SIZE

if TYPE_CHECKING:
    from bench.raw import RawClient
    from safegraft import Client

CASE = "served"
KEPT, COMPUTED, STORED = "served/kept", "served/computed for the call", "served/from disk"
COLD, UPLOAD = "served/first after start", "served/upload"
SAFEGRAFT, RAW = "safegraft", "raw gRPC"

Record = tuple[str, str, dict[str, float]]

_ROOT_NAME = "sets"
_START_SECONDS = 60.0
_STOP_SECONDS = 20.0
_LISTENING = re.compile(r"^listening on (\S+)$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Job:
    """sets, seed: where the models lie. size: of the merge; upload_size: of what is uploaded. scratch: a folder."""

    sets: str
    seed: int
    size: str
    upload_size: str
    rounds: int
    scratch: str


def measure(job: Job) -> Iterator[Record]:
    """Case, side and figures of each measurement, as they come. Raises CommandFailedError."""
    scratch = Path(job.scratch)
    scratch.mkdir(parents=True, exist_ok=True)
    log = scratch / "client.log"
    command = [sys.executable, "-m", "bench.served", json.dumps(asdict(job))]
    with log.open("wb") as errors:
        process = subprocess.Popen(command, cwd=ROOT, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=errors, text=True)
    try:
        assert process.stdout is not None
        for line in process.stdout:
            case, side, figures = json.loads(line)
            yield case, side, figures
        if process.wait() != 0:
            raise CommandFailedError(f"exit code {process.returncode}: bench.served\n{log.read_text()[-4000:]}")
    finally:
        _stop(process)


def _measure(job: Job) -> Iterator[Record]:
    from bench.raw import RawClient
    from safegraft import Client

    sets, scratch = Sets(Path(job.sets), job.seed), Path(job.scratch)
    for size in (TRIAL_SIZE, job.size):
        for name in _case(size).folders:
            sets.model(size, name)
    uploads = [sets.model(job.upload_size, f"model-{number + 1}") for number in range(job.rounds)]
    serve = ("safegraft", "serve", "--listen", "127.0.0.1:0", "--data", str(scratch / "data"))
    with (
        _running(scratch / "raw.log", "bench.raw") as (raw_address, _),
        _running(scratch / "server.log", *serve, "--models", f"{job.sets}={_ROOT_NAME}") as (address, pid),
        contextlib.closing(RawClient(raw_address)) as raw,
        Client(address) as client,
    ):
        bout = _Bout(client, raw, sets, pid)
        yield COLD, SAFEGRAFT, bout.served(TRIAL_SIZE, "keep")[0]
        bout.served(TRIAL_SIZE, "none")
        for number in range(job.rounds):
            yield from bout.downloads(job.size, turn=number)
            yield from bout.uploads(uploads[number], turn=number)


class _Bout:
    """The service and gRPC alone, one after the other."""

    def __init__(self, client: "Client", raw: "RawClient", sets: Sets, server: int) -> None:
        self._client, self._raw, self._sets, self._server = client, raw, sets, server

    def downloads(self, size: str, turn: int) -> Iterator[Record]:
        """Each round begins with another one."""
        if turn % 2:
            figures, _ = self.served(size, "none")
            yield COMPUTED, SAFEGRAFT, figures
        figures, again = self.served(size, "keep")
        yield KEPT, SAFEGRAFT, figures
        yield STORED, SAFEGRAFT, again
        yield KEPT, RAW, _timed(self._raw.download, int(figures["bytes"]))
        if not turn % 2:
            figures, _ = self.served(size, "none")
            yield COMPUTED, SAFEGRAFT, figures

    def served(self, size: str, retention: Literal["keep", "none"]) -> tuple[dict[str, float], dict[str, float]]:
        """A merge from its creation to its last byte, and then all of it once more."""
        case = _case(size)
        recipe = case.recipe({name: self._name(size, name) for name in case.folders})
        asked = time.perf_counter()
        with Watch(self._server) as memory:
            merge = self._client.create(recipe, retention=retention)
            planned = time.perf_counter()
            first, total = self._read(merge.id)
            seconds = time.perf_counter() - planned
        figures = {
            "first_merged_byte": first - planned,
            "mb_per_s": total / seconds / 1e6,
            "planned": planned - asked,
            "bytes": total,
            "server_peak_rss": memory.peak_rss,
            "server_peak_anonymous": memory.peak_anonymous,
        }
        again = _timed(lambda _: self._read(merge.id)[1], total) if retention == "keep" else {}
        if retention == "keep":
            self._client.wait(merge.id)
        self._client.delete(merge.id)
        return figures, again

    def uploads(self, folder: Path, turn: int) -> Iterator[Record]:
        size = sum(file.stat().st_size for file in folder.iterdir())
        sides = [(SAFEGRAFT, lambda: _timed(lambda _: self._upload(folder, size), size))]
        sides.append((RAW, lambda: _timed(self._raw.upload, size)))
        for side, move in sides[:: -1 if turn % 2 else 1]:
            yield UPLOAD, side, move()

    def _upload(self, folder: Path, size: int) -> int:
        self._client.upload(folder)
        return size

    def _read(self, id: str) -> tuple[float, int]:
        """All files in order; when the first byte came that is neither header nor a file copied from an input."""
        first, total = 0.0, 0
        for file in self._client.files(id):
            begin = b""
            for data in self._client.read(id, file.name):
                total += len(data)
                if not first and file.name.endswith(".safetensors"):
                    begin += data
                    if len(begin) > 8 + int.from_bytes(begin[:8], "little"):
                        first = time.perf_counter()
        return first, total

    def _name(self, size: str, name: str) -> str:
        """What the server calls a model."""
        return "/".join((_ROOT_NAME, *self._sets.model(size, name).parts[-2:]))


def _case(size: str) -> cases.Case:
    return cases.merge("linear", size, 2, {})


def _timed(move: Callable[[int], int], size: int) -> dict[str, float]:
    began = time.perf_counter()
    moved = move(size)
    seconds = time.perf_counter() - began
    assert moved == size, f"{moved} of {size} bytes arrived"
    return {"mb_per_s": size / seconds / 1e6, "bytes": size}


@contextmanager
def _running(log: Path, *command: str) -> Generator[tuple[str, int]]:
    """A server's address and process, as long as the `with` block lasts."""
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", *command], stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT
        )
    try:
        deadline = time.monotonic() + _START_SECONDS
        while not (found := _LISTENING.search(log.read_text(errors="replace"))):
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"{' '.join(command)} does not start:\n{log.read_text(errors='replace')}")
            time.sleep(0.05)
        yield found[1], process.pid
    finally:
        _stop(process)


def _stop(process: "subprocess.Popen[str] | subprocess.Popen[bytes]") -> None:
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
    try:
        process.wait(_STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def main() -> int:
    job = Job(**json.loads(sys.argv[1]))
    try:
        for record in _measure(job):
            print(json.dumps(record), flush=True)
    finally:
        shutil.rmtree(Path(job.scratch) / "data", ignore_errors=True)
    return 0


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # stops the servers, too
    sys.exit(main())
