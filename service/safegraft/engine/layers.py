"""Lays the layers of one stack on those of another, in order, such that the most tensors agree."""

from collections.abc import Mapping
from dataclasses import dataclass

from safegraft.checkpoint.types import TensorInfo
from safegraft.engine.anatomy import Stack

MOST_PAIRS = 1_000_000  # of layers compared with layers: a thousand against a thousand
MISMATCH = 1e-3  # a pair of equal name and unequal shape: worth something only when looking for the closest mapping


@dataclass(frozen=True, slots=True)
class Pairing:
    """Layers of one stack laid on layers of another. `matched`: tensors that agree in suffix and shape."""

    stack: Stack
    target: Stack
    layers: dict[int, int]
    score: float

    @property
    def matched(self) -> int:
        return int(self.score)

    def rank(self, language: bool, companions: int) -> tuple[bool, float, bool, int, bool]:
        """First those whose surroundings agree too: layers and the embedding before them belong together.
        Then the best coverage; then what the configs say; then the most surroundings; then equal names."""
        anchored = companions > 0 and self.score >= self.stack.size / 2
        share = self.score / max(self.stack.size, self.target.size)
        same = self.stack.prefix == self.target.prefix
        return (anchored, round(self.score + share, 6), language, companions, same)


def pair_layers(stack: Stack, target: Stack) -> Pairing | None:
    """The order-preserving pairing of layers with the highest score (longest common subsequence, weighted)."""
    ours, theirs = sorted(stack.layers), sorted(target.layers)
    if ours == theirs and all(_kind(stack.layers[layer]) == _kind(target.layers[layer]) for layer in ours):
        return Pairing(stack, target, {layer: layer for layer in ours}, float(stack.size))
    if len(ours) * len(theirs) > MOST_PAIRS:
        return None
    scores = _layer_scores(stack, target, ours, theirs)
    straight = {layer: layer for layer in ours if layer in target.layers}
    if len(straight) == len(ours) == len(theirs):
        total = sum(scores[i][i] for i in range(len(ours)))
        if all(scores[i][i] >= len(stack.layers[ours[i]]) for i in range(len(ours))):
            return Pairing(stack, target, straight, total)
    best = [[0.0] * (len(theirs) + 1) for _ in range(len(ours) + 1)]
    for i in range(len(ours) - 1, -1, -1):
        for j in range(len(theirs) - 1, -1, -1):
            here = scores[i][j]
            best[i][j] = max(best[i + 1][j], best[i][j + 1], best[i + 1][j + 1] + here if here else 0.0)
    if not best[0][0]:
        return None
    layers: dict[int, int] = {}
    i = j = 0
    while i < len(ours) and j < len(theirs):
        here = scores[i][j]
        if here and best[i][j] == best[i + 1][j + 1] + here:
            layers[ours[i]] = theirs[j]
            i, j = i + 1, j + 1
        elif best[i][j] == best[i][j + 1]:
            j += 1
        else:
            i += 1
    return Pairing(stack, target, layers, best[0][0])


def _layer_scores(stack: Stack, target: Stack, ours: list[int], theirs: list[int]) -> list[list[float]]:
    """Layers of one kind recur, so each pair of kinds is compared once."""
    known: dict[tuple[object, object], float] = {}
    kinds = [_kind(stack.layers[layer]) for layer in ours]
    host_kinds = [_kind(target.layers[layer]) for layer in theirs]
    for kind in set(kinds):
        for host_kind in set(host_kinds):
            shapes = dict(host_kind)
            known[kind, host_kind] = sum(
                (1.0 if shapes[suffix] == shape else MISMATCH) for suffix, shape in kind if suffix in shapes
            )
    return [[known[kind, host_kind] for host_kind in host_kinds] for kind in kinds]


def _kind(layer: Mapping[str, TensorInfo]) -> tuple[tuple[str, tuple[int, ...]], ...]:
    return tuple(sorted((suffix, tensor.shape) for suffix, tensor in layer.items()))
