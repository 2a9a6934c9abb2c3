"""`safegraft merge`: a recipe becomes a folder, computed here or on a server."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from safegraft.cli.interrupt import CONTINUE, interruptible
from safegraft.cli.options import json_option, max_shard_size_option, optional_remote_options, recipe_argument
from safegraft.cli.outcome import Outcome, pulled
from safegraft.cli.progress import meter
from safegraft.cli.remote import connect, continuing
from safegraft.cli.terminal import note
from safegraft.cli.upload import Uploads, upload_models
from safegraft.errors import UsageError

if TYPE_CHECKING:
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
@max_shard_size_option
@click.option(
    "--upload",
    is_flag=True,
    help="With --server: send the local folders that the recipe names to the server first.",
)
@json_option
@optional_remote_options
def merge(
    recipe: Path,
    out: Path,
    threads: int | None,
    max_shard_size: int,
    upload: bool,
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
        if upload or token_file:
            raise UsageError(f"{'--upload' if upload else '--token-file'} is for a server: add --server HOST:PORT")
        outcome = _merge_here(recipe, out, threads, max_shard_size)
    else:
        with connect(server, token_file, ca) as client:
            outcome = _merge_there(client, recipe, out, threads, max_shard_size, upload)
    outcome.show(as_json)


def _merge_here(recipe: Path, out: Path, threads: int | None, max_shard_size: int) -> Outcome:
    import safegraft
    from safegraft.engine.folder import write_folder

    planned = safegraft.plan(recipe, max_shard_size=max_shard_size)
    try:
        for warning in planned.warnings:
            note(f"warning: {warning}")
        with interruptible() as interrupt, meter("merging") as show:
            result = write_folder(
                planned,
                out,
                threads=threads,
                progress=lambda progress: show(progress.bytes_done, progress.bytes_total, progress.file),
                cancelled=interrupt.requested,
            )
    except safegraft.MergeCancelledError as error:
        raise safegraft.MergeCancelledError(f"stopped; {CONTINUE}") from error
    finally:
        planned.close()
    files = {name: (file.size, file.sha256) for name, file in result.files.items()}
    return Outcome(
        result.out, result.digest, files, result.bytes_written, result.seconds, result.resumed, planned.warnings
    )


def _merge_there(
    client: "Client", path: Path, out: Path, threads: int | None, max_shard_size: int, upload: bool
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
        )
    return pulled(result, uploads.named(result.warnings))
