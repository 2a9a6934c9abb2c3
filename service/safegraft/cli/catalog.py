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
from safegraft.errors import UsageError

if TYPE_CHECKING:
    from safegraft.methods import Plugin
    from safegraft.rpc.methods import MethodCatalogue, MethodInfo, ModifierInfo


@click.group(invoke_without_command=True)
@json_option
@optional_remote_options
@click.pass_context
def methods(
    context: click.Context, as_json: bool, server: str | None, token_file: Path | None, ca: Path | None
) -> None:
    """List the merge methods and modifiers, and what they need.

    \b
    Examples:
      safegraft methods
      safegraft methods show ties              one of them, with its parameters
      safegraft methods --json                 all of them, parameters as JSON Schema
      safegraft methods --server merge.example:50051
    """
    if context.invoked_subcommand is not None:
        if as_json or server is not None:
            raise UsageError(f"give the options after `{context.invoked_subcommand}`")
        return
    found = _catalogue(server, token_file, ca)
    if as_json:
        say_json([asdict(one) for one in (*found.methods, *found.modifiers)])
        return
    rows = [[one.name, _count(one), one.base, ", ".join(one.roles) or "-", one.summary] for one in found.methods]
    say(table(["METHOD", "INPUTS", "BASE", "ROLES", "RESULT"], rows))
    if found.modifiers:
        say("\n" + table(["MODIFIER", "RESULT"], [[one.name, one.summary] for one in found.modifiers]))


@methods.command()
@click.argument("name")
@json_option
@optional_remote_options
def show(name: str, as_json: bool, server: str | None, token_file: Path | None, ca: Path | None) -> None:
    """Show one method or modifier: what it needs and its parameters.

    \b
    Examples:
      safegraft methods show ties
      safegraft methods show safe_lora --json
    """
    found = _catalogue(server, token_file, ca)
    one = next((one for one in (*found.methods, *found.modifiers) if one.name == name), None)
    if one is None:
        raise UsageError(f"there is no method {name}; {_suggestion(name, found)}")
    if as_json:
        say_json(asdict(one))
    else:
        say("\n".join(_lines(one)))


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
            f"BROKEN: {plugin.error}" if plugin.error else ", ".join(_brought(plugin)),
        ]
        for plugin in found
    ]
    say(table(["PLUGIN", "PACKAGE", "BRINGS"], rows))


def _brought(plugin: "Plugin") -> Iterator[str]:
    yield from plugin.methods
    yield from (f"modifier {name}" for name in plugin.modifiers)
    yield from (f"tensor map {name}" for name in plugin.tensor_maps)
    yield from (f"source {name}:" for name in plugin.checkpoint_sources)
    yield from (f"publisher {name}:" for name in plugin.publishers)


def _catalogue(server: str | None, token_file: Path | None, ca: Path | None) -> "MethodCatalogue":
    if server is not None:
        with connect(server, token_file, ca) as client:
            return client.methods()
    from safegraft.methods import Registry
    from safegraft.rpc.methods import catalogue

    return catalogue(Registry.discover())


def _suggestion(name: str, found: "MethodCatalogue") -> str:
    import difflib

    known = [one.name for one in (*found.methods, *found.modifiers)]
    close = difflib.get_close_matches(name, known, n=3)
    return f"did you mean {' or '.join(close)}?" if close else "`safegraft methods` lists them"


def _count(method: "MethodInfo") -> str:
    least, most = method.min_inputs, method.max_inputs
    return f"{least}" if least == most else f"{least} or more" if most is None else f"{least} to {most}"


def _lines(one: "MethodInfo | ModifierInfo") -> Iterator[str]:
    from safegraft.rpc.methods import ModifierInfo

    yield f"{one.name}: {one.summary}"
    yield f"  reference   {one.reference}"
    if isinstance(one, ModifierInfo):
        yield from _parameters("parameters", one.parameters)
        return
    yield f"  inputs      {_count(one)}; base model: {one.base}"
    if one.roles:
        yield f"  roles       {', '.join(one.roles)}: give each to one model, as `role:`"
    for title, need in zip(["calibration", *[""] * len(one.calibration)], one.calibration, strict=False):
        whose = "each input" if need.model == "input" else f"the {need.model} model"
        yield f"  {title:<11} {need.statistic} of {whose}, on the data {' and '.join(need.data)}"
    for title, schema in (("parameters", one.parameters), ("each input", one.input_parameters)):
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
