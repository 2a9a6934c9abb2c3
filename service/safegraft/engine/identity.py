"""What a plan and its result are called: public model names, the plan's digest, the manifest.

Nothing here depends on where files lie: the same merge of the same models has the same digest and the
same manifest in any folder, locally or on a server.
"""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from hashlib import sha256
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from safegraft.checkpoint.types import Checkpoint
from safegraft.engine.staging import FileDigest
from safegraft.engine.task import Contribution, PlannedFile, StatisticKey, TensorTask
from safegraft.methods.contract import MergeMethod
from safegraft.methods.registry import Registry
from safegraft.recipe.canonical_form import canonical
from safegraft.recipe.model import Recipe

if TYPE_CHECKING:
    from safegraft.calibration import Request

_WHOLE = re.compile(r"[^/]+/[^/]+@[0-9a-f]{40}|[a-z][a-z0-9+.-]*://.+")  # a pinned Hub model, or a URL
ARITHMETIC = 1  # raised whenever the engine's own arithmetic changes a bit of any result


def public_names(models: Mapping[str, Sequence[str]]) -> dict[str, str]:
    """Model reference -> the shortest ending of the model's own name that tells it from the others.

    A Hub model pinned to a commit (ORG/NAME@COMMIT) keeps its full name, and so does a model at a URL. A model with an
    adapter is MODEL+ADAPTER.

    Args:
        models: reference -> the names of what its checkpoint is made of (`Checkpoint.sources`), which may be paths.
    """
    parts = {reference: _steps(sources) for reference, sources in models.items()}
    names: dict[str, str] = {}
    for reference, own in parts.items():
        others = [other for one, other in parts.items() if one != reference]
        length = 1
        while length < len(own) and any(other[-length:] == own[-length:] for other in others):
            length += 1
        name, number = "/".join(own[-length:]) or "model", 2
        candidate = name
        while candidate in names.values():
            candidate = f"{name}-{number}"
            number += 1
        names[reference] = candidate
    return names


def _steps(sources: Sequence[str]) -> list[str]:
    """The steps of a model's path, the last with the bare names of what is added to it."""
    ways = [
        [name] if _WHOLE.fullmatch(name) else [step for step in name.split("/") if step not in ("", ".", "..")]
        for name in sources
    ]
    own, *added = ways
    return own if not added else [*own[:-1], "+".join((way[-1:] or ["model"])[0] for way in ways)]


def versions_of(methods: Mapping[str, MergeMethod], modifiers: Iterable[str], registry: Registry) -> dict[str, str]:
    """Everything whose version may change a bit of the result: the engine, torch, the plugins in use."""
    versions = {"safegraft": version("safegraft"), "torch": version("torch").partition("+")[0]}
    plugins = [registry.plugin_of(one) for one in methods] + [registry.modifiers.plugin_of(one) for one in modifiers]
    for plugin in plugins:
        versions[plugin.distribution] = plugin.version
    for method in methods.values():
        versions.update((package, version(package)) for package in method.packages)
    return dict(sorted(versions.items()))


def plan_digest(
    recipe: Recipe,
    host_model: str,
    names: Mapping[str, str],
    checkpoints: Mapping[str, Checkpoint],
    versions: Mapping[str, str],
    files: Sequence[PlannedFile],
    statistics: "Mapping[StatisticKey, Request]",
) -> str:
    """sha256 over all that decides the result's bytes."""
    document: dict[str, Any] = {
        "arithmetic": ARITHMETIC,
        "recipe": canonical(recipe, names),
        "host": names[host_model],
        "inputs": identities(names, checkpoints),
        "versions": dict(versions),
        "files": [
            {
                "name": file.name,
                "size": file.size,
                "sha256": sha256(file.content if file.content is not None else file.header).hexdigest(),
                "tensors": [_task(placed.task, names) for placed in file.tensors],
            }
            for file in files
        ],
    }
    if statistics:
        document["statistics"] = sorted(
            [method, name, names[model], request.digest] for (method, name, model), request in statistics.items()
        )
    return sha256(_canonical_json(document)).hexdigest()


def identities(names: Mapping[str, str], checkpoints: Mapping[str, Checkpoint]) -> list[dict[str, str]]:
    """Who took part, by public name."""
    return sorted(
        (
            {"name": names[model], "scheme": one.identity.scheme, "digest": one.identity.digest}
            for model, one in checkpoints.items()
        ),
        key=lambda entry: entry["name"],
    )


def manifest(
    recipe: Recipe,
    digest: str,
    host_model: str,
    names: Mapping[str, str],
    checkpoints: Mapping[str, Checkpoint],
    versions: Mapping[str, str],
    files: Mapping[str, FileDigest],
    max_shard_size: int,
) -> bytes:
    """safegraft.json: where the result came from, and the digest of every other file of it.

    max_shard_size: with it the same plan gives the same weight files (see layout.py); not what somebody asked for.
    """
    document = {
        "plan_digest": digest,
        "host_model": names[host_model],
        "recipe": canonical(recipe, names),
        "seed": recipe.seed,
        "inputs": identities(names, checkpoints),
        "versions": dict(versions),
        "max_shard_size": max_shard_size,
        "files": {name: {"size": entry.size, "sha256": entry.sha256} for name, entry in files.items()},
    }
    return (json.dumps(document, indent=2, ensure_ascii=False) + "\n").encode()


def _task(task: TensorTask, names: Mapping[str, str]) -> dict[str, Any]:
    def contribution(one: Contribution) -> list[Any]:
        return [names[one.model], one.tensor, one.parameters.model_dump(mode="json") if one.parameters else None]

    described: dict[str, Any] = {
        "name": task.name,
        "action": task.action,
        "method": task.method,
        "parameters": task.parameters.model_dump(mode="json") if task.parameters else None,
        "inputs": [contribution(one) for one in task.inputs],
        "base": contribution(task.base) if task.base else None,
        "rows": task.rows.digest if task.rows else None,
        "compute": str(task.compute_dtype),
        "seed": task.seed,
    }
    if task.modifications:
        described["modified_from"] = task.modified_from
        described["modifications"] = [
            [one.modifier, one.parameters.model_dump(mode="json")] for one in task.modifications
        ]
    return described


def _canonical_json(document: Any) -> bytes:
    return json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()
