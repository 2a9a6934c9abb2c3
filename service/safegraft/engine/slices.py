"""A checkpoint whose layers are those of another one in a new order: left out, repeated, moved.

Shows names, files and a config; which layer comes where, and why, is `assembly.py`'s business.
"""

import json
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any, cast

from safegraft.checkpoint.config import CONFIG_FILE
from safegraft.checkpoint.sidecars import dump_like
from safegraft.checkpoint.strict_json import as_list, as_object
from safegraft.checkpoint.types import Checkpoint, TensorInfo
from safegraft.checkpoint.weights import natural_order
from safegraft.engine.anatomy import split_layer, text_config
from safegraft.engine.modules import LANGUAGE
from safegraft.engine.virtual import VirtualCheckpoint

COUNTS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers", "depth")  # how configs call the number of layers
# Keys by which a layer's kind follows from its number; a list of kinds (layer_types) comes before the first ones.
_ATTENTION_BY_NUMBER = ("sliding_window_pattern", "full_attention_interval", "no_rope_layer_interval")
_BY_NUMBER = (
    "first_k_dense_replace",
    "decoder_sparse_step",
    "moe_layer_freq",
    "interleave_moe_layer_step",
    "attn_layer_period",
    "expert_layer_period",
    "num_kv_shared_layers",
)


class RelayeredCheckpoint(VirtualCheckpoint):
    """`stored` with other layers in its stacks.

    Args:
        orders: prefix of a stack -> for each layer from 0 on, the stored layer that is shown there.
        config: config.json to go with them, see `relayered_config`.
    """

    def __init__(self, stored: Checkpoint, orders: Mapping[str, Sequence[int]], config: dict[str, Any]) -> None:
        super().__init__(stored)
        layers: dict[tuple[str, int], list[TensorInfo]] = {}
        self._sources: dict[str, TensorInfo] = {}
        for tensor in stored.tensors.values():
            place = split_layer(tensor.name)
            if place is None or place[0] not in orders:
                self._sources[tensor.name] = tensor
            else:
                layers.setdefault(place[:2], []).append(tensor)
        for prefix, order in orders.items():
            for number, layer in enumerate(order):
                for tensor in layers[prefix, layer]:
                    suffix = tensor.name.removeprefix(f"{prefix}.{layer}.")
                    self._sources[f"{prefix}.{number}.{suffix}"] = tensor
        names = sorted(self._sources, key=natural_order)
        self.tensors = {name: replace(self._sources[name], name=name) for name in names}
        self.config = config
        original = stored.sidecars.get(CONFIG_FILE, b"")
        self.sidecars = {**stored.sidecars, CONFIG_FILE: dump_like(config, original)}

    def stored_name(self, name: str) -> str:
        """What the tensor shown as `name` is called where it is stored."""
        return self._sources[name].name

    def expecting(self, ranges: Sequence[tuple[TensorInfo, int, int]]) -> AbstractContextManager[None]:
        return self.stored.expecting([(self._sources[tensor.name], start, stop) for tensor, start, stop in ranges])

    def read_into(self, tensor: TensorInfo, start: int, buffer: memoryview) -> None:
        self.stored.read_into(self._sources[tensor.name], start, buffer)


def relayered_config(checkpoint: Checkpoint, orders: Mapping[str, Sequence[int]]) -> tuple[dict[str, Any], list[str]]:
    """The config for a checkpoint's layers in a new order, and warnings about what it cannot say.

    orders: part of the model ("text_decoder", "vision_tower") -> for each layer from 0 on, the stored one shown there.

    The number of layers is written where it stands, lists with an entry a layer follow the layers, and lists of
    layer numbers (cross_attention_layers) name the new ones.
    """
    config: dict[str, Any] = json.loads(json.dumps(checkpoint.config))
    warnings: list[str] = []
    for part, order in orders.items():
        own = _config_of(config, part)
        known = [key for key in COUNTS if _is_count(own.get(key))]
        stored = int(own[known[0]]) if known else max(order) + 1
        for place in [own, *([config] if part == LANGUAGE and own is not config else [])]:
            _write(place, stored, order)
        if not known:  # left out where it is the architecture's default
            own["num_hidden_layers"] = len(order)
        by_number = (*_BY_NUMBER, *(() if "layer_types" in own else _ATTENTION_BY_NUMBER))
        said = [key for key in by_number if own.get(key)]
        if said and list(order) != list(range(len(order))):
            warnings.append(
                f"{checkpoint.name}: config.json tells kinds of layers by their numbers ({', '.join(said)}), which are "
                "others now; check that the result loads"
            )
    return config, warnings


def _config_of(config: dict[str, Any], part: str) -> dict[str, Any]:
    if part != LANGUAGE:
        return as_object(config.get("vision_config")) or {}
    return cast(dict[str, Any], text_config(config))  # a part of `config`, which is plain JSON


def _write(config: dict[str, Any], stored: int, order: Sequence[int]) -> None:
    for key, value in config.items():
        if key in COUNTS and value == stored:
            config[key] = len(order)
        items = as_list(value)
        if items is None:
            continue
        if len(items) == stored and stored > 1 and max(order) < stored:
            config[key] = [items[layer] for layer in order]
        elif key.endswith(("_layers", "_idxs")) and items and all(_is_count(item) or item == 0 for item in items):
            config[key] = [number for number, layer in enumerate(order) if layer in items]


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0
