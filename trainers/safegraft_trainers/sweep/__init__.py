"""Merges at many settings, evaluates each without writing it, and finds the best trade-off.

spec.py        SWEEP.yml: what is merged, at which strengths, measured by what
parts.py       ... of which parts
consistency.py ... what only several parts together can get wrong
constraint.py  "helpfulness >= 97% of lvlm" as an object
template.py    recipes with gaps for the strength
objective.py   a metric and which way is better
rules.py       which parameter of a merge method the strength is: a table
candidates.py  pairing x method x strength -> recipe
search.py      which candidates, in which order: grid, random, Optuna
merged.py      a merge as a stream of tensors, computed here or by a server
resident.py    one model in memory that takes one merge after the other
store.py       evaluations on disk, so that a rerun continues
measuring.py   a candidate or a baseline becomes an evaluation
front.py       Pareto front and hypervolume
domination.py  which candidates are better than every baseline, and how surely
run.py         the story: baselines, candidates, winners on held-out prompts
result.py      what came out
report.py      ... as JSON and tables
plot.py        ... as a picture
publishing.py  the best merge, written and handed to a publisher
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from safegraft_trainers.sweep.result import SweepResult
    from safegraft_trainers.sweep.run import sweep
    from safegraft_trainers.sweep.spec import SweepSpec

__all__ = ["SweepResult", "SweepSpec", "sweep"]

_HOMES = {"SweepResult": "result", "sweep": "run", "SweepSpec": "spec"}


def __getattr__(name: str) -> object:
    """Imported when first used: the command line's help must not wait for numpy and pydantic."""
    import importlib

    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return vars(importlib.import_module(f"{__name__}.{_HOMES[name]}"))[name]
