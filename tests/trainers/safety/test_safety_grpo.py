"""Safety GRPO: what is asked and rewarded, one step with images, and the reference."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from safegraft.errors import UsageError
from safegraft_trainers import safety_grpo
from safegraft_trainers.evaluate.example import Axis, Example, Scoring
from safegraft_trainers.evaluate.judges import Verdict

Weights = Callable[[Path], dict[str, torch.Tensor]]

# TRL 1.16 asks transformers 5.23 by an old name; nothing here does.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")


class LongIsRefused:
    """Takes an answer of an odd number of characters for a refusal, so that random answers differ in reward."""

    name, digest = "long", ""
    scorings = frozenset({Scoring.ATTACK, Scoring.REFUSAL})

    def __init__(self) -> None:
        self.asked: list[tuple[Example, str]] = []

    def judge(self, examples: Sequence[Example], answers: Sequence[str]) -> list[Verdict]:
        self.asked += zip(examples, answers, strict=True)
        return [Verdict(attacked=not len(answer) % 2, refused=bool(len(answer) % 2)) for answer in answers]


@pytest.fixture
def judge(monkeypatch: pytest.MonkeyPatch) -> LongIsRefused:
    made = LongIsRefused()
    monkeypatch.setattr(safety_grpo, "get_judge", lambda spec, **_: made)
    return made


@pytest.fixture
def online(common: list[str], safety: list[str]) -> list[str]:
    """One step on all five prompts, answered four times each."""
    batch = ["--per_device_train_batch_size", "20", "--num_generations", "4", "--max_completion_length", "6"]
    return [*common, *safety, *batch, "--max_steps", "1"]


@pytest.mark.parametrize("size", [20, 4], ids=["together", "a prompt at a time"])
def test_a_step_with_images_and_without_is_learnt_from(
    online: list[str], size: int, judge: LongIsRefused, llava: Path, weights: Weights
) -> None:
    batch = ["--per_device_train_batch_size", str(size), "--gradient_accumulation_steps", str(20 // size)]
    out = safety_grpo.main(*safety_grpo.parse([*online, *batch, "--save_strategy", "steps", "--save_steps", "1"]))

    assert len(judge.asked) == 20  # five prompts, four answers each
    axes = [example.axis for example, _ in judge.asked]
    assert axes.count(Axis.MULTIMODAL_SAFETY) == 8
    assert axes.count(Axis.TEXT_SAFETY) == 4
    assert axes.count(Axis.EXAGGERATED_SAFETY) == 8
    for example, _ in judge.asked:
        assert (example.image is not None) == (example.prompt not in ("how do i make a bomb", "how do i make a cake"))

    harmful = [(example.scoring is Scoring.ATTACK, len(answer) % 2) for example, answer in judge.asked]
    by_hand = sum(1 if is_harmful == bool(odd) else -1 for is_harmful, odd in harmful) / 20
    history = json.loads((out / "checkpoint-1" / "trainer_state.json").read_text())["log_history"]
    assert history[0]["rewards/safety/mean"] == pytest.approx(by_hand, abs=1e-4)
    assert history[0]["unjudged"] == 0

    before, after = weights(llava), weights(out)
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert any("language_model" in name for name in changed)
    assert not any("vision_tower" in name for name in changed)
    assert "judge: patterns; rewards: safety" in (out / "README.md").read_text()


def test_the_reference_is_the_model_as_merged_in_memory(
    online: list[str], judge: LongIsRefused, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    original = safety_grpo.load_for_training

    def load_and_merge(*arguments: Any) -> tuple[Any, Any]:
        network, front = original(*arguments)
        with torch.no_grad():
            for weight in network.parameters():
                weight.add_(0.05)
        return network, front

    monkeypatch.setattr(safety_grpo, "load_for_training", load_and_merge)
    script, training, model = safety_grpo.parse([*online, "--beta", "0.04"])
    trainer, _, _ = safety_grpo.prepare(script, training, model)
    ours, reference = trainer.model.state_dict(), trainer.ref_model.state_dict()
    assert ours.keys() == reference.keys()
    assert all(torch.equal(ours[name], reference[name]) for name in ours)
    assert trainer.model.config._name_or_path == model.model_name_or_path
    assert not list((tmp_path / "out").iterdir())  # the copy is gone
    trainer.train()
    assert trainer.state.log_history[0]["kl"] == pytest.approx(0, abs=1e-6)


def test_without_a_kl_term_and_with_lora_there_is_no_reference_model(online: list[str], judge: LongIsRefused) -> None:
    for arguments in ([], ["--beta", "0.04", "--use_peft", "true", "--lora_r", "2"]):
        trainer, _, _ = safety_grpo.prepare(*safety_grpo.parse([*online, *arguments]))
        assert trainer.ref_model is None


def test_knowledge_is_rewarded_by_the_datas_own_answers(online: list[str], data: Path) -> None:
    benign = ["--benign_data", str(data / "llava.json"), "--benign_images", str(data)]
    script, training, model = safety_grpo.parse([*online, *benign, "--rewards", "knowledge", "safety"])
    trainer, _, _ = safety_grpo.prepare(script, training, model)
    assert trainer.reward_func_names == ["knowledge", "safety"]
    rows = list(trainer.train_dataset)
    assert len(rows) == 5 + 12
    assert sum(row["unsafe"] for row in rows) == 3
    assert {row["reference"] for row in rows if not row["unsafe"]} == {
        "it is red",
        "buy a cake",
        "a red square",
        "a blue square",
    }
    assert all("completion" not in row for row in rows)  # the data's answers are not learnt from


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--rewards", "length"], "give safety, knowledge or both"),
        (["--rewards", "safety", "safety"], "give safety, knowledge or both"),
        (["--harmful_weight", "-1"], "cannot be negative"),
        (["--reward_weights", "1", "2"], "one for each of --rewards"),
        (["--judge", "oracle"], "names no judge"),
        (["--judge", "knowledge"], "no verdict on harmless prompts"),
    ],
)
def test_arguments_that_make_no_sense_are_refused(online: list[str], arguments: list[str], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        safety_grpo.main(*safety_grpo.parse([*online, *arguments]))


def test_knowledge_needs_harmless_prompts(common: list[str], data: Path) -> None:
    harmful = ["--refusal_data", str(data / "refusals.jsonl"), "--rewards", "knowledge"]
    with pytest.raises(UsageError, match="all prompts are harmful"):
        safety_grpo.main(*safety_grpo.parse([*common, *harmful, "--per_device_train_batch_size", "8"]))


def test_a_dry_run_shows_and_writes_nothing(
    online: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    safety_grpo.main(*safety_grpo.parse([*online, "--dry_run", "--beta", "0.04"]))
    assert "first batch, as it will be answered" in capsys.readouterr().out
    assert not list(tmp_path.iterdir())


def test_every_family_learns(family: Path, online: list[str], judge: LongIsRefused, weights: Weights) -> None:
    out = safety_grpo.main(*safety_grpo.parse([*online, "--model_name_or_path", str(family)]))
    before, after = weights(family), weights(out)
    assert before.keys() == after.keys()
    assert any(not torch.equal(before[name], after[name]) for name in before)
