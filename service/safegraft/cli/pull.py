"""`safegraft pull`: a merge on a server becomes a folder here."""

from pathlib import Path

import click

from safegraft.cli.options import id_argument, json_option, remote_options
from safegraft.cli.outcome import pulled
from safegraft.cli.progress import meter
from safegraft.cli.remote import connect, continuing


@click.command()
@id_argument
@click.option(
    "--out",
    metavar="DIR",
    required=True,
    type=click.Path(path_type=Path),
    help="The folder to write. It appears when everything is there and verified.",
)
@json_option
@remote_options
def pull(id: str, out: Path, as_json: bool, server: str, token_file: Path | None, ca: Path | None) -> None:
    """Download a merge, finished or still running, and verify every byte.

    An interrupted download continues when the same command runs again.

    \b
    Examples:
      safegraft pull 4f1c09 --out merged
      safegraft pull 4f1c09 --out merged --server merge.example:50051 --json
    """
    with connect(server, token_file, ca) as client, continuing(), meter("pulling") as show:
        result = client.pull(id, out, lambda progress: show(progress.bytes_done, progress.bytes_total, progress.file))
    pulled(result, result.warnings).show(as_json)
