"""`safegraft merge`: a recipe becomes a folder, computed here or on a server."""

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import click
from click.core import ParameterSource

from safegraft.cli.interrupt import CONTINUE, interruptible
from safegraft.cli.options import (
    device_option,
    hub_cache_option,
    hub_credential_option,
    json_option,
    max_shard_size_option,
    optional_remote_options,
    recipe_argument,
    verify_inputs_option,
)
from safegraft.cli.outcome import Outcome, pulled
from safegraft.cli.progress import meter
from safegraft.cli.remote import connect, continuing, require_no_reading_options, require_no_server_options
from safegraft.cli.terminal import note
from safegraft.cli.unverified import note_unverified
from safegraft.cli.upload import Uploads, upload_models
from safegraft.errors import UsageError

if TYPE_CHECKING:
    from safegraft.recipe import Recipe
    from safegraft.rpc.client import Client


@click.command()
@recipe_argument
@click.option(
    "--out",
    metavar="DIR",
    required=True,
    type=click.Path(path_type=Path),
    help="The folder to write. It appears when it is complete; until then, work lies beside it.",
)
@click.option(
    "--threads",
    metavar="N",
    type=click.IntRange(min=1),
    help="Threads to compute with; changes no byte. Default: one a core.",
)
@device_option
@max_shard_size_option
@hub_cache_option
@verify_inputs_option
@click.option(
    "--rank",
    metavar="N",
    type=click.IntRange(min=1),
    help="When all models are adapters: the most that a module's rank may be. Default: all their ranks together.",
)
@click.option(
    "--upload",
    is_flag=True,
    help="With --server: send the local folders that the recipe names to the server first.",
)
@hub_credential_option
@json_option
@optional_remote_options
def merge(
    recipe: Path,
    out: Path,
    threads: int | None,
    device: str,
    max_shard_size: int,
    hub_cache: bool,
    verify_inputs: bool,
    rank: int | None,
    upload: bool,
    hub_credential: str | None,
    as_json: bool,
    server: str | None,
    token_file: Path | None,
    ca: Path | None,
) -> None:
    """Merge models into a folder, here or on a server.

    Paths in the recipe start at the current folder. With --server they name models on the server, unless
    --upload sends them there; the server keeps its copy of the result until `safegraft rm`. An interrupted
    merge continues when the same command runs again.

    \b
    Examples:
      safegraft merge recipe.yml --out merged
      safegraft merge recipe.yml --out merged --max-shard-size 2GB --threads 8
      safegraft merge recipe.yml --out merged --server merge.example:50051 --token-file token
      safegraft merge recipe.yml --out merged --server merge.example:50051 --upload
    """
    if server is None:
        require_no_server_options(upload=upload, token_file=token_file, hub_credential=hub_credential)
        outcome = _merge_here(recipe, out, threads, device, max_shard_size, hub_cache or None, verify_inputs, rank)
    else:
        require_no_reading_options(hub_cache=hub_cache, verify_inputs=verify_inputs)
        if device != "cpu":
            raise UsageError("--device is for merges here: a server computes where `safegraft serve --device` says")
        if rank:
            raise UsageError("--rank is for adapters, which are merged here: leave --server away")
        if upload:
            _require_models(recipe)
        with connect(server, token_file, ca) as client:
            outcome = _merge_there(client, recipe, out, threads, max_shard_size, upload, hub_credential)
    outcome.show(as_json)


def _merge_here(
    path: Path,
    out: Path,
    threads: int | None,
    device: str,
    max_shard_size: int,
    hub_cache: bool | None,
    verify_inputs: bool,
    rank: int | None,
) -> Outcome:
    import safegraft
    from safegraft.api import is_adapter_recipe
    from safegraft.engine.folder import write_folder

    recipe = safegraft.Recipe.load(path)
    if is_adapter_recipe(recipe):
        if click.get_current_context().get_parameter_source("max_shard_size") is not ParameterSource.DEFAULT:
            raise UsageError("--max-shard-size is for models: an adapter has one file of weights")
        if device != "cpu":
            raise UsageError("--device is for models: adapters alone are merged on the cpu")
        return _merge_adapters(recipe, out, threads, hub_cache, rank)
    if rank:
        raise UsageError("--rank is for recipes whose models are all adapters")
    planned = safegraft.plan(recipe, max_shard_size=max_shard_size, hub_cache=hub_cache)
    try:
        for warning in (*planned.warnings, *planned.remarks):
            note(f"warning: {warning}")
        with interruptible() as interrupt, meter("merging") as show:
            result = write_folder(
                planned,
                out,
                threads=threads,
                device=device,
                verify_inputs=verify_inputs,
                progress=lambda progress: show(progress.bytes_done, progress.bytes_total, progress.file),
                cancelled=interrupt.requested,
            )
        if result.bytes_written:
            note_unverified(planned.checkpoints.values())
    except safegraft.MergeCancelledError as error:
        raise safegraft.MergeCancelledError(f"stopped; {CONTINUE}") from error
    finally:
        planned.close()
    files = {name: (file.size, file.sha256) for name, file in result.files.items()}
    return Outcome(
        result.out,
        result.digest,
        files,
        result.bytes_written,
        result.seconds,
        result.resumed,
        (*planned.warnings, *planned.remarks),
    )


def _merge_adapters(
    recipe: "Recipe", out: Path, threads: int | None, hub_cache: bool | None, rank: int | None
) -> Outcome:
    from safegraft.adapter.merge import merge_adapters
    from safegraft.api import registry
    from safegraft.local import open_adapter

    with interruptible() as interrupt, meter("merging") as show:
        merged = merge_adapters(
            recipe,
            partial(open_adapter, cache=hub_cache),
            registry(),
            out,
            rank=rank,
            threads=threads,
            progress=show,
            cancelled=interrupt.requested,
        )
    for text in merged.notes:
        note(f"warning: {text}")
    result = merged.result
    files = {name: (file.size, file.sha256) for name, file in result.files.items()}
    return Outcome(result.out, result.digest, files, result.bytes_written, result.seconds, result.resumed, merged.notes)


def _require_models(path: Path) -> None:
    """Adapters alone are not worth an upload: no server merges them."""
    import safegraft
    from safegraft.api import is_adapter_recipe

    if is_adapter_recipe(safegraft.Recipe.load(path)):
        raise UsageError("adapters are merged on your own machine: leave --server and --upload away")


def _merge_there(
    client: "Client",
    path: Path,
    out: Path,
    threads: int | None,
    max_shard_size: int,
    upload: bool,
    hub_credential: str | None,
) -> Outcome:
    from safegraft.recipe import read_recipe

    recipe = read_recipe(path, folder_exists=lambda _: True)  # the names are the server's
    uploads = Uploads()
    if upload:
        with continuing():
            uploads, recipe = upload_models(client, recipe)
    with uploads.named_as_here(), continuing("the server goes on with the merge; "), meter("merging") as show:
        result = client.merge(
            recipe,
            out,
            lambda progress: show(progress.bytes_done, progress.bytes_total, progress.file),
            max_shard_size=max_shard_size,
            threads=threads,
            hub_credential=hub_credential,
        )
    return pulled(result, uploads.named(result.warnings))
