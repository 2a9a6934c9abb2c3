"""Safety tuning by example: harmful prompts are refused, harmless ones answered.

    safegraft train safety-sft --config safety_sft --model_name_or_path ./lvlm --output_dir ./safe-lvlm \\
        --safety_data vlguard/train.json --safety_images vlguard/train \\
        --benign_data llava.json --benign_images images --benign_replay 0.75

Two modes (VLGuard, arXiv 2402.02207). `post_hoc` tunes a model that has been adapted already; a share of benign rows
(`benign_replay`) keeps it from refusing everything. `mixed` adapts and tunes at once: every row of the adaptation data
and every safety row.

Knows its data and the loss (TRL's SFTTrainer, over the completion's tokens alone); merging and judging are others'.
"""

# TRL and datasets type themselves in part, and TRL's own face is filled lazily.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUntypedBaseClass=false
# pyright: reportUnknownArgumentType=false, reportPrivateImportUsage=false

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

from trl import ModelConfig, SFTConfig, SFTTrainer

from safegraft.errors import UsageError
from safegraft_trainers.safety_data import (
    Piece,
    SafetyDataArguments,
    as_read_by,
    counted,
    drawn,
    load_safety,
    refuse_evaluation,
    together,
)
from safegraft_trainers.training.arguments import parse as parse_arguments
from safegraft_trainers.training.base import Choice, choose_parameters, load_for_training
from safegraft_trainers.training.provenance import source_of
from safegraft_trainers.training.run import Story, check_output, run
from safegraft_trainers.training.trainer import Extended

POST_HOC, MIXED = "post_hoc", "mixed"

# VLGuard is tuned on with LLaVA's own scripts (its README): the second stage of LLaVA-1.5, whole or by LoRA.
_DEFAULTS: dict[str, Any] = {
    "learning_rate": 2e-5,
    "lr_scheduler_type": "cosine",
    "warmup_steps": 0.03,
    "weight_decay": 0.0,
    "num_train_epochs": 1,
}
_LORA: dict[str, Any] = {"learning_rate": 2e-4, "projector_learning_rate": 2e-5, "lora_r": 128, "lora_alpha": 256}


@dataclass
class SafetySftArguments(SafetyDataArguments):
    """What safety SFT can be told, beside TRL's training and model arguments."""

    mode: str = field(
        default=POST_HOC,
        metadata={
            "help": "post_hoc: tune a model that is adapted already. mixed: adapt and tune at once, on all rows of "
            "--benign_data and all safety rows.",
            "choices": [POST_HOC, MIXED],
        },
    )
    benign_data: str | None = field(
        default=None,
        metadata={"help": "LLaVA's format: what is replayed (post_hoc), or the adaptation data (mixed)."},
    )
    benign_images: str | None = field(default=None, metadata={"help": "The folder that --benign_data's images lie in."})
    benign_replay: float = field(
        default=0.0,
        metadata={"help": "post_hoc: the share of benign rows among all rows; 0.75 is three of four. Below 1."},
    )

    def __post_init__(self) -> None:
        if not 0 <= self.benign_replay < 1:
            raise UsageError(f"--benign_replay is {self.benign_replay}; a share from 0 to below 1 is needed")
        if self.mode == POST_HOC and bool(self.benign_data) != bool(self.benign_replay):
            given = f"--benign_replay is {self.benign_replay:g}" if self.benign_replay else "--benign_data is given"
            lacking = "--benign_data, the rows" if self.benign_replay else "--benign_replay, their share of all rows"
            raise UsageError(
                f"{given} (perhaps by --config) and goes with {lacking}; to replay nothing, give --benign_replay 0 "
                "and no --benign_data"
            )
        if self.mode == MIXED and not self.benign_data:
            raise UsageError("--mode mixed needs the adaptation data: give --benign_data")
        if self.mode == MIXED and self.benign_replay:
            raise UsageError("--mode mixed takes every row; for a share of them use --mode post_hoc, or multitask")


class SafetySftTrainer(Extended, SFTTrainer):
    """TRL's SFTTrainer with what all our trainers share."""


def parse(argv: Sequence[str]) -> tuple[SafetySftArguments, SFTConfig, ModelConfig]:
    """The three kinds of arguments from a command line. Raises UsageError."""
    kinds = (SafetySftArguments, SFTConfig, ModelConfig)
    return parse_arguments(kinds, argv, command="safety-sft", defaults=llava_defaults)  # pyright: ignore[reportReturnType]


def llava_defaults(asked: Any) -> dict[str, Any]:
    """Our defaults over TRL's, for what a command line and its file ask for."""
    return {**_DEFAULTS, **(_LORA if asked.use_peft else {})}


def main(script: SafetySftArguments, training: SFTConfig, model: ModelConfig) -> Path:
    """Tune and save; returns the folder written. Raises errors of safegraft.errors alone for what a user can meet."""
    trainer, choice, story = prepare(script, training, model)
    return run(trainer, script, choice=choice, story=story)


def prepare(
    script: SafetySftArguments, training: SFTConfig, model: ModelConfig
) -> tuple[SafetySftTrainer, Choice, Story]:
    """Everything up to the first step, which `run` takes from here. Raises as `main` does."""
    refuse_evaluation(training)
    check_output(training, script)
    pieces, rows, notes = learnt_rows(script, seed=training.seed)
    trainer, choice = trainer_of(script, training, model, rows)
    story = Story(
        command="safety-sft",
        title=f"Safety tuning on examples ({'post-hoc' if script.mode == POST_HOC else 'mixed'})",
        base_models=(str(model.model_name_or_path),),
        data=tuple(source_of(piece.name, piece.dataset) for piece in pieces),
        notes=notes,
    )
    return trainer, choice, story


def trainer_of(
    script: SafetyDataArguments, training: SFTConfig, model: ModelConfig, rows: Any
) -> tuple[SafetySftTrainer, Choice]:
    """The model, loaded, and what of it learns from the rows (images, prompt, completion)."""
    network, front = load_for_training(model.model_name_or_path, model)
    choice = choose_parameters(network, script, model)
    trainer = SafetySftTrainer(
        model=network,
        args=training,
        train_dataset=as_read_by(network, rows),
        processing_class=front,
        peft_config=choice.peft_config,
    )
    return trainer, choice


def learnt_rows(script: SafetySftArguments, *, seed: int) -> tuple[list[Piece], Any, tuple[str, ...]]:
    """The data by origin, the rows (images, prompt, completion) that are learnt from, and what to say about them."""
    from safegraft_trainers.data.llava import load_llava

    safety = load_safety(script)
    rows, notes = together(safety), [counted(safety)]
    if not script.benign_data:
        return safety, rows, tuple(notes)
    benign = Piece(script.benign_data, load_llava(script.benign_data, script.benign_images))
    pieces = [*safety, benign]
    if script.mode == MIXED:
        notes.append(f"{len(benign.dataset)} rows of adaptation data, all of them")
        return pieces, together(pieces), tuple(notes)
    # Every safety row once, and as many benign ones beside them as make up the share.
    safety_share = 1 - Fraction(str(script.benign_replay))  # 0.9 as it is written: 1 - 0.9 is not 0.1 in floats
    size = round(len(rows) / safety_share)
    mixture, said = drawn(rows, together([benign]), safety_share=safety_share, size=size, seed=seed)
    return pieces, mixture, (*notes, *said)


if __name__ == "__main__":
    from safegraft.cli import main as command_line

    sys.exit(command_line(["train", "safety-sft", *sys.argv[1:]]))
