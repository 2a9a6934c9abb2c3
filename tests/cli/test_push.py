"""`safegraft push` as people and programs meet it: against a Hub, from a folder and a recipe, killed and run again."""

import hashlib
import json
import re
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from testhub import Fault, Hub, point_at

from safegraft.methods.registry import Registry

REPO = "org/merged"
SMALL = ("--max-shard-size", "1500")


@pytest.fixture
def hub(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with Hub.start() as hub:
        point_at(hub, monkeypatch, tmp_path_factory.mktemp("cache"))
        yield hub


@pytest.fixture
def run(cli, hub: Hub, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch):
    """`safegraft push` with these arguments, with a cache of its own."""
    monkeypatch.setenv("SAFEGRAFT_CACHE", str(tmp_path_factory.mktemp("safegraft")))
    return lambda *arguments: cli("push", *arguments)


def uploads(hub: Hub) -> list[int]:
    """Bytes of each shard that arrived whole."""
    return [one.bytes_received for one in hub.traffic.matching("^/upload/", "PUT") if one.status == 200]


def test_a_recipe_goes_to_the_hub_without_a_folder(run, hub: Hub, workplace: Path) -> None:
    before = set(workplace.iterdir())
    done = run("recipe.yml", REPO, "--unevaluated", "--tag", "v1", *SMALL)
    assert done.returncode == 0, done.stderr
    repository = hub.repository(REPO)
    assert repository.private
    assert repository.tags == {"v1": repository.head}
    digest = json.loads(repository.read("safegraft.json"))["plan_digest"]
    first, second, third, fourth = done.stdout.splitlines()
    assert first == f"published: {hub.endpoint}/{REPO} (private)"
    assert second.startswith(f"commit {repository.head}: {len(repository.files) - 1} files, ")
    assert (third, fourth) == ("tags: v1", f"plan digest {digest}")
    assert set(workplace.iterdir()) == before
    again = json.loads(run("recipe.yml", REPO, "--unevaluated", *SMALL, "--json").stdout)
    assert (again["unchanged"], again["commit"], again["bytes_uploaded"]) == (True, repository.head, 0)


def test_a_folder_is_described_and_then_pushed(run, cli, hub: Hub, workplace: Path) -> None:
    assert cli("merge", "recipe.yml", "--out", "merged", *SMALL).returncode == 0
    arguments = ("merged", REPO, "--unevaluated", "--public", "--revision", "next", "--message", "A try")
    told = run(*arguments, "--dry-run")
    assert told.returncode == 0
    assert told.stdout.startswith(f"would make {REPO} (public), branch next\n")
    assert "nothing was changed" in told.stdout
    assert not hub.repositories
    assert run(*arguments, "--dry-run", "--json").returncode == 0
    assert run(*arguments).stdout.startswith(f"published: {hub.endpoint}/{REPO}/tree/next\n")
    made = hub.repository(REPO).commit_at("next")
    assert made.title == "A try"
    assert not hub.repository(REPO).private
    refused = run("merged", REPO, "--unevaluated")
    assert refused.returncode == 1
    assert "--public" in refused.stderr


def test_an_evaluation_and_a_plot_go_into_the_card(run, cli, hub: Hub, workplace: Path) -> None:
    assert cli("merge", "recipe.yml", "--out", "merged").returncode == 0
    digest = json.loads((workplace / "merged" / "safegraft.json").read_text())["plan_digest"]
    score = {"name": "own", "value": 0.2, "low": 0.1, "high": 0.3, "n": 9, "axis": "text_safety"}
    score |= {"lower_is_better": True, "dataset": "org/own", "judge": None, "images": False}
    one = {"model": "merged", "digest": digest, "settings": {"through": "transformers"}, "versions": {}, "suites": []}
    one |= {"judges": [], "scores": [score], "measured": [], "skipped": {}}
    results = workplace / "results.json"
    results.write_text(json.dumps({"format": "safegraft-evaluation/1", "evaluations": [one]}))
    (workplace / "plot.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    done = run("merged", REPO, "--evaluation", "results.json", "--plot", "plot.png")
    assert done.returncode == 0, done.stderr
    repository = hub.repository(REPO)
    assert "## Evaluation" in repository.read("README.md").decode()
    assert repository.read("trade-off.png") == b"\x89PNG\r\n\x1a\n"
    said = json.loads(repository.read("safegraft.json"))["evaluation"]
    assert said == hashlib.sha256(results.read_bytes()).hexdigest()


def test_it_asks_for_an_evaluation(run, hub: Hub) -> None:
    done = run("recipe.yml", REPO)
    assert done.returncode == 2
    assert "--evaluation FILE" in done.stderr
    assert "--unevaluated" in done.stderr
    assert not hub.traffic.matching("/api/models|repos")


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("recipe.yml", "merged", "--unevaluated"), 2, "ORG/NAME"),
        (("nothing.yml", REPO, "--unevaluated"), 3, "nothing.yml: there is neither a folder nor a recipe"),
        (("aligned", REPO, "--unevaluated"), 3, "safegraft.json is not there"),
        (("aligned", REPO, "--unevaluated", "--threads", "2"), 2, "--threads is for recipes"),
        (("recipe.yml", REPO, "--evaluation", "none.json"), 3, "none.json"),
        (("recipe.yml", REPO, "--unevaluated", "--plot", "none.png"), 3, "none.png"),
        (("recipe.yml", "zoo:x", "--public", "--tag", "v1"), 2, "--private, --tag: for the Hub"),
        (("recipe.yml", "zoo:x"), 2, "no publisher that is installed"),
    ],
)
def test_what_makes_no_sense_is_told(arguments: tuple[str, ...], code: int, words: str, run, hub: Hub) -> None:
    done = run(*arguments)
    assert done.returncode == code
    assert words in done.stderr
    assert not hub.traffic.matching("/api/models|repos")


