"""The checkpoints that come with the package, and the test questions of their world.

Seed 0 of the lab in bf16 (see export.py and checkpoints/README.md): the demo starts from them, examples use them.
"""

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from safegraft_trainers.lab.stages import BASE, TOWER, mark_complete

if TYPE_CHECKING:
    from safegraft_trainers.evaluate.example import Suite

CHECKPOINTS = Path(__file__).parent / "checkpoints"
QUESTIONS = CHECKPOINTS / "questions" / "test.jsonl"
SEED = 0


def questions() -> "Suite":
    """60 in each of eight sets."""
    from safegraft_trainers.evaluate.suites import load_suite

    return load_suite(f"safegraft={QUESTIONS}")


def lay_out(checkpoints: Path) -> None:
    """Put the two that take longest to train where `stages.make` looks for them."""
    for name in (BASE, TOWER):
        shutil.copytree(CHECKPOINTS / name, checkpoints / name)
        mark_complete(checkpoints / name)
