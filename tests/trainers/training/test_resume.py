"""A run that was interrupted and resumed ends where the uninterrupted one ends, to the bit."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from peft import PeftModel
from transformers import AutoModelForImageTextToText, AutoProcessor
from trl import ModelConfig, SFTConfig, SFTTrainer

from safegraft.errors import CheckpointError, UsageError
from safegraft_trainers.training.arguments import CommonArguments
from safegraft_trainers.training.base import choose_parameters, load_for_training
from safegraft_trainers.training.resume import checkpoints, load_weights, resume_point
from safegraft_trainers.training.trainer import Extended


class Trainer(Extended, SFTTrainer):
    pass


Train = Callable[..., Any]


@pytest.fixture
def train(make_rows: Callable[..., Dataset], quiet_arguments: dict[str, Any]) -> Train:
    """Four steps, or what is left of them; returns the trainer."""

    def run(folder: Path, out: Path, resume: Path | None = None, lora: Any = None, **changes: Any) -> Any:
        model_config = ModelConfig(**(lora or {}))
        model, processor = load_for_training(str(folder), model_config)
        choice = choose_parameters(model, CommonArguments(projector_learning_rate=0.01), model_config)
        settings = {"max_steps": 4, "learning_rate": 0.02, "save_strategy": "steps", "save_steps": 2, **changes}
        rows = make_rows(6)
        trainer = Trainer(
            model=model,
            args=SFTConfig(**{**quiet_arguments, **settings, "output_dir": str(out)}),
            train_dataset=rows,
            eval_dataset=rows if "eval_strategy" in changes else None,
            processing_class=processor,
            peft_config=choice.peft_config,
        )
        trainer.use_projector_rate(choice.parts, 0.01)
        trainer.train(resume_from_checkpoint=None if resume is None else str(resume))
        return trainer

    return run


def weights(trainer: Any) -> dict[str, torch.Tensor]:
    return {name: weight.detach().clone() for name, weight in trainer.model.named_parameters()}


def assert_same(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> None:
    assert ours.keys() == theirs.keys()
    assert [name for name in ours if not torch.equal(ours[name], theirs[name])] == []


# LLaVA and Qwen2.5-VL are saved under other names than they have in memory; Gemma 3 ties its output head.
@pytest.mark.parametrize("name", ["llava", "qwen2_5_vl", "gemma3"])
def test_the_whole_model_goes_on_with_its_weights(
    lvlms: dict[str, Path], name: str, train: Train, tmp_path: Path
) -> None:
    whole = train(lvlms[name], tmp_path / "whole")
    resumed = train(lvlms[name], tmp_path / "resumed", resume=tmp_path / "whole" / "checkpoint-2")
    assert resumed.state.global_step == 4
    assert_same(weights(resumed), weights(whole))


def test_sharded_checkpoints_are_read_too(lvlms: dict[str, Path], train: Train, tmp_path: Path) -> None:
    whole = train(lvlms["llava"], tmp_path / "whole")
    checkpoint = tmp_path / "whole" / "checkpoint-2"
    model = AutoModelForImageTextToText.from_pretrained(checkpoint)
    (checkpoint / "model.safetensors").unlink()
    model.save_pretrained(checkpoint, max_shard_size="50KB")
    assert len(list(checkpoint.glob("model-*.safetensors"))) > 1
    resumed = train(lvlms["llava"], tmp_path / "resumed", resume=checkpoint)
    assert_same(weights(resumed), weights(whole))


@pytest.mark.parametrize("name", ["llava", "qwen2_5_vl"])
def test_adapter_and_projector_go_on_with_their_weights(
    lvlms: dict[str, Path], name: str, train: Train, tmp_path: Path
) -> None:
    lora = {"use_peft": True, "lora_r": 2}
    whole = train(lvlms[name], tmp_path / "whole", lora=lora)
    resumed = train(lvlms[name], tmp_path / "resumed", resume=tmp_path / "whole" / "checkpoint-2", lora=lora)
    assert isinstance(resumed.model, PeftModel)
    assert_same(weights(resumed), weights(whole))


def test_the_best_model_is_really_loaded(lvlms: dict[str, Path], train: Train, tmp_path: Path) -> None:
    trainer = train(
        lvlms["llava"],
        tmp_path / "out",
        greater_is_better=True,  # of losses: the best is not the last
        eval_strategy="steps",
        eval_steps=2,
        load_best_model_at_end=True,
    )
    best = Path(trainer.state.best_model_checkpoint)
    assert best.name == "checkpoint-2"
    loaded = AutoModelForImageTextToText.from_pretrained(best, dtype=torch.float32)
    assert_same(weights(trainer), {name: weight.detach() for name, weight in loaded.named_parameters()})


def test_every_checkpoint_loads_by_itself(lvlms: dict[str, Path], train: Train, tmp_path: Path) -> None:
    trainer = train(lvlms["llava"], tmp_path / "out")
    for checkpoint in checkpoints(tmp_path / "out"):
        _, report = AutoModelForImageTextToText.from_pretrained(checkpoint, output_loading_info=True)
        assert not any(report.values())
        assert AutoProcessor.from_pretrained(checkpoint).chat_template == trainer.processing_class.chat_template
    assert not (tmp_path / "out" / "README.md").exists()  # TRL's


def test_weights_of_another_model_are_refused(lvlms: dict[str, Path], tmp_path: Path) -> None:
    model, _ = load_for_training(str(lvlms["llava"]), ModelConfig())
    other, _ = load_for_training(str(lvlms["llava"]), ModelConfig())
    other.model.language_model.layers = other.model.language_model.layers[:1]
    other.config.text_config.num_hidden_layers = 1
    other.save_pretrained(tmp_path / "other")
    with pytest.raises(CheckpointError, match="other: is of another model"):
        load_weights(model, tmp_path / "other")


def test_true_is_the_last_complete_checkpoint(lvlms: dict[str, Path], train: Train, tmp_path: Path) -> None:
    out = tmp_path / "out"
    trainer = train(lvlms["llava"], out, save_steps=1)
    trainer.args.resume_from_checkpoint = "true"
    assert resume_point(trainer.args) == out / "checkpoint-4"
    (out / "checkpoint-4" / "trainer_state.json").unlink()  # stopped while it was written
    assert resume_point(trainer.args) == out / "checkpoint-3"
    shutil.rmtree(out)
    with pytest.raises(UsageError, match="holds no complete checkpoint"):
        resume_point(trainer.args)
    trainer.args.resume_from_checkpoint = str(out / "checkpoint-3")
    with pytest.raises(UsageError, match="is no complete checkpoint"):
        resume_point(trainer.args)
    trainer.args.resume_from_checkpoint = "false"
    assert resume_point(trainer.args) is None
