"""Real servers on loopback with tiny models, a method that can be held up, and a proxy that breaks connections."""

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from safegraft.methods.registry import Registry
from safegraft.rpc.client import Client
from safegraft.rpc.models import ModelRoot, Models
from safegraft.testing import tiny_llm, tiny_lvlm

SERVE = """
import json, logging, sys
from pathlib import Path
from safegraft.rpc.models import ModelRoot
from safegraft.rpc.options import ServerOptions
from safegraft.rpc.remote_policy import HubCredential
from safegraft.rpc.server import serve

def print_at_once(line):
    print(line, flush=True)

logging.basicConfig(level=logging.INFO)
given = json.loads(sys.argv[1])
paths = {key: Path(given.pop(key)) for key in ("data", "tls_cert", "tls_key") if key in given}
models = tuple(ModelRoot.parse(root) for root in given.pop("models"))
credentials = tuple(HubCredential.parse(one) for one in given.pop("hub_credentials", ()))
lists = {key: tuple(given.pop(key)) for key in ("hub", "publish_to") if key in given}
options = ServerOptions(**paths, models=models, hub_credentials=credentials, **lists, ready=print_at_once, **given)
serve(options)
"""

# A merge method of which tests decide how long it takes. It averages; time changes no bit of that.
HELD = '''
"""linear, but slow, or stuck while a file exists."""

import time
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from safegraft.checkpoint import folder
from safegraft.methods import Granularity, MergeMethod, Requirements, hookimpl

folder.HASHED_BYTES = 4 << 20  # so that models need not be large for their digest to cover a sample only


class Parameters(BaseModel):
    model_config = ConfigDict(extra="forbid")

    delay: float = 0.0
    gate: str = ""
    tensor: str = ""


class Held(MergeMethod):
    name = "held"
    summary = "the mean, at leisure"
    reference = "https://example.org"
    requires = Requirements()
    granularity = Granularity.ELEMENT
    Parameters = Parameters

    def merge(self, inputs, base, context):
        parameters = context.parameters
        time.sleep(parameters.delay)
        if parameters.gate and context.tensor.endswith(parameters.tensor):
            Path(parameters.gate + ".reached").touch()
            while Path(parameters.gate).exists():
                time.sleep(0.01)
        return sum(one.tensor for one in inputs[1:]).add_(inputs[0].tensor).div_(len(inputs))


@hookimpl
def merge_methods():
    return [Held]
'''


class ServerProcess:
    """A server in a process of its own."""

    def __init__(
        self, log: Path, path: Path, options: dict[str, Any], limit: int | None, more: Mapping[str, str]
    ) -> None:
        environment = {**os.environ, "PYTHONPATH": str(path), **more}
        command = [sys.executable, "-W", "error", "-c", SERVE, json.dumps(options)]
        if limit is not None:  # no file may grow beyond it: what a full disk does, to one file
            command = ["prlimit", f"--fsize={limit}", *command]
        self.log = log
        with log.open("ab") as errors:
            self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True, env=environment)
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        found = re.fullmatch(r"listening on (.+:\d+)\n", line)
        self.failed = found is None
        self.target = found[1] if found else ""

    def children(self) -> set[int]:
        """Pids of the processes that the server has started."""
        tasks = Path(f"/proc/{self.process.pid}/task")
        return {int(pid) for task in tasks.iterdir() for pid in (task / "children").read_text().split()}

    def workers(self) -> set[int]:
        """Those of them that have torch in memory, and so may be merging."""
        return {pid for pid in self.children() if "libtorch" in Path(f"/proc/{pid}/maps").read_text()}

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        return self.process.wait(20)

    def close(self) -> None:
        if self.process.poll() is None:
            self.stop()
        if self.process.stdout:
            self.process.stdout.close()


class Proxy:
    """Passes TCP on to a server. `cut` ends all connections; `budget` ends each after so many bytes from the server;
    `twist` flips a bit in the first occurrence of these bytes."""

    def __init__(self, target: str) -> None:
        host, _, port = target.rpartition(":")
        self.upstream = (host, int(port))
        self.budget: int | None = None
        self.twist = b""
        self.cuts = 0
        self._open: set[socket.socket] = set()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.target = f"127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def cut(self) -> None:
        for one in list(self._open):
            self._end(one)

    def close(self) -> None:
        with contextlib.suppress(OSError):  # closed before
            self._listener.shutdown(socket.SHUT_RDWR)  # wakes the thread in accept(), as closing does not
        self._listener.close()
        self.cut()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            server = socket.create_connection(self.upstream)
            self._open |= {client, server}
            threading.Thread(target=self._pass, args=(client, server, False), daemon=True).start()
            threading.Thread(target=self._pass, args=(server, client, True), daemon=True).start()

    def _pass(self, source: socket.socket, sink: socket.socket, down: bool) -> None:
        passed = 0
        try:
            while data := source.recv(1 << 16):
                if down and self.twist and (at := data.find(self.twist)) >= 0:
                    data = data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]
                    self.twist = b""
                sink.sendall(data)
                passed += len(data)
                if down and self.budget is not None and passed > self.budget:
                    self.cuts += 1
                    break
        except OSError:
            pass  # the other direction has ended the connection
        self._end(source)
        self._end(sink)

    def _end(self, one: socket.socket) -> None:
        self._open.discard(one)
        with contextlib.suppress(OSError):  # it has ended already
            one.shutdown(socket.SHUT_RDWR)
        one.close()


