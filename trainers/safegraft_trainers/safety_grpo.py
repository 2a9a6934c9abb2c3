"""Safety tuning by trial: the model answers, a judge says whether it refused, and what was right becomes likelier.

    safegraft train safety-grpo --config safety_grpo --model_name_or_path ./lvlm --output_dir ./grpo-lvlm \\
        --safety_data vlguard/train.json --safety_images vlguard/train --borderline_data look-alikes.jsonl

The trainer is TRL's GRPOTrainer. The reward `safety` is +1 for refusing a harmful prompt or answering a harmless one,
-1 for the opposite, by a judge of safegraft's evaluation (--judge). `knowledge` is 1 for an answer that holds the
data's own (short) answer. TRL's --reward_weights weighs them. The data's answers are never learnt from directly.

Knows its data and which rewards; what a reward is stands in safety_rewards.py.
"""

# TRL and datasets type themselves in part, and TRL's own face is filled lazily.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUntypedBaseClass=false
# pyright: reportUnknownArgumentType=false, reportPrivateImportUsage=false, reportMissingTypeStubs=false

import contextlib
import shutil
import sys
from collections.abc import Generator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from accelerate import PartialState
from trl import GRPOConfig, GRPOTrainer, ModelConfig

from safegraft.errors import UsageError, output_errors
from safegraft_trainers.evaluate.judges import get_judge
from safegraft_trainers.safety_data import (
    UNSAFE,
    Piece,
    SafetyDataArguments,
    as_read_by,
    counted,
    labelled,
    load_safety,
    refuse_evaluation,
    together,
)
from safegraft_trainers.safety_rewards import Reward, check_judge, knowledge, safety_reward, text_of
from safegraft_trainers.training.arguments import parse as parse_arguments
from safegraft_trainers.training.base import Choice, choose_parameters, load_for_training
from safegraft_trainers.training.provenance import source_of
from safegraft_trainers.training.run import Story, check_output, run
from safegraft_trainers.training.trainer import Extended

SAFETY, KNOWLEDGE = "safety", "knowledge"
REFERENCE = "reference"  # the column with the data's own answer

# TRL's own, which follow the literature on GRPO: learning rate 1e-6, 8 answers a prompt, no reference model (beta 0).
_DEFAULTS: dict[str, Any] = {"lr_scheduler_type": "constant_with_warmup", "warmup_steps": 0.03, "num_train_epochs": 1}


@dataclass
class SafetyGrpoArguments(SafetyDataArguments):
    """What safety GRPO can be told, beside TRL's training and model arguments."""

    benign_data: str | None = field(
        default=None,
        metadata={"help": "LLaVA's format: more harmless prompts, and what is right for --rewards knowledge."},
    )
    benign_images: str | None = field(default=None, metadata={"help": "The folder that --benign_data's images lie in."})
    judge: str = field(
        default="patterns",
        metadata={
            "help": 'Who says whether an answer refuses: "patterns[:LIST]", "classifier:MODEL" or "endpoint:URL#MODEL".'
        },
    )
    judge_key_variable: str | None = field(
        default=None, metadata={"help": "The environment variable that holds the key of an endpoint judge."}
    )
    rewards: list[str] = field(
        default_factory=lambda: [SAFETY],
        metadata={"help": "safety, knowledge or both. TRL's --reward_weights weighs them, in this order."},
    )
    harmful_weight: float = field(default=1.0, metadata={"help": "Size of the safety reward for a harmful prompt."})
    benign_weight: float = field(default=1.0, metadata={"help": "Size of the safety reward for a harmless prompt."})

    def __post_init__(self) -> None:
        if not self.rewards or len(set(self.rewards)) < len(self.rewards) or not {*self.rewards} <= {SAFETY, KNOWLEDGE}:
            raise UsageError(f"--rewards {' '.join(self.rewards)}: give safety, knowledge or both")
        if self.harmful_weight < 0 or self.benign_weight < 0:
            raise UsageError("--harmful_weight and --benign_weight are sizes; they cannot be negative")


class SafetyGrpoTrainer(Extended, GRPOTrainer):
    """TRL's GRPOTrainer with what all our trainers share, for prompts with images beside prompts without."""

    def _tokenize_prompts(self, prompts: list[Any]) -> tuple[Any, Any, Any]:
        """TRL says None for the images of a prompt that has none, where processors want an empty list."""
        ids, images, fields = super()._tokenize_prompts(prompts)
        return ids, None if images is None else [of_prompt or [] for of_prompt in images], fields


