"""`safegraft push ID --server` and what shows of it later: a server publishes one of its merges."""

import json
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from testhub import Fault, Hub, point_at

from safegraft.rpc.client import Client

Cli = Callable[..., Any]


@pytest.fixture
def hub(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with Hub.start() as hub:
        point_at(hub, monkeypatch, tmp_path_factory.mktemp("cache"))
        yield hub


@pytest.fixture
def address(processes: Any, hub: Hub, models: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Of a server that publishes to org/* and has no token for the Hub but a named one."""
    folder = tmp_path_factory.mktemp("server")
    secret = folder / "secret"
    secret.write_text(hub.token)
    secret.chmod(0o600)
    options = ["--models", f"{models}=models", "--publish-to", "org/*", "--hub-credential", f"team={secret}"]
    environment = {**hub.environment(folder / "home"), "HF_TOKEN": ""}
    process = processes.start(
        "serve", "--listen", "127.0.0.1:0", "--data", folder / "data", *options, cwd=models, **environment
    )
    line: str = process.stdout.readline()
    assert line.startswith("listening on "), process.communicate()
    return line.split()[-1]


@pytest.fixture
def merge(address: str, models: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The id of a merge there, the server of which is in the environment."""
    monkeypatch.setenv("SAFEGRAFT_SERVER", address)
    with Client(address) as client:
        return client.create(models / "recipe.yml", retention="none").id


def test_a_server_publishes_with_either_token(cli: Cli, address: str, merge: str, hub: Hub, monkeypatch: Any) -> None:
    monkeypatch.setenv("SAFEGRAFT_SERVER", address)  # which `cli` has taken away
    done = cli("push", merge, "org/own", "--server", address, "--unevaluated", "--tag", "v1")
    assert done.returncode == 0, done.stderr
    head = hub.repository("org/own").head
    assert done.stdout.splitlines()[:2] == [
        f"published: {hub.endpoint}/org/own (private)",
        f"commit {head} of merge {merge}",
    ]
    monkeypatch.delenv("HF_TOKEN")
    none = cli("push", merge, "org/none", "--server", address, "--unevaluated")
    assert (none.returncode, "needs a token" in none.stderr) == (2, True)
    named = cli("push", merge, "org/named", "--server", address, "--unevaluated", "--hub-credential", "team", "--json")
    said = json.loads(named.stdout)
    assert (said["state"], said["merge"], said["repo"]) == ("succeeded", merge, "org/named")
    shown = cli("watch", merge)
    assert shown.returncode == 0
    assert f"published: {hub.endpoint}/org/own at {head}" in shown.stdout
    refused = cli("push", merge, "other/name", "--server", address, "--unevaluated", "--hub-credential", "team")
    assert (refused.returncode, "does not publish to other/name" in refused.stderr) == (2, True)


@pytest.mark.slow  # a worker is killed, after having been waited for
def test_a_publication_goes_on_without_its_caller_until_it_is_cancelled(
    cli: Cli, processes: Any, address: str, merge: str, hub: Hub, workplace: Path, monkeypatch: Any
) -> None:
    monkeypatch.setenv("SAFEGRAFT_SERVER", address)
    fault = hub.faults.add(Fault.delayed(1, "/upload/", seconds=60))
    process = processes.start("push", merge, "org/own", "--server", address, "--unevaluated", cwd=workplace)
    deadline = time.monotonic() + 30
    while not hub.faults.strikes(fault):
        assert time.monotonic() < deadline
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=30)
    assert (process.returncode, "the server goes on" in err) == (1, True)

    assert "cancel that first" in cli("rm", merge).stderr
    line = cli("watch", merge).stdout.splitlines()[-1]
    before, _, command = line.partition("; stop that with: safegraft ")
    assert before == "being published to org/own"
    stopped = cli(*command.split())
    assert (stopped.returncode, "org/own cancelled" in stopped.stdout) == (0, True)
    assert cli("watch", merge).stdout.splitlines()[-1] == "not published to org/own: cancelled"
    assert cli("rm", merge).returncode == 0
