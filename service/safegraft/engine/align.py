"""Lays an input's tensors over the host model's: from names, shapes and configs, with no table per architecture.

A model is a few stacks of layers (`PREFIX.0.SUFFIX`, `PREFIX.1.SUFFIX`, ...) and some tensors around
them. An LLM inside an LVLM keeps its suffixes and shapes; only prefixes change, and in cross-attention
LVLMs the layer numbers shift. So: pair the stacks, layer by layer, such that the most tensors agree in
suffix and shape; the prefix rewrites found on the way place the tensors around the stacks; what is left
is paired by its longest common ending.

Works on names, shapes and configs alone. Rows of vocabulary tensors are `rows.py`'s business.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from safegraft.checkpoint.types import Checkpoint, TensorInfo
from safegraft.engine.anatomy import (
    common_parts,
    is_multimodal,
    language_stack,
    split_layer,
    stacks_of,
    ties_head,
    vocabulary_tensors,
)
from safegraft.engine.layers import Pairing, pair_layers
from safegraft.engine.modules import comes_after_layers

BUFFERS = ("inv_freq",)  # recomputed from the config when a model is built; never merged


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


@dataclass(frozen=True, slots=True)
class Laid:
    """A stack of which the recipe says which layer meets which: (the input's, the host's), one with several too.

    ends: whether the input is also merged into what comes after the layers.
    """

    prefix: str
    host_prefix: str
    layers: tuple[tuple[int, int], ...]
    ends: bool


def align(
    host: Checkpoint,
    other: Checkpoint,
    tensor_map: Mapping[str, str | None],
    *,
    keep_vocabulary: bool = False,
    laid: Sequence[Laid] = (),
) -> Alignment:
    """Find what `other` contributes to each of the host's tensors.

    Args:
        tensor_map: the user's own prefix rewrites, longest prefix first to match; None leaves tensors out.
        keep_vocabulary: the host's vocabulary tensors stay, so that none of the input's can be missed.
        laid: stacks whose layers are not to be found but given.
    """
    return _Aligner(host, other, keep_vocabulary, laid).run(tensor_map)


class _Aligner:
    def __init__(self, host: Checkpoint, other: Checkpoint, keep_vocabulary: bool, laid: Sequence[Laid]) -> None:
        self.host = host
        self.other = other
        self.laid = laid
        self.keep_vocabulary = keep_vocabulary
        own, inner = language_stack(host), language_stack(other)
        self.language = (inner.prefix if inner else "", own.prefix if own else "")
        self.ends = all(one.ends for one in laid if one.prefix == self.language[0])
        self.decoder = self.language[1]  # the host's stack that the input's decoder is laid on
        self.host_stacks = list(stacks_of(host.tensors.values()))
        # Everything of an LLM must find its place; of an LVLM, the layers of its language model.
        self.required = inner.prefix + "." if inner and is_multimodal(other.config) else ""
        self.host_vocabulary = vocabulary_tensors(host)
        self.other_vocabulary = vocabulary_tensors(other)
        self.result = Alignment()
        self.rewrites: dict[str, str] = {}  # input prefix -> host prefix, each ending in "." or empty
        self.left: dict[str, TensorInfo] = {}  # input tensors still without a place
        self.around: list[tuple[str, TensorInfo]] = []  # those of them that lie outside stacks
        self.endings: dict[str, list[str]] = defaultdict(list)  # last two parts of a name -> host tensors
        self.free: dict[str, TensorInfo] = {}  # host tensors still without a contribution

    def run(self, tensor_map: Mapping[str, str | None]) -> Alignment:
        self.left = {name: tensor for name, tensor in self.other.tensors.items() if self._mergeable(tensor)}
        self.free = {name: tensor for name, tensor in self.host.tensors.items() if tensor.dtype.is_float}
        for laid in self.laid:
            self._lay(laid)
        self._apply(tensor_map)
        self._pair_stacks()
        self._pair_the_rest()
        if self.ends:
            self._pair_tied_head()
        self._keep_misfits_whole()
        self._explain_left()
        if not tensor_map and not self.laid:
            self._explain_gaps()
        return self.result

    def _mergeable(self, tensor: TensorInfo) -> bool:
        if tensor.name.rpartition(".")[2] in BUFFERS:
            self.result.unused[tensor.name] = "a buffer that is recomputed when the model is built"
            return False
        if not tensor.dtype.is_float:
            self.result.unused[tensor.name] = f"{tensor.dtype} values are not weights"
            self.result.notes.append(
                f"{self.other.name}: {tensor.name} holds {tensor.dtype} values, which are not weights; it is not used"
            )
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

    # -- layers that the recipe places -----------------------------------------------------------

    def _lay(self, laid: Laid) -> None:
        """Place the layers that are named, each with its like in suffix and shape, and set the others aside."""
        if laid.prefix == self.language[0]:
            self.decoder = laid.host_prefix
        source_prefix, target_prefix = _rewrite(laid.prefix, laid.host_prefix)
        self.rewrites[source_prefix] = target_prefix
        stack = stacks_of(self.left.values())[laid.prefix]
        missed: dict[str, str] = {}
        for layer, host_layer in laid.layers:
            for suffix, tensor in stack.layers[layer].items():
                host_name = f"{laid.host_prefix}.{host_layer}.{suffix}"
                host_tensor = self.free.get(host_name)
                if host_tensor is not None and host_tensor.shape == tensor.shape:
                    self.result.tensors[host_name] = tensor.name
                    del self.free[host_name]
                else:
                    missed.setdefault(tensor.name, f"[{', '.join(map(str, tensor.shape))}] for {host_name}")
        if missed:
            name, place = next(iter(missed.items()))
            self.result.problems.append(
                f"{len(missed)} tensors of the layers that are named have no counterpart in the host {self.host.name}, "
                f"among them {name} {place}"
            )
        used = {layer for layer, _ in laid.layers}
        for number, tensors in stack.layers.items():
            for tensor in tensors.values():
                del self.left[tensor.name]
                if number not in used:
                    self.result.unused[tensor.name] = "its layer is in no slice"
        if laid.prefix == self.language[0] and not self.ends:
            for name in [one for one in self.left if split_layer(one) is None and self._ends(one)]:
                self._leave_out(name, "it comes after the layers, and the last slice is of other models")

    def _ends(self, name: str) -> bool:
        beside = self._belongs_to_decoder(name) or name in self.other_vocabulary
        return beside and comes_after_layers(name)

    # -- stacks ---------------------------------------------------------------------------------

    def _pair_stacks(self) -> None:
        ours = stacks_of(self.left.values())
        theirs = stacks_of(self.free.values())
        self.around = [(name, tensor) for name, tensor in self.left.items() if split_layer(name) is None]
        pairings = [
            (self._rank(pairing), pairing)
            for stack in ours.values()
            for candidate in theirs.values()
            if (pairing := pair_layers(stack, candidate)) is not None
        ]
        used: set[str] = set()
        paired: set[str] = set()
        pairings.sort(key=lambda item: (item[0], item[1].target.prefix, item[1].stack.prefix), reverse=True)
        for rank, pairing in pairings:
            if pairing.stack.prefix in paired or pairing.target.prefix in used:
                continue
            rivals = [
                other.target.prefix
                for same, other in pairings
                if same == rank and other.stack is pairing.stack and other.target.prefix not in used
            ]
            if (
                len(rivals) > 1
                and pairing.matched >= pairing.stack.size / 2
                and self._is_required(pairing.stack.prefix + ".")
            ):
                self.result.problems.append(
                    f"{pairing.stack.prefix} fits {' and '.join(sorted(rivals))} of the host {self.host.name} equally "
                    "well; say which with `tensor_map`"
                )
                return
            paired.add(pairing.stack.prefix)
            used.add(pairing.target.prefix)
            self._place_stack(pairing)

    def _rank(self, pairing: Pairing) -> tuple[bool, float, bool, int, bool]:
        """Among equally good pairings, that of the language models; then that by whose prefix rewrite the
        most tensors around the stack find their place."""
        language = (pairing.stack.prefix, pairing.target.prefix) == self.language
        return pairing.rank(language, self._companions(pairing))

    def _companions(self, pairing: Pairing) -> int:
        source, target = _rewrite(pairing.stack.prefix, pairing.target.prefix)
        return sum(
            1
            for name, tensor in self.around
            if name.startswith(source)
            and (host_tensor := self.free.get(target + name.removeprefix(source))) is not None
            and self._fits(tensor, host_tensor)
        )

    def _place_stack(self, pairing: Pairing) -> None:
        if not self._accept(pairing):
            return
        stack, target = pairing.stack, pairing.target
        if stack.prefix == self.language[0]:
            self.decoder = target.prefix
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

    def _accept(self, pairing: Pairing) -> bool:
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
            chance = pairing.matched < pairing.stack.size / 2
            if chance or not self._is_required(pairing.stack.prefix + "."):
                return False
            self.result.problems.append(
                f"{pairing.stack.prefix} has {len(pairing.stack.layers)} layers, {pairing.target.prefix} of the host "
                f"{self.host.name} has {len(pairing.target.layers)} of the same kind; "
                "they are not adapted from one another"
            )
            for tensors in pairing.stack.layers.values():
                for tensor in tensors.values():
                    self.left.pop(tensor.name, None)
            return False
        return True

    # -- around the stacks ----------------------------------------------------------------------

    def _pair_the_rest(self) -> None:
        for name in self.free:
            if split_layer(name) is None:
                self.endings[_ending(name, 2)].append(name)
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
        tensor = self.left[name]
        inner = self._belongs_to_decoder(name)
        found = [
            other
            for other in self.endings.get(_ending(name, 2), ())
            if other in self.free
            and self._fits(tensor, self.free[other])
            and (not inner or (common_parts(other, self.decoder) > 0 and self._is_nearest_to_decoder(other)))
        ]
        length = 2
        while len(found) > 1 and length < len(name.split(".")):
            length += 1
            found = [other for other in found if _ending(other, length) == _ending(name, length)] or found[:0]
        return found[0] if len(found) == 1 else None

    def _belongs_to_decoder(self, name: str) -> bool:
        """What stands beside the decoder's layers: the norm. Its place is beside the host's decoder, or nowhere."""
        around = self.language[0].rpartition(".")[0]
        return bool(around) and name.startswith(around + ".") and name not in self.other_vocabulary

    def _is_nearest_to_decoder(self, host_name: str) -> bool:
        """Whether no other stack of the host shares more of the name than the decoder does."""
        nearest = common_parts(host_name, self.decoder)
        return all(common_parts(host_name, prefix) <= nearest for prefix in self.host_stacks)

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
        matching = [n for n in self.free if n in self.host_vocabulary and len(self.free[n].shape) == 2]
        heads = [n for n in matching if self._is_nearest_to_decoder(n)]  # and no table of positions of the same size
        if len(heads) == 1 and not any(n in self.other_vocabulary for n in self.left):
            if ties_head(self.other.config) is False:
                if not self.keep_vocabulary:
                    self.result.problems.append(
                        f"it has {name} and nothing for {heads[0]} of the host {self.host.name}, and its config says "
                        "that the two are not tied; is the checkpoint complete? `embeddings: host` keeps the host's"
                    )
                return
            self.result.tensors[heads[0]] = name
            del self.free[heads[0]]
            self.result.notes.append(
                f"{self.other.name} ties its output head to {name}, which therefore meets {host_name} and {heads[0]}"
            )
            return
        for head in [n for n in self.left if n in self.other_vocabulary and len(self.left[n].shape) == 2]:
            if ties_head(self.other.config):
                self._leave_out(head, f"a copy of {name}, since the config ties them")
                self.result.notes.append(
                    f"{self.other.name}: {head} is not used; its config ties it to {name}, as the host's does"
                )
            elif self.keep_vocabulary:
                self._leave_out(head, "embeddings: host")
            elif self.left[head].shape == self.other.tensors[name].shape:
                del self.left[head]
                self.result.problems.append(
                    f"it has an output head of its own ({head}), the host {self.host.name} ties its head to "
                    f"{host_name}: the head would be lost. Use `embeddings: host` to keep the host's vocabulary tensors"
                )

    # -- parts outside the language model ---------------------------------------------------------

    def _keep_misfits_whole(self) -> None:
        """A vision tower or projector that fits in part only is not merged in part: where a tensor
        outside the language model has a counterpart of another shape, or belongs to layers that found no
        place, all that lies outside the language model stays the host's."""
        outside = [name for name in self.left if not self._is_required(name)]
        misfits = [name for name in outside if split_layer(name) or self._has_namesake(name)]
        if not misfits:
            return
        taken = [(host, name) for host, name in self.result.tensors.items() if not self._is_language(host)]
        for host_name, name in taken:
            del self.result.tensors[host_name]
            self.left[name] = self.other.tensors[name]
        where = ", ".join(dict.fromkeys(".".join(name.split(".")[:2]) for name in misfits))
        self.result.notes.append(
            f"{self.other.name}: its parts outside the language model do not fit the host's ({where}); the host's "
            "are kept whole"
        )

    def _has_namesake(self, name: str) -> bool:
        return any(other in self.free for other in self.endings.get(_ending(name, 2), ()))

    def _is_language(self, host_name: str) -> bool:
        """The decoder's layers, what stands beside them (the norm), and the vocabulary tensors."""
        place = split_layer(host_name)
        if place:
            return place[0] == self.language[1]
        around = self.language[1].rpartition(".")[0]
        return host_name in self.host_vocabulary or host_name.startswith(around + "." if around else "")

    # -- what is left ---------------------------------------------------------------------------

    def _leave_out(self, name: str, reason: str) -> None:
        del self.left[name]
        self.result.unused[name] = reason

    def _explain_left(self) -> None:
        required = [name for name in self.left if self._is_required(name)]
        unused = [name for name in self.left if not self._is_required(name)]
        nowhere = f"have no counterpart in the host {self.host.name}"
        if required:
            text = f"{len(required)} tensors {nowhere}, among them {required[0]}"
            self.result.problems.append(text + self._closest(required))
        if unused:
            self.result.notes.append(
                f"{self.other.name}: {len(unused)} tensors outside its language model {nowhere} and are not used, "
                f"among them {unused[0]}"
            )
            self.result.unused.update(dict.fromkeys(unused, nowhere))

    def _explain_gaps(self) -> None:
        """What the host's language model has and the input lacks: a bias perhaps, or half a checkpoint."""
        stack = self.language[1]
        if not stack or self.result.problems:
            return
        met = {place[1] for name in self.result.tensors if (place := split_layer(name)) and place[0] == stack}
        if not any(split_layer(name) for name in self.result.tensors):
            self.result.problems.append(f"none of its layers fits any of the host {self.host.name}'s")
        gaps = [
            name
            for name in self.free
            if self._is_language(name)
            and name.rpartition(".")[2] not in BUFFERS
            and not (self.keep_vocabulary and name in self.host_vocabulary)
            and not ((place := split_layer(name)) and place[1] not in met)  # the host's own layers are told elsewhere
        ]
        if gaps:
            self.result.notes.append(
                f"{self.other.name}: {len(gaps)} tensors of the host's language model have no counterpart in it, "
                f"among them {gaps[0]}; the host's are kept"
            )

    def _is_required(self, name: str) -> bool:
        return name.startswith(self.required) or (name in self.other_vocabulary and not self.keep_vocabulary)

    def _closest(self, names: list[str]) -> str:
        """Tell what came nearest, so that a wrong model is recognised at a glance."""
        places = [place for name in names if (place := split_layer(name))]
        if not places:
            return ""
        prefix = places[0][0]
        stack = stacks_of(self.other.tensors.values())[prefix]
        host_stacks = stacks_of(self.host.tensors.values())
        pairings = [pairing for target in host_stacks.values() if (pairing := pair_layers(stack, target)) is not None]
        if not pairings:
            return f". Nothing in the host resembles {prefix}"
        best = max(pairings, key=lambda pairing: pairing.score)
        text = f". The closest mapping is {prefix} -> {best.target.prefix}"
        for _, layer, suffix in [place for place in places if place[0] == prefix]:
            if layer not in best.layers:
                return f"{text}, which has no place for layer {layer}"
            counterpart = best.target.layers[best.layers[layer]].get(suffix)
            if counterpart is None:
                return f"{text}, which has no {suffix}"
            ours = stack.layers[layer][suffix].shape
            if counterpart.shape != ours:
                return f"{text}, where {suffix} is {list(ours)} here and {list(counterpart.shape)} in the host"
        return f"{text}, which another part of the model fits better"

    def _differ(self, name: str, host_name: str) -> str:
        ours, theirs = self.other.tensors[name].shape, self.host.tensors[host_name].shape
        return f"{name} is {list(ours)} in {self.other.name}, {host_name} is {list(theirs)} in {self.host.name}"


def _rewrite(prefix: str, target: str) -> tuple[str, str]:
    """("model.", "model.language_model.") for model.layers -> model.language_model.layers."""
    ours, theirs = prefix.split("."), target.split(".")
    while ours and theirs and ours[-1] == theirs[-1]:
        ours.pop()
        theirs.pop()
    return "".join(part + "." for part in ours), "".join(part + "." for part in theirs)


def _ending(name: str, parts: int) -> str:
    return ".".join(name.split(".")[-parts:])


def _ranges(numbers: list[int]) -> str:
    return ", ".join(str(number) for number in numbers)
