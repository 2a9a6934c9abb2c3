"""`make demo` tells its story to the end, leaves what it promises, and stops cleanly."""

import re
import signal
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

import safegraft
from safegraft.errors import UsageError
from safegraft_trainers.evaluate.example import Suite
from safegraft_trainers.evaluate.results import read_evaluations
from safegraft_trainers.lab import demo, outcome, shipped, stages
from safegraft_trainers.lab.corpus import Sizes
from safegraft_trainers.lab.pairings import PAIRINGS

DEMO = [sys.executable, "-m", "safegraft_trainers.lab.demo"]


TINY = replace(
    stages.REDUCED,
    sizes=Sizes(alignment=64, pretraining=32, instructions=64, safety=32, text=32, preferences=0),
    alignment=2,
    projector=2,
    adaptation=4,
    safety=4,
)


@pytest.mark.slow
def test_the_demo_trains_merges_through_a_server_and_leaves_what_it_promises(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With trainings of a few steps: the story is told to its end whatever comes out."""
    few = Suite("few", shipped.questions().examples[::20])
    monkeypatch.setattr(shipped, "questions", lambda: few)
    monkeypatch.setattr(outcome, "questions", lambda: few)
    out = tmp_path / "out"
    demo.run(out, TINY)
    told = capsys.readouterr().out
    for pairing in PAIRINGS:
        assert pairing.name in told
        for strength in pairing.strengths:
            assert (out / "merged" / pairing.file(strength) / "model.safetensors").exists()
            recipe = safegraft.Recipe.load(out / "recipes" / f"{pairing.file(strength)}.json")
            assert recipe.merge_method == pairing.method
    assert len(read_evaluations(out / "results.json")) == 3 + 6
    report = (out / "report.md").read_text()
    for link in re.findall(r"\]\((.+?)\)", report):
        assert (out / link).exists(), link
    assert PAIRINGS[0].label(PAIRINGS[0].default) in report
    assert PAIRINGS[1].label(PAIRINGS[1].strengths[2]) in (out / "table.md").read_text()
    for name in ("trade-off.png", "four-axes.png"):
        with Image.open(out / name) as plot:
            assert plot.width > 1000
    assert max(len(line) for line in told.splitlines() if str(tmp_path) not in line) <= 100
    assert told.rstrip().splitlines()[-1].startswith("Done in")


# The demo as its command runs it, but with trainings of a few steps, so that the server comes up soon.
AT_ONCE = """
import sys
from test_demo import TINY
from safegraft_trainers.lab import demo
demo.REDUCED = TINY
sys.exit(demo.main(["--out", sys.argv[1]]))
"""


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_demo_takes_its_server_along(tmp_path: Path, number: signal.Signals) -> None:
    command = [sys.executable, "-c", AT_ONCE, str(tmp_path / "out")]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=Path(__file__).parent
    ) as process:
        assert process.stdout
        line = next(line for line in process.stdout if " answers on " in line)
        process.send_signal(number)
        _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    assert said.strip().splitlines()[-1] == "stopped, and the server with it; the next run starts afresh"
    assert "Traceback" not in said
    host, _, port = line.split()[-1].rpartition(":")
    with socket.socket() as probe:
        assert probe.connect_ex((host, int(port))) != 0


def test_a_failing_demo_is_one_message_and_an_exit_code(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("")
    done = subprocess.run([*DEMO, "--out", str(tmp_path)], capture_output=True, text=True, timeout=60)
    assert done.returncode == UsageError.exit_code
    assert done.stderr.strip().startswith("the demo failed: ")
    assert "choose another folder with --out" in done.stderr
    assert (tmp_path / "thesis.tex").exists()


def test_only_an_earlier_demo_s_folder_is_emptied(tmp_path: Path) -> None:
    out = tmp_path / "out"
    demo.fresh_folder(out)
    (out / "merged").mkdir()
    demo.fresh_folder(out)
    assert not (out / "merged").exists()
    (tmp_path / "empty").mkdir()
    demo.fresh_folder(tmp_path / "empty")
    with pytest.raises(UsageError, match="choose another"):
        demo.fresh_folder(tmp_path)


def test_missing_packages_are_named_before_anything_starts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UsageError, match="matplotlib and PIL and trl and datasets"):
        demo.run(tmp_path / "out", TINY)
    assert not (tmp_path / "out").exists()


def test_the_recipe_that_the_reader_is_given_is_sound() -> None:
    recipe = safegraft.Recipe.load(demo.RECIPE)
    assert recipe.merge_method == "linear"
    assert sum(float(str(entry.parameters["weight"])) for entry in recipe.models) == 1


@pytest.mark.parametrize("pairing", PAIRINGS)
def test_every_pairing_is_a_sound_recipe_whose_default_is_merged(pairing: demo.Pairing) -> None:
    assert pairing.default in pairing.strengths
    for strength in pairing.strengths:
        assert safegraft.Recipe.load(pairing.recipe(strength)).merge_method == pairing.method
