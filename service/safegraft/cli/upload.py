"""`merge --upload`: the local folders that a recipe names go to the server, and the recipe names them there."""

import json
import re
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from safegraft.cli.progress import meter
from safegraft.errors import Problem, SafegraftError, UsageError

if TYPE_CHECKING:
    import yaml

    from safegraft.recipe import Recipe
    from safegraft.rpc.client import Client

# The keys under which a recipe names a model; {model: {path: ...}} is mergekit's long form.
_NAMING_KEYS = ("model", "lora", "path", "base_model", "host_model", "tokenizer_source", "source")
_PROPERTIES = re.compile(r"(?:[&!]\S*\s+)*")  # an anchor or a tag before a value


@dataclass(frozen=True)
class Uploads:
    """references: what the recipe calls a folder here -> what the server calls it."""

    references: Mapping[str, str] = field(default_factory=dict[str, str])

    def named(self, texts: Sequence[str]) -> tuple[str, ...]:
        """The server's messages with the names that the recipe uses."""
        return tuple(map(self._named, texts))

    @contextmanager
    def named_as_here(self) -> Generator[None]:
        """Errors from the server leave with the names that the recipe uses."""
        try:
            yield
        except SafegraftError as error:
            problems = [Problem(self._named(one.where), self._named(one.message)) for one in error.problems]
            raise type(error)(problems) from error

    def _named(self, text: str) -> str:
        for here, there in self.references.items():
            text = text.replace(there, here)
        return text


def upload_models(client: "Client", recipe: "Recipe") -> "tuple[Uploads, Recipe]":
    """Send every folder that is here; returns what they are called there, and the recipe in those names.

    Raises UsageError when none is here, and what `Client.upload` raises.
    """
    from safegraft.recipe import parse_recipe
    from safegraft.recipe.read import folder_is_here

    names = _names(recipe)
    parts = {name: _parts(name) for name in names}
    folders = list(dict.fromkeys(part for some in parts.values() for part in some if folder_is_here(part)))
    if not folders:
        raise UsageError(f"--upload: no model of the recipe is a folder here: {', '.join(names)}")
    references: dict[str, str] = {}
    for name in folders:
        with meter(f"uploading {name}") as show:
            references[name] = client.upload(
                Path(name).expanduser(),
                lambda progress, show=show: show(progress.bytes_done, progress.bytes_total, progress.file),
            )
    references |= {name: "+".join(references.get(part, part) for part in some) for name, some in parts.items()}
    text = renamed(recipe.text, references)
    return Uploads(references), parse_recipe(text, recipe.name, folder_exists=lambda _: True)


def _names(recipe: "Recipe") -> list[str]:
    """Every model that the recipe names, once."""
    tokenizer = recipe.tokenizer.model if recipe.tokenizer else None
    named = [*recipe.inputs(), *recipe.bases(), recipe.host_model, tokenizer]
    return list(dict.fromkeys(name for name in named if name is not None))


def _parts(name: str) -> list[str]:
    """A model's folder or name, and its adapter's."""
    from safegraft.recipe.read import folder_is_here
    from safegraft.recipe.reference import parse_reference

    try:
        reference = parse_reference(name, folder_is_here)
    except ValueError as error:
        raise UsageError(f"--upload: {error}") from error
    sources = [reference.model, *([reference.lora] if reference.lora else [])]
    for source in sources:
        if source.revision is not None:
            raise UsageError(f"--upload: {source} names a revision; give the folder of that revision instead")
    return [source.path for source in sources]


def renamed(text: str, references: Mapping[str, str]) -> str:
    """YAML text in which models have other names, and everything else, line numbers too, is as it was."""
    import yaml

    root = yaml.compose(text, yaml.SafeLoader)
    assert root is not None  # it has been read as a recipe
    places = {node.start_mark.index: node for node in _naming(root) if node.value in references}
    for start in sorted(places, reverse=True):
        node = places[start]
        properties = _PROPERTIES.match(text, start)
        assert properties is not None  # the pattern matches nothing too
        written = text[properties.end() : node.end_mark.index]
        line_breaks = "\n" * written.count("\n")  # of a block scalar
        text = text[: properties.end()] + json.dumps(references[node.value]) + line_breaks + text[node.end_mark.index :]
    return text


def _naming(node: "yaml.Node") -> "Iterator[yaml.ScalarNode]":
    """The scalars that name a model."""
    import yaml

    if isinstance(node, yaml.SequenceNode):
        for item in node.value:
            yield from _naming(item)
    elif isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            if isinstance(value, yaml.ScalarNode) and key.value in _NAMING_KEYS:
                yield value
            yield from _naming(value)
