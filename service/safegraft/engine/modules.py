"""Which part of a model a tensor belongs to, by the names that mergekit gives to parts.

The language model is found by structure. What lies outside goes by the words in its name, of which the
innermost counts: `visual.merger.mlp.0.weight` is of the projector, though it lies in the vision tower.
"""

import re
from collections.abc import Iterable

from safegraft.checkpoint.types import Checkpoint, TensorInfo
from safegraft.engine.anatomy import Stack, is_multimodal, language_stack, split_layer, stacks_of, vocabulary_tensors

WHOLE = "default"  # mergekit's name for a model that has one part only
LANGUAGE = "text_decoder"

# What models call their parts -> what mergekit calls them.
_PARTS = {
    "multi_modal_projector": "multi_modal_projector",
    "mm_projector": "multi_modal_projector",
    "projector": "multi_modal_projector",
    "connector": "multi_modal_projector",
    "merger": "multi_modal_projector",
    "deepstack_merger_list": "multi_modal_projector",
    "vision_tower": "vision_tower",
    "vision_model": "vision_tower",
    "vision_encoder": "vision_tower",
    "visual": "vision_tower",
}
_SYNONYMS = {"vision_model": "vision_tower", "language_model": LANGUAGE}  # names that recipes may use as well
# What an embedding is called, and what else comes before the layers; norms and heads come after them.
_BEFORE = re.compile(r"emb|^wte$|^wpe$|^rotary|^relative_pe|^pre_lay|^ln_pre$")
_AFTER = re.compile(r"^embed_out$")


class Parts:
    """A checkpoint's tensors by the part they belong to. `names`: its parts, in order."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._checkpoint = checkpoint
        self._language = language_stack(checkpoint)
        self._vocabulary = vocabulary_tensors(checkpoint)
        self._multimodal = is_multimodal(checkpoint.config)
        found = dict.fromkeys(self.of(name) for name in checkpoint.tensors)
        self.names = tuple(sorted(found, key=lambda name: (name != LANGUAGE, name)))

    def of(self, name: str) -> str:
        """The part that a tensor belongs to."""
        if self.is_language(name):
            return LANGUAGE
        words = name.split(".")
        known = next((_PARTS[word] for word in reversed(words) if word in _PARTS), None)
        return known or next((word for word in words if word != "model"), name)

    def named(self, asked: str) -> str | None:
        """The part that a recipe calls `asked`; None when there is none."""
        name = _SYNONYMS.get(asked, asked)
        return name if name == WHOLE or name in self.names else None

    def is_language(self, name: str) -> bool:
        """The decoder's layers, the vocabulary tensors, and what stands beside them."""
        if not self._multimodal:
            return True
        if self._language is None:
            return name in self._vocabulary
        place = split_layer(name)
        if place is not None:
            return place[0] == self._language.prefix
        around = self._language.prefix.rpartition(".")[0]
        beside = bool(around) and name.startswith(around + ".") and not any(word in _PARTS for word in name.split("."))
        return name in self._vocabulary or beside

    def stack(self, part: str) -> Stack | None:
        """The layers of a part: the decoder's, or its largest stack."""
        if part in (WHOLE, LANGUAGE):
            return self._language
        return largest(tensor for tensor in self._checkpoint.tensors.values() if self.of(tensor.name) == part)


def largest(tensors: Iterable[TensorInfo]) -> Stack | None:
    """The stack with the most tensors."""
    return max(stacks_of(tensors).values(), key=lambda stack: (stack.size, stack.prefix), default=None)


def comes_after_layers(name: str) -> bool:
    """Whether a tensor outside the layers of its part is applied after them: a norm, an output head."""
    words = name.split(".")
    return any(map(_AFTER.search, words)) or not any(map(_BEFORE.search, words))
