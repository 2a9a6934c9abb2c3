"""`safegraft analyze`: where models differ, and what that does to safety inside them."""

from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from safegraft.cli.options import json_option
from safegraft.cli.terminal import note, printable, say, say_json

if TYPE_CHECKING:
    from safegraft_trainers.analyze.run import Analysis, Stage

_FILE = click.Path(path_type=Path)


@click.command()
@click.argument("reference", metavar="REFERENCE")
@click.argument("models", metavar="MODEL...", nargs=-1, required=True)
@click.option("--base", metavar="MODEL", help="What all of them come from: compare their task vectors.")
@click.option("--normal", metavar="FILE", type=_FILE, help="Harmless prompts, JSONL with `prompt`. With --harmful.")
@click.option("--harmful", metavar="FILE", type=_FILE, help="Harmful prompts: safety layers and separation.")
@click.option(
    "--adaptation", metavar="FILE", type=_FILE, help="JSONL with `prompt`, `response`, `image`. With --safety."
)
@click.option("--safety", metavar="FILE", type=_FILE, help="The same, refusals: divergence and loss barriers.")
@click.option(
    "--path-suite",
    "path_suites",
    metavar="FORMAT=PATH",
    multiple=True,
    help="Score merges along the path on this suite, as `safegraft evaluate` names them. Repeat for several.",
)
@click.option(
    "--judge", metavar="JUDGE", default="patterns", show_default=True, help="Who judges answers along the path."
)
@click.option("--points", metavar="N", type=click.IntRange(min=3), default=11, show_default=True, help="Along a path.")
@click.option(
    "--samples",
    metavar="N",
    type=click.IntRange(min=1),
    default=128,
    show_default=True,
    help="Rows to draw of each file, and examples of each suite.",
)
@click.option("--seed", metavar="N", type=click.IntRange(min=0), default=0, show_default=True, help="Of the draw.")
@click.option(
    "--max-length",
    metavar="N",
    type=click.IntRange(min=8),
    default=512,
    show_default=True,
    help="Tokens of a sample, at most.",
)
@click.option("--no-spectral", is_flag=True, help="Leave out spectral norms and ranks, which take most of the time.")
@click.option("--no-vocabulary", is_flag=True, help="Leave out embeddings and heads: for models without tokenizers.")
@click.option(
    "--dtype",
    type=click.Choice(["auto", "float32", "bfloat16", "float16"]),
    default="float32",
    show_default=True,
    help="What models work in.",
)
@click.option("--device", metavar="DEVICE", default="cpu", show_default=True, help="Where: cpu, cuda or cuda:N.")
@click.option("--out", metavar="DIR", type=_FILE, help="Write report.html, analysis.json and the figures there.")
@json_option
def analyze(
    reference: str,
    models: tuple[str, ...],
    base: str | None,
    path_suites: tuple[str, ...],
    judge: str,
    no_spectral: bool,
    no_vocabulary: bool,
    device: str,
    out: Path | None,
    as_json: bool,
    **settings: Any,
) -> None:
    """Say where each MODEL differs from the REFERENCE it was derived from, and what that does to safety in it.

    From weights alone: how far layers and kinds of weight moved, in how many directions. With prompts: where models
    tell harmful from harmless. With prompts and responses: whether adaptation and safety pull the weights the same
    way, and whether a merge can lie between the models. An LLM inside a vision-language model is found.

    \b
    Examples:
      safegraft analyze aligned-llm adapted-lvlm --out report
      safegraft analyze aligned-llm adapted-lvlm safety-sft-lvlm --base base-llm --json
      safegraft analyze aligned-llm adapted-lvlm --normal normal.jsonl --harmful harmful.jsonl \\
          --adaptation llava.jsonl --safety refusals.jsonl --out report
    """
    from safegraft.engine.execute import usable
    from safegraft_trainers.analyze import report
    from safegraft_trainers.analyze.run import analyze as run

    if out is not None:
        report.check_out(out)
    usable(device)
    suites, judges = _suites(path_suites, judge, settings["samples"], settings["seed"])
    with _stages() as stage:
        analysis = run(
            reference,
            models,
            base=base,
            suites=suites,
            judges=judges,
            spectral=not no_spectral,
            vocabulary=not no_vocabulary,
            device=device,
            stage=stage,
            **settings,
        )
    _show(analysis, out, as_json)


def _suites(specs: tuple[str, ...], judge: str, limit: int, seed: int) -> tuple[list[Any], list[Any]]:
    if not specs:
        return [], []
    from safegraft_trainers.evaluate.judges import get_judge
    from safegraft_trainers.evaluate.suites import load_suites

    return load_suites(specs, limit=limit, seed=seed), [get_judge(judge)]


@contextmanager
def _stages() -> "Generator[Stage]":
    """A bar for each stage on a terminal, a line elsewhere. On stderr."""
    import sys

    from tqdm import tqdm

    from safegraft_trainers.analyze.weights import unreported

    bars: list[tqdm[Any]] = []

    def close() -> None:
        while bars:
            bars.pop().close()

    def stage(label: str) -> Any:
        close()
        if not sys.stderr.isatty():
            note(f"analyzing: {label}")
            return unreported

        def show(done: int, total: int, doing: str) -> None:
            if not bars:
                bars.append(tqdm(desc=printable(label), total=total, file=sys.stderr, leave=False, unit_scale=True))
            bars[0].set_postfix_str(printable(doing), refresh=False)
            bars[0].update(done - bars[0].n)

        return show

    try:
        yield stage
    finally:
        close()


def _show(analysis: "Analysis", out: Path | None, as_json: bool) -> None:
    from safegraft_trainers.analyze import report
    from safegraft_trainers.analyze.summary import findings

    for text in dict.fromkeys([*analysis.notes, *(one for found in analysis.comparisons for one in found.notes)]):
        note(f"note: {text}")
    page = report.write(analysis, out) if out is not None else None
    if as_json:
        say_json(analysis.to_dict())
        return
    for line in findings(analysis):
        say(line)
    if page is not None:
        say(f"report: {page}")
