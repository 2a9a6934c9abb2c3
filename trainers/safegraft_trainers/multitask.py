"""Adaptation and safety tuning at once, in given shares: the baseline that weight merging is measured against.

    safegraft train multitask --config multitask --model_name_or_path ./stage1-lvlm --output_dir ./multitask-lvlm \\
        --adaptation_data llava.json --adaptation_images images \\
        --safety_data vlguard/train.json --safety_images vlguard/train --safety_share 0.1

"How Does Vision-Language Adaptation Impact the Safety of Vision Language Models?" (arXiv 2410.07571) finds the two
objectives at odds, so that doing both at once is suboptimal. What learns is what learns in the second stage of
`safegraft train adapt`: language model and projector.

Knows its data; the loss is TRL's SFTTrainer's.
"""

# TRL and datasets type themselves in part, and TRL's own face is filled lazily.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUntypedBaseClass=false
# pyright: reportUnknownArgumentType=false, reportPrivateImportUsage=false

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path

from trl import ModelConfig, SFTConfig

from safegraft.errors import UsageError
from safegraft_trainers.safety_data import (
    Piece,
    SafetyDataArguments,
    counted,
    drawn,
    load_safety,
    refuse_evaluation,
    together,
)
from safegraft_trainers.safety_sft import SafetySftTrainer, llava_defaults, trainer_of
from safegraft_trainers.training.arguments import parse as parse_arguments
from safegraft_trainers.training.base import Choice
from safegraft_trainers.training.provenance import source_of
from safegraft_trainers.training.run import Story, check_output, run


@dataclass
class MultitaskArguments(SafetyDataArguments):
    """What multitask training can be told, beside TRL's training and model arguments."""

    adaptation_data: str | None = field(default=None, metadata={"help": "LLaVA's format: what adapts the model."})
    adaptation_images: str | None = field(
        default=None, metadata={"help": "The folder that --adaptation_data's images lie in."}
    )
    safety_share: float = field(
        default=0.1, metadata={"help": "Share of safety rows among all rows, above 0 and below 1."}
    )
    rows: int | None = field(
        default=None,
        metadata={"help": "Rows in all. Default: every adaptation row once, and safety rows as their share asks."},
    )

    def __post_init__(self) -> None:
        if not 0 < self.safety_share < 1:
            raise UsageError(f"--safety_share is {self.safety_share}; a share above 0 and below 1 is needed")
        if self.rows is not None and self.rows < 1:
            raise UsageError(f"--rows is {self.rows}; at least 1 is needed")


def parse(argv: Sequence[str]) -> tuple[MultitaskArguments, SFTConfig, ModelConfig]:
    """The three kinds of arguments from a command line. Raises UsageError."""
    kinds = (MultitaskArguments, SFTConfig, ModelConfig)
    return parse_arguments(kinds, argv, command="multitask", defaults=llava_defaults)  # pyright: ignore[reportReturnType]


def main(script: MultitaskArguments, training: SFTConfig, model: ModelConfig) -> Path:
    """Train and save; returns the folder written. Raises errors of safegraft.errors alone for what a user can meet."""
    trainer, choice, story = prepare(script, training, model)
    return run(trainer, script, choice=choice, story=story)


def prepare(
    script: MultitaskArguments, training: SFTConfig, model: ModelConfig
) -> tuple[SafetySftTrainer, Choice, Story]:
    """Everything up to the first step, which `run` takes from here. Raises as `main` does."""
    from safegraft_trainers.data.llava import load_llava

    if not script.adaptation_data:
        raise UsageError("no adaptation data: give --adaptation_data (LLaVA's format)")
    refuse_evaluation(training)
    check_output(training, script)
    adaptation = Piece(script.adaptation_data, load_llava(script.adaptation_data, script.adaptation_images))
    safety = load_safety(script)
    share = Fraction(str(script.safety_share))
    size = script.rows or round(len(adaptation.dataset) / (1 - share))  # all adaptation rows once
    rows, said = drawn(together(safety), together([adaptation]), safety_share=share, size=size, seed=training.seed)
    trainer, choice = trainer_of(script, training, model, rows)
    story = Story(
        command="multitask",
        title="VL adaptation and safety tuning at once",
        base_models=(str(model.model_name_or_path),),
        data=tuple(source_of(piece.name, piece.dataset) for piece in [adaptation, *safety]),
        notes=(counted(safety), *said),
    )
    return trainer, choice, story


if __name__ == "__main__":
    from safegraft.cli import main as command_line

    sys.exit(command_line(["train", "multitask", *sys.argv[1:]]))
