"""A model at work on samples, one at a time, through its own tokenizer, template and processor.

Gives last-token states and losses. Knows nothing of what is made of them.
"""

# torch and transformers type their own functions in part.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

import contextlib
from collections.abc import Generator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.utils._pytree import tree_leaves
from transformers.modeling_layers import GradientCheckpointingLayer

from safegraft.calibration import DataSet
from safegraft.calibration.gradients import mean_loss
from safegraft.calibration.wording import Worded, Wording
from safegraft.checkpoint.types import Checkpoint
from safegraft.errors import CheckpointError, InputError, NonFiniteError, Problem
from safegraft.local import open_model
from safegraft_trainers.loading import Loaded, load, load_merged

if TYPE_CHECKING:
    from safegraft import MergedCheckpoint


@dataclass(frozen=True)
class Subject:
    """A model, loaded whole, and how it is spoken to."""

    name: str
    loaded: Loaded
    wording: Wording

    @property
    def model(self) -> Any:
        return self.loaded.model

    def states(self, data: DataSet) -> torch.Tensor:
        """What each layer of the language model gives for the last token of each prompt: [samples, layers, width],
        float32, on the cpu. Before any final norm.

        Raises InputError, NonFiniteError.
        """
        layers = decoder_layers(self.model, self.name)
        found = torch.empty(data.count, len(layers), _width(self.model))
        with torch.inference_mode(), _watched(layers) as seen:
            for index, sample in enumerate(data.samples):
                worded = self._moved(self.wording.prompt(sample, data.max_length))
                self.model(**worded.inputs, use_cache=False)
                found[index] = torch.stack(seen)
                seen.clear()
                if not torch.isfinite(found[index]).all():
                    raise NonFiniteError(Problem(self.name, f"gives NaN or inf at {worded.where}"))
        return found

    def worded(self, data: DataSet) -> list[Worded]:
        """Prompts with responses, as tokens. Raises InputError with the problems of all samples that cannot be used."""
        ready: list[Worded] = []
        problems: list[Problem] = []
        for sample in data.samples:
            try:
                ready.append(self.wording.response("response", sample, data.max_length))
            except InputError as error:
                problems += error.problems
        if problems:
            raise InputError(list(dict.fromkeys(problems)))
        return ready

    def answers_as_asked(self, data: DataSet) -> bool:
        """Whether a prompt with its response begins with what the model reads when it is asked the prompt.

        Where it does not (a chat template that marks the answer only when it asks for one), losses count tokens that
        the model never predicts at work.
        """
        sample = data.samples[0]
        asked = self.wording.prompt(sample, data.max_length).tokens
        whole = self.wording.response("response", sample, data.max_length).tokens
        return len(whole) >= len(asked) and torch.equal(whole[: len(asked)], asked)

    def loss(self, worded: Worded) -> torch.Tensor:
        """The mean cross-entropy of a response's tokens, in nats; carries gradients where these are on."""
        moved = self._moved(worded)
        return mean_loss(self.model(**moved.inputs, use_cache=False), moved)

    def mean_loss(self, data: DataSet) -> float:
        """Over samples, each weighing the same."""
        ready = self.worded(data)
        with torch.inference_mode():
            return sum(float(self.loss(one)) for one in ready) / len(ready)

    def _moved(self, worded: Worded) -> Worded:
        inputs: dict[str, Any] = {
            name: value.to(self.loaded.device, self.model.dtype if value.is_floating_point() else None)
            if torch.is_tensor(value)
            else value
            for name, value in worded.inputs.items()
        }
        return replace(worded, inputs=inputs, targets=worded.targets.to(self.loaded.device))


def open_subject(
    reference: str, *, images: bool = True, dtype: str = "float32", device: str = "cpu", name: str | None = None
) -> Subject:
    """A model by its reference. images: whether samples may have some. Raises CheckpointError, InputError."""
    checkpoint = open_model(reference)
    try:
        wording = Wording(_as(checkpoint, name), images)
        return Subject(name or checkpoint.name, load(reference, dtype=dtype, device=device), wording)
    finally:
        checkpoint.close()


def merged_subject(
    merged: "MergedCheckpoint", name: str, *, images: bool = True, dtype: str = "float32", device: str = "cpu"
) -> Subject:
    """A merge that no disk has seen. It is spoken to as its host is."""
    return Subject(name, load_merged(merged, name, dtype=dtype, device=device), Wording(merged.plan.host, images))


def _as(checkpoint: Checkpoint, name: str | None) -> Checkpoint:
    """Messages about it go by the name that the report has for it."""
    if name is not None:
        checkpoint.name = name
    return checkpoint


def decoder_layers(model: Any, name: str) -> list[nn.Module]:
    """The language model's layers: the longest list of layers within its decoder. Raises CheckpointError."""
    decoder: Any = model.get_decoder()
    lists: list[list[nn.Module]] = [
        list(child)
        for child in decoder.modules()
        if isinstance(child, nn.ModuleList) and all(isinstance(one, GradientCheckpointingLayer) for one in child)
    ]
    if not any(lists):
        raise CheckpointError(Problem(name, f"a {type(model).__name__} has no list of layers to look at"))
    return max(lists, key=len)


def _width(model: Any) -> int:
    """Of what goes from layer to layer."""
    embeddings: Any = model.get_input_embeddings()
    return embeddings.weight.shape[-1]


@contextlib.contextmanager
def _watched(layers: list[nn.Module]) -> Generator[list[torch.Tensor]]:
    """A list that fills with the last token's state, layer by layer, when the model runs."""
    seen: list[torch.Tensor] = []

    def take(_module: nn.Module, _inputs: Any, output: Any) -> None:
        state = next(leaf for leaf in tree_leaves(output) if torch.is_tensor(leaf))
        seen.append(state[0, -1].float().cpu())

    hooks = [layer.register_forward_hook(take) for layer in layers]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()
