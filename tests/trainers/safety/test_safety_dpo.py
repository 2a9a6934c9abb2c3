"""Safety DPO: the reference is the model as it was, whatever its config says and however often the run is resumed."""

import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from trl import DPOTrainer

from safegraft.errors import InputError, UsageError
from safegraft_trainers import safety_dpo
from safegraft_trainers.loading import load

Weights = Callable[[Path], dict[str, torch.Tensor]]
Logged = Callable[..., list[float]]
# TRL 1.16 asks transformers 5.23 by an old name; nothing here does.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
LORA = ["--use_peft", "true", "--lora_r", "4", "--lora_alpha", "8", "--lora_dropout", "0"]


@pytest.fixture
def pairs(common: list[str], data: Path) -> list[str]:
    return [*common, "--preference_data", str(data / "spa_vl.json"), "--preference_images", str(data)]


def prepared(*arguments: str) -> Any:
    trainer, _, _ = safety_dpo.prepare(*safety_dpo.parse(arguments))
    return trainer


def likelihoods(model: Any, batch: Any) -> torch.Tensor:
    """Log-probabilities of the answers by hand, shape (chosen, then rejected)."""
    inputs = {key: batch[key] for key in ("input_ids", "attention_mask", "pixel_values")}
    with torch.no_grad():
        logits = model.eval()(**inputs).logits
    each = logits[:, :-1].log_softmax(-1).gather(-1, batch["input_ids"][:, 1:, None])[..., 0]
    return (each * batch["completion_mask"][:, 1:]).sum(-1)


def reference_likelihoods(trainer: Any, batch: Any) -> torch.Tensor:
    return torch.cat([*trainer.compute_ref_log_probs(trainer.ref_model or trainer.model, batch)])


