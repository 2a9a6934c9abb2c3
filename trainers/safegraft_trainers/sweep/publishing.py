"""The best merge of a sweep, written to a folder and published with what was measured: what `merge` and `push` do.

A merge that breaks a constraint on held-out prompts is not published: that is what they were held out for.
"""

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import safegraft
from safegraft.api import registry
from safegraft.errors import UsageError
from safegraft.hub.evaluation import read_document
from safegraft.hub.journal import default_folder
from safegraft.hub.publication import Destination
from safegraft.hub.publishing import publish as push
from safegraft.hub.publishing import require_place
from safegraft.hub.results import FolderResult
from safegraft.recipe import read_recipe
from safegraft.remote.access import HubAccess
from safegraft.sources import publish
from safegraft_trainers.evaluate.plots import trade_off
from safegraft_trainers.evaluate.results import Evaluation, document_of
from safegraft_trainers.sweep.report import BEST, RECIPE
from safegraft_trainers.sweep.result import CandidateResult, SweepResult

if TYPE_CHECKING:
    from safegraft import Client

MERGED = "merged"


def check_destination(destination: str) -> None:
    """Raise UsageError for a destination that nobody here takes, OutputError for one on the Hub that cannot be
    published to: better now than after the sweep."""
    name, colon, _ = destination.partition(":")
    if not colon:
        require_place(Destination(destination), HubAccess())
        return
    known = registry().publishers
    if known.get(name) is None:
        message = f"{destination} names no publisher that is installed; {registry().suggest(name, known)}"
        raise UsageError(f"--publish-best: {message}. Write NAME:DESTINATION, or ORG/NAME for the Hub")


def publish_best(result: SweepResult, out: Path, destination: str, client: "Client | None" = None) -> str:
    """Merge the best candidate into `out`/best/merged and publish it; returns where it can be found.

    destination: PUBLISHER:REST of a plugin, or ORG/NAME on the Hub, where a new repository is private.

    Raises UsageError when nothing may be published, and what merging and publishing raise.
    """
    best = _publishable(result, out)
    folder = out / BEST / MERGED
    if client is None:
        safegraft.merge(best.candidate.recipe, out=folder)
    else:
        client.merge(read_recipe(best.candidate.recipe, folder_exists=lambda _: True), folder)
    if ":" in destination:
        return publish(folder, destination, registry())
    measured = [] if best.test is None else [best.test, *(one.test for one in result.baselines)]
    return _to_hub(folder, destination, measured)


def _to_hub(folder: Path, repository: str, measured: Sequence[Evaluation]) -> str:
    """measured: the merge on held-out prompts, then the baselines."""
    notes = default_folder()
    with FolderResult(folder) as merged:
        published = push(
            merged,
            Destination(repository),
            HubAccess(),
            evaluation=read_document(document_of(measured)) if measured else None,
            unevaluated=not measured,
            plot=_plot(measured) if measured else None,
            scratch=notes,
            journal=notes,
        )
    return published.url


def _plot(measured: Sequence[Evaluation]) -> bytes | None:
    with tempfile.TemporaryDirectory(prefix="safegraft-") as folder:
        path = Path(folder, "trade-off.png")
        try:
            trade_off(measured, path)
            return path.read_bytes()
        except UsageError:  # there is no trade-off among these
            return None


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
