"""Models and results that plugins read and publish, by references "NAME:rest"."""

from collections.abc import Callable, Collection
from pathlib import Path

from safegraft.checkpoint.types import Checkpoint
from safegraft.errors import PluginError, SafegraftError, UsageError
from safegraft.methods.registry import Registry

OpenModel = Callable[[str], Checkpoint]


def with_sources(open_model: OpenModel, registry: Registry, allowed: Collection[str] | None = None) -> OpenModel:
    """`open_model`, but references to a plugin's checkpoint source are opened by it.

    allowed: the sources that may be used; None: all that are installed.
    """
    usable = [name for name in registry.sources.names() if allowed is None or name in allowed]

    def open_any(reference: str) -> Checkpoint:
        name, colon, rest = reference.partition(":")
        source = registry.sources.get(name) if colon and name in usable else None
        if source is None:
            return open_model(reference)
        try:
            return source.open(rest)
        except SafegraftError:
            raise
        except Exception as error:  # a plugin may raise anything; it is named
            raise PluginError(f"source {name} failed on {reference}: {type(error).__name__}: {error}") from error

    return open_any


def publish(folder: Path, destination: str, registry: Registry) -> str:
    """Hand a result to the publisher that `destination` ("NAME:rest") names; returns where it can be found.

    Raises UsageError when there is no such publisher or no result, OutputError when it refuses, PluginError.
    """
    name, colon, rest = destination.partition(":")
    publisher = registry.publishers.get(name) if colon else None
    if publisher is None:
        raise UsageError(
            f"{destination} names no publisher that is installed; "
            + registry.suggest(name, registry.publishers)
            + ". Write NAME:DESTINATION"
        )
    if not (folder / "safegraft.json").is_file():
        raise UsageError(f"{folder} holds no merge of safegraft: safegraft.json is not there")
    try:
        return publisher.publish(folder, rest)
    except SafegraftError:
        raise
    except Exception as error:  # a plugin may raise anything; it is named
        raise PluginError(f"publisher {name} failed on {destination}: {type(error).__name__}: {error}") from error
