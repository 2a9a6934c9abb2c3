"""`safegraft push`: hand a result to a publisher."""

from pathlib import Path

import click

from safegraft.cli.options import json_option
from safegraft.cli.terminal import say, say_json


@click.command()
@click.argument("folder", type=click.Path(path_type=Path, file_okay=False))
@click.argument("destination", metavar="PUBLISHER:DESTINATION")
@json_option
def push(folder: Path, destination: str, as_json: bool) -> None:
    """Publish a merged folder. Publishers come with plugins: `safegraft plugins` lists them.

    \b
    Example:
      safegraft push merged zoo:team/my-merge      with a plugin that brings the publisher zoo
    """
    from safegraft.methods import Registry
    from safegraft.sources import publish

    place = publish(folder, destination, Registry.discover())
    if as_json:
        say_json({"folder": str(folder), "destination": destination, "published": place})
    else:
        say(f"published: {place}")
