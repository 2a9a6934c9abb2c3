"""VL adaptation: a language model learns to see (LLaVA's recipe, arXiv 2310.03744).

    safegraft train adapt --config adapt_stage1 --language_model ./llm --vision_model ./clip \\
        --data pretrain.json --image_folder images --output_dir stage1
    safegraft train adapt --config adapt_stage2 --model_name_or_path stage1 \\
        --data instruct.json --image_folder images --text_data chat.jsonl --keep_safe --output_dir lvlm

Stage 0 joins an LLM and a vision encoder and trains nothing; stage 1 trains the projector; stage 2 the language model
and the projector, or adapters of the one and the whole of the other. Any vision-language model that transformers has
can go through stage 2.

Knows its data and the loss (TRL's SFTTrainer, over the answers' tokens alone); merging and judging are others'.
"""

# TRL and datasets type themselves in part.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUntypedBaseClass=false
# pyright: reportUnknownArgumentType=false, reportPrivateImportUsage=false, reportMissingTypeStubs=false

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from trl import ModelConfig, SFTConfig, SFTTrainer

from safegraft.errors import InputError, Problem, UsageError
from safegraft_trainers.training.arguments import BOTH, PROJECTOR, CommonArguments
from safegraft_trainers.training.arguments import parse as parse_arguments
from safegraft_trainers.training.base import choose_parameters, load_for_training
from safegraft_trainers.training.parts import is_multimodal
from safegraft_trainers.training.provenance import DataSource, public_name, source_of
from safegraft_trainers.training.run import Story, check_output, run, save_untrained
from safegraft_trainers.training.trainer import Extended

JOIN, ALIGN, INSTRUCT = 0, 1, 2
TITLES = {
    JOIN: "A language model and a vision encoder, joined and not trained",
    ALIGN: "VL adaptation, stage 1 (the projector)",
    INSTRUCT: "VL adaptation, stage 2",
}

# LLaVA-1.5's values; batch sizes are in the configurations, as they depend on the number of GPUs.
_SCHEDULE: dict[str, Any] = {
    "lr_scheduler_type": "cosine",
    "warmup_steps": 0.03,
    "weight_decay": 0.0,
    "num_train_epochs": 1,
}
_STAGES: dict[int, dict[str, Any]] = {
    JOIN: {},
    ALIGN: {"learning_rate": 1e-3, "train_parts": PROJECTOR},
    INSTRUCT: {"learning_rate": 2e-5, "train_parts": BOTH},
}
_LORA: dict[str, Any] = {"learning_rate": 2e-4, "projector_learning_rate": 2e-5, "lora_r": 128, "lora_alpha": 256}


@dataclass
class AdaptArguments(CommonArguments):
    """What VL adaptation can be told, beside TRL's training and model arguments."""

    stage: int = field(
        default=INSTRUCT,
        metadata={
            "help": "0: join --language_model and --vision_model, train nothing. 1: train the projector. "
            "2: train language model and projector. Sets the defaults of learning rates and --train_parts.",
            "choices": [JOIN, ALIGN, INSTRUCT],
        },
    )
    language_model: str | None = field(
        default=None, metadata={"help": "An LLM to join with --vision_model; instead of --model_name_or_path."}
    )
    vision_model: str | None = field(
        default=None, metadata={"help": "A vision encoder (CLIP, SigLIP, ...): a folder or a Hub name."}
    )
    vision_feature_layer: int = field(
        default=-2, metadata={"help": "The encoder's layer that a joined model sees; -2 is the last but one."}
    )
    data: list[str] | None = field(
        default=None, metadata={"help": "Files or data sets in LLaVA's format, or with columns messages and images."}
    )
    image_folder: str | None = field(default=None, metadata={"help": "The folder that --data's images lie in."})
    text_data: list[str] | None = field(
        default=None, metadata={"help": "Text-only conversations to mix in: files or data sets."}
    )
    shares: list[float] | None = field(
        default=None,
        metadata={"help": "Share of each of --data and --text_data, in this order. Default: all rows of all."},
    )
    rows: int | None = field(default=None, metadata={"help": "With --shares: how many rows in all."})
    eval_data: list[str] | None = field(
        default=None, metadata={"help": "Like --data, for the loss on data that is not learnt (--eval_strategy)."}
    )
    keep_safe: bool = field(
        default=False,
        metadata={"help": "Leave unsafe rows out: by keywords, and by classifiers where they are named."},
    )
    text_classifier: str | None = field(
        default=None, metadata={"help": "With --keep_safe: a text classification model that calls text unsafe."}
    )
    image_classifier: str | None = field(
        default=None, metadata={"help": "With --keep_safe: an image classification model that calls images unsafe."}
    )

    def __post_init__(self) -> None:
        problems = list(_contradictions(self))
        if problems:
            raise UsageError(problems)


def _contradictions(script: AdaptArguments) -> list[Problem]:
    sources = len(script.data or ()) + len(script.text_data or ())
    checks = [
        (bool(script.language_model) != bool(script.vision_model), "--language_model", "goes with --vision_model"),
        (script.stage == JOIN and not script.language_model, "--stage 0", "joins --language_model and --vision_model"),
        (script.stage != JOIN and not sources, "--data", "is needed: what to learn from (or --text_data)"),
        (script.stage == ALIGN and script.train_parts != PROJECTOR, "--stage 1", "trains the projector alone"),
        (bool(script.shares) and len(script.shares or ()) != sources, "--shares", "takes one for each data source"),
        (script.rows is not None and not script.shares, "--rows", "goes with --shares"),
        (
            bool(script.text_classifier or script.image_classifier) and not script.keep_safe,
            "--text_classifier, --image_classifier",
            "go with --keep_safe",
        ),
    ]
    return [Problem(where, message) for wrong, where, message in checks if wrong]


