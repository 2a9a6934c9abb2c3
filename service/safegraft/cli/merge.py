"""`safegraft merge`: a recipe becomes a folder, computed here or on a server."""

from pathlib import Path

import click

from safegraft.cli.interrupt import interruptible
from safegraft.cli.options import (
    json_option,
    max_shard_size_option,
    optional_server_option,
    recipe_argument,
    token_file_option,
)
from safegraft.cli.outcome import CONTINUE, Outcome
from safegraft.cli.progress import meter
from safegraft.cli.remote import connect
from safegraft.cli.terminal import note
from safegraft.errors import UsageError


@click.command()
@recipe_argument
@click.option(
    "--out",
    metavar="DIR",
    required=True,
    type=click.Path(path_type=Path),
    help="The folder to write. It appears when it is complete; until then, work lies beside it.",
)
@optional_server_option
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
@token_file_option
@json_option
def merge(
    recipe: Path,
    out: Path,
    server: str | None,
    threads: int | None,
    max_shard_size: int,
    upload: bool,
    token_file: Path | None,
    as_json: bool,
) -> None:
    """Merge models into a folder, here or on a server.

    Paths in the recipe start at the current folder. With --server they name models on the server, unless
    --upload sends them there. An interrupted merge continues when the same command runs again.

    \b
    Examples:
      safegraft merge recipe.yml --out merged
      safegraft merge recipe.yml --out merged --max-shard-size 2GB --threads 8
      safegraft merge recipe.yml --out merged --server merge.example:50051 --token-file token
      safegraft merge recipe.yml --out merged --server merge.example:50051 --upload
    """
    if server is not None:
        outcome = _merge_there(recipe, out, server, threads, max_shard_size, upload, token_file)
    elif upload or token_file:
        raise UsageError(f"{'--upload' if upload else '--token-file'} is for a server: add --server HOST:PORT")
    else:
        outcome = _merge_here(recipe, out, threads, max_shard_size)
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
