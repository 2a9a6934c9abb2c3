"""Lays an input's tensors over the host model's: from names, shapes and configs, with no table per architecture.

A model is a few stacks of layers (`PREFIX.0.SUFFIX`, `PREFIX.1.SUFFIX`, ...) and some tensors around
them. An LLM inside an LVLM keeps its suffixes and shapes; only prefixes change, and in cross-attention
LVLMs the layer numbers shift. So: pair the stacks, layer by layer, such that the most tensors agree in
suffix and shape; the prefix rewrites found on the way place the tensors around the stacks; what is left
is paired by its longest common ending.

Works on names, shapes and configs alone. Rows of vocabulary tensors are `rows.py`'s business.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from safegraft.checkpoint.types import Checkpoint, TensorInfo

BUFFERS = ("inv_freq",)  # recomputed from the config when a model is built; never merged
MISMATCH = 1e-3  # a pair of equal name and unequal shape: worth something only when looking for the closest mapping


@dataclass(frozen=True, slots=True)
class Stack:
    """Layers under one prefix: layer number -> suffix -> tensor."""

    prefix: str
    layers: dict[int, dict[str, TensorInfo]]

    @property
    def size(self) -> int:
        return sum(len(layer) for layer in self.layers.values())


@dataclass(slots=True)
class Alignment:
    """What one input contributes. `tensors`: host name -> input name.

    unused: input tensors that meet nothing in the host, with the reason; problems: what makes the
    input unusable; notes: what a reader of the plan should know.
    """

    tensors: dict[str, str] = field(default_factory=dict[str, str])
    unused: dict[str, str] = field(default_factory=dict[str, str])
    problems: list[str] = field(default_factory=list[str])
    notes: list[str] = field(default_factory=list[str])


def text_config(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The language model's part of a config; the whole config of a plain LLM."""
    for key in ("text_config", "llm_config", "language_config"):
        part = config.get(key)
        if isinstance(part, Mapping):
            return part  # pyright: ignore[reportUnknownVariableType] (JSON)
    return config


def is_multimodal(config: Mapping[str, Any]) -> bool:
    """An LVLM's config nests the configs of its parts; an LLM's is flat."""
    return text_config(config) is not config or isinstance(config.get("vision_config"), Mapping)


def vocab_size(config: Mapping[str, Any]) -> int | None:
    """Rows of the input embedding according to the config."""
    size = text_config(config).get("vocab_size", config.get("vocab_size"))
    return size if isinstance(size, int) else None


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
    layers = sorted(stacks[place[0]].layers)
    return layers.index(place[1]) / (len(layers) - 1) if len(layers) > 1 else 1.0


def vocabulary_tensors(checkpoint: Checkpoint) -> set[str]:
    """Names of tensors with a row a token: outside stacks, of rank 2 (or a bias beside one)."""
    rows = vocab_size(checkpoint.config)
    outside = [tensor for tensor in checkpoint.tensors.values() if split_layer(tensor.name) is None]
    found = {tensor.name for tensor in outside if len(tensor.shape) == 2 and tensor.shape[0] == rows}
    parents = {name.rpartition(".")[0] for name in found}
    biases = {
        tensor.name
        for tensor in outside
        if len(tensor.shape) == 1 and tensor.shape[0] == rows and tensor.name.rpartition(".")[0] in parents
    }
    return found | biases


def align(host: Checkpoint, other: Checkpoint, tensor_map: Mapping[str, str | None]) -> Alignment:
    """Find what `other` contributes to each of the host's tensors.

    Args:
        tensor_map: the user's own prefix rewrites, longest prefix first to match; None leaves tensors out.
    """
    return _Aligner(host, other).run(tensor_map)


