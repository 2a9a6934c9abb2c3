"""The hook through which a plugin hands over its merge methods."""

from collections.abc import Iterable

import pluggy

from safegraft.methods.contract import MergeMethod

PROJECT = "safegraft"

hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)


@hookspec
def merge_methods() -> Iterable[type[MergeMethod]]:  # pyright: ignore[reportReturnType] (a hookspec has no body)
    """Return the merge method classes this plugin brings."""
