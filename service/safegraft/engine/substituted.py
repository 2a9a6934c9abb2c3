"""A checkpoint some of whose tensors are another model's: an LVLM with the weights that an LLM has in their place."""

from collections.abc import Mapping
from dataclasses import replace
from hashlib import sha256

from safegraft.checkpoint.types import Checkpoint, Identity, TensorInfo


class Substituted(Checkpoint):
    """`stored` with the tensors of `offered` (name -> model, the model's tensor) that have the same shape.

    substitutes: those that it has. Closing it closes nothing: the models belong to others.
    """

    def __init__(self, stored: Checkpoint, offered: Mapping[str, tuple[Checkpoint, str]]) -> None:
        self._stored = stored
        self.substitutes = {
            name: (model, model.tensors[tensor])
            for name, (model, tensor) in offered.items()
            if stored.tensors[name].shape == model.tensors[tensor].shape
        }
        self.name = stored.name
        self.identity = self._identified()
        self.config = stored.config
        self.sidecars = stored.sidecars
        self.tensors = {name: self._shown(info) for name, info in stored.tensors.items()}

    @property
    def sources(self) -> tuple[str, ...]:
        return self._stored.sources

    def read_into(self, tensor: TensorInfo, start: int, buffer: memoryview) -> None:
        substitute = self.substitutes.get(tensor.name)
        if substitute is None:
            self._stored.read_into(tensor, start, buffer)
        else:
            model, info = substitute
            model.read_into(info, start, buffer)

    def tokens(self) -> Mapping[str, int] | None:
        return self._stored.tokens()

    def modified_ns(self) -> int:
        return self._stored.modified_ns()

    def verify_unchanged(self) -> None:
        self._stored.verify_unchanged()
        for model in {id(model): model for model, _ in self.substitutes.values()}.values():
            model.verify_unchanged()

    def _shown(self, info: TensorInfo) -> TensorInfo:
        substitute = self.substitutes.get(info.name)
        return info if substitute is None else replace(info, dtype=substitute[1].dtype)

    def _identified(self) -> Identity:
        """Of the stored model and of everything that stands in it."""
        named = [
            f"{name}\0{model.identity.scheme}\0{model.identity.digest}\0{info.name}"
            for name, (model, info) in sorted(self.substitutes.items())
        ]
        own = f"{self._stored.identity.scheme}\0{self._stored.identity.digest}"
        return Identity(self._stored.identity.name, "sha256", sha256("\n".join([own, *named]).encode()).hexdigest())