class _Aligner:
    def __init__(self, host: Checkpoint, other: Checkpoint) -> None:
        self.host = host
        self.other = other
        self.host_vocabulary = vocabulary_tensors(host)
        self.other_vocabulary = vocabulary_tensors(other)
        self.result = Alignment()
        self.rewrites: dict[str, str] = {}  # input prefix -> host prefix, each ending in "." or empty
        self.left: dict[str, TensorInfo] = {}  # input tensors still without a place
        self.free: dict[str, TensorInfo] = {}  # host tensors still without a contribution

    def run(self, tensor_map: Mapping[str, str | None]) -> Alignment:
        self.left = {name: tensor for name, tensor in self.other.tensors.items() if self._mergeable(tensor)}
        self.free = {name: tensor for name, tensor in self.host.tensors.items() if tensor.dtype.is_float}
        self._apply(tensor_map)
        self._pair_stacks()
        self._pair_the_rest()
        self._pair_tied_head()
        self._explain_left()
        return self.result

    def _mergeable(self, tensor: TensorInfo) -> bool:
        if tensor.name.rpartition(".")[2] in BUFFERS:
            self.result.unused[tensor.name] = "a buffer that is recomputed when the model is built"
            return False
        if not tensor.dtype.is_float:
            self.result.unused[tensor.name] = f"{tensor.dtype} values are not weights; the host's are kept"
            return False
        return True

    def _take(self, name: str, host_name: str) -> None:
        self.result.tensors[host_name] = name
        del self.left[name]
        del self.free[host_name]

    def _fits(self, tensor: TensorInfo, host_tensor: TensorInfo) -> bool:
        """Equal shapes, or vocabulary tensors that differ in the number of rows only."""
        if tensor.shape == host_tensor.shape:
            return True
        vocabulary = tensor.name in self.other_vocabulary or host_tensor.name in self.host_vocabulary
        return vocabulary and bool(tensor.shape) and tensor.shape[1:] == host_tensor.shape[1:]

    # -- the user's own map ---------------------------------------------------------------------

    def _apply(self, tensor_map: Mapping[str, str | None]) -> None:
        for prefix in sorted(tensor_map, key=len, reverse=True):
            target = tensor_map[prefix]
            names = [name for name in self.left if name.startswith(prefix)]
            if not names:
                self.result.problems.append(f"tensor_map: no tensor name begins with {prefix!r}")
            for name in names:
                if target is None:
                    self.result.unused[name] = "left out by tensor_map"
                    del self.left[name]
                    continue
                host_name = target + name.removeprefix(prefix)
                if host_name not in self.free:
                    self.result.problems.append(
                        f"tensor_map: {name} becomes {host_name}, which the host {self.host.name} does not have"
                    )
                    del self.left[name]
                elif not self._fits(self.left[name], self.free[host_name]):
                    self.result.problems.append(f"tensor_map: {self._differ(name, host_name)}")
                    del self.left[name]
                else:
                    self._take(name, host_name)

    # -- stacks ---------------------------------------------------------------------------------

    def _pair_stacks(self) -> None:
        ours = stacks_of(self.left.values())
        theirs = stacks_of(self.free.values())
        pairings = [
            (pairing.rank(self._companions(pairing)), pairing)
            for stack in ours.values()
            for candidate in theirs.values()
            if (pairing := _pair_layers(stack, candidate)) is not None
        ]
        used: set[str] = set()
        paired: set[str] = set()
        for _, pairing in sorted(pairings, key=lambda item: item[0], reverse=True):
            if pairing.stack.prefix in paired or pairing.target.prefix in used:
                continue
            paired.add(pairing.stack.prefix)
            used.add(pairing.target.prefix)
            self._place_stack(pairing)

    def _companions(self, pairing: "_Pairing") -> int:
        """How many tensors around the stack find their place by the same prefix rewrite."""
        source, target = _rewrite(pairing.stack.prefix, pairing.target.prefix)
        return sum(
            1
            for name, tensor in self.left.items()
            if split_layer(name) is None
            and name.startswith(source)
            and (host_tensor := self.free.get(target + name.removeprefix(source))) is not None
            and self._fits(tensor, host_tensor)
        )

    def _place_stack(self, pairing: "_Pairing") -> None:
        if not self._accept(pairing):
            return
        stack, target = pairing.stack, pairing.target
        source_prefix, target_prefix = _rewrite(stack.prefix, target.prefix)
        self.rewrites[source_prefix] = target_prefix
        if any(layer != other for layer, other in pairing.layers.items()):
            skipped = sorted(set(target.layers) - set(pairing.layers.values()))
            self.result.notes.append(
                f"{self.other.name}: layers of {stack.prefix} sit at shifted numbers in {target.prefix}; "
                f"the host's layers {_ranges(skipped)} are its own"
            )
        for layer, host_layer in pairing.layers.items():
            for suffix, tensor in stack.layers[layer].items():
                host_tensor = target.layers[host_layer].get(suffix)
                if host_tensor is not None and host_tensor.shape == tensor.shape:
                    self._take(tensor.name, host_tensor.name)

    def _accept(self, pairing: "_Pairing") -> bool:
        """A pairing in which the host has more layers of the same kind does not say which of them are meant."""
        if pairing.matched < 1:
            return False
        taken = set(pairing.layers.values())
        some = next(iter(pairing.layers))
        kind = {suffix: tensor.shape for suffix, tensor in pairing.stack.layers[some].items()}
        twins = [
            layer
            for layer, tensors in pairing.target.layers.items()
            if layer not in taken and all(s in tensors and tensors[s].shape == shape for s, shape in kind.items())
        ]
        missing = sorted(set(pairing.stack.layers) - set(pairing.layers))
        if twins or missing:
            if pairing.matched < pairing.stack.size / 2:
                return False  # a chance resemblance: other parts of the model explain these tensors
            self.result.problems.append(
                f"{pairing.stack.prefix} has {len(pairing.stack.layers)} layers, "
                f"{pairing.target.prefix} of the host {self.host.name} has {len(pairing.target.layers)} of the same kind; "
                "they are not adapted from one another"
            )
            for tensors in pairing.stack.layers.values():
                for tensor in tensors.values():
                    self.left.pop(tensor.name, None)
            return False
        return True

    # -- around the stacks ----------------------------------------------------------------------

    def _pair_the_rest(self) -> None:
        for find in (self._by_rewrite, self._by_name, self._by_ending):
            for name in list(self.left):
                host_name = find(name)
                if host_name is not None and self._fits(self.left[name], self.free[host_name]):
                    self._take(name, host_name)

    def _by_rewrite(self, name: str) -> str | None:
        for source in sorted(self.rewrites, key=len, reverse=True):
            if name.startswith(source):
                host_name = self.rewrites[source] + name.removeprefix(source)
                if host_name in self.free:
                    return host_name
        return None

    def _by_name(self, name: str) -> str | None:
        return name if name in self.free else None

    def _by_ending(self, name: str) -> str | None:
        """The one free host tensor with the longest common ending: two parts at least (`lm_head.weight`).

        Only around the stacks: a layer's tensor without a counterpart in its own stack has none at all.
        """
        if split_layer(name):
            return None
        parts = name.split(".")
        for length in range(len(parts), 1, -1):
            ending = ".".join(parts[-length:])
            found = [
                other
                for other, tensor in self.free.items()
                if (other == ending or other.endswith("." + ending))
                and not split_layer(other)
                and self._fits(self.left[name], tensor)
            ]
            if found:
                return found[0] if len(found) == 1 else None
        return None

    # -- tied output heads ----------------------------------------------------------------------

    def _pair_tied_head(self) -> None:
        """A tied model has one matrix for the embedding and the output head; an untied one has two."""
        embeddings = [
            (host_name, name)
            for host_name, name in self.result.tensors.items()
            if host_name in self.host_vocabulary or name in self.other_vocabulary
        ]
        matrices = [(h, n) for h, n in embeddings if len(self.other.tensors[n].shape) == 2]
        if len(matrices) != 1:
            return
        host_name, name = matrices[0]
        heads = [n for n in self.free if n in self.host_vocabulary and len(self.free[n].shape) == 2]
        if len(heads) == 1 and not any(n in self.other_vocabulary for n in self.left):
            self.result.tensors[heads[0]] = name
            del self.free[heads[0]]
            self.result.notes.append(
                f"{self.other.name} ties its output head to {name}, which therefore meets {host_name} and {heads[0]}"
            )
            return
        surplus = [n for n in self.left if n in self.other_vocabulary and len(self.left[n].shape) == 2]
        for head in surplus:
            tensor = self.left.pop(head)
            if _ties(self.other.config):
                self.result.unused[head] = f"a second copy of {name}: the config ties them"
            elif tensor.shape == self.other.tensors[name].shape:
                self.result.problems.append(
                    f"it has an output head of its own ({head}), the host {self.host.name} ties its head to "
                    f"{host_name}: the head would be lost. Use `embeddings: host` to keep the host's vocabulary tensors"
                )
            else:
                self.left[head] = tensor

    # -- what is left ---------------------------------------------------------------------------

    def _explain_left(self) -> None:
        if not self.left:
            return
        language = self._language_prefix()
        groups: dict[str, list[str]] = defaultdict(list)
        for name in self.left:
            groups[self._reason(name, language)].append(name)
        for reason, names in groups.items():
            text = f"{len(names)} tensors {reason}, among them {names[0]}"
            if self._is_required(names[0], language):
                self.result.problems.append(text + self._closest(names))
            else:
                self.result.notes.append(f"{self.other.name}: {text}")
                self.result.unused.update(dict.fromkeys(names, reason))

    def _is_required(self, name: str, language: str | None) -> bool:
        """Everything of an LLM must find its place; of an LVLM, its language model."""
        return language is None or name.startswith(language) or name in self.other_vocabulary

    def _reason(self, name: str, language: str | None) -> str:
        if self._is_required(name, language):
            return f"have no counterpart in the host {self.host.name}"
        return f"outside its language model have no counterpart in the host {self.host.name} and are not used"

    def _language_prefix(self) -> str | None:
        """The prefix of the language model within a multimodal input; None: all of it is."""
        if not is_multimodal(self.other.config):
            return None
        stack = language_stack(self.other)
        return stack.prefix + "." if stack else None

    def _closest(self, names: list[str]) -> str:
        """Tell what came nearest, so that a wrong model is recognised at a glance."""
        place = next((place for name in names if (place := split_layer(name))), None)
        if place is None:
            return ""
        prefix, layer, suffix = place
        stack = stacks_of(self.other.tensors.values())[prefix]
        host_stacks = stacks_of(self.host.tensors.values())
        pairings = [pairing for target in host_stacks.values() if (pairing := _pair_layers(stack, target)) is not None]
        if not pairings:
            return f". Nothing in the host resembles {prefix}"
        best = max(pairings, key=lambda pairing: pairing.score)
        text = f". The closest mapping is {prefix} -> {best.target.prefix}"
        if layer not in best.layers:
            return f"{text}, which has no place for layer {layer}"
        counterpart = best.target.layers[best.layers[layer]].get(suffix)
        if counterpart is None:
            return f"{text}, which has no {suffix}"
        ours = list(stack.layers[layer][suffix].shape)
        return f"{text}, where {suffix} is {ours} here and {list(counterpart.shape)} in the host"

    def _differ(self, name: str, host_name: str) -> str:
        ours, theirs = self.other.tensors[name].shape, self.host.tensors[host_name].shape
        return f"{name} is {list(ours)} in {self.other.name}, {host_name} is {list(theirs)} in {self.host.name}"


