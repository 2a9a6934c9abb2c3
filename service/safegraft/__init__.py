"""safegraft puts the safety back: it merges an aligned LLM into the vision-language model adapted from it.

    import safegraft

    recipe = safegraft.Recipe.load("recipe.yml")
    print(safegraft.plan(recipe).to_dict())
    safegraft.merge(recipe, out="merged")
    with safegraft.open(recipe) as merged:
        merged.tensors["language_model.lm_head.weight"]

errors.py    the error tree
recipe/      what was asked for
methods/     what a merge plugin implements; finding plugins
checkpoint/  reading checkpoints
calibration/ what models do at work on data, for methods that ask
engine/      align, plan, execute
adapter/     making adapters: extracting and merging them
remote/      checkpoints on the Hub and at URLs, read by byte ranges
hub/         the model card, publishing, verifying
rpc/         the gRPC service and its client
cli/         the command line
testing.py   tiny checkpoints and the contract kit for plugin authors
v1/          generated from protos/
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from safegraft.api import merge, open, plan
    from safegraft.engine.execute import MergedCheckpoint
    from safegraft.engine.folder import MergeResult, Progress
    from safegraft.engine.task import Plan
    from safegraft.errors import (
        AlignmentError,
        AuthenticationError,
        CheckpointError,
        ConflictError,
        DataCorruptedError,
        InputChangedError,
        InputError,
        MergeCancelledError,
        NonFiniteError,
        NotFoundError,
        OutputError,
        PluginError,
        Problem,
        RecipeError,
        SafegraftError,
        ServerError,
        ServerUnavailableError,
        UsageError,
    )
    from safegraft.methods.hookspecs import hookimpl
    from safegraft.recipe.model import Recipe
    from safegraft.rpc.client import Client

__version__ = "0.1.0"

# Name -> module. Loaded when first used: `safegraft --help` needs none of them, planning needs no torch.
_HOME = {
    "AlignmentError": "safegraft.errors",
    "AuthenticationError": "safegraft.errors",
    "CheckpointError": "safegraft.errors",
    "Client": "safegraft.rpc.client",
    "ConflictError": "safegraft.errors",
    "DataCorruptedError": "safegraft.errors",
    "InputChangedError": "safegraft.errors",
    "InputError": "safegraft.errors",
    "MergeCancelledError": "safegraft.errors",
    "MergeResult": "safegraft.engine.folder",
    "MergedCheckpoint": "safegraft.engine.execute",
    "NonFiniteError": "safegraft.errors",
    "NotFoundError": "safegraft.errors",
    "OutputError": "safegraft.errors",
    "Plan": "safegraft.engine.task",
    "PluginError": "safegraft.errors",
    "Problem": "safegraft.errors",
    "Progress": "safegraft.engine.folder",
    "Recipe": "safegraft.recipe.model",
    "RecipeError": "safegraft.errors",
    "SafegraftError": "safegraft.errors",
    "ServerError": "safegraft.errors",
    "ServerUnavailableError": "safegraft.errors",
    "UsageError": "safegraft.errors",
    "hookimpl": "safegraft.methods.hookspecs",
    "merge": "safegraft.api",
    "open": "safegraft.api",
    "plan": "safegraft.api",
}

__all__ = [
    "AlignmentError",
    "AuthenticationError",
    "CheckpointError",
    "Client",
    "ConflictError",
    "DataCorruptedError",
    "InputChangedError",
    "InputError",
    "MergeCancelledError",
    "MergeResult",
    "MergedCheckpoint",
    "NonFiniteError",
    "NotFoundError",
    "OutputError",
    "Plan",
    "PluginError",
    "Problem",
    "Progress",
    "Recipe",
    "RecipeError",
    "SafegraftError",
    "ServerError",
    "ServerUnavailableError",
    "UsageError",
    "hookimpl",
    "merge",
    "open",
    "plan",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'safegraft' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
