"""The best merge of a sweep, written to a folder and handed to a publisher: what `merge` and `push` do.

A merge that breaks a constraint on held-out prompts is not published: that is what they were held out for.
"""

from pathlib import Path
from typing import TYPE_CHECKING

import safegraft
from safegraft.api import registry
from safegraft.errors import UsageError
from safegraft.recipe import read_recipe
from safegraft.sources import publish
from safegraft_trainers.sweep.report import BEST, RECIPE
from safegraft_trainers.sweep.result import CandidateResult, SweepResult

if TYPE_CHECKING:
    from safegraft import Client

MERGED = "merged"


def check_destination(destination: str) -> None:
    """Raise UsageError for a destination that no publisher here takes: better now than after the sweep."""
    name, colon, _ = destination.partition(":")
    known = registry().publishers
    if not colon or known.get(name) is None:
        message = f"{destination} names no publisher that is installed; {registry().suggest(name, known)}"
        raise UsageError(f"--publish-best: {message}. Write NAME:DESTINATION")


def publish_best(result: SweepResult, out: Path, destination: str, client: "Client | None" = None) -> str:
    """Merge the best candidate into `out`/best/merged and publish it; returns where it can be found.

    Raises UsageError when nothing may be published, and what merging and publishing raise.
    """
    best = _publishable(result, out)
    folder = out / BEST / MERGED
    if client is None:
        safegraft.merge(best.candidate.recipe, out=folder)
    else:
        client.merge(read_recipe(best.candidate.recipe, folder_exists=lambda _: True), folder)
    return publish(folder, destination, registry())


def _publishable(result: SweepResult, out: Path) -> CandidateResult:
    best = result.best
    if best is None:
        raise UsageError("nothing was published: no candidate meets the constraints")
    broken = [text for text, excess in best.test_excesses.items() if excess > 0]
    if broken:
        raise UsageError(
            f"nothing was published: on held-out prompts {best.name} does not meet {' and '.join(broken)}; "
            f"to publish it all the same, merge {out / BEST / RECIPE} and push it"
        )
    return best
