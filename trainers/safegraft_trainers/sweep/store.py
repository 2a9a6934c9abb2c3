"""Evaluations on disk, one file for each plan and split, so that a sweep that was stopped goes on where it was.

A file tells what it was measured with. Of another setup (other prompts, judges, settings) it is measured again.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safegraft_trainers.evaluate.example import Suite
from safegraft_trainers.evaluate.judges import Judge
from safegraft_trainers.evaluate.results import Evaluation, write_whole
from safegraft_trainers.sweep.parts import Generation

FORMAT = "safegraft-sweep-measurement/1"


@dataclass(frozen=True, slots=True)
class Measurement:
    """pruned: why the evaluation was stopped before its last suite; "" when it is whole. warnings: the plan's."""

    digest: str
    evaluation: Evaluation
    pruned: str = ""
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Store:
    """folder: None keeps nothing."""

    folder: Path | None

    def read(self, split: str, digest: str, setup: str) -> Measurement | None:
        """None when it was not measured, or differently, or the file is damaged."""
        if self.folder is None:
            return None
        try:
            document: Any = json.loads(self._path(self.folder, split, digest).read_text(encoding="utf-8"))
            if [document["format"], document["setup"], document["digest"]] != [FORMAT, setup, digest]:
                return None
            evaluation = Evaluation.from_dict(document["evaluation"])
            return Measurement(digest, evaluation, document["pruned"], tuple(document["warnings"]))
        except (OSError, ValueError, KeyError, TypeError, IndexError):
            return None

    def write(self, split: str, measurement: Measurement, setup: str) -> None:
        """Raises OutputError."""
        if self.folder is None:
            return
        document = {
            "format": FORMAT,
            "setup": setup,
            "digest": measurement.digest,
            "pruned": measurement.pruned,
            "warnings": list(measurement.warnings),
            "evaluation": measurement.evaluation.to_dict(),
        }
        content = json.dumps(document, ensure_ascii=False, allow_nan=False) + "\n"
        write_whole(self._path(self.folder, split, measurement.digest), content)

    @staticmethod
    def _path(folder: Path, split: str, digest: str) -> Path:
        return folder / split / f"{digest}.json"


def setup_of(suites: Sequence[Suite], judges: Sequence[Judge], generation: Generation, seed: int) -> str:
    """What an evaluation depends on beside the model: sha256 in hex. `threads` changes no answer."""
    content = [
        [[suite.name, suite.digest] for suite in suites],
        [[judge.name, judge.digest] for judge in judges],
        generation.model_dump(exclude={"threads"}),
        seed,
    ]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()
