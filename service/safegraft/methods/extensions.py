"""What a plugin may bring beside merge methods: help for alignment, places to read models from and to publish to."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from safegraft.checkpoint.types import Checkpoint


class TensorMap(ABC):
    """Names of one architecture in those of another, for pairs that alignment does not find by itself."""

    name: ClassVar[str]
    summary: ClassVar[str]

    @abstractmethod
    def prefixes(self, host: Mapping[str, Any], model: Mapping[str, Any]) -> Mapping[str, str | None] | None:
        """What a recipe's `tensor_map` would say for this pair: {prefix in the model: prefix in the host, or None to
        leave those tensors out}. None when this is not a pair for this map. `host` and `model` are their config.json.

        A `tensor_map` in the recipe comes first; then the first map by name that has an answer."""


class CheckpointSource(ABC):
    """A place that models are read from: recipes name them "NAME:whatever the source understands"."""

    name: ClassVar[str]
    summary: ClassVar[str]

    @abstractmethod
    def open(self, reference: str) -> Checkpoint:
        """Open what stands behind "NAME:". Raises CheckpointError when it is not there or not sound.

        `safegraft.checkpoint.folder.FolderCheckpoint` opens a folder, for sources that bring one about."""


class Publisher(ABC):
    """A place that results are published to: `safegraft push FOLDER NAME:whatever the publisher understands`."""

    name: ClassVar[str]
    summary: ClassVar[str]

    @abstractmethod
    def publish(self, folder: Path, destination: str) -> str:
        """Publish a complete result, all of it or nothing; returns where it can be found, such as a URL.

        Raises OutputError when the destination will not have it."""
