"""`safegraft push`: a result goes to the Hugging Face Hub, or to a publisher that a plugin brings."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click
from click.core import ParameterSource

from safegraft.cli.interrupt import CONTINUE, interruptible
from safegraft.cli.options import (
    bare_id,
    device_option,
    hub_cache_option,
    json_option,
    optional_remote_options,
    size,
    verify_inputs_option,
)
from safegraft.cli.progress import meter
from safegraft.cli.published import show_preview, show_publication
from safegraft.cli.remote import require_no_server_options
from safegraft.cli.terminal import note, say, say_json
from safegraft.cli.unverified import note_unverified
from safegraft.errors import InputError, MergeCancelledError, Problem, UsageError

if TYPE_CHECKING:
    from safegraft.hub.evaluation import EvaluationDocument
    from safegraft.hub.publication import Destination
    from safegraft.hub.results import Result

_NOTHING = (
    "there is neither a folder nor a recipe of this name; a merge on a server goes by its ID, together with "
    "--server HOST:PORT"
)
_FOR_PUBLISHERS = {"source", "destination", "as_json"}
_FOR_RECIPES = {
    "threads": "--threads",
    "device": "--device",
    "hub_cache": "--hub-cache",
    "verify_inputs": "--verify-inputs",
    "max_shard_size": "--max-shard-size",
    "scratch": "--scratch",
}


@click.command()
@click.argument("source", metavar="DIR|RECIPE.yml|ID", type=click.Path(path_type=Path))
@click.argument("destination", metavar="ORG/NAME")
@click.option(
    "--private/--public",
    default=True,
    show_default=True,
    help="Who sees a new repository. To publish in one that is public, say --public; none is ever changed.",
)
@click.option("--revision", metavar="BRANCH", help="The branch, made when it is not there. Default: main.")
@click.option("--pull-request", is_flag=True, help="Propose it to main instead of committing to a branch.")
@click.option("--tag", "tags", metavar="T", multiple=True, help="Tag the commit; several may be given.")
@click.option("--message", metavar="TEXT", help="The commit's title. Default: what was merged.")
@click.option("--replace", is_flag=True, help="Take the place of a model that safegraft did not publish.")
@click.option(
    "--evaluation",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="Results of `safegraft evaluate` of this model, for the card: results.json, or the folder that holds it.",
)
@click.option(
    "--plot", metavar="PNG", type=click.Path(path_type=Path), help="With --evaluation: the trade-off, for the card."
)
@click.option("--unevaluated", is_flag=True, help="Publish without an evaluation. The card warns of it.")
@click.option("--threads", metavar="N", type=click.IntRange(min=1), help="Of a recipe. Default: one a core.")
@device_option
@hub_cache_option
@verify_inputs_option
@click.option(
    "--max-shard-size",
    metavar="S",
    type=size,
    default="2GB",
    show_default=True,
    help="Of a recipe: no weights file is larger, unless a single tensor is. Two of them at most lie on disk at once.",
)
@click.option(
    "--scratch",
    metavar="DIR",
    type=click.Path(path_type=Path, file_okay=False),
    help="Of a recipe: where shards lie until they are sent. Default: ~/.cache/safegraft/publishing.",
)
@click.option("--dry-run", is_flag=True, help="Say what would happen, and change nothing.")
@click.option(
    "--hub-credential",
    metavar="NAME",
    help="With --server: the server's credential to publish with. Default: your own token, which it does not keep.",
)
@json_option
@optional_remote_options
@click.pass_context
def push(
    context: click.Context,
    source: Path,
    destination: str,
    private: bool,
    revision: str | None,
    pull_request: bool,
    tags: tuple[str, ...],
    message: str | None,
    replace: bool,
    evaluation: Path | None,
    plot: Path | None,
    unevaluated: bool,
    threads: int | None,
    device: str,
    hub_cache: bool,
    verify_inputs: bool,
    max_shard_size: int,
    scratch: Path | None,
    dry_run: bool,
    hub_credential: str | None,
    as_json: bool,
    server: str | None,
    token_file: Path | None,
    ca: Path | None,
) -> None:
    """Publish a merge to the Hugging Face Hub: a merged folder, a recipe, or with --server the ID of a merge there.

    Of a recipe each shard is computed, sent and dropped: the model is never on disk as a whole. All files become
    visible at once, in one commit; an interrupted push continues when the same command runs again. The token is
    that of `hf auth login`, or HF_TOKEN; another Hub is named by HF_ENDPOINT.

    A merge should be evaluated before others use it: give --evaluation, or say --unevaluated.

    A destination PUBLISHER:REST goes to a publisher that a plugin brings, with a merged folder and no options.

    \b
    Examples:
      safegraft push merged org/my-merge --evaluation results.json
      safegraft push recipe.yml org/my-merge --public --unevaluated --tag v1
      safegraft push 4f1c09a2b3d4e5f6 org/my-merge --server merge.example:50051 --hub-credential team --unevaluated
      safegraft push merged zoo:team/my-merge      with a plugin that brings the publisher zoo
    """
    destination = _named(destination)
    if ":" in destination:
        _require_plain(context)
        _publish_elsewhere(source, destination, as_json)
        return
    from safegraft.hub.publication import Destination

    evaluation = _results(evaluation)
    asked = Destination(destination, private, revision, pull_request, tags, message, replace)
    asked.check()
    if server is not None:
        from safegraft.cli.push_there import push_there

        _require_options_for_servers(context)
        if source.exists():
            raise UsageError(f"{source} is here, and --server publishes merges there: merge it there, and give its ID")
        push_there(
            bare_id(str(source)),
            asked,
            server=server,
            token_file=token_file,
            ca=ca,
            credential=hub_credential,
            evaluation=evaluation,
            plot=plot,
            unevaluated=unevaluated,
            as_json=as_json,
        )
        return
    require_no_server_options(hub_credential=hub_credential, token_file=token_file)
    if not source.exists():
        raise InputError(Problem(str(source), _NOTHING))
    from safegraft.hub.edition import EVALUATE_FIRST

    card = _Card.read(evaluation, plot, unevaluated)
    if source.is_dir():
        _require_no_recipe_options(context)
    elif evaluation is None and not unevaluated:
        raise UsageError(EVALUATE_FIRST)  # before anything is planned
    how = _How(threads, device, hub_cache or None, verify_inputs, max_shard_size)
    with _opened(source, how) as result:
        if dry_run:
            _preview(result, asked, card, as_json)
        else:
            _publish(result, asked, card, scratch, as_json)


def _results(evaluation: Path | None) -> Path | None:
    """The file in the folder that `safegraft evaluate` has written, too."""
    from safegraft.hub.evaluation import RESULTS

    return evaluation / RESULTS if evaluation is not None and evaluation.is_dir() else evaluation


def _named(destination: str) -> str:
    """What a repository's page is called, too."""
    from safegraft.hub.markdown import HUB
    from safegraft.remote.access import HubAccess

    if "://" not in destination:
        return destination
    return destination.removeprefix(f"{HubAccess().url}/").removeprefix(f"{HUB}/")