@pytest.fixture
def merged_in_memory(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Models load with other weights than lie where their config points, as after a merge; the list holds them."""
    loaded: list[Any] = []
    original = safety_dpo.load_for_training

    def load_and_merge(*arguments: Any) -> tuple[Any, Any]:
        network, front = original(*arguments)
        generator = torch.Generator().manual_seed(3)
        with torch.no_grad():
            for weight in network.parameters():
                weight.add_(torch.randn(weight.shape, generator=generator), alpha=0.1)
        loaded.append(network)
        return network, front

    monkeypatch.setattr(safety_dpo, "load_for_training", load_and_merge)
    return loaded


@pytest.mark.parametrize("adapter", [[], LORA], ids=["full", "lora"])
def test_the_reference_is_the_model_as_merged_in_memory(
    pairs: list[str], adapter: list[str], llava: Path, merged_in_memory: list[Any]
) -> None:
    trainer = prepared(*pairs, *adapter)
    [batch] = trainer.get_train_dataloader()
    found = reference_likelihoods(trainer, batch)
    on_disk = likelihoods(load(str(llava)).model, batch)
    assert (trainer.ref_model is None) == bool(adapter)
    assert (found - on_disk).abs().max() > 1
    merged = safety_dpo.load_for_training(str(llava), safety_dpo.parse(pairs)[2])[0]
    torch.testing.assert_close(found, likelihoods(merged, batch))


def test_trl_alone_would_take_what_lies_on_disk(pairs: list[str], llava: Path, merged_in_memory: list[Any]) -> None:
    """The reason for our own reference; when this fails, TRL has changed."""
    script, training, model = safety_dpo.parse(pairs)
    trainer, _, _ = safety_dpo.prepare(script, training, model)
    network, front = safety_dpo.load_for_training(str(llava), model)
    bare = DPOTrainer(model=network, args=training, train_dataset=trainer.train_dataset, processing_class=front)
    [batch] = trainer.get_train_dataloader()
    torch.testing.assert_close(reference_likelihoods(bare, batch), likelihoods(load(str(llava)).model, batch))


@pytest.mark.parametrize("adapter", [[], LORA], ids=["full", "lora"])
def test_the_first_loss_is_ln_2_and_the_next_are_lower(pairs: list[str], adapter: list[str], logged: Logged) -> None:
    steps = ["--max_steps", "8", "--save_strategy", "steps", "--save_steps", "8"]
    out = safety_dpo.main(*safety_dpo.parse([*pairs, *adapter, *steps]))
    losses = logged(out / "checkpoint-8")
    assert losses[0] == pytest.approx(math.log(2), abs=2e-4)  # the log has four decimals
    assert losses[-1] < losses[0] - 0.05
    margins = logged(out / "checkpoint-8", "rewards/margins")
    assert margins[0] == pytest.approx(0, abs=1e-4)
    assert margins[-1] > 0.1


@pytest.mark.parametrize("adapter", [[], LORA], ids=["full", "lora"])
def test_training_leaves_the_reference_alone(pairs: list[str], adapter: list[str], llava: Path) -> None:
    trainer = prepared(*pairs, *adapter)
    [batch] = trainer.get_train_dataloader()
    trainer.train()
    start = likelihoods(load(str(llava)).model, batch)
    torch.testing.assert_close(reference_likelihoods(trainer, batch), start)
    learnt = likelihoods(trainer.model, batch)
    assert (learnt - start).abs().max() > 0.1


def test_another_model_is_the_reference_when_it_is_named(pairs: list[str], family_of: Any, tmp_path: Path) -> None:
    other = family_of("llava", tmp_path / "other", seed=1)
    for adapter in ([], LORA):
        trainer = prepared(*pairs, *adapter, "--reference", str(other))
        [batch] = trainer.get_train_dataloader()
        torch.testing.assert_close(reference_likelihoods(trainer, batch), likelihoods(load(str(other)).model, batch))
        assert not any(weight.requires_grad for weight in trainer.ref_model.parameters())


@pytest.mark.parametrize("adapter", [[], LORA], ids=["full", "lora"])
def test_a_resumed_run_ends_where_an_unbroken_one_does(
    pairs: list[str], adapter: list[str], tmp_path: Path, logged: Logged, weights: Weights
) -> None:
    steps = ["--max_steps", "4", "--save_strategy", "steps", "--save_steps", "2"]
    whole = safety_dpo.main(*safety_dpo.parse([*pairs, *adapter, *steps]))
    broken = tmp_path / "broken"
    shutil.copytree(whole / "checkpoint-2", broken / "checkpoint-2")
    again = ["--output_dir", str(broken), "--resume_from_checkpoint", "true"]
    safety_dpo.main(*safety_dpo.parse([*pairs, *adapter, *steps, *again]))
    assert logged(broken / "checkpoint-4") == logged(whole / "checkpoint-4")
    ours, theirs = weights(broken), weights(whole)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_the_loss_sees_the_tokens_of_the_answers_alone(pairs: list[str]) -> None:
    trainer = prepared(*pairs)
    [batch] = trainer.get_train_dataloader()
    counted = [ids[mask == 1] for ids, mask in zip(batch["input_ids"], batch["completion_mask"], strict=True)]
    answers = [trainer.processing_class.tokenizer.decode(ids) for ids in counted]
    wanted = {"no sorry i cannot help with that <end>", "buy a bomb <end>", "it is blue <end>", "no <end>"}
    assert {*answers} == wanted
    assert answers.index("no <end>") >= 2  # the rejected half


def test_other_losses_go_by_name(pairs: list[str]) -> None:
    trainer = prepared(*pairs, "--loss_type", "ipo")
    [batch] = trainer.get_train_dataloader()
    # IPO's squared distance of the (zero) margin from 1 / (2 beta), at the start.
    assert trainer.compute_loss(trainer.model, batch).item() == pytest.approx((1 / (2 * trainer.beta)) ** 2)


def test_what_is_frozen_stays_to_the_bit(pairs: list[str], llava: Path, weights: Weights) -> None:
    out = safety_dpo.main(*safety_dpo.parse([*pairs, "--train_parts", "language"]))
    before, after = weights(llava), weights(out)
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed
    assert not any("vision_tower" in name or "projector" in name for name in changed)


def test_arguments_that_make_no_sense_are_refused(pairs: list[str], common: list[str], data: Path) -> None:
    with pytest.raises(UsageError, match="give --preference_data"):
        safety_dpo.main(*safety_dpo.parse(common))
    with pytest.raises(UsageError, match="precompute_ref_log_probs"):
        safety_dpo.main(*safety_dpo.parse([*pairs, "--precompute_ref_log_probs", "true"]))
    with pytest.raises(InputError, match="question"):
        safety_dpo.main(*safety_dpo.parse([*common, "--preference_data", str(data / "refusals.jsonl")]))


def test_a_dry_run_shows_and_writes_nothing(
    pairs: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    safety_dpo.main(*safety_dpo.parse([*pairs, "--dry_run"]))
    assert "⟦no sorry i cannot help with that <end>" in capsys.readouterr().out
    assert not list(tmp_path.iterdir())


def test_every_family_learns(family: Path, pairs: list[str], logged: Logged) -> None:
    steps = ["--model_name_or_path", str(family), "--max_steps", "4", "--save_strategy", "steps", "--save_steps", "4"]
    out = safety_dpo.main(*safety_dpo.parse([*pairs, *steps]))
    losses = logged(out / "checkpoint-4")
    assert losses[0] == pytest.approx(math.log(2), abs=2e-4)
    assert losses[-1] < losses[0]
