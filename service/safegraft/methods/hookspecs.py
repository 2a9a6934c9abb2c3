"""The hooks through which a plugin hands over what it brings."""

from collections.abc import Iterable

import pluggy

from safegraft.methods.contract import MergeMethod, Modifier
from safegraft.methods.extensions import CheckpointSource, Publisher, TensorMap

PROJECT = "safegraft"

hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)


@hookspec
def merge_methods() -> Iterable[type[MergeMethod]]:  # pyright: ignore[reportReturnType] (a hookspec has no body)
    """Return the merge method classes this plugin brings."""


@hookspec
def modifiers() -> Iterable[type[Modifier]]:  # pyright: ignore[reportReturnType]
    """Return the modifier classes this plugin brings."""


@hookspec
def tensor_maps() -> Iterable[type[TensorMap]]:  # pyright: ignore[reportReturnType]
    """Return the tensor map classes this plugin brings."""


@hookspec
def checkpoint_sources() -> Iterable[type[CheckpointSource]]:  # pyright: ignore[reportReturnType]
    """Return the checkpoint source classes this plugin brings."""


@hookspec
def publishers() -> Iterable[type[Publisher]]:  # pyright: ignore[reportReturnType]
    """Return the publisher classes this plugin brings."""