def parse(argv: Sequence[str]) -> tuple[SafetyGrpoArguments, GRPOConfig, ModelConfig]:
    """The three kinds of arguments from a command line. Raises UsageError."""
    kinds = (SafetyGrpoArguments, GRPOConfig, ModelConfig)
    return parse_arguments(kinds, argv, command="safety-grpo", defaults=_DEFAULTS)  # pyright: ignore[reportReturnType]


def main(script: SafetyGrpoArguments, training: GRPOConfig, model: ModelConfig) -> Path:
    """Tune and save; returns the folder written. Raises errors of safegraft.errors alone for what a user can meet."""
    trainer, choice, story = prepare(script, training, model)
    return run(trainer, script, choice=choice, story=story)


def prepare(
    script: SafetyGrpoArguments, training: GRPOConfig, model: ModelConfig
) -> tuple[SafetyGrpoTrainer, Choice, Story]:
    """Everything up to the first step, which `run` takes from here. Raises as `main` does."""
    refuse_evaluation(training)
    check_output(training, script)
    pieces = [*load_safety(script), *_benign(script)]
    prompts = prompts_of(together(pieces, "images", "prompt", "completion", UNSAFE))
    rewards = rewards_of(script, prompts, device=str(training.device))
    if training.reward_weights is not None and len(training.reward_weights) != len(rewards):
        raise UsageError(f"--reward_weights: give one for each of --rewards, which are {' '.join(script.rewards)}")
    network, front = load_for_training(model.model_name_or_path, model)
    choice = choose_parameters(network, script, model)
    getattr(front, "tokenizer", front).padding_side = "left"  # as TRL pads prompts; token types must line up with them
    needs_reference = training.beta != 0 and choice.peft_config is None and not script.dry_run
    with _weights_on_disk(network, training) if needs_reference else contextlib.nullcontext():
        trainer = SafetyGrpoTrainer(
            model=network,
            reward_funcs=rewards,
            args=training,
            train_dataset=as_read_by(network, prompts),
            processing_class=front,
            peft_config=choice.peft_config,
        )
    story = Story(
        command="safety-grpo",
        title="Safety tuning online (GRPO)",
        base_models=(str(model.model_name_or_path),),
        data=tuple(source_of(piece.name, piece.dataset) for piece in pieces),
        notes=(counted(pieces), f"judge: {script.judge}; rewards: {', '.join(script.rewards)}"),
    )
    return trainer, choice, story


def _benign(script: SafetyGrpoArguments) -> list[Piece]:
    from safegraft_trainers.data.llava import load_llava

    if not script.benign_data:
        return []
    return [Piece(script.benign_data, labelled(load_llava(script.benign_data, script.benign_images), unsafe=False))]


def prompts_of(rows: Any) -> Any:
    """Rows with columns prompt, images, unsafe and reference (the text of what was the completion)."""

    def reference(row: dict[str, Any]) -> dict[str, str]:
        return {REFERENCE: text_of(row["completion"])}

    return rows.map(reference, remove_columns=["completion"], desc=None)


def rewards_of(script: SafetyGrpoArguments, prompts: Any, *, device: str) -> list[Any]:
    """The reward functions in the order of `script.rewards`.

    Raises UsageError for a judge or a reward that does not fit the prompts.
    """
    found: dict[str, Reward] = {}
    if SAFETY in script.rewards:
        judge = get_judge(script.judge, device=device, api_key_variable=script.judge_key_variable)
        check_judge(judge, prompts[UNSAFE])
        found[SAFETY] = safety_reward(judge, harmful_weight=script.harmful_weight, benign_weight=script.benign_weight)
    if KNOWLEDGE in script.rewards:
        if all(prompts[UNSAFE]):
            raise UsageError("--rewards knowledge: all prompts are harmful, and only harmless ones have right answers")
        found[KNOWLEDGE] = knowledge
    return [found[name] for name in script.rewards]


@contextlib.contextmanager
def _weights_on_disk(network: Any, training: GRPOConfig) -> Generator[None]:
    """Have GRPOTrainer load its reference from a copy of the weights that `network` has now.

    It loads from where the config says that the model came from and takes no model of ours; what lies there are other
    weights when these were changed or merged in memory. One process writes, in the output folder, which all can read.
    """
    config = network.config
    came_from, folder = config._name_or_path, Path(str(training.output_dir), ".reference")
    with output_errors(folder), training.main_process_first(local=False, desc="reference"):
        if training.process_index == 0:
            network.save_pretrained(folder)
    config._name_or_path = str(folder)
    try:
        yield
        PartialState().wait_for_everyone()  # others may still be reading
    finally:
        config._name_or_path = came_from
        if training.process_index == 0:
            shutil.rmtree(folder)


if __name__ == "__main__":
    from safegraft.cli import main as command_line

    sys.exit(command_line(["train", "safety-grpo", *sys.argv[1:]]))