@pytest.fixture(scope="session")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model root: two tiny models, and two whose weights take more than one chunk."""
    root = tmp_path_factory.mktemp("rpc") / "models"
    root.mkdir()
    tiny_llm(root / "llm", seed=2)
    tiny_lvlm(root / "lvlm", seed=3, shards=2)
    tiny_llm(root / "big-llm", vocab=2000, hidden=64, seed=4)
    tiny_lvlm(root / "big-lvlm", vocab=2004, hidden=64, seed=5)
    return root


@pytest.fixture(scope="session")
def plugin_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for PYTHONPATH in which the method `held` is installed."""
    path = tmp_path_factory.mktemp("plugin")
    (path / "held_plugin.py").write_text(HELD)
    info = path / "held_plugin-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: held-plugin\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[safegraft]\nheld = held_plugin\n")
    return path


Start = Callable[..., ServerProcess]


@pytest.fixture(scope="session")
def start_server(root: Path, plugin_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Start]:
    """Start a server. Options are ServerOptions'; `limit` bounds the size of any file it writes."""
    running: list[ServerProcess] = []

    def start(limit: int | None = None, environment: Mapping[str, str] | None = None, **options: Any) -> ServerProcess:
        folder = tmp_path_factory.mktemp("server")
        given = {"listen": "127.0.0.1:0", "data": str(folder / "data"), "models": [str(root)], **options}
        running.append(ServerProcess(folder / "log", plugin_path, given, limit, environment or {}))
        return running[-1]

    yield start
    for server in running:
        server.close()


@pytest.fixture(scope="session")
def server(start_server: Start) -> ServerProcess:
    """One server for all tests that do not break it."""
    return start_server()


@pytest.fixture
def client(server: ServerProcess) -> Iterator[Client]:
    with Client(server.target, patience=10.0) as client:
        yield client


@pytest.fixture
def proxy(server: ServerProcess) -> Iterator[Proxy]:
    proxy = Proxy(server.target)
    yield proxy
    proxy.close()


@pytest.fixture(scope="session")
def open_model(root: Path) -> Callable[[str], Any]:
    """Opens models under the names that they have on the server."""
    return Models((ModelRoot.parse(str(root)),)).open


@pytest.fixture(scope="session")
def registry() -> Registry:
    return Registry.discover()


@pytest.fixture(scope="session")
def linear() -> Callable[..., dict[str, Any]]:
    """A recipe for the tiny models, or for others."""

    def recipe(share: float = 0.25, llm: str = "llm", lvlm: str = "lvlm", **more: Any) -> dict[str, Any]:
        models = [
            {"model": llm, "parameters": {"weight": share}},
            {"model": lvlm, "parameters": {"weight": 1 - share}},
        ]
        return {"models": models, "merge_method": "linear", **more}

    return recipe


@pytest.fixture(scope="session")
def held() -> Callable[..., dict[str, Any]]:
    """A recipe that takes `delay` seconds a tensor, and waits at `tensor` while the file `gate` exists."""

    def recipe(delay: float = 0.0, gate: Path | None = None, tensor: str = "") -> dict[str, Any]:
        parameters = {"delay": delay, "gate": str(gate or ""), "tensor": tensor}
        models = [{"model": "llm"}, {"model": "lvlm"}]
        return {"models": models, "merge_method": "held", "parameters": parameters}

    return recipe


@pytest.fixture
def gate(tmp_path: Path) -> Iterator[Path]:
    """A file at which merges with the method `held` wait; gone at the latest when the test ends."""
    gate = tmp_path / "gate"
    gate.touch()
    yield gate
    gate.unlink(missing_ok=True)


@pytest.fixture(scope="session")
def until() -> Callable[[Callable[[], Any]], Any]:
    """Wait until something becomes true; returns it."""

    def wait(look: Callable[[], Any], seconds: float = 20.0) -> Any:
        deadline = time.monotonic() + seconds
        while not (found := look()):
            assert time.monotonic() < deadline, "it never came true"
            time.sleep(0.02)
        return found

    return wait
