"""All seeds of the lab, side by side, and what is made of them: numbers, tables, pictures.

Knows the order of things; each is done by a module beside this one.
"""

import json
import multiprocessing
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, cast

from safegraft.errors import OutputError, output_errors
from safegraft_trainers.lab.experiment import run_seed
from safegraft_trainers.lab.plots import write_plots
from safegraft_trainers.lab.stages import FULL
from safegraft_trainers.lab.summary import Lab
from safegraft_trainers.lab.tables import fill, tables

QUESTIONS_EACH = 60
RESULTS = "results.json"


def run_lab(out: Path, seeds: Sequence[int], jobs: int) -> Lab:
    """Run what is not there yet, `jobs` seeds at a time in processes of one thread each. Raises what a seed raises."""
    with output_errors(out):
        out.mkdir(parents=True, exist_ok=True)
    # Trainers keep state of their own in a process, torch its threads: a fresh one for each.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, mp_context=context, max_tasks_per_child=1) as pool:
        for done in [pool.submit(_seed, out, seed) for seed in seeds]:
            done.result()
    return Lab.read(_folder(out, seed) for seed in seeds)


def write_results(lab: Lab, folder: Path) -> None:
    """The numbers and the pictures: results.json and *.png."""
    with output_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        text = json.dumps(_rounded(lab.document()), separators=(",", ":"))
        (folder / RESULTS).write_text(text.replace('{"seed":', '\n{"seed":') + "\n", encoding="utf-8")
        write_plots(lab, folder)


def fill_page(lab: Lab, page: Path) -> None:
    """Put the tables into a page that marks their places."""
    if not page.exists():
        raise OutputError(f"{page}: there is no such page")
    fill(page, tables(lab))


def read_results(folder: Path) -> Lab:
    """The results that `write_results` wrote."""
    return Lab(json.loads((folder / RESULTS).read_text(encoding="utf-8"))["seeds"])


def _folder(out: Path, seed: int) -> Path:
    return out / f"seed-{seed}"


def _seed(out: Path, seed: int) -> None:
    def report(text: str) -> None:
        print(f"seed {seed}: {text}", file=sys.stderr, flush=True)

    run_seed(_folder(out, seed), seed, FULL, QUESTIONS_EACH, report)


def _rounded(value: Any) -> Any:
    """Rates of 60 or 120 prompts need no more than four digits."""
    match value:
        case float():
            return round(value, 4)
        case dict():
            return {key: _rounded(one) for key, one in cast(dict[str, Any], value).items()}
        case list():
            return [_rounded(one) for one in cast(list[Any], value)]
        case _:
            return value
