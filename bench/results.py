"""What was measured: lines of JSON that are on disk as soon as they are known, and what many of them come to."""

import fnmatch
import json
import os
import platform
import re
import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

RUNS = "runs.jsonl"
PACKAGES = ("safegraft", "mergekit", "torch", "numpy", "numba", "transformers", "grpcio")


def facts(profile: str) -> dict[str, Any]:
    """The machine and the software, without what would name either's owner."""
    found = re.search(r"^model name\s*: (.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "profile": profile,
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "cpu": found[1] if found else platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gb": round(memory / 1e9),
        "python": platform.python_version(),
        "packages": {name: version(name) for name in PACKAGES},
    }


class Recorder:
    """Writes a new file of runs in a folder; what an earlier run has left there is gone."""

    def __init__(self, folder: Path, profile: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._file = folder / RUNS
        self._file.write_text(json.dumps(facts(profile)) + "\n")

    def add(self, case: str, side: str, figures: Mapping[str, float]) -> None:
        with self._file.open("a") as file:
            file.write(json.dumps({"case": case, "side": side, **figures}) + "\n")


@dataclass(frozen=True, slots=True)
class Spread:
    """Of one figure over all rounds."""

    median: float
    least: float
    most: float


class Results:
    """One run's figures by case, side and name."""

    def __init__(self, folder: Path) -> None:
        first, *lines = (folder / RUNS).read_text().splitlines()
        self.facts: dict[str, Any] = json.loads(first)
        self._values: dict[tuple[str, str, str], list[float]] = {}
        for line in lines:
            run = json.loads(line)
            case, side = run.pop("case"), run.pop("side")
            for figure, value in run.items():
                self._values.setdefault((case, side, figure), []).append(value)

    def of(self, case: str, side: str, figure: str) -> Spread | None:
        """None when it was not measured."""
        values = self._values.get((case, side, figure))
        return Spread(statistics.median(values), min(values), max(values)) if values else None

    def median(self, case: str, side: str, figure: str) -> float | None:
        spread = self.of(case, side, figure)
        return spread.median if spread else None

    def best(self, case: str, sides: tuple[str, ...], figure: str) -> float | None:
        """The least median of several sides."""
        medians = [median for side in sides if (median := self.median(case, side, figure)) is not None]
        return min(medians, default=None)

    def ratio(
        self, case: str, over: tuple[str, ...], under: tuple[str, ...], over_figure: str, under_figure: str
    ) -> float | None:
        """Best median over best median."""
        numerator, denominator = self.best(case, over, over_figure), self.best(case, under, under_figure)
        return None if numerator is None or not denominator else numerator / denominator

    def cases(self, pattern: str = "*") -> list[str]:
        """In the order in which they were measured."""
        names = dict.fromkeys(case for case, _, _ in self._values)
        return [name for name in names if fnmatch.fnmatchcase(name, pattern)]

    def rounds(self, case: str, side: str) -> int:
        counts = (len(values) for (one, other, _), values in self._values.items() if (one, other) == (case, side))
        return max(counts, default=0)

    def to_dict(self) -> dict[str, Any]:
        """Facts, and median, least and most of every figure."""
        figures: dict[str, Any] = {}
        for (case, side, figure), values in self._values.items():
            spread = {"median": statistics.median(values), "min": min(values), "max": max(values), "runs": len(values)}
            figures.setdefault(case, {}).setdefault(side, {})[figure] = spread
        return {"facts": self.facts, "figures": figures}