# -- to a publisher of a plugin -----------------------------------------------------------------


def _require_plain(context: click.Context) -> None:
    given = [name for name in context.params if context.get_parameter_source(name) is ParameterSource.COMMANDLINE]
    others = sorted(set(given) - _FOR_PUBLISHERS)
    if others:
        options = ", ".join(f"--{'tag' if name == 'tags' else name.replace('_', '-')}" for name in others)
        raise UsageError(f"{options}: for the Hub (ORG/NAME); publishers of plugins take none of these")


def _publish_elsewhere(folder: Path, destination: str, as_json: bool) -> None:
    from safegraft.methods import Registry
    from safegraft.sources import publish

    place = publish(folder, destination, Registry.discover())
    if as_json:
        say_json({"folder": str(folder), "destination": destination, "published": place})
    else:
        say(f"published: {place}")


# -- to the Hub ---------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Card:
    """What the card is to say of an evaluation."""

    evaluation: "EvaluationDocument | None"
    digest: str | None
    plot: bytes | None
    unevaluated: bool

    @classmethod
    def read(cls, evaluation: Path | None, plot: Path | None, unevaluated: bool) -> "_Card":
        """Raises InputError."""
        import hashlib

        from safegraft.hub.edition import require_sense
        from safegraft.hub.evaluation import read_evaluation

        try:
            picture = plot.read_bytes() if plot else None
            if evaluation is None:
                require_sense(None, unevaluated, picture)
                return cls(None, None, picture, unevaluated)
            document = read_evaluation(evaluation)
            require_sense(document, unevaluated, picture)
            with evaluation.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as error:
            raise InputError(Problem(str(error.filename), f"cannot be read: {error.strerror}")) from error
        return cls(document, digest, picture, unevaluated)


