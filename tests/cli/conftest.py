"""The command line as other programs meet it: arguments in; two streams and an exit code out."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from safegraft.cli import main
from safegraft.testing import tiny_llm, tiny_lvlm

SLOW_PLUGIN = """
import os
import time

from pydantic import BaseModel, ConfigDict

from safegraft import hookimpl
from safegraft.methods import Granularity, MergeMethod, Requirements


class SlowMean(MergeMethod):
    name = "slow_mean"
    summary = "The mean, taking its time."
    reference = "https://example.org"
    requires = Requirements(min_inputs=2)
    granularity = Granularity.ELEMENT

    def merge(self, inputs, base, context):
        time.sleep(float(os.environ.get("SLOW_SECONDS", "0")))
        return sum(one.tensor for one in inputs) / len(inputs)


@hookimpl
def merge_methods():
    return [SlowMean]
"""
METADATA = "Metadata-Version: 2.1\nName: slow-plugin\nVersion: 1.0\n"
RECIPE = """\
models:
  - model: aligned
    parameters: {weight: 0.25}
  - model: adapted
    parameters: {weight: 0.75}
merge_method: linear
"""
SLOW_RECIPE = "models: [{model: aligned}, {model: adapted}]\nmerge_method: slow_mean\n"
TOKEN = "a token of the tests"


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an LLM `aligned`, an LVLM `adapted` and two recipes that merge them. Read only."""
    folder = tmp_path_factory.mktemp("models")
    tiny_llm(folder / "aligned", seed=1)
    tiny_lvlm(folder / "adapted", seed=2)
    (folder / "recipe.yml").write_text(RECIPE)
    (folder / "slow.yml").write_text(SLOW_RECIPE)
    return folder


@pytest.fixture
def workplace(models: Path, tmp_path: Path) -> Path:
    """An empty folder to write to, in which the models and the recipe can be named as in `models`."""
    for entry in models.iterdir():
        (tmp_path / entry.name).symlink_to(entry)
    return tmp_path


@dataclass(frozen=True)
class Done:
    """What a command left: its exit code and what it wrote."""

    returncode: int
    stdout: str
    stderr: str


@pytest.fixture
def cli(
    workplace: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Iterator[Callable[..., Done]]:
    """Run a command in `workplace`, in this process. Whatever it is, it must not end in a traceback."""
    for name in os.environ:
        if name.startswith("SAFEGRAFT_"):
            monkeypatch.delenv(name)
    monkeypatch.chdir(workplace)
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def run(*arguments: str | Path) -> Done:
        capfd.readouterr()
        code = main([str(argument) for argument in arguments])
        done = Done(code, *capfd.readouterr())
        assert "Traceback" not in done.stdout + done.stderr
        return done

    yield run
    for number, handler in handlers.items():
        signal.signal(number, handler)


class Processes:
    """Commands that run beside the test, with a plugin at hand whose method takes SLOW_SECONDS a call."""

    def __init__(self, site: Path) -> None:
        (site / "slow_plugin.py").write_text(SLOW_PLUGIN)
        (site / "slow_plugin-1.0.dist-info").mkdir()
        (site / "slow_plugin-1.0.dist-info" / "METADATA").write_text(METADATA)
        (site / "slow_plugin-1.0.dist-info" / "entry_points.txt").write_text("[safegraft]\nslow = slow_plugin\n")
        self._site = site
        self._started: list[subprocess.Popen[str]] = []

    def start(self, *arguments: str | Path, cwd: Path, seconds: str = "0", **env: str) -> "subprocess.Popen[str]":
        kept = {name: value for name, value in os.environ.items() if not name.startswith("SAFEGRAFT_")}
        path = os.pathsep.join(filter(None, [str(self._site), kept.get("PYTHONPATH")]))
        process = subprocess.Popen(
            [sys.executable, "-m", "safegraft", *map(str, arguments)],
            cwd=cwd,
            env=kept | {"PYTHONPATH": path, "SLOW_SECONDS": seconds} | env,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self._started.append(process)
        return process

    def end(self) -> None:
        for process in self._started:
            if process.poll() is None:
                process.terminate()
            process.communicate(timeout=60)


@pytest.fixture
def processes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Processes]:
    found = Processes(tmp_path_factory.mktemp("site"))
    yield found
    found.end()


@pytest.fixture(scope="session")
def server(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Address of a server over `models` that wants TOKEN. Its slow_mean takes 0.2 seconds a call."""
    processes = Processes(tmp_path_factory.mktemp("server-site"))
    data = tmp_path_factory.mktemp("data")
    options = ["--listen", "127.0.0.1:0", "--data", data, "--models", f"{models}=models"]
    process = processes.start("serve", *options, cwd=models, seconds="0.2", SAFEGRAFT_TOKEN=TOKEN)
    assert process.stdout is not None
    line = process.stdout.readline()
    assert line.startswith("listening on "), process.communicate()
    yield line.removeprefix("listening on ").strip()
    processes.end()
    assert process.returncode == 0


@pytest.fixture
def token() -> str:
    """What `server` wants to hear."""
    return TOKEN