def language_stack(checkpoint: Checkpoint) -> Stack | None:
    """The decoder layers: the stack that shares the longest prefix with the token embedding and is
    not shorter than the config says."""
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
        return max(_common_parts(stack.prefix, name) for name in embeddings), stack.size

    return max(candidates, key=nearness)


@dataclass(frozen=True, slots=True)
class _Pairing:
    """Layers of one stack laid on layers of another. `matched`: tensors that agree in suffix and shape."""

    stack: Stack
    target: Stack
    layers: dict[int, int]
    score: float

    @property
    def matched(self) -> int:
        return int(self.score)

    def rank(self, companions: int) -> tuple[float, int, bool, str, str]:
        """Best coverage first; then what surrounds the stack; then equal names."""
        share = self.score / max(self.stack.size, self.target.size)
        same = self.stack.prefix == self.target.prefix
        return (round(self.score + share, 6), companions, same, self.target.prefix, self.stack.prefix)


def _pair_layers(stack: Stack, target: Stack) -> _Pairing | None:
    """The order-preserving pairing of layers with the highest score (longest common subsequence, weighted)."""
    ours, theirs = sorted(stack.layers), sorted(target.layers)
    scores = _layer_scores(stack, target, ours, theirs)
    straight = {layer: layer for layer in ours if layer in target.layers}
    if len(straight) == len(ours) == len(theirs):
        total = sum(scores[i][i] for i in range(len(ours)))
        if all(scores[i][i] >= len(stack.layers[ours[i]]) for i in range(len(ours))):
            return _Pairing(stack, target, straight, total)
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
    return _Pairing(stack, target, layers, best[0][0])


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


def _rewrite(prefix: str, target: str) -> tuple[str, str]:
    """("model.", "model.language_model.") for model.layers -> model.language_model.layers."""
    ours, theirs = prefix.split("."), target.split(".")
    while ours and theirs and ours[-1] == theirs[-1]:
        ours.pop()
        theirs.pop()
    return "".join(part + "." for part in ours), "".join(part + "." for part in theirs)


def _common_parts(one: str, other: str) -> int:
    count = 0
    for a, b in zip(one.split("."), other.split("."), strict=False):
        if a != b:
            break
        count += 1
    return count


def _ties(config: Mapping[str, Any]) -> bool:
    own = text_config(config).get("tie_word_embeddings")
    return bool(config.get("tie_word_embeddings") if own is None else own)


def _ranges(numbers: list[int]) -> str:
    return ", ".join(str(number) for number in numbers)
