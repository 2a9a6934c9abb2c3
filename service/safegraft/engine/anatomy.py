"""What a checkpoint consists of, read from names, shapes and its config alone: stacks of layers, the language
model among them, and the tensors that have a row a token.
"""

import functools
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from safegraft.checkpoint.types import Checkpoint, TensorInfo

TEXT_CONFIGS = ("text_config", "llm_config", "language_config")
EXTRA_ROWS = 8  # cross-attention LVLMs keep up to eight rows for image tokens beyond the config's vocab_size


@dataclass(frozen=True)
class Stack:
    """Layers under one prefix: layer number -> suffix -> tensor."""

    prefix: str
    layers: dict[int, dict[str, TensorInfo]]

    @functools.cached_property
    def size(self) -> int:
        return sum(len(layer) for layer in self.layers.values())

    @functools.cached_property
    def places(self) -> dict[int, int]:
        """Layer number -> its place among the layers."""
        return {layer: place for place, layer in enumerate(sorted(self.layers))}


def text_config(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The language model's part of a config, however deep it is nested; the whole config of a plain LLM."""
    for level in _levels(config):
        for key in TEXT_CONFIGS:
            part = level.get(key)
            if isinstance(part, Mapping):
                return part  # pyright: ignore[reportUnknownVariableType] (JSON)
    return config


def is_multimodal(config: Mapping[str, Any]) -> bool:
    """An LVLM's config nests the configs of its parts; an LLM's is flat."""
    return text_config(config) is not config or isinstance(config.get("vision_config"), Mapping)


def ties_head(config: Mapping[str, Any]) -> bool | None:
    """Whether the output head is the token embedding, according to the config; None when it does not say."""
    for part in (text_config(config), config):
        said = part.get("tie_word_embeddings")
        if isinstance(said, bool):
            return said
    return None


def vocabulary_tensors(checkpoint: Checkpoint) -> set[str]:
    """Names of tensors with a row a token: outside stacks, of rank 2 (or a bias beside one).

    The config's vocabulary sizes tell which. Where they fit no tensor, the tokenizer does: then it is the
    tensors with the most rows, if they have room for every token.
    """
    text = text_config(checkpoint.config)
    both = {**checkpoint.config, **text}
    sizes = {size for key, size in both.items() if key.startswith("vocab_size") and isinstance(size, int)}
    main, hidden = both.get("vocab_size"), text.get("hidden_size")
    outside = [tensor for tensor in checkpoint.tensors.values() if split_layer(tensor.name) is None]
    matrices = [tensor for tensor in outside if len(tensor.shape) == 2]

    def has_a_row_a_token(tensor: TensorInfo) -> bool:
        rows, width = tensor.shape
        padded = isinstance(main, int) and main < rows <= main + EXTRA_ROWS and width == hidden
        return rows in sizes or padded

    found = {tensor.name for tensor in matrices if has_a_row_a_token(tensor)}
    if not found and matrices and (tokens := checkpoint.tokens()):
        most = max(tensor.shape[0] for tensor in matrices)
        found = {tensor.name for tensor in matrices if tensor.shape[0] == most > max(tokens.values())}
        sizes = {most}
    parents = {name.rpartition(".")[0] for name in found}
    biases = {
        tensor.name
        for tensor in outside
        if len(tensor.shape) == 1 and tensor.shape[0] in sizes and tensor.name.rpartition(".")[0] in parents
    }
    return found | biases


def split_layer(name: str) -> tuple[str, int, str] | None:
    """("model.layers", 3, "mlp.up_proj.weight") for a tensor in a stack, else None."""
    parts = name.split(".")
    for index, part in enumerate(parts[1:-1], start=1):
        if part.isdecimal():
            return ".".join(parts[:index]), int(part), ".".join(parts[index + 1 :])
    return None


def stacks_of(tensors: Iterable[TensorInfo]) -> dict[str, Stack]:
    """The stacks by prefix."""
    stacks: dict[str, Stack] = {}
    for tensor in tensors:
        place = split_layer(tensor.name)
        if place:
            prefix, layer, suffix = place
            stack = stacks.setdefault(prefix, Stack(prefix, {}))
            stack.layers.setdefault(layer, {})[suffix] = tensor
    return stacks


def depth_of(name: str, stacks: Mapping[str, Stack]) -> float:
    """A tensor's place among the layers of its stack: 0 first, 1 last; 0 outside stacks, 1 in a stack
    of one layer (mergekit's gradients count so)."""
    place = split_layer(name)
    if place is None:
        return 0.0
    places = stacks[place[0]].places
    return places[place[1]] / (len(places) - 1) if len(places) > 1 else 1.0


def place_of(name: str, stacks: Mapping[str, Stack]) -> tuple[int | None, int]:
    """A tensor's place among the layers of its stack, from 0, and how many there are; (None, 0) outside stacks."""
    place = split_layer(name)
    if place is None:
        return None, 0
    places = stacks[place[0]].places
    return places[place[1]], len(places)


def language_stack(checkpoint: Checkpoint) -> Stack | None:
    """The decoder layers: the stack that shares the longest prefix with the token embedding and is
    not shorter than the config says. None where two do equally well."""
    layers = text_config(checkpoint.config).get("num_hidden_layers")
    embeddings = vocabulary_tensors(checkpoint)
    candidates = [
        stack
        for stack in stacks_of(checkpoint.tensors.values()).values()
        if not isinstance(layers, int) or len(stack.layers) >= layers
    ]
    if not candidates or not embeddings:
        return None

    def nearness(stack: Stack) -> tuple[int, int]:
        return max(common_parts(stack.prefix, name) for name in embeddings), stack.size

    ranked = sorted(candidates, key=nearness, reverse=True)
    if len(ranked) > 1 and nearness(ranked[0]) == nearness(ranked[1]):
        return None
    return ranked[0]


def _levels(config: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """The config and the configs within it, level by level."""
    level: list[Mapping[str, Any]] = [config]
    while level:
        yield from level
        level = [
            part for one in level for key, part in one.items() if key.endswith("_config") and isinstance(part, Mapping)
        ]


def common_parts(one: str, other: str) -> int:
    """How many leading parts of two dotted names are equal."""
    count = 0
    for a, b in zip(one.split("."), other.split("."), strict=False):
        if a != b:
            break
        count += 1
    return count
