"""Who competes: how each side is asked to do a merge, and what its run took."""

import json
import os
import shutil
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import yaml

from bench.cases import FLOOR, OURS_1, OURS_2, THEIRS, THEIRS_1, Case
from bench.measure import Figures, run
from bench.sets import Sets

ROOT = Path(__file__).parent.parent
TIMEOUT = 600.0
TRIAL_SIZE = "tiny"

# What users have set for their own server is not for these runs, and none of them needs the network.
_OFFLINE = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
ENVIRONMENT = {name: value for name, value in os.environ.items() if not name.startswith("SAFEGRAFT_")} | _OFFLINE


@dataclass(frozen=True, slots=True)
class _Side:
    """tool: of bench.drive; options: for its command."""

    tool: str
    options: tuple[str, ...]


_SIDES: Mapping[str, _Side] = {
    OURS_1: _Side("safegraft", ("--threads", "1")),
    OURS_2: _Side("safegraft", ("--threads", "2")),
    THEIRS: _Side("mergekit", ()),
    THEIRS_1: _Side("mergekit", ("-j", "1")),
}


class Arena:
    """A scratch folder in which one merge runs at a time."""

    def __init__(self, scratch: Path, sets: Sets) -> None:
        self._sets = sets
        self._scratch = scratch
        shutil.rmtree(scratch, ignore_errors=True)
        scratch.mkdir(parents=True)

    def warm(self, case: Case) -> None:
        """Have the inputs in memory, as far as they fit."""
        for name in case.folders:
            for file in self._folder(case, name).iterdir():
                with file.open("rb", buffering=0) as source:
                    buffer = bytearray(1 << 20)
                    while source.readinto(buffer):
                        pass

    def measure(self, case: Case, side: str) -> dict[str, float]:
        """One run of one side, from nothing to a complete folder that is removed again. Raises CommandFailedError."""
        if side == FLOOR:
            return {f"whole_{name}": value for name, value in asdict(self._run(self._floor(case))).items()}
        self._try_once(case, _SIDES[side])
        return self._merge(case, side)

    def _merge(self, case: Case, side: str) -> dict[str, float]:
        whole = self._run(self._command(case, _SIDES[side]))
        merge = json.loads(self._figures.read_text())
        return {f"whole_{name}": value for name, value in asdict(whole).items()} | {
            f"merge_{name}": value for name, value in merge.items()
        }

    def _try_once(self, case: Case, side: _Side) -> None:
        """Merge next to nothing: machine code gets compiled and kept, and it shows what a merge imports."""
        if not self._modules(case, side).exists():
            trial = Case(case.method, TRIAL_SIZE, case.models, {}, case.base)
            self._run(self._command(trial, side))

    def _run(self, command: list[str]) -> Figures:
        out = self._scratch / "out"
        os.sync()  # what earlier runs have left in memory is not this one's
        self._figures.unlink(missing_ok=True)
        try:
            return run(command, log=self._scratch / "log", cwd=ROOT, environment=ENVIRONMENT, timeout=TIMEOUT)
        finally:
            shutil.rmtree(out, ignore_errors=True)

    def _command(self, case: Case, side: _Side) -> list[str]:
        recipe = self._scratch / "recipe.yml"
        recipe.write_text(yaml.safe_dump(case.recipe({name: str(self._folder(case, name)) for name in case.folders})))
        out = str(self._scratch / "out")
        driver = [
            sys.executable,
            "-m",
            "bench.drive",
            side.tool,
            str(self._figures),
            str(self._modules(case, side)),
            "--",
        ]
        if side.tool == "safegraft":
            return [*driver, "merge", str(recipe), "--out", out, *side.options]
        return [*driver, str(recipe), out, *side.options]

    def _floor(self, case: Case) -> list[str]:
        """What no merge can do without: read every input, write a folder of the result's size."""
        inputs = [str(file) for name in case.folders for file in sorted(self._folder(case, name).iterdir())]
        script = 'out=$1 host=$2; shift 2; cat "$@" > /dev/null && cp -r --reflink=never "$host" "$out"'
        return ["sh", "-c", script, "floor", str(self._scratch / "out"), str(self._folder(case, case.host)), *inputs]

    def _folder(self, case: Case, name: str) -> Path:
        return self._sets.model(case.size, name)

    @property
    def _figures(self) -> Path:
        return self._scratch / "figures.json"

    def _modules(self, case: Case, side: _Side) -> Path:
        """Of merges like this one, whatever the size. mergekit compiles nothing, and always imports the same."""
        kind = f"{case.method}-{len(case.models)}-{case.host}" if side.tool == "safegraft" else "any"
        return self._scratch / f"modules-{side.tool}-{kind}.json"
