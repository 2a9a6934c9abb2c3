"""`safegraft evaluate`: ask models suites of prompts, and say how safe and how helpful they are."""

import contextlib
import sys
import time
from collections.abc import Callable, Generator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from safegraft.cli.options import json_option
from safegraft.cli.terminal import note, printable, say, say_json
from safegraft.errors import InputError, UsageError

if TYPE_CHECKING:
    from safegraft_trainers.evaluate.example import Suite
    from safegraft_trainers.evaluate.judges import Judge
    from safegraft_trainers.evaluate.respondents import Respondent
    from safegraft_trainers.evaluate.results import Evaluation, Score
    from safegraft_trainers.loading import Loaded

HARNESS = "lm-eval="
RECIPES = (".yml", ".yaml")
SECONDS_BETWEEN_LINES = 5.0


@click.command()
@click.argument("models", metavar="MODEL...", nargs=-1, required=True)
@click.option(
    "--suite",
    "suites",
    metavar="FORMAT[=PATH]",
    multiple=True,
    required=True,
    help="What to ask: a format and a file or a Hub data set; without PATH, its usual data set in the local Hub cache. "
    "lm-eval=TASK is a task of the lm-evaluation-harness. Repeatable.",
)
@click.option(
    "--judge",
    "judges",
    metavar="JUDGE",
    multiple=True,
    default=("patterns",),
    show_default=True,
    help="Who finds harm and refusals: patterns[:LIST], knowledge, classifier:MODEL or endpoint:URL#MODEL. Repeatable; "
    "the first is the default of the scores.",
)
@click.option("--limit", metavar="N", type=click.IntRange(min=1), help="Ask at most N prompts of a suite.")
@click.option(
    "--split", type=click.Choice(["dev", "test"]), help="Ask half of each suite: choose on dev, report on test."
)
@click.option("--seed", metavar="N", default=0, show_default=True, help="Of --limit, intervals and sampling.")
@click.option(
    "--out",
    metavar="DIR",
    type=click.Path(path_type=Path, file_okay=False),
    help="Write results.json (every prompt and answer), table.md and plots there.",
)
@click.option(
    "--card",
    "cards",
    metavar="MODEL",
    multiple=True,
    help="Write the results, and a picture of them, into the README.md of this folder, one of MODELS. Repeatable.",
)
@click.option("--endpoint", metavar="URL", help="MODELS are names at this OpenAI-compatible endpoint.")
@click.option("--no-images", is_flag=True, help="With --endpoint: the models see no images.")
@click.option(
    "--api-key-variable",
    metavar="NAME",
    help="The environment variable with the key of --endpoint and of endpoint judges. The key is stored nowhere.",
)
@click.option("--device", metavar="DEVICE", default="cpu", show_default=True, help="Where models run: cpu, cuda, ...")
@click.option(
    "--dtype",
    type=click.Choice(["auto", "float32", "bfloat16", "float16"]),
    default="auto",
    show_default=True,
    help="To compute in; auto is what the weights are stored in.",
)
@click.option("--batch-size", metavar="N", type=click.IntRange(min=1), default=16, show_default=True)
@click.option("--max-new-tokens", metavar="N", type=click.IntRange(min=1), default=256, show_default=True)
@click.option(
    "--temperature", metavar="T", type=click.FloatRange(min=0), default=0.0, show_default=True, help="0 is greedy."
)
@click.option("--top-p", metavar="P", type=click.FloatRange(0, 1, min_open=True), default=1.0, show_default=True)
@click.option("--threads", metavar="N", type=click.IntRange(min=1), help="Of torch. Small models are fastest with 1.")
@click.option(
    "--cache",
    metavar="DIR",
    type=click.Path(path_type=Path, file_okay=False),
    help="Where answers and verdicts are kept. Default: $SAFEGRAFT_CACHE/evaluate, else ~/.cache/safegraft/evaluate.",
)
@click.option(
    "--tasks",
    "task_folders",
    metavar="DIR",
    multiple=True,
    type=click.Path(path_type=Path, file_okay=False, exists=True),
    help="With lm-eval: a folder of further task files. Repeatable.",
)
@json_option
def evaluate(
    models: tuple[str, ...],
    suites: tuple[str, ...],
    judges: tuple[str, ...],
    limit: int | None,
    split: str | None,
    seed: int,
    out: Path | None,
    cards: tuple[str, ...],
    endpoint: str | None,
    no_images: bool,
    api_key_variable: str | None,
    device: str,
    dtype: str,
    batch_size: int,
    max_new_tokens: int,
    temperature: float,
    top_p: float,
    threads: int | None,
    cache: Path | None,
    task_folders: tuple[Path, ...],
    as_json: bool,
) -> None:
    """Measure models: attacks by text and with images, over-refusal, helpfulness, bias.

    MODEL is a folder, a model in the local Hub cache, MODEL+ADAPTER, or a recipe.yml, which is merged in memory.
    Answers are kept: an interrupted run goes on where it stopped, and a second one asks nothing again.

    \b
    Examples:
      safegraft evaluate merged lvlm --suite figstep=figstep --suite xstest --out results
      safegraft evaluate recipe.yml --suite safegraft=probes.jsonl --judge patterns --judge knowledge
      safegraft evaluate merged --suite mmbench --limit 500 --card merged
      safegraft evaluate my-model --endpoint http://localhost:8000/v1 --suite advbench
      safegraft evaluate merged --suite lm-eval=arc_easy
    """
    from safegraft_trainers.evaluate.cache import default_folder
    from safegraft_trainers.evaluate.judges import get_judge
    from safegraft_trainers.evaluate.run import check
    from safegraft_trainers.evaluate.suites import load_suites

    tasks = [suite.removeprefix(HARNESS) for suite in suites if suite.startswith(HARNESS)]
    _check(models, cards, endpoint, tasks, split, no_images)
    if out is not None and out.is_dir() and any(out.iterdir()) and not (out / "results.json").exists():
        raise UsageError(f"--out {out}: holds something else than results; give another folder")
    loaded_suites = load_suites(
        [suite for suite in suites if not suite.startswith(HARNESS)], limit=limit, seed=seed, split=split
    )
    chosen = [
        get_judge(spec, device=device, batch_size=batch_size, api_key_variable=api_key_variable) for spec in judges
    ]
    check(loaded_suites, chosen)
    asking: dict[str, Any] = {
        "max_new_tokens": max_new_tokens,
        "temperature": temperature,
        "top_p": top_p,
        "seed": seed,
    }
    folder = cache or default_folder()
    stems = [Path(model).stem for model in models if model.endswith(RECIPES)]
    evaluations: list[Evaluation] = []
    for model in models:
        if endpoint is not None:
            respondent = _at_endpoint(endpoint, model, api_key_variable, not no_images, asking)
            evaluations.append(_evaluated(respondent, loaded_suites, chosen, folder, seed))
        else:
            loaded = _load(model, dtype, device, model if stems.count(Path(model).stem) > 1 else None)
            respondent = _here(loaded, batch_size, threads, asking)
            found = _evaluated(respondent, loaded_suites, chosen, folder, seed)
            measured = _harness(loaded, tasks, limit, task_folders, batch_size, seed, folder)
            evaluations.append(found.with_measured(measured))
            del loaded, respondent  # before the next one is loaded
    if not any(one.names() for one in evaluations):
        raise InputError("no model could be asked any prompt: models that see no images were given images alone")
    for model in cards:
        place = models.index(model)
        _write_card(Path(model), evaluations[place], evaluations[:place] + evaluations[place + 1 :])
    if out is not None:
        _write(evaluations, out)
    _show(evaluations, as_json)


