"""How long a user waits for nothing: import, help, and plans of models of which there are only headers."""

import re
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import yaml

from bench.measure import Figures, run
from bench.sets import LVLM, Sets
from bench.sides import ENVIRONMENT, ROOT

HEAVY = ("torch", "transformers", "mergekit", "numba", "scipy", "grpc")
_IMPORTED = re.compile(r"^import time:[^|]*\|[^|]*\|\s*(\S+)$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Start:
    """A command that should be over at once. module: what `python -m` runs, or "" for code."""

    side: str
    arguments: tuple[str, ...]
    log: Path

    def measure(self) -> dict[str, float]:
        return {f"whole_{name}": value for name, value in asdict(self._run([])).items()}

    def heavy_imports(self) -> dict[str, float]:
        """1 for each heavy package that was imported, 0 for the others."""
        self._run(["-X", "importtime"])
        packages = {name.partition(".")[0] for name in _IMPORTED.findall(self.log.read_text())}
        return {f"imports_{name}": float(name in packages) for name in HEAVY}

    def _run(self, options: Sequence[str]) -> Figures:
        command = [sys.executable, *options, *self.arguments]
        return run(command, log=self.log, cwd=ROOT, environment=ENVIRONMENT)


def commands(sets: Sets, headers: Sequence[str], scratch: Path) -> dict[str, Start]:
    """By name. headers: sizes of which a plan is made, LLM x LVLM."""
    scratch.mkdir(parents=True, exist_ok=True)
    log = scratch / "log"
    bin = Path(sys.executable).parent
    found = {
        "start/import": Start("safegraft", ("-c", "import safegraft"), log),
        "start/help": Start("safegraft", (str(bin / "safegraft"), "--help"), log),
        "start/mergekit-yaml help": Start("mergekit", (str(bin / "mergekit-yaml"), "--help"), log),
    }
    for size in headers:
        recipe = scratch / f"{size}.yml"
        models = [str(sets.headers(size, name)) for name in ("model-1", LVLM)]
        asked = [{"model": model, "parameters": {"weight": 0.5}} for model in models]
        recipe.write_text(yaml.safe_dump({"merge_method": "linear", "models": asked}))
        found[f"start/plan {size}"] = Start("safegraft", (str(bin / "safegraft"), "plan", str(recipe)), log)
    return found
