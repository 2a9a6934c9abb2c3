"""The commands that talk to a server: the same results as without one, the same exit codes, the same words."""

import json
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from safegraft.engine.staging import JOURNAL
from safegraft.testing import llama_config, llama_tensors, words, write_checkpoint

Cli = Callable[..., Any]  # the fixture `cli` of conftest.py


@pytest.fixture
def remote(cli: Cli, server: str, monkeypatch: pytest.MonkeyPatch, token: str) -> Cli:
    """`cli` with the server and its token in the environment."""
    monkeypatch.setenv("SAFEGRAFT_TOKEN", token)
    monkeypatch.setenv("SAFEGRAFT_SERVER", server)
    return cli


@pytest.fixture
def broken(models: Path, workplace: Path) -> Path:
    """An LLM like `aligned` with one NaN, under a name of its own; in `workplace` only."""
    tensors = llama_tensors(vocab=20, seed=1)
    tensors["model.layers.1.mlp.up_proj.weight"][3, 3] = torch.nan
    return write_checkpoint(workplace / "broken", tensors, llama_config(vocab=20), tokens=words(20))


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def ids(remote: Cli) -> list[str]:
    return [merge["id"] for merge in json.loads(remote("ls", "--json").stdout)]


def wait_for(condition: Callable[[], object], process: "subprocess.Popen[str]") -> None:
    """Until the condition holds; an AssertionError when the process ends first."""
    deadline = time.monotonic() + 60
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_health(remote: Cli, server: str) -> None:
    assert remote("health").stdout == f"{server} is serving\n"


def test_a_plan_from_a_server_is_the_plan_from_here(remote: Cli, server: str) -> None:
    here, there = (json.loads(remote("plan", "recipe.yml", "--json", *at).stdout) for at in ([], ["--server", server]))
    assert there == here


def test_methods_from_a_server_have_the_form_of_those_from_here(remote: Cli, server: str) -> None:
    here, there = (
        {method["name"]: method for method in json.loads(remote("methods", "--json", *at).stdout)}
        for at in ([], ["--server", server])
    )
    assert there.keys() == {*here, "slow_mean"}
    assert {name: there[name] for name in here} == here
    plugins = json.loads(remote("plugins", "--json", "--server", server).stdout)
    assert {"slow", "linear"} <= {plugin["name"] for plugin in plugins}


def test_a_served_merge_has_the_bytes_of_a_local_one(remote: Cli, server: str, workplace: Path) -> None:
    assert remote("merge", "recipe.yml", "--out", "here").returncode == 0
    done = remote("merge", "recipe.yml", "--out", "there", "--server", server, "--json")
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert said["bytes_written"] == sum(file["size_bytes"] for file in said["files"])
    assert content(workplace / "there") == content(workplace / "here")


def test_a_merge_from_its_making_to_its_end(remote: Cli, server: str, workplace: Path) -> None:
    (workplace / "own.yml").write_text((workplace / "recipe.yml").read_text() + "seed: 7\n")
    before = ids(remote)
    assert remote("merge", "own.yml", "--out", "merged", "--server", server).returncode == 0
    (id,) = set(ids(remote)) - set(before)
    listed = remote("ls").stdout.splitlines()
    assert listed[0].split()[:3] == ["ID", "STATE", "DONE"]
    assert listed[1].split()[:3] == [id, "succeeded", "100%"]

    watched = remote("watch", id)
    assert (watched.returncode, watched.stderr) == (0, "")
    assert f"safegraft pull {id}" in watched.stdout
    lines = [json.loads(line) for line in remote("watch", f"merges/{id}", "--json").stdout.splitlines()]
    assert lines[-1]["state"] == "succeeded"
    assert lines[-1]["bytes_done"] == lines[-1]["bytes_total"]

    assert remote("pull", id, "--out", "pulled").returncode == 0
    assert content(workplace / "pulled") == content(workplace / "merged")
    assert json.loads(remote("pull", id, "--out", "pulled", "--json").stdout)["bytes_written"] == 0

    assert remote("cancel", id).returncode == 4  # it has ended
    assert remote("rm", id).returncode == 0
    assert id not in ids(remote)
    for command in (["watch", id], ["pull", id, "--out", "late"], ["cancel", id], ["rm", id]):
        gone = remote(*command)
        assert (gone.returncode, gone.stdout) == (4, "")
        assert id in gone.stderr
    assert not (workplace / "late").exists()