def _check(
    models: Sequence[str],
    cards: Sequence[str],
    endpoint: str | None,
    tasks: Sequence[str],
    split: str | None,
    no_images: bool,
) -> None:
    """What can be told before anything is loaded."""
    faults = [f"{model} is named twice" for model in dict.fromkeys(models) if models.count(model) > 1]
    faults += [f"--card {card}: is none of the models that are evaluated" for card in cards if card not in models]
    faults += [f"--card {card}: is no folder" for card in cards if card in models and not Path(card).is_dir()]
    if tasks and endpoint is not None:
        faults.append("lm-eval tasks are asked of models here: leave --endpoint away")
    if tasks and split is not None:
        faults.append("lm-eval tasks have splits of their own: leave --split away")
    if no_images and endpoint is None:
        faults.append("--no-images is for --endpoint: models here say themselves what they see")
    if faults:
        raise UsageError("; ".join(faults))


def _load(model: str, dtype: str, device: str, name: str | None) -> "Loaded":
    """name: of a recipe; default: its file's."""
    from safegraft_trainers.loading import load, load_merged

    if not model.endswith(RECIPES):
        return load(model, dtype=dtype, device=device)
    import safegraft

    with safegraft.open(Path(model)) as merged:
        return load_merged(merged, name or Path(model).stem, dtype=dtype, device=device)


