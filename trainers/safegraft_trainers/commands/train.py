"""`safegraft train`: VL adaptation and safety training, thin over TRL.

Everything after the trainer's name goes to its own parser (`parse` of the trainer's module) as it is.
"""

import importlib
from typing import NamedTuple

import click


class Trainer(NamedTuple):
    """A module with parse(argv) and main(...), and its line in the list."""

    module: str
    summary: str


TRAINERS = {
    "adapt": Trainer("safegraft_trainers.adapt", "Adapt a language model to vision: join, stage 1, stage 2."),
    "safety-sft": Trainer("safegraft_trainers.safety_sft", "Tune for safety on examples."),
    "safety-dpo": Trainer("safegraft_trainers.safety_dpo", "Tune for safety on preferences (DPO and its like)."),
    "safety-grpo": Trainer("safegraft_trainers.safety_grpo", "Tune for safety online, by judges' rewards."),
    "multitask": Trainer("safegraft_trainers.multitask", "Adaptation and safety tuning at once."),
}
EXTRA = "pip install 'safegraft[train]'"


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def train() -> None:
    """Adapt models to vision and tune them for safety.

    \b
    Examples:
      safegraft train adapt --help
      safegraft train adapt --config adapt_stage1 --language_model ./llm --vision_model ./clip \\
          --data llava.json --image_folder images --output_dir stage1 --dry_run
      accelerate launch -m safegraft_trainers.adapt --config adapt_stage2 ...
    """


def _command(name: str, trainer: Trainer) -> click.Command:
    @click.command(
        name,
        help=trainer.summary,
        short_help=trainer.summary,
        # The trainer's parser has the options, --help among them.
        context_settings={"ignore_unknown_options": True, "allow_extra_args": True, "help_option_names": []},
    )
    @click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
    def command(arguments: tuple[str, ...]) -> None:
        run(trainer.module, arguments)

    return command


def run(module: str, arguments: tuple[str, ...]) -> None:
    """Import the trainer, which takes seconds, and hand it what the user wrote."""
    from safegraft.cli.terminal import note
    from safegraft.errors import UsageError

    try:
        trainer = importlib.import_module(module)
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("safegraft"):
            raise
        raise UsageError(f"training needs {error.name}: {EXTRA}") from error
    parsed = trainer.parse(list(arguments) or ["--help"])
    written = trainer.main(*parsed)
    if not parsed[0].dry_run and parsed[1].process_index == 0:
        note(f"written to {written}")


for _name, _trainer in TRAINERS.items():
    train.add_command(_command(_name, _trainer))
