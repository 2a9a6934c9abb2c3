"""A sweep's result as files: sweep.json for programs, sweep.md for people, front-dev.png and front-test.png.

The tables are also what the command prints. Knows results only.
"""

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml

from safegraft.cli.terminal import table
from safegraft.errors import output_errors
from safegraft.hub.markdown import cell
from safegraft_trainers.evaluate.example import Axis
from safegraft_trainers.evaluate.results import Evaluation, Score, write_whole
from safegraft_trainers.evaluate.tables import percent
from safegraft_trainers.sweep.domination import RESAMPLES
from safegraft_trainers.sweep.plot import draw_fronts
from safegraft_trainers.sweep.result import BaselineResult, CandidateResult, State, SweepResult

FORMAT = "safegraft-sweep/1"
JSON, MARKDOWN = "sweep.json", "sweep.md"
BEST, RECIPE = "best", "recipe.yml"
NOTHING = "-"

Rows = list[list[str]]


def write_report(result: SweepResult, out: Path) -> None:
    """Write everything into a folder. Raises OutputError."""
    write_whole(out / JSON, json.dumps(document(result), indent=1, ensure_ascii=False, allow_nan=False) + "\n")
    write_whole(out / MARKDOWN, f"# Sweep\n\n{summary(result, markdown=True)}\n")
    draw_fronts(result, out)
    recipe = out / BEST / RECIPE
    if result.best is not None:
        write_whole(recipe, recipe_text(result.best))
    else:
        with output_errors(recipe):  # an earlier run's, under other constraints
            recipe.unlink(missing_ok=True)


def recipe_text(one: CandidateResult) -> str:
    text: str = yaml.safe_dump(json.loads(json.dumps(one.candidate.recipe, default=os.fspath)), sort_keys=False)
    return f"# {one.name}\n{text}"


# -- for programs -----------------------------------------------------------------------------------


def document(result: SweepResult) -> dict[str, Any]:
    spec = result.spec
    return {
        "format": FORMAT,
        "spec": spec.model_dump(mode="json", exclude_none=True),
        "objectives": [one.model_dump() for one in spec.objectives],
        "constraints": {
            split: [{"constraint": one.text, "bound": bound} for one, bound in bounds]
            for split, bounds in result.bounds.items()
        },
        "baselines": [_baseline(result, one) for one in result.baselines],
        "candidates": [_candidate(result, one) for one in result.candidates],
        "front": [one.name for one in result.front],
        "best": None if result.best is None else result.best.name,
        "dominating_every_baseline": [one.name for one in result.dominating],
        "hypervolume": asdict(result.hypervolume),
    }


def _baseline(result: SweepResult, one: BaselineResult) -> dict[str, Any]:
    scores = {"dev": _scores(result, one.dev), "test": _scores(result, one.test)}
    return {"name": one.name, "reference": one.reference, "digest": one.digest, **scores}


def _candidate(result: SweepResult, one: CandidateResult) -> dict[str, Any]:
    return {
        "name": one.name,
        "pairing": one.candidate.pairing,
        "method": one.candidate.method,
        "strength": one.candidate.strength,
        "recipe": dict(one.candidate.recipe),
        "digest": one.digest,
        "state": one.state,
        "reason": one.reason,
        "warnings": list(one.warnings),
        "meets_constraints": one.meets_constraints,
        "on_front": one.name in {winner.name for winner in result.front},
        "excesses": {"dev": dict(one.excesses), "test": dict(one.test_excesses)},
        "dev": _scores(result, one.dev),
        "test": _scores(result, one.test),
        "domination": None if one.domination is None else asdict(one.domination),
    }


def _scores(result: SweepResult, evaluation: Evaluation | None) -> dict[str, Any] | None:
    """Of the sweep's metrics and of all axes, as far as they were measured."""
    if evaluation is None:
        return None
    found = {name: evaluation.find(name) for name in [*metrics(result), *Axis]}
    return {str(name): asdict(score) for name, score in found.items() if score is not None}


def metrics(result: SweepResult) -> list[str]:
    """Of the objectives, then of the constraints, each once."""
    spec = result.spec
    return list(dict.fromkeys(one.metric for one in (*spec.objectives, *spec.constraints)))


# -- for people -------------------------------------------------------------------------------------


def summary(result: SweepResult, *, markdown: bool = False) -> str:
    """The tables and what they come to. Rates are percent."""
    parts = list(_parts(result))
    shown = [f"{_title(title, markdown)}\n{_grid(rows, markdown)}" for title, rows in parts if len(rows) > 1]
    remarks = "\n".join(f"- {line}" if markdown else line for line in _remarks(result))
    return "\n\n".join([*shown, remarks])