def _here(loaded: "Loaded", batch_size: int, threads: int | None, asking: dict[str, Any]) -> "Respondent":
    from safegraft_trainers.evaluate.respondents import TransformersRespondent

    return TransformersRespondent(loaded, batch_size=batch_size, threads=threads, **asking)


def _at_endpoint(
    url: str, model: str, api_key_variable: str | None, sees_images: bool, asking: dict[str, Any]
) -> "Respondent":
    from safegraft_trainers.evaluate.respondents import EndpointRespondent

    return EndpointRespondent(url, model, api_key_variable=api_key_variable, sees_images=sees_images, **asking)


def _evaluated(
    respondent: "Respondent", suites: "Sequence[Suite]", judges: "Sequence[Judge]", cache: Path, seed: int
) -> "Evaluation":
    from safegraft_trainers.evaluate.run import evaluate as run

    try:
        with _progress() as show:
            return run(respondent, suites, judges, cache=cache, progress=show, seed=seed)
    except KeyboardInterrupt:
        note("what was answered is kept: the same command goes on from there")
        raise


def _harness(
    loaded: "Loaded",
    tasks: Sequence[str],
    limit: int | None,
    folders: Sequence[Path],
    batch_size: int,
    seed: int,
    cache: Path,
) -> "list[Score]":
    """Scores of the lm-evaluation-harness. It keeps no answers, so its scores are kept instead."""
    from safegraft_trainers.evaluate.cache import measured_shelf
    from safegraft_trainers.evaluate.results import Score

    if not tasks:
        return []
    from safegraft_trainers.evaluate.harness import run

    settings = [loaded.digest, str(loaded.model.dtype), limit, seed]
    shelf = measured_shelf(cache, settings)
    kept = {} if folders else shelf.read()  # task files of one's own change without notice
    scores: list[Score] = []
    for task in tasks:
        if task not in kept:
            found = run(loaded, [task], limit, include=folders, batch_size=batch_size, seed=seed)
            scores += found
            if not folders:
                shelf.append({task: [asdict(score) for score in found]})
        else:
            scores += [Score(**one) for one in kept[task]]
    return scores


def _write(evaluations: "Sequence[Evaluation]", out: Path) -> None:
    from safegraft_trainers.evaluate.plots import four_axes, trade_off
    from safegraft_trainers.evaluate.results import compare, write_evaluations, write_whole

    write_evaluations(evaluations, out / "results.json")
    write_whole(out / "table.md", compare(evaluations, markdown=True) + "\n")
    for draw, name in ((four_axes, "four-axes.png"), (trade_off, "trade-off.png")):
        try:
            draw(evaluations, out / name)
        except UsageError as error:
            note(f"no {name}: {error}")
    note(f"written: {out}")


def _write_card(folder: Path, evaluation: "Evaluation", others: "Sequence[Evaluation]") -> None:
    from safegraft_trainers.evaluate.model_card import write_card

    note(f"written: {write_card(folder, evaluation, others)}")


def _show(evaluations: "Sequence[Evaluation]", as_json: bool) -> None:
    from safegraft_trainers.evaluate.results import compare

    if not as_json:
        say(compare(evaluations))
        return
    documents = [one.to_dict() for one in evaluations]
    for document in documents:
        del document["answers"]  # results.json has them
    say_json({"evaluations": documents})


@contextlib.contextmanager
def _progress() -> Generator[Callable[[int, int, str], None]]:
    """How many prompts are done: a bar on a terminal, a line now and then elsewhere. On stderr."""
    if not sys.stderr.isatty():
        yield _lines()
        return
    from tqdm import tqdm

    bars: dict[str, Any] = {}

    def update(done: int, total: int, what: str) -> None:
        if what not in bars:
            for bar in bars.values():
                bar.close()
            bars[what] = tqdm(desc=printable(what), total=total, file=sys.stderr, dynamic_ncols=True, leave=False)
        bars[what].update(done - bars[what].n)

    try:
        yield update
    finally:
        for bar in bars.values():
            bar.close()


def _lines() -> Callable[[int, int, str], None]:
    last = time.monotonic()

    def update(done: int, total: int, what: str) -> None:
        nonlocal last
        if done == total or time.monotonic() - last >= SECONDS_BETWEEN_LINES:
            last = time.monotonic()
            note(f"{what}: {done} of {total}")

    return update