def test_publishers_of_plugins_still_get_folders(run, cli, workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Zoo:
        def publish(self, folder: Path, destination: str) -> str:
            return f"zoo of {folder.name} at {destination}"

    monkeypatch.setattr(Registry, "discover", lambda: SimpleNamespace(publishers={"zoo": Zoo()}))
    (workplace / "merged").mkdir()
    (workplace / "merged" / "safegraft.json").write_text("{}")
    assert run("merged", "zoo:team/x").stdout == "published: zoo of merged at team/x\n"


def test_no_token_reaches_a_message(run, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", hub.read_token)
    done = run("recipe.yml", REPO, "--unevaluated")
    assert done.returncode == 1
    assert "may only read" in done.stderr
    monkeypatch.setenv("HF_TOKEN", hub.token)
    hub.faults.add(Fault.unavailable(None, "^/upload/", status=413))
    done = run("recipe.yml", REPO, "--unevaluated")
    assert done.returncode == 1
    assert hub.token not in done.stderr
    assert "Signature" not in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_a_push_that_ends_early_goes_on_where_it_was(
    how: signal.Signals, hub: Hub, processes, workplace: Path, tmp_path: Path
) -> None:
    third = Fault.delayed(1, "^/upload/", seconds=3, when=lambda _: len(uploads(hub)) >= 2)
    hub.faults.add(third)
    environment = {**hub.environment(), "SAFEGRAFT_CACHE": str(tmp_path / "cache")}
    arguments = ("push", "recipe.yml", REPO, "--unevaluated", "--json", *SMALL)
    first = processes.start(*arguments, cwd=workplace, **environment)
    until = time.monotonic() + 60
    while not hub.faults.strikes(third) and time.monotonic() < until:
        time.sleep(0.02)
    assert hub.faults.strikes(third), first.communicate()
    first.send_signal(how)
    out, err = first.communicate(timeout=60)
    assert first.returncode == (-how if how is signal.SIGKILL else 1)
    assert out == ""
    if how is signal.SIGINT:
        assert "nothing of it is visible yet; run the same command again to continue where it stopped" in err
    assert [one.title for one in hub.repository(REPO).commits] == ["initial commit"]
    left = list((tmp_path / "cache" / "publishing").glob("safegraft-push-*"))
    assert bool(left) == (how is signal.SIGKILL)
    arrived = len(uploads(hub))
    hub.faults.clear()
    hub.clear_traffic()
    second = processes.start(*arguments, cwd=workplace, **environment)
    out, err = second.communicate(timeout=60)
    assert second.returncode == 0, err
    told = json.loads(out)
    shards = [one for name, one in hub.repository(REPO).files.items() if re.search("-of-", name)]
    assert told["resumed"]
    assert len(uploads(hub)) == len(shards) - arrived
    assert not list((tmp_path / "cache" / "publishing").iterdir())
