"""Which tensors of a checkpoint make which parameters of a transformers model, and the way back.

A file's names are not the module's: transformers renames, and for some models joins, splits or turns tensors
while it loads them. Its own tables and operations (get_model_conversion_mapping) do that here too. All of them
only move elements about, which is what makes a way back exist.
"""

# torch and transformers type their own functions in part.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false, reportUnknownLambdaType=false

import copy
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import (
    WeightConverter,
    WeightRenaming,
    dot_natural_key,
    rename_source_key,
)

from safegraft.checkpoint.types import TensorInfo

Tensors = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Group:
    """Tensors of a checkpoint that together make parameters: one under another name, or several rearranged.

    sources: (pattern, tensor) in the order of loading. targets: parameter -> shape. converter: what rearranges
    them, None where a tensor is just renamed.
    """

    first: str
    sources: tuple[tuple[str, TensorInfo], ...]
    targets: Mapping[str, tuple[int, ...]]
    converter: WeightConverter | None
    model: PreTrainedModel = field(repr=False)

    @property
    def names(self) -> tuple[str, ...]:
        """Of the checkpoint's tensors."""
        return tuple(info.name for _, info in self.sources)

    def converted(self, values: Sequence[torch.Tensor]) -> Tensors:
        """Parameters from the sources' values, in the order of `sources`. The list is emptied of what is used up."""
        return _converted(self.model, self.first, [pattern for pattern, _ in self.sources], values, self.converter)

    def taken_back(self, values: Mapping[str, torch.Tensor]) -> Tensors:
        """Values that lie like the parameters, as they lie in the checkpoint's tensors. A parameter without a value
        counts as zeros."""
        if self.converter is None:
            return {self.names[0]: values[self.first]} if self.first in values else {}
        flat = torch.zeros(sum(info.elements for _, info in self.sources))
        for target, positions in self.positions.items():
            if target in values:
                flat[positions.reshape(-1)] = values[target].reshape(-1)
        pieces = flat.split([info.elements for _, info in self.sources])
        return {
            info.name: piece.view(info.shape).clone() for (_, info), piece in zip(self.sources, pieces, strict=True)
        }

    def columns(self, source: str) -> tuple[str, torch.Tensor] | None:
        """Of a matrix among the sources: (a matrix parameter, the place in the checkpoint of each of its columns).

        None when its rows do not lie whole, and all alike, in matrix parameters.
        """
        begin = 0
        for _, info in self.sources:
            if info.name == source:
                break
            begin += info.elements
        else:
            raise KeyError(source)
        if len(info.shape) != 2:
            return None
        if self.converter is None:
            return (self.first, torch.arange(info.shape[1])) if len(self.targets[self.first]) == 2 else None
        found: tuple[str, torch.Tensor] | None = None
        for target, positions in self.positions.items():
            ours = (positions >= begin) & (positions < begin + info.elements)
            if not ours.any():
                continue
            rows = ours.view(positions.shape[0], -1).any(1)
            if positions.dim() != 2 or positions.shape[1] != info.shape[1] or not ours[rows].all():
                return None
            places = (positions[rows] - begin) % info.shape[1]
            if not (places == places[0]).all() or (found is not None and not torch.equal(found[1], places[0])):
                return None
            found = found or (target, places[0].clone())
        return found

    @property
    def positions(self) -> Tensors:
        """Where each element of the parameters lies among the elements of all sources: four bytes an element."""
        total = sum(info.elements for _, info in self.sources)
        dtype = torch.int32 if total < 2**31 else torch.int64
        begin = 0
        places: list[torch.Tensor] = []
        for _, info in self.sources:
            places.append(torch.arange(begin, begin + info.elements, dtype=dtype).view(info.shape))
            begin += info.elements
        return {target: place.long() for target, place in self.converted(places).items()}


def find_groups(model: PreTrainedModel, tensors: Iterable[TensorInfo]) -> list[Group]:
    """Groups of those tensors that the model has a place for, found as `from_pretrained` finds them."""
    transforms = get_model_conversion_mapping(model)
    renamings = [one for one in transforms if isinstance(one, WeightRenaming)]
    converters = [one for one in transforms if isinstance(one, WeightConverter)]
    by_pattern = {pattern: converter for converter in converters for pattern in converter.source_patterns}
    state = model.state_dict()
    collected: dict[str, list[tuple[str | None, TensorInfo]]] = {}
    for info in sorted(tensors, key=lambda one: dot_natural_key(one.name)):
        name, pattern = rename_source_key(info.name, renamings, converters, model.base_model_prefix, state)
        if name not in state and info.name in state:  # it has the model's own name already
            name, pattern = rename_source_key(info.name, [], [], model.base_model_prefix, state)
        if name in state:
            collected.setdefault(name, []).append((pattern, info))
    return [_group(model, name, sources, by_pattern) for name, sources in collected.items()]


def _group(
    model: PreTrainedModel,
    name: str,
    sources: Sequence[tuple[str | None, TensorInfo]],
    by_pattern: Mapping[str, WeightConverter],
) -> Group:
    pattern = sources[0][0]
    if pattern is None:
        return Group(name, ((name, sources[0][1]),), {name: sources[0][1].shape}, None, model)
    converter = by_pattern[pattern]
    named = tuple((pattern or name, info) for pattern, info in sources)
    shapes = [torch.empty(info.shape, device="meta") for _, info in named]
    made = _converted(model, name, [pattern for pattern, _ in named], shapes, converter)
    return Group(name, named, {target: tuple(value.shape) for target, value in made.items()}, converter, model)


def _converted(
    model: PreTrainedModel,
    first: str,
    patterns: Sequence[str],
    values: Sequence[torch.Tensor],
    converter: WeightConverter | None,
) -> Tensors:
    if converter is None:
        return {first: values[0]}
    run: Any = copy.deepcopy(converter)  # it collects what it converts
    for pattern, value in zip(patterns, values, strict=True):
        run.add_tensor(first, first, pattern, value)
    made: dict[str, Any] = run.convert(first, model=model, config=model.config)
    return {target: value[0] if isinstance(value, list) else value for target, value in made.items()}