class AdaptTrainer(Extended, SFTTrainer):
    """TRL's SFTTrainer with what all our trainers share."""


def parse(argv: Sequence[str]) -> tuple[AdaptArguments, SFTConfig, ModelConfig]:
    """The three kinds of arguments from a command line. Raises UsageError."""
    kinds = (AdaptArguments, SFTConfig, ModelConfig)
    return parse_arguments(kinds, argv, command="adapt", defaults=_defaults)  # pyright: ignore[reportReturnType]


def _defaults(asked: Any) -> dict[str, Any]:
    return {**_SCHEDULE, **_STAGES.get(asked.stage, {}), **(_LORA if asked.use_peft else {})}


def main(script: AdaptArguments, training: SFTConfig, model: ModelConfig) -> Path:
    """Adapt and save; returns the folder written. Raises errors of safegraft.errors alone for what a user can meet."""
    _check_start(script, model)
    check_output(training, script)
    rows, sources, report = (None, (), "") if script.stage == JOIN else _learnt(script, training.seed)
    network, processor, bases = _start(script, training, model)
    choice = choose_parameters(network, script, model)
    story = Story("adapt", TITLES[script.stage], bases, sources, report)
    if script.stage == JOIN:
        return save_untrained(network, processor, training, script, choice=choice, story=story)
    trainer = AdaptTrainer(
        model=network,
        args=training,
        train_dataset=rows,
        eval_dataset=_rows_of(script.eval_data, script.image_folder) if script.eval_data else None,
        processing_class=processor,
        peft_config=choice.peft_config,
    )
    return run(trainer, script, choice=choice, story=story)


def _check_start(script: AdaptArguments, model: ModelConfig) -> None:
    joins = script.language_model is not None
    if joins == (model.model_name_or_path is not None):
        message = "name either a vision-language model by --model_name_or_path, or --language_model and --vision_model"
        raise UsageError(f"what is to be adapted? {message}")
    if joins and model.use_peft:
        message = "an adapter needs its base on disk: join the two first (--stage 0) and adapt what that writes"
        raise UsageError(Problem("--use_peft", message))


def _start(script: AdaptArguments, training: SFTConfig, model: ModelConfig) -> tuple[Any, Any, tuple[str, ...]]:
    """The model to train, its processor, and the names of what it is made of."""
    from transformers import set_seed

    from safegraft_trainers.training.joining import join

    set_seed(training.seed)  # a new projector is drawn at random
    if script.language_model is None or script.vision_model is None:
        name = str(model.model_name_or_path)
        network, processor = load_for_training(name, model)
        if not is_multimodal(network.config):
            message = "sees no images: join it with a vision encoder by --language_model and --vision_model"
            raise InputError(Problem(name, f"{message} (--stage 0 or 1) instead of --model_name_or_path"))
        return network, processor, (name,)
    template = None
    if training.chat_template_path is not None:
        template = _template(training.chat_template_path)
        training.chat_template_path = None  # TRL would put it in the place of the one that takes images
    network, processor = join(
        script.language_model, script.vision_model, model, feature_layer=script.vision_feature_layer, template=template
    )
    return network, processor, (script.language_model, script.vision_model)


def _template(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(Problem(path, f"the chat template cannot be read: {error}")) from error


def _learnt(script: AdaptArguments, seed: int) -> tuple[Any, tuple[DataSource, ...], str]:
    """The rows to learn from, where they come from, and what the filter took out."""
    from safegraft_trainers.data.mixing import mix
    from safegraft_trainers.data.text_chat import load_chat

    named = [(name, _rows_of([name], script.image_folder)) for name in script.data or ()]
    named += [(name, load_chat(name)) for name in script.text_data or ()]
    reports: list[str] = []
    if script.keep_safe:
        named, reports = _safe(named, script)
    sources = tuple(source_of(name, rows) for name, rows in named)
    shares = script.shares or [float(len(rows)) for _, rows in named]
    pieces = [(rows, share) for (_, rows), share in zip(named, shares, strict=True)]
    return mix(pieces, size=script.rows, seed=seed), sources, "\n".join(reports)


def _safe(named: list[tuple[str, Any]], script: AdaptArguments) -> tuple[list[tuple[str, Any]], list[str]]:
    from safegraft_trainers.data.filtering import keep_safe

    kept: list[tuple[str, Any]] = []
    reports: list[str] = []
    for name, rows in named:
        safe, report = keep_safe(rows, text_classifier=script.text_classifier, image_classifier=script.image_classifier)
        kept.append((name, safe))
        reports.append(_told(public_name(name), report))
    return kept, reports


def _told(name: str, report: Any) -> str:
    """What the filter did to one source, for the card."""
    lines = [f"{name}: {report.rows_out} of {report.rows_in} rows kept"]
    lines += [f"  left out {count}: {reason}" for reason, count in sorted(report.reasons.items())]
    lines += [f"  filter: {', '.join(f'{key} {value}' for key, value in one.items())}" for one in report.filters]
    return "\n".join(lines)


def _rows_of(names: Sequence[str], image_folder: str | None) -> Any:
    from datasets import concatenate_datasets

    from safegraft_trainers.data.llava import load_llava

    return concatenate_datasets([load_llava(name, image_folder) for name in names])


if __name__ == "__main__":
    from safegraft.cli import main as command_line

    sys.exit(command_line(["train", "adapt", *sys.argv[1:]]))
