"""`safegraft extract-lora`: the difference of two models becomes a LoRA adapter."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from safegraft.cli.interrupt import interruptible
from safegraft.cli.options import json_option
from safegraft.cli.progress import meter
from safegraft.cli.terminal import note, say, say_json
from safegraft.errors import UsageError

if TYPE_CHECKING:
    from safegraft.adapter.extract import Extraction

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
    from safegraft.local import open_model

    base_model = open_model(base)
    try:
        tuned_model = open_model(tuned)
        try:
            with interruptible() as interrupt, meter("extracting") as show:
                wish = Wish(rank, energy, targets, save_modules)
                result = extract(tuned_model, base_model, out, wish, progress=show, cancelled=interrupt.requested)
        finally:
            tuned_model.close()
    finally:
        base_model.close()
    _show(result, as_json)


def _show(result: "Extraction", as_json: bool) -> None:
    for text in result.notes:
        note(f"warning: {text}")
    if as_json:
        say_json(_document(result))
        return
    lowest = min(result.modules, key=lambda one: one.energy, default=None)
    ranks = [one.rank for one in result.modules]
    say(
        f"{result.out}: an adapter for {len(ranks)} modules" + (", as it was already" if result.complete_before else "")
    )
    if lowest is not None:
        say(f"ranks {min(ranks)} to {max(ranks)}; least energy kept {lowest.energy:.4f}, in {lowest.tensor}")
    if result.saved:
        say(f"saved whole: {len(result.saved)} tensors")
    if result.left:
        say(
            f"not in the adapter: {len(result.left)} tensors that differ"
            + ("" if result.saved else " (--save-modules)")
        )
        for name, reason in list(result.left.items())[:_LISTED]:
            say(f"  {name}: {reason}")
        if len(result.left) > _LISTED:
            say(f"  and {len(result.left) - _LISTED} more (--json lists them)")


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
