"""`safegraft merge` on this machine: what is written, what is said, what is left behind."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Cli = Callable[..., Any]  # the fixture `cli` of conftest.py


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_json_says_what_is_there(cli: Cli, workplace: Path) -> None:
    done = cli("merge", "recipe.yml", "--out", "merged", "--json")
    assert done.returncode == 0
    said = json.loads(done.stdout)
    assert said.keys() == {"out", "digest", "files", "bytes_written", "seconds", "resumed", "warnings"}
    assert (said["out"], said["resumed"]) == (str(workplace / "merged"), False)
    there = {name: hashlib.sha256(data).hexdigest() for name, data in content(workplace / "merged").items()}
    assert {file["name"]: file["sha256"] for file in said["files"]} == there
    assert said["bytes_written"] == sum(file["size_bytes"] for file in said["files"])


def test_results_go_to_stdout_and_the_rest_to_stderr(cli: Cli) -> None:
    done = cli("merge", "recipe.yml", "--out", "merged")
    assert done.stdout.splitlines()[-1].startswith("plan digest ")
    assert "merging: 100%" in done.stderr
    assert "warning: aligned: 20 of 24" in done.stderr
    assert "%" not in done.stdout
    assert "warning" not in done.stdout


def test_a_rerun_of_a_complete_merge_writes_nothing(cli: Cli, workplace: Path) -> None:
    cli("merge", "recipe.yml", "--out", "merged")
    before = {path.name: path.stat().st_mtime_ns for path in (workplace / "merged").iterdir()}
    again = cli("merge", "recipe.yml", "--out", "merged", "--json")
    assert again.returncode == 0
    assert json.loads(again.stdout)["bytes_written"] == 0
    assert {path.name: path.stat().st_mtime_ns for path in (workplace / "merged").iterdir()} == before


@pytest.mark.parametrize("threads", ["1", "3"])
def test_threads_change_no_byte(threads: str, cli: Cli, workplace: Path) -> None:
    for out, options in (("default", []), ("chosen", ["--threads", threads])):
        assert cli("merge", "recipe.yml", "--out", out, *options).returncode == 0
    assert content(workplace / "default") == content(workplace / "chosen")


def test_other_files_in_the_way_stay(cli: Cli, workplace: Path) -> None:
    (workplace / "merged").mkdir()
    (workplace / "merged" / "thesis.tex").write_text("years of work")
    done = cli("merge", "recipe.yml", "--out", "merged")
    assert done.returncode == 1
    assert "not empty" in done.stderr
    assert content(workplace / "merged") == {"thesis.tex": b"years of work"}


def test_the_old_result_of_another_recipe_stays(cli: Cli, workplace: Path) -> None:
    cli("merge", "recipe.yml", "--out", "merged")
    before = content(workplace / "merged")
    (workplace / "other.yml").write_text((workplace / "recipe.yml").read_text().replace("0.25", "0.5"))
    assert cli("merge", "other.yml", "--out", "merged").returncode == 1
    assert content(workplace / "merged") == before


def test_a_device_that_is_not_there_is_told(cli: Cli, workplace: Path) -> None:
    for command in (("merge", "recipe.yml", "--out", "merged"), ("serve", "--data", "data")):
        done = cli(*command, "--device", "warp")
        assert done.returncode == 2
        assert "warp is not a device that can merge: choose cpu, cuda or cuda:N" in done.stderr
    assert not (workplace / "merged").exists()


def test_a_server_has_its_own_device(cli: Cli) -> None:
    done = cli("merge", "recipe.yml", "--out", "merged", "--device", "cuda", "--server", "127.0.0.1:1")
    assert done.returncode == 2
    assert "safegraft serve --device" in done.stderr
