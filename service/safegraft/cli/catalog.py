"""`safegraft methods` and `safegraft plugins`: what this installation can merge with."""

from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from safegraft.cli.options import json_option
from safegraft.cli.terminal import say, say_json, table

if TYPE_CHECKING:
    from safegraft.methods import Registry


@click.command()
@json_option
def methods(as_json: bool) -> None:
    """List the merge methods, what they need and their parameters.

    \b
    Examples:
      safegraft methods
      safegraft methods --json     parameters as JSON Schema
    """
    from safegraft.methods import Registry

    registry = Registry.discover()
    described = [describe(registry, name) for name in registry.names()]
    if as_json:
        say_json(described)
    else:
        say("\n\n".join("\n".join(_lines(method)) for method in described))


def describe(registry: "Registry", name: str) -> dict[str, Any]:
    """The JSON document of one registered method."""
    method = registry.get(name)
    assert method is not None
    plugin = registry.plugin_of(name)
    return {
        "name": method.name,
        "summary": method.summary,
        "reference": method.reference,
        "granularity": str(method.granularity),
        "requires": asdict(method.requires),
        "parameters": method.Parameters.model_json_schema(),
        "input_parameters": method.InputParameters.model_json_schema(),
        "plugin": {"module": plugin.module, "distribution": plugin.distribution, "version": plugin.version},
    }


def _lines(method: Mapping[str, Any]) -> Iterator[str]:
    requires = method["requires"]
    most = requires["max_inputs"]
    least = requires["min_inputs"]
    count = f"{least}" if least == most else f"{least} or more" if most is None else f"{least} to {most}"
    yield f"{method['name']}: {method['summary']}"
    yield f"  reference   {method['reference']}"
    yield f"  inputs      {count}; base model: {requires['base']}"
    for title, schema in (("parameters", method["parameters"]), ("each input", method["input_parameters"])):
        for name, details in schema.get("properties", {}).items():
            yield f"  {title:<11} {name}{_parameter(details, name in schema.get('required', []))}"
            title = ""


def _parameter(details: Mapping[str, Any], required: bool) -> str:
    """ " (number, default 1.0): what it does" from one property of a JSON Schema."""
    alternatives = details.get("anyOf", [details])
    facts = [" or ".join(one.get("type", "value") for one in alternatives)]
    for one in alternatives:
        bounds = {"minimum": "at least", "exclusiveMinimum": "above", "maximum": "at most", "exclusiveMaximum": "below"}
        facts += [f"{words} {one[key]:g}" for key, words in bounds.items() if key in one]
        if "enum" in one:
            facts.append("one of " + ", ".join(map(str, one["enum"])))
    facts.append("required" if required else f"default {details.get('default')}")
    description = details.get("description")
    return f" ({', '.join(facts)})" + (f": {description}" if description else "")


@click.command()
@json_option
def plugins(as_json: bool) -> None:
    """List the plugins, and for a broken one the reason.

    A plugin is a module that an installed package names in the entry-point group "safegraft".

    \b
    Examples:
      safegraft plugins
      SAFEGRAFT_STRICT_PLUGINS=1 safegraft plugins     fail when one is broken
    """
    from safegraft.methods import Registry

    found = Registry.discover().plugins
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
