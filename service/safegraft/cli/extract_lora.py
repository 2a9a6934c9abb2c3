"""`safegraft extract-lora`: the difference of two models becomes a LoRA adapter."""

import os
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from safegraft.cli.interrupt import interruptible
from safegraft.cli.options import json_option
from safegraft.cli.progress import meter
from safegraft.cli.terminal import note, say, say_json
from safegraft.errors import CheckpointError, Problem, UsageError

if TYPE_CHECKING:
    from safegraft.adapter.extract import Extraction
    from safegraft.checkpoint.types import Checkpoint

_LISTED = 10  # tensors that are left out, in the text for people


@click.command(name="extract-lora")
@click.argument("tuned", metavar="TUNED")
@click.option("--base", metavar="MODEL", required=True, help="What the adapter will be added to.")
@click.option(
    "--out",
    metavar="DIR",
    required=True,
    type=click.Path(path_type=Path),
    help="The adapter folder to write. It appears when it is complete.",
)
@click.option("--rank", metavar="N", type=click.IntRange(min=1), help="The most that a module's rank may be.")
@click.option(
    "--energy",
    metavar="E",
    type=click.FloatRange(min=0, max=1, min_open=True),
    help="Instead: the share of each difference's squared norm to keep, such as 0.99.",
)
@click.option(
    "--targets",
    metavar="PATTERN",
    default="*",
    show_default=True,
    help="Which of the base's tensors, such as '*.self_attn.*'.",
)
@click.option(
    "--save-modules",
    is_flag=True,
    help="Save whole what a LoRA cannot hold: norms, biases, embeddings. Otherwise it is reported.",
)
@json_option
def extract_lora(
    tuned: str,
    base: str,
    out: Path,
    rank: int | None,
    energy: float | None,
    targets: str,
    save_modules: bool,
    as_json: bool,
) -> None:
    """Make a LoRA adapter of the difference between TUNED and a base.

    Each linear weight's difference gets its best factors, by singular value decomposition. TUNED may be a
    vision-language model and the base the language model it was made from.

    \b
    Examples:
      safegraft extract-lora tuned --base llm --out adapter --rank 32
      safegraft extract-lora lvlm --base llm --out adapter --energy 0.99 --targets '*.self_attn.*'
    """
    if (rank is None) == (energy is None):
        raise UsageError("give either --rank N or --energy E")
    from safegraft.adapter.extract import Wish, extract

    with ExitStack() as opened:
        base_model, tuned_model = _open([base, tuned], opened)
        for text in (*base_model.notes, *tuned_model.notes):
            note(f"warning: {text}")
        with interruptible() as interrupt, meter("extracting") as show:
            wish = Wish(rank, energy, targets, save_modules)
            result = extract(tuned_model, base_model, out, wish, progress=show, cancelled=interrupt.requested)
    _show(result, as_json)


def _open(references: Sequence[str], opened: ExitStack) -> "list[Checkpoint]":
    """Open all of them, or tell what is wrong with any."""
    from safegraft.local import open_model

    models: list[Checkpoint] = []
    problems: list[Problem] = []
    for reference in references:
        try:
            models.append(open_model(reference))
        except CheckpointError as error:
            problems += error.problems
        else:
            opened.callback(models[-1].close)
    if problems:
        raise CheckpointError(problems)
    return models


def _show(result: "Extraction", as_json: bool) -> None:
    for text in result.notes:
        note(f"warning: {text}")
    if as_json:
        say_json(_document(result))
        return
    lowest = min(result.modules, key=lambda one: one.energy, default=None)
    ranks = [one.rank for one in result.modules]
    already = ", as it was already" if result.complete_before else ""
    say(f"{result.out}: an adapter for {_count(len(ranks), 'module')}{already}")
    if lowest is not None:
        say(f"ranks {min(ranks)} to {max(ranks)}; least energy kept {lowest.energy:.4f}, in {lowest.tensor}")
    if result.saved:
        say(f"saved whole: {_count(len(result.saved), 'tensor')}")
    if result.left:
        differ = "tensor that differs" if len(result.left) == 1 else "tensors that differ"
        say(f"not in the adapter: {len(result.left)} {differ}" + ("" if result.saved else " (--save-modules)"))
        for name, reason in list(result.left.items())[:_LISTED]:
            say(f"  {name}: {reason}")
        if len(result.left) > _LISTED:
            say(f"  and {len(result.left) - _LISTED} more (--json lists them)")


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def _document(result: "Extraction") -> dict[str, Any]:
    return {
        "out": os.fspath(result.out),
        "digest": result.digest,
        "modules": [
            {"module": one.module, "tensor": one.tensor, "rank": one.rank, "energy": one.energy}
            for one in result.modules
        ],
        "saved": list(result.saved),
        "left": dict(result.left),
        "warnings": list(result.notes),
        "files": [{"name": name, "size_bytes": one.size, "sha256": one.sha256} for name, one in result.files.items()],
    }