def _parts(result: SweepResult) -> Iterator[tuple[str, Rows]]:
    winners = [(one.name, one.test, _verdict(one, result)) for one in result.front]
    baselines = [(one.name, one.test, "baseline") for one in result.baselines]
    yield "Held-out test split, percent with 95 % intervals", _rows(result, [*winners, *baselines])
    candidates = [(one.name, one.dev, _state(one, result)) for one in _ordered(result)]
    baselines = [(one.name, one.dev, "baseline") for one in result.baselines]
    yield "Dev split, on which the winners were chosen", _rows(result, [*candidates, *baselines])


def _rows(result: SweepResult, shown: Sequence[tuple[str, Evaluation | None, str]]) -> Rows:
    rows = [["model", *map(_heading, _directed(result)), ""]]
    for name, evaluation, remark in shown:
        scores: list[Score | None] = [evaluation.find(one) if evaluation else None for one in metrics(result)]
        rows.append([name, *map(percent, scores), remark])
    return rows


def _directed(result: SweepResult) -> Iterator[tuple[str, str]]:
    """Each metric and which way is better."""
    directions: Mapping[str, str] = {one.metric: one.direction for one in result.spec.objectives}
    limits = {one.metric: "lower" if one.relation == "<=" else "higher" for one in result.spec.constraints}
    yield from ((name, directions.get(name) or limits[name]) for name in metrics(result))


def _heading(directed: tuple[str, str]) -> str:
    name, direction = directed
    return f"{name} {'↓' if direction == 'lower' else '↑'}"


def _ordered(result: SweepResult) -> list[CandidateResult]:
    """The front first, then those that meet the constraints, then others; each by the first objective."""
    front = {one.name for one in result.front}

    def rank(one: CandidateResult) -> tuple[bool, bool, int, float]:
        values = result.values(one.dev)
        loss = 2.0 if values is None else result.spec.objectives[0].loss(values[0])
        return one.name not in front, not one.meets_constraints, list(State).index(one.state), loss

    return sorted(result.candidates, key=rank)


def _state(one: CandidateResult, result: SweepResult) -> str:
    if one.state is not State.MEASURED:
        return f"{one.state}: {one.reason}".replace("\n", "; ")
    if not one.meets_constraints:
        return f"violates {_violated(one.excesses)}"
    if result.best is not None and one.name == result.best.name:
        return "best, on the front"
    return "on the front" if one.name in {winner.name for winner in result.front} else ""


def _verdict(one: CandidateResult, result: SweepResult) -> str:
    words = ["best on dev"] if result.best is not None and one.name == result.best.name else []
    if any(excess > 0 for excess in one.test_excesses.values()):
        words.append(f"violates {_violated(one.test_excesses)} here")
    if one.domination is not None and one.domination.every:
        words.append(f"dominates every baseline ({one.domination.share:.0%} of resamples)")
    return ", ".join(words)


def _violated(excesses: Mapping[str, float]) -> str:
    return " and ".join(f"{text} by {100 * excess:.1f} points" for text, excess in excesses.items() if excess > 0)


def _remarks(result: SweepResult) -> Iterator[str]:
    volume = result.hypervolume
    names = [one.metric for one in result.spec.objectives]
    reference = ", ".join(f"{name} {worst:g}" for name, worst in zip(names, volume.reference, strict=True))
    yield (
        f"hypervolume (reference point: {reference}): test {volume.test:.4f}, of the baselines alone "
        f"{volume.baselines_test:.4f}; dev {volume.dev:.4f}, of the baselines alone {volume.baselines_dev:.4f} "
        "(of candidates, those within the constraints; baselines count whether they are or not)"
    )
    for split, bounds in result.bounds.items():
        if bounds:
            yield f"limits on {split}: " + "; ".join(f"{one.text} ({100 * bound:.1f} %)" for one, bound in bounds)
    dominating = ", ".join(one.name for one in result.dominating)
    if result.baselines and result.front:
        yield f"Pareto-dominate every baseline on the test split: {dominating or 'none'} ({RESAMPLES} resamples)"
    left_out = {name for one in result.front if one.domination for name in one.domination.not_compared}
    if left_out:
        yield f"not compared, for lack of an objective: {', '.join(sorted(left_out))}"
    if result.best is None:
        yield "no candidate meets the constraints"
    for state in (State.PRUNED, State.FAILED):
        count = sum(one.state is state for one in result.candidates)
        if count:
            yield f"{state}: {count} of {len(result.candidates)} candidates"


def _title(text: str, markdown: bool) -> str:
    return f"## {text}\n" if markdown else text


def _grid(rows: Rows, markdown: bool) -> str:
    if not markdown:
        return table(rows[0], rows[1:])
    lines = [f"| {' | '.join([cell(name), *rest])} |" for name, *rest in rows]  # a name may be anything
    return "\n".join([lines[0], "|---" * len(rows[0]) + "|", *lines[1:]])