def _require_no_recipe_options(context: click.Context) -> None:
    for name, option in _FOR_RECIPES.items():
        if context.get_parameter_source(name) is not ParameterSource.DEFAULT:
            raise UsageError(f"{option} is for recipes: the folder is merged already")


def _require_options_for_servers(context: click.Context) -> None:
    for name, option in {**_FOR_RECIPES, "dry_run": "--dry-run"}.items():
        if context.get_parameter_source(name) is not ParameterSource.DEFAULT:
            raise UsageError(f"{option} is for publishing from here: leave it or --server away")


@dataclass(frozen=True, slots=True)
class _How:
    """How a recipe is read and computed."""

    threads: int | None
    device: str
    hub_cache: bool | None
    verify_inputs: bool
    max_shard_size: int


def _opened(source: Path, how: _How) -> "Result":
    """The result that a folder holds or a recipe gives."""
    from safegraft.hub.results import FolderResult

    return FolderResult(source) if source.is_dir() else _planned(source, how)


def _planned(recipe_file: Path, how: _How) -> "Result":
    import safegraft
    from safegraft.api import is_adapter_recipe
    from safegraft.hub.results import PlannedResult

    recipe = safegraft.Recipe.load(recipe_file)
    if is_adapter_recipe(recipe):
        raise UsageError(
            "adapters are merged into a folder first: `safegraft merge RECIPE.yml --out DIR`, then push DIR"
        )
    plan = safegraft.plan(recipe, max_shard_size=how.max_shard_size, hub_cache=how.hub_cache)
    for warning in (*plan.warnings, *plan.remarks):
        note(f"warning: {warning}")
    return PlannedResult(plan, threads=how.threads, device=how.device, verify_inputs=how.verify_inputs, owns_plan=True)


def _publish(result: "Result", destination: "Destination", card: _Card, scratch: Path | None, as_json: bool) -> None:
    from safegraft.hub.journal import default_folder
    from safegraft.hub.publishing import publish
    from safegraft.hub.results import PlannedResult
    from safegraft.remote.access import HubAccess

    folder = default_folder()
    try:
        with interruptible() as interrupt, meter("publishing") as show:
            publication = publish(
                result,
                destination,
                HubAccess(),
                evaluation=card.evaluation,
                unevaluated=card.unevaluated,
                plot=card.plot,
                evaluation_digest=card.digest,
                scratch=scratch or folder,
                journal=folder,
                progress=show,
                cancelled=interrupt.requested,
            )
    except MergeCancelledError as error:
        raise MergeCancelledError(f"stopped; nothing of it is visible yet; {CONTINUE}") from error
    if isinstance(result, PlannedResult) and publication.bytes_uploaded:
        note_unverified(result.plan.checkpoints.values())
    show_publication(publication, asked_public=not destination.private, as_json=as_json)


def _preview(result: "Result", destination: "Destination", card: _Card, as_json: bool) -> None:
    from safegraft.hub.publishing import preview
    from safegraft.remote.access import HubAccess

    with interruptible() as interrupt:
        found = preview(
            result,
            destination,
            HubAccess(),
            evaluation=card.evaluation,
            unevaluated=card.unevaluated,
            plot=card.plot,
            evaluation_digest=card.digest,
            cancelled=interrupt.requested,
        )
    show_preview(found, as_json=as_json)
