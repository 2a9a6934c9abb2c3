"""Safety tuning by preference: of two answers to a prompt, the safe and helpful one is preferred.

    safegraft train safety-dpo --config safety_dpo --model_name_or_path ./lvlm --output_dir ./dpo-lvlm \\
        --preference_data spa-vl.parquet

The loss is TRL's DPOTrainer's; others by name (`--loss_type ipo`). It compares the model with a reference, which is
always explicit here: TRL by itself would load one from where the model's config says it came from, which is another
model when the weights were changed or merged in memory. The reference is

- with LoRA, the model with its adapter switched off;
- else a frozen copy of the weights at the start, before any checkpoint is resumed from;
- or another model, by --reference.

Knows its data and its reference; merging and judging are others'.
"""

# TRL and transformers type themselves in part, and TRL's own face is filled lazily.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUntypedBaseClass=false
# pyright: reportUnknownArgumentType=false, reportPrivateImportUsage=false

import copy
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from transformers.integrations import is_deepspeed_zero3_enabled
from trl import DPOConfig, DPOTrainer, ModelConfig

from safegraft.errors import UsageError
from safegraft_trainers.safety_data import as_read_by, refuse_evaluation
from safegraft_trainers.training.arguments import CommonArguments
from safegraft_trainers.training.arguments import parse as parse_arguments
from safegraft_trainers.training.base import Choice, choose_parameters, load_for_training
from safegraft_trainers.training.provenance import source_of
from safegraft_trainers.training.run import Story, check_output, run
from safegraft_trainers.training.trainer import Extended

# SPA-VL's (arXiv 2406.12030) for LLaVA-1.5-7B: github.com/EchoseChen/SPA-VL-RLHF, scripts/train_dpo_model_ds.sh.
_DEFAULTS: dict[str, Any] = {
    "learning_rate": 1e-6,
    "beta": 0.1,
    "lr_scheduler_type": "cosine",
    "warmup_steps": 10,
    "weight_decay": 0.0,
    "num_train_epochs": 1,
}
# The learning rate is that of its LoRA script, rank and alpha are LLaVA-1.5's.
_LORA: dict[str, Any] = {"learning_rate": 2e-5, "lora_r": 128, "lora_alpha": 256}


@dataclass
class SafetyDpoArguments(CommonArguments):
    """What safety DPO can be told, beside TRL's training and model arguments."""

    preference_data: str | None = field(
        default=None,
        metadata={
            "help": "SPA-VL's format: image, question, chosen, rejected. A JSON, JSONL or parquet file, a folder saved "
            "by datasets, or a Hub name in the local cache."
        },
    )
    preference_images: str | None = field(
        default=None, metadata={"help": "The folder that --preference_data's images lie in."}
    )
    reference: str | None = field(
        default=None,
        metadata={"help": "The model to stay close to. Default: the model that is tuned, as it is at the start."},
    )


class SafetyDpoTrainer(Extended, DPOTrainer):
    """TRL's DPOTrainer with what all our trainers share."""


def parse(argv: Sequence[str]) -> tuple[SafetyDpoArguments, DPOConfig, ModelConfig]:
    """The three kinds of arguments from a command line. Raises UsageError."""
    kinds = (SafetyDpoArguments, DPOConfig, ModelConfig)
    return parse_arguments(kinds, argv, command="safety-dpo", defaults=_defaults)  # pyright: ignore[reportReturnType]


def _defaults(asked: Any) -> dict[str, Any]:
    return {**_DEFAULTS, **(_LORA if asked.use_peft else {})}


def main(script: SafetyDpoArguments, training: DPOConfig, model: ModelConfig) -> Path:
    """Tune and save; returns the folder written. Raises errors of safegraft.errors alone for what a user can meet."""
    trainer, choice, story = prepare(script, training, model)
    return run(trainer, script, choice=choice, story=story)


def prepare(
    script: SafetyDpoArguments, training: DPOConfig, model: ModelConfig
) -> tuple[SafetyDpoTrainer, Choice, Story]:
    """Everything up to the first step, which `run` takes from here. Raises as `main` does."""
    from safegraft_trainers.data.spa_vl import load_spa_vl

    if not script.preference_data:
        raise UsageError("no preference data: give --preference_data (SPA-VL's format)")
    if training.precompute_ref_log_probs:
        raise UsageError("--precompute_ref_log_probs: not for data with images; leave it out")
    refuse_evaluation(training)
    check_output(training, script)
    pairs = load_spa_vl(script.preference_data, script.preference_images)
    network, front = load_for_training(model.model_name_or_path, model)
    choice = choose_parameters(network, script, model)
    trainer = SafetyDpoTrainer(
        model=network,
        ref_model=reference_for(network, script, model),
        args=training,
        train_dataset=as_read_by(network, pairs),
        processing_class=front,
        peft_config=choice.peft_config,
    )
    story = Story(
        command="safety-dpo",
        title=f"Safety tuning on preferences ({', '.join(training.loss_type)})",
        base_models=(str(model.model_name_or_path),),
        data=(source_of(script.preference_data, pairs),),
        notes=(f"beta {training.beta}; reference: {script.reference or 'the model as it was at the start'}",),
    )
    return trainer, choice, story


def reference_for(network: Any, script: SafetyDpoArguments, model: ModelConfig) -> Any | None:
    """The frozen model whose log-probabilities the loss compares with; None: `network` without its adapter."""
    if script.reference:
        reference, _ = load_for_training(script.reference, model)
    elif model.use_peft:
        return None
    elif is_deepspeed_zero3_enabled():  # each process holds a slice of `network`, which cannot be copied
        reference, _ = load_for_training(model.model_name_or_path, model)
    else:
        reference = copy.deepcopy(network)
    return reference.requires_grad_(False).eval()


if __name__ == "__main__":
    from safegraft.cli import main as command_line

    sys.exit(command_line(["train", "safety-dpo", *sys.argv[1:]]))
