"""A merge's way from a Hub and back: planned from headers, read by range, published, verified, and loaded again.

The Hub is the one that safegraft's tests bring, on this machine; it lies in the source tree alone. Uses the command
line only, so what it shows is what any user would see.
"""

import importlib
import importlib.util
import json
import os
import random
import re
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safegraft.errors import DataCorruptedError, SafegraftError
from safegraft_trainers.lab.pairings import Recipe
from safegraft_trainers.lab.pictures import Shapes
from safegraft_trainers.lab.transfer import WEIGHTS, Merged

HUB = "testhub"  # a package of the source tree's tests
REPOSITORY = "team/merged"
_SNIPPET = re.compile(r"```python\n(.*?)```", re.DOTALL)


@dataclass(frozen=True, slots=True)
class RoundTrip:
    """models: bytes of all files of the inputs. planned, received, sent: bytes over the wire, for the plan and for the
    push. weights: of those of the plan, how many were weights'. commit: what was published. verified: what
    `safegraft verify` says at last. answer: what the published model said of a picture.
    """

    models: int
    planned: int
    weights: int
    received: int
    sent: int
    commit: str
    verified: str
    answer: str


def is_possible() -> bool:
    """Whether there is a Hub to go to."""
    return importlib.util.find_spec(HUB) is not None


def go(models: Mapping[str, Path], recipe: Recipe, merged: Merged, evaluation: Path, plot: Path) -> RoundTrip:
    """Put models on a Hub, and a merge of them, whose recipe names them there; `merged` is what has to come out.

    Raises DataCorruptedError when anything else does, SafegraftError when a command fails.
    """
    testhub: Any = importlib.import_module(HUB)
    with testhub.Hub.start() as hub, tempfile.TemporaryDirectory(prefix="safegraft-demo-") as scratch:
        for name, folder in models.items():
            hub.add_model(name, folder)
        there = _There(hub, Path(scratch))
        Path(scratch, "recipe.yml").write_text(json.dumps(recipe), encoding="utf-8")  # JSON is YAML
        there.safegraft("plan", "recipe.yml", "--json")
        planned, weights = hub.bytes_sent(), _weights_read(hub)
        hub.clear_traffic()
        shown = ("--evaluation", str(evaluation.resolve()), "--plot", str(plot.resolve()))
        pushed = json.loads(there.safegraft("push", "recipe.yml", REPOSITORY, *shown, "--json"))
        received, sent = hub.bytes_sent(), sum(one.bytes_received for one in hub.traffic)
        published = hub.repository(REPOSITORY).files
        if published[WEIGHTS].sha256 != merged.sha256[WEIGHTS]:
            raise DataCorruptedError(f"the weights in {REPOSITORY} are not those that came over gRPC")
        verified = there.safegraft("verify", REPOSITORY, "--recompute").strip().splitlines()[-1]
        Shapes.drawn(random.Random(0)).picture().save(Path(scratch, "picture.png"))
        answer = there.run_snippet()
        size = sum(file.stat().st_size for folder in models.values() for file in folder.iterdir())
        return RoundTrip(size, planned, weights, received, sent, pushed["commit"], verified, answer)


class _There:
    """Commands whose Hub is this one, run in a folder of their own."""

    def __init__(self, hub: Any, folder: Path) -> None:
        self._folder = folder
        own = {"HF_HOME": str(folder / "hf"), "SAFEGRAFT_CACHE": str(folder / "cache"), "PYTHONWARNINGS": "ignore"}
        self._environment = {**os.environ, **hub.environment(), **own}

    def safegraft(self, *arguments: str) -> str:
        return self._run("-m", "safegraft", *arguments)

    def run_snippet(self) -> str:
        """What the published card says about loading the model, done as it says; returns what the model answers."""
        fetch = "import sys, huggingface_hub as hub; print(open(hub.hf_hub_download(*sys.argv[1:])).read())"
        card = self._run("-c", fetch, REPOSITORY, "README.md")
        snippet = _SNIPPET.search(card)
        if snippet is None:
            raise DataCorruptedError(f"the card of {REPOSITORY} does not say how to load it")
        return self._run("-c", snippet[1]).strip()

    def _run(self, *arguments: str) -> str:
        done = subprocess.run(
            [sys.executable, *arguments], cwd=self._folder, env=self._environment, capture_output=True, text=True
        )
        if done.returncode:
            raise SafegraftError(
                f"`{' '.join(arguments[:4])}` failed with a Hub on this machine:\n{done.stdout}{done.stderr}"
            )
        return done.stdout


def _weights_read(hub: Any) -> int:
    """Bytes beyond the headers: a header is read as its length, then itself."""
    return sum(one.bytes_sent for one in hub.traffic if one.range and WEIGHTS in one.path and not _of_header(one.range))


def _of_header(asked: str) -> bool:
    return re.fullmatch(r"bytes=[0-9]{1,2}-[0-9]+", asked) is not None
