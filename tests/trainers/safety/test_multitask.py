"""Adaptation and safety at once: the shares, and that both are learnt."""

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from safegraft.cli import main as command_line
from safegraft.errors import UsageError
from safegraft_trainers import multitask

Weights = Callable[[Path], dict[str, torch.Tensor]]


@pytest.fixture
def both(common: list[str], safety: list[str], data: Path) -> list[str]:
    return [*common, *safety, "--adaptation_data", str(data / "llava.json"), "--adaptation_images", str(data)]


def kinds(arguments: list[str]) -> Counter[str]:
    """How many rows adapt and how many are of the safety data, by their answers."""
    trainer, _, _ = multitask.prepare(*multitask.parse(arguments))
    answers = [row["completion"][0]["content"][0]["text"] for row in trainer.train_dataset]
    return Counter("adaptation" if "square" in answer else "safety" for answer in answers)


def test_every_adaptation_row_once_and_safety_rows_as_their_share_asks(both: list[str]) -> None:
    assert kinds([*both, "--safety_share", "0.25"]) == {"adaptation": 12, "safety": 4}
    assert kinds([*both, "--safety_share", "0.5"]) == {"adaptation": 12, "safety": 12}  # five rows, taken repeatedly
    assert kinds([*both, "--safety_share", "0.4", "--rows", "10"]) == {"adaptation": 6, "safety": 4}


def test_from_the_command_line_to_a_model_with_a_card(
    both: list[str], llava: Path, tmp_path: Path, weights: Weights
) -> None:
    assert command_line(["train", "multitask", *both, "--safety_share", "0.5", "--max_steps", "8"]) == 0
    out = tmp_path / "out"
    record = json.loads((out / "safegraft_training.json").read_text())
    assert record["command"] == "multitask"
    assert [source["rows"] for source in record["data"]] == [12, 3, 1, 1]
    assert "24 rows: 12 safety, 12 benign" in record["notes"]
    before, after = weights(llava), weights(out)
    learnt = {name for name in before if not torch.equal(before[name], after[name])}
    # As in the second stage of the adaptation: language model and projector, not the tower.
    assert {"projector" in name for name in learnt} == {True, False}
    assert not any("vision_tower" in name for name in learnt)


def test_a_configuration_is_found_by_name_and_the_command_line_goes_before_it(both: list[str]) -> None:
    script, training, _ = multitask.parse(["--config", "multitask", *both, "--safety_share", "0.3"])
    assert (script.safety_share, training.max_length, training.gradient_accumulation_steps) == (0.3, 2048, 8)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--safety_share", "0"], "above 0 and below 1"),
        (["--safety_share", "1"], "above 0 and below 1"),
        (["--rows", "0"], "at least 1"),
        (["--rows", "2"], "has none for source"),
    ],
)
def test_shares_that_make_no_sense_are_refused(both: list[str], arguments: list[str], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        multitask.main(*multitask.parse([*both, *arguments]))


def test_adaptation_data_is_asked_for(common: list[str], safety: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert command_line(["train", "multitask", *common, *safety]) == 2
    assert "give --adaptation_data" in capsys.readouterr().err


def test_a_dry_run_shows_and_writes_nothing(
    both: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command_line(["train", "multitask", *both, "--dry_run"]) == 0
    assert "in the loss" in capsys.readouterr().out
    assert not list(tmp_path.iterdir())
