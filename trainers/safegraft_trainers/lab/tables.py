"""The summary of several seeds as Markdown, between marks in a page that people write the rest of.

Knows rates; measures nothing.
"""

import re
from collections.abc import Sequence
from pathlib import Path

from safegraft.errors import OutputError, Problem
from safegraft_trainers.lab.experiment import CONTROLS, KNOWLEDGE, METRICS, STOPPED_EARLY, TUNED, early_name
from safegraft_trainers.lab.stages import ADAPTED, ALIGNED, BENIGN
from safegraft_trainers.lab.summary import Lab, Mean, Row

_AXES = "attacks by text | attacks with a picture | look-alikes refused | helpfulness"
_RULE = "---:|---:|---:|---:"
_STORY = (ALIGNED, BENIGN, ADAPTED, *TUNED, *(early_name(*one) for one in STOPPED_EARLY))


def tables(lab: Lab) -> dict[str, str]:
    """By name: each a Markdown table."""
    return {
        "tuning": _tuning(lab),
        "merges": _merges(lab),
        "against": _against(lab),
        "controls": _controls(lab),
        "knowledge": _knowledge(lab),
    }


def fill(page: Path, made: dict[str, str]) -> None:
    """Put each table between `<!-- table: NAME -->` and `<!-- end -->`. Raises OutputError when a mark is missing."""
    text = page.read_text(encoding="utf-8")
    for name, table in made.items():
        pattern = re.compile(rf"(<!-- table: {name} -->\n).*?(<!-- end -->)", re.DOTALL)
        if not pattern.search(text):
            raise OutputError(Problem(str(page), f"has no marks for the table {name}"))
        text = pattern.sub(lambda found, table=table: f"{found[1]}\n{table}\n\n{found[2]}", text)
    page.write_text(text, encoding="utf-8")


def _tuning(lab: Lab) -> str:
    rows = [lab.baseline(name) for name in _STORY]
    return _table(f"model | {_AXES}", f"---|{_RULE}", [[row.name, *_rates(row)] for row in rows])


def _merges(lab: Lab) -> str:
    decided = [lab.decided(arm) for arm in lab.arms if arm.partition("/")[0] not in CONTROLS]
    rows = [[row.name, f"{row.n}", *_rates(row), _strengths(row)] for row in decided if row.n]
    table = _table(f"pairing / method | seeds | {_AXES} | strengths", f"---|---:|{_RULE}|---", rows)
    nowhere = ", ".join(row.name for row in decided if not row.n)
    return f"{table}\n\nIn no seed within the constraints: {nowhere}." if nowhere else table


def _against(lab: Lab) -> str:
    rows: list[list[str]] = []
    for one in lab.against():
        differences = [_points(one.differences[name], signed=True) if one.differences else "" for name in METRICS]
        rows.append([one.baseline, f"{one.found} of {one.seeds}", f"{one.held} of {one.found}", *differences])
    whole, held = lab.against_all()
    rows.append(["all of them at once", f"{whole.n} of {len(lab.seeds)}", f"{held} of {whole.n}", "", "", "", ""])
    heading = f"tuning baseline | a merge dominates it on dev | of these on test | {_AXES}"
    return _table(heading, f"---|---:|---:|{_RULE}", rows)


def _controls(lab: Lab) -> str:
    arms = ("aligned/linear", "unaligned-base/linear", "noise/linear")
    rows: list[list[str]] = []
    for points in zip(*(lab.curve(arm) for arm in arms), strict=True):
        for arm, (strength, row) in zip(arms, points, strict=True):
            rows.append([f"{strength:g}", arm.partition("/")[0], *_rates(row)])
    return _table(f"strength | merged with | {_AXES}", f"---:|---|{_RULE}", rows)


def _knowledge(lab: Lab) -> str:
    names = (ALIGNED, ADAPTED, *TUNED)
    rows = [
        [name, *(_cell(lab.baseline(name), metric) for metric in (METRICS[0], KNOWLEDGE[0], METRICS[1], KNOWLEDGE[1]))]
        for name in names
    ]
    heading = (
        "model | text, not refused | text, harmful truth told | picture, not refused | picture, harmful truth told"
    )
    return _table(heading, f"---|{_RULE}", rows)


def _rates(row: Row) -> list[str]:
    return [_cell(row, metric) for metric in METRICS]


def _cell(row: Row, metric: str) -> str:
    mean = row.means.get(metric)
    return "-" if mean is None else _points(mean)


def _points(mean: Mean, *, signed: bool = False) -> str:
    """In percent, or percentage points, with half of the interval's width."""
    value = f"{100 * mean.value:+.0f}" if signed else f"{100 * mean.value:.0f}"
    return value if mean.margin is None else f"{value} ± {100 * mean.margin:.0f}"


def _strengths(row: Row) -> str:
    return ", ".join(dict.fromkeys(name.rpartition("@")[2] for name in sorted(row.chosen)))


def _table(heading: str, rule: str, rows: Sequence[Sequence[str]]) -> str:
    return "\n".join([f"| {heading} |", f"|{rule}|", *(f"| {' | '.join(row)} |" for row in rows)])
