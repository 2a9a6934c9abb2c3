"""`safegraft verify`: a verdict in words and in the exit code."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from testhub import Hub, point_at


@pytest.fixture
def merged(cli: Callable[..., Any], workplace: Path) -> Path:
    assert cli("merge", "recipe.yml", "--out", "merged", "--max-shard-size", "4000").returncode == 0
    return workplace / "merged"


@pytest.fixture
def hub(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with Hub.start() as started:
        point_at(started, monkeypatch, tmp_path_factory.mktemp("cache"))
        yield started


def test_a_merge_as_it_was_written(cli: Callable[..., Any], merged: Path) -> None:
    done = cli("verify", "merged")
    assert done.returncode == 0
    count = len(list(merged.iterdir())) - 1
    assert done.stdout.startswith(f"merged: {count} of {count} files are as safegraft.json lists them\nplan digest ")
    assert "verifying: 100%" in done.stderr
    assert json.loads(cli("verify", "merged", "--json").stdout)["ok"] is True


def test_what_was_changed_is_named_and_the_exit_code_is_1(cli: Callable[..., Any], merged: Path) -> None:
    (merged / "README.md").write_text("# Mine\n")
    assert cli("verify", "merged").returncode == 0
    (merged / "config.json").write_text("{}")
    (merged / "\x1b[31mmodeling.py").touch()
    done = cli("verify", "merged")
    assert done.returncode == 1
    lines = [line.split() for line in done.stdout.splitlines()]
    assert ["DIFFERS", "config.json"] in lines
    assert ["edited", "README.md"] in lines
    assert ["EXTRA", "\\x1b[31mmodeling.py"] in lines
    assert done.stdout.endswith("these are not the bytes that were merged\n")
    document = json.loads(cli("verify", "merged", "--json").stdout)
    assert [one["name"] for one in document["files"] if one["wrong"]] == ["config.json", "\x1b[31mmodeling.py"]


def test_merging_again(cli: Callable[..., Any], merged: Path, models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done = cli("verify", "merged", "--recompute")
    assert done.returncode == 0
    assert "this is what the recipe gives: 6 files were computed again" in done.stdout
    elsewhere = merged.parent / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    assert cli("verify", merged, "--recompute", "--models", models).returncode == 0
    lost = cli("verify", merged, "--recompute")
    assert lost.returncode == 3
    assert "(inputs that are not on the Hub are looked for in .: see --models)" in lost.stderr
    document = json.loads((merged / "safegraft.json").read_text())
    document["recipe"]["models"][0]["parameters"]["weight"] = 0.5
    (merged / "safegraft.json").write_text(json.dumps(document))
    other = cli("verify", merged, "--recompute", "--models", models, "--threads", "1")
    assert other.returncode == 1
    assert "merging again has another plan digest" in other.stdout
    assert "this is not what the recipe gives" in other.stdout


def test_a_repository(cli: Callable[..., Any], merged: Path, models: Path, hub: Hub) -> None:
    commit = hub.add_model("org/merge", merged)
    done = cli("verify", f"org/merge@{commit[:40]}", "--download", "--recompute", "--models", models)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"org/merge@{commit}: ")
    assert "this is what the recipe gives" in done.stdout
    (merged / "config.json").write_text("{}")
    hub.add_model("org/merge", merged)
    assert cli("verify", "org/merge").returncode == 1
    assert cli("verify", f"org/merge@{commit}").returncode == 0


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["nowhere"], 3, "nowhere: there is no such folder, and no Hub name is like it (ORG/NAME[@REVISION])"),
        (["aligned"], 3, "aligned: holds no merge of safegraft: safegraft.json is not there"),
        (["recipe.yml"], 3, "is not a folder"),
        (["aligned", "--download"], 2, "--download is for a repository on the Hub; aligned is here"),
        (["aligned", "--models", "."], 2, "--models is for merging again: add --recompute"),
        (["aligned", "--threads", "2"], 2, "--threads is for merging again"),
        (["org/none"], 3, "org/none"),
    ],
)
def test_what_cannot_be_checked_is_told(
    cli: Callable[..., Any], hub: Hub, arguments: list[str], code: int, words: str
) -> None:
    done = cli("verify", *arguments)
    assert done.returncode == code
    assert words in done.stderr
    assert not done.stdout


def test_a_folder_of_models_that_is_not_there(cli: Callable[..., Any], merged: Path) -> None:
    done = cli("verify", "merged", "--recompute", "--models", "nowhere")
    assert done.returncode == 2
    assert "--models: there is no folder nowhere" in done.stderr


def test_an_adapter_is_not_merged_again(cli: Callable[..., Any], merged: Path) -> None:
    document = json.loads((merged / "safegraft.json").read_text())
    (merged / "safegraft.json").write_text(json.dumps({**document, "modules": []}))
    done = cli("verify", "merged", "--recompute")
    assert done.returncode == 2
    assert "is a merged adapter: --recompute is for models" in done.stderr
