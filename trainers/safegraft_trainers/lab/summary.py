"""Several seeds' numbers as one: means with their 95 % intervals, and the answer to who dominates whom.

Knows what experiment.py writes; neither models nor pictures.
"""

import json
import math
import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safegraft_trainers.lab.experiment import METRICS, RESULT, TUNING_BASELINES

HIGHER = "helpfulness"
Rates = Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Mean:
    """Over n seeds. margin: half the width of Student's 95 % interval; None for fewer than three, too few for one."""

    value: float
    margin: float | None
    n: int

    @classmethod
    def of(cls, values: Sequence[float]) -> "Mean":
        from scipy.stats import t  # pyright: ignore[reportMissingTypeStubs, reportUnknownVariableType]

        value, n = statistics.fmean(values), len(values)
        if n < 3:
            return cls(value, None, n)
        quantile = float(t.ppf(0.975, n - 1))  # pyright: ignore[reportUnknownMemberType, reportUnknownArgumentType]
        return cls(value, quantile * statistics.stdev(values) / math.sqrt(n), n)


@dataclass(frozen=True, slots=True)
class Row:
    """A model, or what was decided on for a purpose. name: None of n seeds had one when means is empty."""

    name: str
    n: int
    means: Mapping[str, Mean]
    chosen: tuple[str, ...] = ()  # of a decision: the candidates, seed by seed


@dataclass(frozen=True, slots=True)
class Against:
    """Merges that were decided on because they dominate a baseline on the dev questions, and the test of that.

    found: seeds in which there was one. held: of these, in how many it dominates on the test questions too.
    differences: merge minus baseline, of the metrics, over those seeds.
    """

    baseline: str
    seeds: int
    found: int
    held: int
    differences: Mapping[str, Mean]
    chosen: tuple[str, ...]


class Lab:
    """The results of all seeds, in their order."""

    def __init__(self, seeds: Sequence[Mapping[str, Any]]) -> None:
        self.seeds = seeds

    @classmethod
    def read(cls, folders: Iterable[Path]) -> "Lab":
        return cls([json.loads((folder / RESULT).read_text(encoding="utf-8")) for folder in folders])

    def baseline(self, name: str, split: str = "test") -> Row:
        return _row(name, [seed["baselines"][name][split] for seed in self.seeds])

    def curve(self, arm: str) -> list[tuple[float, Row]]:
        """Of a PAIRING/METHOD: strength and rates on the dev questions, weakest first."""
        rates: dict[float, list[Rates]] = {}
        for seed in self.seeds:
            for one in seed["candidates"].values():
                if f"{one['pairing']}/{one['method']}" == arm and one["state"] == "measured":
                    rates.setdefault(one["strength"], []).append(one["dev"])
        return [(strength, _row(arm, found)) for strength, found in sorted(rates.items())]

    @property
    def arms(self) -> list[str]:
        return [name for name in self.seeds[0]["decided"] if not name.startswith("against ")]

    def decided(self, question: str) -> Row:
        """The test rates of what the dev questions decided on, over the seeds in which there was something."""
        chosen = [(seed, seed["decided"].get(question)) for seed in self.seeds]
        there = [(seed, name) for seed, name in chosen if name is not None]
        rates = [seed["candidates"][name]["test"] for seed, name in there]
        return _row(question, rates, tuple(name for _, name in there))

    def against(self) -> list[Against]:
        return [self._against(name) for name in TUNING_BASELINES]

    def _against(self, name: str) -> Against:
        pairs = [
            (seed["candidates"][chosen]["test"], seed["baselines"][name]["test"], chosen)
            for seed in self.seeds
            if (chosen := seed["decided"].get(f"against {name}")) is not None
        ]
        differences = {
            metric: Mean.of([merge[metric] - tuned[metric] for merge, tuned, _ in pairs]) for metric in METRICS if pairs
        }
        held = sum(dominates(merge, tuned) for merge, tuned, _ in pairs)
        return Against(name, len(self.seeds), len(pairs), held, differences, tuple(chosen for *_, chosen in pairs))

    def against_all(self) -> tuple[Row, int]:
        """What dominates every tuning baseline on the dev questions; in how many seeds it does on the test ones too."""
        row = self.decided("against all")
        held = 0
        for seed in self.seeds:
            chosen = seed["decided"].get("against all")
            if chosen is not None:
                merge = seed["candidates"][chosen]["test"]
                held += all(dominates(merge, seed["baselines"][name]["test"]) for name in TUNING_BASELINES)
        return row, held

    def document(self) -> dict[str, Any]:
        """What is worth keeping: every number of every seed but the questions' own sets."""
        return {"seeds": list(self.seeds)}


def dominates(one: Rates, other: Rates) -> bool:
    """As good on all four axes and better on one."""
    pairs = list(_losses(one, other))
    return all(mine <= theirs for mine, theirs in pairs) and any(mine < theirs for mine, theirs in pairs)


def _losses(one: Rates, other: Rates) -> Iterator[tuple[float, float]]:
    for metric in METRICS:
        sign = -1 if metric == HIGHER else 1
        yield sign * one[metric], sign * other[metric]


def _row(name: str, rates: Sequence[Rates], chosen: tuple[str, ...] = ()) -> Row:
    common = [metric for metric in rates[0] if all(metric in one for one in rates)] if rates else []
    return Row(name, len(rates), {metric: Mean.of([one[metric] for one in rates]) for metric in common}, chosen)