def test_uploaded_models_give_the_same_weights(remote: Cli, server: str, models: Path, workplace: Path) -> None:
    shutil.copytree(models / "aligned", workplace / "my own aligned")
    (workplace / "own.yml").write_text((workplace / "recipe.yml").read_text().replace("aligned", "my own aligned"))
    assert remote("merge", "own.yml", "--out", "refused", "--server", server).returncode == 3
    done = remote("merge", "own.yml", "--out", "there", "--server", server, "--upload")
    assert done.returncode == 0, done.stderr
    assert "uploading my own aligned: 100%" in done.stderr
    assert "warning: my own aligned: 20 of 24" in done.stderr
    assert "upload:" not in done.stdout + done.stderr
    assert remote("merge", "own.yml", "--out", "here").returncode == 0
    weights = "model.safetensors"
    assert (workplace / "there" / weights).read_bytes() == (workplace / "here" / weights).read_bytes()


def test_a_model_with_an_adapter_is_uploaded_in_two_parts(
    remote: Cli, server: str, models: Path, workplace: Path, write_lora: Any
) -> None:
    shutil.copytree(models / "aligned", workplace / "base")
    write_lora(workplace / "my-lora", workplace / "base")
    text = (workplace / "recipe.yml").read_text()
    (workplace / "text.yml").write_text(text.replace("model: aligned", "model: base+my-lora"))
    (workplace / "long.yml").write_text(text.replace("model: aligned", "model: {model: {path: base}, lora: my-lora}"))
    assert remote("merge", "text.yml", "--out", "here").returncode == 0
    assert remote("merge", "text.yml", "--out", "refused", "--server", server).returncode == 3
    for recipe in ("text.yml", "long.yml"):
        done = remote("merge", recipe, "--out", f"there-{recipe}", "--server", server, "--upload")
        assert done.returncode == 0, done.stderr
        assert "upload:" not in done.stdout + done.stderr
        weights = "model.safetensors"
        assert (workplace / f"there-{recipe}" / weights).read_bytes() == (workplace / "here" / weights).read_bytes()
        assert "base+my-lora" in (workplace / f"there-{recipe}" / "README.md").read_text()
    (workplace / "revision.yml").write_text(text.replace("model: aligned", "model: base@main"))
    done = remote("merge", "revision.yml", "--out", "m", "--server", server, "--upload")
    assert done.returncode == 2
    assert "base@main names a revision" in done.stderr


def test_nothing_to_upload_is_wrong_usage(remote: Cli, server: str, workplace: Path) -> None:
    (workplace / "elsewhere.yml").write_text((workplace / "recipe.yml").read_text().replace(": a", ": models/a"))
    done = remote("merge", "elsewhere.yml", "--out", "m", "--server", server, "--upload")
    assert done.returncode == 2
    assert "models/aligned" in done.stderr


def test_a_wrong_recipe_has_its_own_places_in_the_servers_answer(remote: Cli, server: str, workplace: Path) -> None:
    (workplace / "wrong.yml").write_text((workplace / "recipe.yml").read_text().replace("weight: 0.75", "wieght: 1"))
    for options in ([], ["--upload"]):
        here = remote("plan", "wrong.yml")
        there = remote("merge", "wrong.yml", "--out", "m", "--server", server, *options)
        assert (there.returncode, there.stderr.splitlines()[-1]) == (2, here.stderr.splitlines()[-1])
        assert "wrong.yml:5" in there.stderr


