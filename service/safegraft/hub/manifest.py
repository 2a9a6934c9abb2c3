"""safegraft.json, as a stranger may have written it: read, checked, and its recipe made fit to be planned again.

Knows no place where files lie: whoever has one hands in the bytes.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from safegraft.checkpoint.findings import shown
from safegraft.checkpoint.strict_json import as_list, as_object, is_natural, parse_object
from safegraft.engine.staging import MANIFEST, FileDigest
from safegraft.errors import CheckpointError, Problem
from safegraft.hub.markdown import hub_model
from safegraft.recipe.model import Recipe
from safegraft.recipe.read import read_recipe

_MAX_FILES = 100_000
MAX_MANIFEST_BYTES = 64 << 20
_SHA256 = re.compile(r"[0-9a-f]{64}")
_NAME = re.compile(r"(?!/)(?:(?!\.{1,2}(?:/|$))[^/\\\0]+(?:/|$))+(?<!/)")  # a path that only leads down


@dataclass(frozen=True)
class Manifest:
    """Where a result came from, by its own account.

    files: name -> size in bytes and sha256, of every other file. inputs: public name -> (scheme, digest).
    max_shard_size: None in results of safegraft before it was recorded. is_adapter: merged of adapters alone.
    """

    plan_digest: str
    recipe: Mapping[str, Any]
    inputs: Mapping[str, tuple[str, str]]
    versions: Mapping[str, str]
    files: Mapping[str, FileDigest]
    max_shard_size: int | None
    is_adapter: bool

    def plannable(self, where: str) -> Recipe:
        """The recipe, whose models are public names: pinned Hub models, and folders below wherever one looks for them.

        Raises RecipeError, and CheckpointError when a name leads anywhere else: a stranger wrote it.
        """
        recipe = read_recipe(self.recipe, where)
        sets = [*recipe.calibration, *(one for entry in recipe.all_entries() for one in entry.calibration)]
        named = [*recipe.references(), *(one.data for one in sets)]
        strange = [one for one in named if not all(map(_leads_down, one.split("+")))]
        if strange:
            words = "which is not opened on its word"
            raise CheckpointError([Problem(where, f"its recipe names {shown(one)}, {words}") for one in strange])
        return recipe


def read_manifest(content: bytes, where: str) -> Manifest:
    """Raises CheckpointError when it is none. where: names it in messages."""
    document = parse_object(content, where)
    try:
        inputs = [as_object(one) or {} for one in as_list(document.get("inputs", [])) or []]
        size = document.get("max_shard_size")
        if size is not None and not (is_natural(size) and size):
            raise ValueError("max_shard_size is no size")
        return Manifest(
            plan_digest=_matching(_SHA256, document["plan_digest"], "plan_digest"),
            recipe=_object(document["recipe"], "recipe"),
            inputs={_line(one["name"]): (_line(one["scheme"]), _line(one["digest"])) for one in inputs},
            versions={_line(key): _line(value) for key, value in _object(document["versions"], "versions").items()},
            files=_files(_object(document["files"], "files")),
            max_shard_size=size,
            is_adapter="modules" in document,
        )
    except KeyError as error:
        message = f"is no manifest of a merge: it lacks {error}"
        if document.get("method") == "extract-lora":
            message += ". Of an extracted adapter there is no recipe: publish it with `hf upload`"
        raise CheckpointError(Problem(where, message)) from error
    except ValueError as error:
        raise CheckpointError(Problem(where, f"is no manifest of a merge: {error}")) from error


def _files(entries: Mapping[str, Any]) -> dict[str, FileDigest]:
    if len(entries) > _MAX_FILES:
        raise ValueError(f"it lists {len(entries):,} files; {_MAX_FILES:,} are accepted")
    return {_matching(_NAME, name, "a file's name"): _file(name, entry) for name, entry in entries.items()}


def _line(value: Any) -> str:
    """A stranger's word that people are shown."""
    if not isinstance(value, str) or not value.isprintable():
        raise ValueError(f"{shown(str(value))} is no name")
    return value


def _file(name: str, value: Any) -> FileDigest:
    entry = _object(value, name)
    if name == MANIFEST or not is_natural(entry["size"]):
        raise ValueError(f"what it says of {shown(name)} cannot be")
    return FileDigest(entry["size"], _matching(_SHA256, entry["sha256"], name))


def _object(value: Any, what: str) -> dict[str, Any]:
    found = as_object(value)
    if found is None:
        raise ValueError(f"{shown(what)} is no object")
    return found


def _matching(pattern: re.Pattern[str], value: Any, what: str) -> str:
    if not isinstance(value, str) or not value.isprintable() or not pattern.fullmatch(value):
        raise ValueError(f"{shown(what)} cannot be {shown(str(value))}")
    return value


def _leads_down(name: str) -> bool:
    return hub_model(name) is not None or (_NAME.fullmatch(name) is not None and ":" not in name and name[0] != "~")
