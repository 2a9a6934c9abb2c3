"""`safegraft health`: one question to a server, for people and for a container's health check."""

from pathlib import Path

import click

from safegraft.cli.options import remote_options
from safegraft.cli.remote import connect
from safegraft.cli.terminal import say
from safegraft.errors import ServerUnavailableError

TIMEOUT = 5.0  # seconds: a server that takes longer to say so is not well


@click.command()
@remote_options
def health(server: str, token_file: Path | None, ca: Path | None) -> None:
    """Ask whether a server is serving. The exit code is 0 when it is, else 4.

    \b
    Examples:
      safegraft health
      safegraft health --server merge.example:50051
    """
    with connect(server, token_file, ca, timeout=TIMEOUT) as client:
        if not client.health():
            raise ServerUnavailableError(f"{server} is stopping, or not ready yet")
    say(f"{server} is serving")