def test_a_merge_that_fails_has_the_exit_code_of_its_cause(
    remote: Cli, server: str, broken: Path, workplace: Path
) -> None:
    (workplace / "own.yml").write_text((workplace / "recipe.yml").read_text().replace("aligned", "broken"))
    before = ids(remote)
    done = remote("merge", "own.yml", "--out", "m", "--server", server, "--upload")
    assert done.returncode == 3, done.stderr
    assert "layers.1.mlp.up_proj.weight" in done.stderr
    assert "broken" in done.stderr
    assert not (workplace / "m").exists()
    (id,) = set(ids(remote)) - set(before)
    watched = remote("watch", id)
    assert (watched.returncode, watched.stdout) == (3, "")
    assert json.loads(remote("watch", id, "--json").stdout.splitlines()[-1])["error"]["reason"] == "INPUT_NOT_FINITE"


def test_a_token_is_wanted(cli: Cli, server: str, workplace: Path, token: str) -> None:
    (workplace / "right").write_text(token + "\n")
    (workplace / "wrong").write_text("guess")
    (workplace / "empty").write_text("\n")
    codes = {
        name: cli("ls", "--server", server, *options).returncode
        for name, options in {
            "none": [],
            "right": ["--token-file", "right"],
            "wrong": ["--token-file", "wrong"],
            "empty": ["--token-file", "empty"],
        }.items()
    }
    assert codes == {"none": 4, "right": 0, "wrong": 4, "empty": 2}


def test_cancelling_ends_the_merge_for_everybody(
    remote: Cli, server: str, processes: Any, workplace: Path, token: str
) -> None:
    before = ids(remote)
    command = ["merge", "slow.yml", "--out", "merged", "--server", server]
    process = processes.start(*command, cwd=workplace, SAFEGRAFT_TOKEN=token)
    wait_for(lambda: set(ids(remote)) - set(before), process)
    (id,) = set(ids(remote)) - set(before)
    assert remote("cancel", id).stdout == f"merge {id} cancelled\n"
    _, err = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "cancelled" in err
    assert remote("watch", id).returncode == 1
    assert not (workplace / "merged").exists()


def test_a_stopped_transfer_goes_on_where_it_stopped(
    remote: Cli, server: str, processes: Any, workplace: Path, token: str
) -> None:
    (workplace / "own.yml").write_text((workplace / "slow.yml").read_text() + "seed: 3\n")
    command = ["merge", "own.yml", "--server", server, "--max-shard-size", "2KB"]
    before = ids(remote)
    process = processes.start(*command, "--out", "merged", cwd=workplace, SAFEGRAFT_TOKEN=token)
    journal = workplace / ".merged.safegraft-partial" / JOURNAL
    wait_for(lambda: journal.exists() and b".safetensors" in journal.read_bytes(), process)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 1
    assert re.search("the server goes on.*run the same command again", err)
    assert not (workplace / "merged").exists()

    again = remote(*command, "--out", "merged", "--json")
    said = json.loads(again.stdout)
    assert (again.returncode, said["resumed"]) == (0, True)
    assert said["bytes_written"] < sum(file["size_bytes"] for file in said["files"])
    assert len(set(ids(remote)) - set(before)) == 1
    fresh = remote(*command, "--out", "fresh")
    assert fresh.returncode == 0
    assert content(workplace / "merged") == content(workplace / "fresh")


def test_a_second_server_is_told_what_is_in_its_way(server: str, cli: Cli, workplace: Path) -> None:
    done = cli("serve", "--listen", server, "--data", "own-data")
    assert done.returncode == 4
    assert server in done.stderr


def test_nothing_listens_after_the_server_has_stopped(processes: Any, cli: Cli, workplace: Path) -> None:
    process = processes.start("serve", "--listen", "127.0.0.1:0", "--data", "d", "--models", ".", cwd=workplace)
    address = process.stdout.readline().split()[-1]
    in_use = cli("serve", "--listen", "127.0.0.1:0", "--data", "d")
    assert (in_use.returncode, "in use by another server" in in_use.stderr) == (1, True)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    assert process.returncode == 0
    assert cli("health", "--server", address).returncode == 4
