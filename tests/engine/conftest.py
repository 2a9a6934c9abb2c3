"""Checkpoints that consist of headers alone: alignment must never read a weight."""

from collections.abc import Callable, Mapping
from typing import Any

import pytest

from safegraft.checkpoint.dtypes import DType
from safegraft.checkpoint.types import Checkpoint, Identity, TensorInfo


class HeaderCheckpoint(Checkpoint):
    """Names, shapes and a config; reading fails the test."""

    def __init__(
        self,
        name: str,
        shapes: Mapping[str, tuple[int, ...]],
        config: Mapping[str, Any],
        tokens: Mapping[str, int] | None = None,
        dtypes: Mapping[str, DType] | None = None,
    ) -> None:
        self.name = name
        self.identity = Identity(name, "sha256", "0" * 64)
        self.config = config
        self.tensors = {
            tensor: TensorInfo(tensor, (dtypes or {}).get(tensor, DType.F32), shape, "model.safetensors", 0)
            for tensor, shape in shapes.items()
        }
        self.sidecars = {"config.json": b"{}"}
        self._tokens = tokens

    def read_into(self, tensor: TensorInfo, start: int, buffer: memoryview) -> None:
        raise AssertionError(f"{tensor.name} was read")

    def tokens(self) -> Mapping[str, int] | None:
        return self._tokens

    def modified_ns(self) -> int:
        return 0

    def verify_unchanged(self) -> None:
        raise AssertionError("nothing was opened")


@pytest.fixture
def headers() -> Callable[..., HeaderCheckpoint]:
    return HeaderCheckpoint
