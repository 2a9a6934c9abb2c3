"""`make demo` tells its story to the end, leaves what it promises, and stops cleanly."""

import json
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from PIL import Image

import safegraft
from safegraft.errors import UsageError
from safegraft_trainers.lab import demo
from safegraft_trainers.lab.pairings import PAIRINGS, STRENGTHS

DEMO = [sys.executable, "-m", "safegraft_trainers.lab.demo"]


def finished_demo(out: Path, *options: str) -> "subprocess.CompletedProcess[str]":
    done = subprocess.run([*DEMO, "--out", str(out), *options], capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    return done


def test_quick_demo_merges_every_pairing_through_a_server(tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = finished_demo(out, "--quick")
    results = json.loads((out / "results.json").read_text())
    assert [set(points) for points in results["merges"].values()] == [{f"{one.default:g}"} for one in PAIRINGS]
    for pairing in PAIRINGS:
        assert pairing.name in done.stdout
        assert (out / "merged" / f"{pairing.safer}-{pairing.default:g}" / "model.safetensors").exists()
    with Image.open(out / "trade-off.png") as plot:
        assert plot.width > 1000
    assert max(len(line) for line in done.stdout.splitlines() if str(tmp_path) not in line) <= 100
    assert done.stdout.rstrip().splitlines()[-1].startswith("Done in")


@pytest.mark.slow
def test_demo_sweeps_every_strength_within_two_minutes_and_makes_merges_that_help(tmp_path: Path) -> None:
    out = tmp_path / "out"
    began = time.monotonic()
    done = finished_demo(out)
    assert time.monotonic() - began < 120
    assert "MB/s" in done.stdout
    results = json.loads((out / "results.json").read_text())
    attacked = results["inputs"]["adapted-lvlm"]["text_safety"]["keyword"]["hits"]
    for pairing in PAIRINGS:
        points = results["merges"][pairing.name]
        assert list(points) == [f"{strength:g}" for strength in STRENGTHS]
        # What the demo is there to show, whatever the last digit on this machine.
        assert points[f"{pairing.default:g}"]["text_safety"]["keyword"]["hits"] < attacked - 6


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_demo_takes_its_server_along(tmp_path: Path, number: signal.Signals) -> None:
    with subprocess.Popen(
        [*DEMO, "--out", str(tmp_path / "out")], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout
        line = next(line for line in process.stdout if " answers on " in line)
        process.send_signal(number)
        _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    assert said.strip() == "stopped, and the server with it; the next run starts afresh"
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
    with pytest.raises(UsageError, match="matplotlib and PIL"):
        demo.run(tmp_path / "out", quick=True)
    assert not (tmp_path / "out").exists()


def test_the_recipe_that_the_reader_is_given_is_sound() -> None:
    recipe = safegraft.Recipe.load(demo.RECIPE)
    assert recipe.merge_method == "linear"
    assert sum(float(str(entry.parameters["weight"])) for entry in recipe.models) == 1


@pytest.mark.parametrize("pairing", PAIRINGS)
def test_every_pairing_is_a_sound_recipe_whose_default_is_swept(pairing: demo.Pairing) -> None:
    assert pairing.default in STRENGTHS
    for strength in STRENGTHS:
        assert safegraft.Recipe.load(pairing.recipe(strength)).merge_method == pairing.method
