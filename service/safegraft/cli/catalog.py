"""`safegraft methods` and `safegraft plugins`: what there is to merge with, here or on a server."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from safegraft.cli.options import json_option, optional_remote_options
from safegraft.cli.remote import connect
from safegraft.cli.terminal import say, say_json, table

if TYPE_CHECKING:
    from safegraft.rpc.methods import MethodCatalogue, MethodInfo


@click.command()
@json_option
@optional_remote_options
def methods(as_json: bool, server: str | None, token_file: Path | None, ca: Path | None) -> None:
    """List the merge methods, what they need and their parameters.

    \b
    Examples:
      safegraft methods
      safegraft methods --json                 parameters as JSON Schema
      safegraft methods --server merge.example:50051
    """
    found = _catalogue(server, token_file, ca).methods
    if as_json:
        say_json([asdict(method) for method in found])
    else:
        say("\n\n".join("\n".join(_lines(method)) for method in found))


@click.command()
@json_option
@optional_remote_options
def plugins(as_json: bool, server: str | None, token_file: Path | None, ca: Path | None) -> None:
    """List the plugins, and for a broken one the reason.

    A plugin is a module that an installed package names in the entry-point group "safegraft".

    \b
    Examples:
      safegraft plugins
      SAFEGRAFT_STRICT_PLUGINS=1 safegraft plugins     fail when one is broken
    """
    found = _catalogue(server, token_file, ca).plugins
    if as_json:
        say_json([asdict(plugin) for plugin in found])
        return
    rows = [
        [
            plugin.name,
            f"{plugin.distribution} {plugin.version}",
            f"BROKEN: {plugin.error}" if plugin.error else ", ".join(plugin.methods),
        ]
        for plugin in found
    ]
    say(table(["PLUGIN", "PACKAGE", "METHODS"], rows))


def _catalogue(server: str | None, token_file: Path | None, ca: Path | None) -> "MethodCatalogue":
    if server is not None:
        with connect(server, token_file, ca) as client:
            return client.methods()
    from safegraft.methods import Registry
    from safegraft.rpc.methods import catalogue

    return catalogue(Registry.discover())


def _lines(method: "MethodInfo") -> Iterator[str]:
    least, most = method.min_inputs, method.max_inputs
    count = f"{least}" if least == most else f"{least} or more" if most is None else f"{least} to {most}"
    yield f"{method.name}: {method.summary}"
    yield f"  reference   {method.reference}"
    yield f"  inputs      {count}; base model: {method.base}"
    for title, schema in (("parameters", method.parameters), ("each input", method.input_parameters)):
        yield from _parameters(title, schema)


def _parameters(title: str, schema: Mapping[str, Any]) -> Iterator[str]:
    for name, details in schema.get("properties", {}).items():
        yield f"  {title:<11} {name}{_parameter(details, name in schema.get('required', []))}"
        title = ""  # said once


def _parameter(details: Mapping[str, Any], required: bool) -> str:
    """ " (number, default 1.0): what it does" from one property of a JSON Schema."""
    alternatives = details.get("anyOf", [details])
    facts = [" or ".join(one.get("type", "value") for one in alternatives)]
    for one in alternatives:
        bounds = {"minimum": "at least", "exclusiveMinimum": "above", "maximum": "at most", "exclusiveMaximum": "below"}
        facts += [f"{words} {one[key]:g}" for key, words in bounds.items() if key in one]
        if "enum" in one:
            facts.append("one of " + ", ".join(map(str, one["enum"])))
    facts.append("required" if required else f"default {json.dumps(details.get('default'))}")
    description = details.get("description")
    return f" ({', '.join(facts)})" + (f": {description}" if description else "")
