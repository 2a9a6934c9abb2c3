"""`safegraft plan`: what a merge would do. The text is made from the JSON document, wherever that came from."""

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import click

from safegraft.cli.options import (
    hub_cache_option,
    hub_credential_option,
    json_option,
    max_shard_size_option,
    optional_remote_options,
    recipe_argument,
)
from safegraft.cli.remote import connect, require_no_reading_options, require_no_server_options
from safegraft.cli.sizes import format_size
from safegraft.cli.terminal import say, say_json, table

Document = Mapping[str, Any]


@click.command()
@recipe_argument
@json_option
@max_shard_size_option
@hub_cache_option
@hub_credential_option
@optional_remote_options
def plan(
    recipe: Path,
    as_json: bool,
    max_shard_size: int,
    hub_cache: bool,
    hub_credential: str | None,
    server: str | None,
    token_file: Path | None,
    ca: Path | None,
) -> None:
    """Show what a merge would do, tensor by tensor. Reads headers, configs and tokenizers, no weights.

    Paths in the recipe start at the current folder. With --server they name models on the server.

    \b
    Examples:
      safegraft plan recipe.yml
      safegraft plan recipe.yml --json | jq '.tensors[] | select(.action == "copy") | .name'
      safegraft plan recipe.yml --server merge.example:50051
    """
    if server is None:
        require_no_server_options(hub_credential=hub_credential)
        document = _plan_here(recipe, max_shard_size, hub_cache)
    else:
        require_no_reading_options(hub_cache=hub_cache)
        with connect(server, token_file, ca) as client:
            document = client.plan(recipe, max_shard_size=max_shard_size, hub_credential=hub_credential)
    if as_json:
        say_json(document)
    else:
        say("\n".join(describe(document)))


def _plan_here(recipe: Path, max_shard_size: int, hub_cache: bool) -> Document:
    import safegraft

    planned = safegraft.plan(recipe, max_shard_size=max_shard_size, hub_cache=hub_cache or None)
    try:
        return planned.to_dict()
    finally:
        planned.close()


def describe(document: Document) -> Iterator[str]:
    """A plan in lines, for people."""
    files, tensors, cost = document["files"], document["tensors"], document["cost"]
    merged = sum(tensor["action"] == "merge" for tensor in tensors)
    size = sum(file["size_bytes"] for file in files)
    yield f"plan digest {document['digest']}"
    yield f"host model  {document['host_model']}"
    for model in document["models"]:
        if model["name"] != model["reference"] and "@" in model["name"]:  # a commit
            yield f"model       {model['reference']} is {model['name']}"
    yield f"tensors     {merged} merged, {len(tensors) - merged} copied from the host"
    yield f"result      {len(files)} files, {format_size(size)}"
    yield (
        f"cost        reads {format_size(cost['bytes_read'])}, writes {format_size(cost['bytes_written'])}, "
        f"needs {format_size(cost['peak_memory_bytes'])} of memory and roughly {_duration(cost['seconds'])}"
    )
    yield ""
    yield from table(["MODULE", "TENSORS", "HOW", "FROM", "NOTE"], _modules(tensors)).splitlines()
    yield ""
    yield from table(["FILE", "SIZE"], [[file["name"], format_size(file["size_bytes"])] for file in files]).splitlines()
    if document["warnings"]:
        yield ""
        yield from (f"warning: {warning}" for warning in document["warnings"])


def _modules(tensors: list[Document]) -> list[list[str]]:
    """One row for the tensors of a module that are treated alike, in the order of the plan."""
    groups = Counter(
        (
            module_of(tensor["name"]),
            tensor["method"] if tensor["action"] == "merge" else "copy",
            ", ".join(dict.fromkeys(source["model"] for source in _sources(tensor))),
            tensor.get("note", ""),
        )
        for tensor in tensors
    )
    return [[module, str(count), how, models, note] for (module, how, models, note), count in groups.items()]


def _sources(tensor: Document) -> list[Document]:
    base = tensor.get("base")
    return [*tensor["inputs"], *([base] if base else [])]


def module_of(tensor: str) -> str:
    """The stack of layers a tensor belongs to (model.layers.*), else the module that has it."""
    stack = re.match(r"(.*?)\.\d+\.", tensor)
    return f"{stack[1]}.*" if stack else tensor.rpartition(".")[0] or tensor


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{max(seconds, 1):.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
