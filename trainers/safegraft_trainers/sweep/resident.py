"""One model in memory that takes one merge after the other.

Hundreds of merges of the same models differ in their numbers alone. So the model, its tokenizer and its processor are
loaded once, and each merge is copied into the parameters that are there; a tensor that merging does not touch is
copied once. Which parameter a file's tensor becomes is transformers' affair (it renames, and ties), so transformers is
asked: it loads the model from tensors that are marked, and where each mark ends up is read off. Where it
does more than rename (stacked experts), every merge is loaded afresh. Knows no suites and no scores.
"""

# torch types its modules in part.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false

import dataclasses
import hashlib
import json
import math
from collections import Counter
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, cast

from safegraft_trainers.loading import Loaded, load_merged
from safegraft_trainers.sweep.merged import Merge, Tensor

if TYPE_CHECKING:
    import torch

    from safegraft import MergedCheckpoint

MANTISSAS = 128  # that bf16 tells apart between a power of two and the next
MARKS = 30 * MANTISSAS  # f16 has 30 such stretches
PERIOD = 4099  # of the signs: a prime, so that no two rows, columns or heads of a tensor have the same


class Resident:
    """Loads merges. Only the last one that it gave is good: the model is the same object.

    dtype, device: as `loading.load` takes them. in_place: turn off to load every merge afresh.
    """

    def __init__(self, dtype: str = "auto", device: str = "cpu", *, in_place: bool = True) -> None:
        self._dtype, self._device, self._in_place = dtype, device, in_place
        self._form = ""
        self._loaded: Loaded | None = None
        self._places: Mapping[str, torch.Tensor] | None = None
        self._held: dict[str, str | None] = {}

    def load(self, merge: Merge, name: str) -> Loaded:
        """Raises CheckpointError, and what computing the merge raises."""
        sidecars = merge.sidecars()
        form = _form(merge.layout, sidecars)
        if form != self._form:
            self._forget()
            if self._in_place:
                self._settle(merge, sidecars, name)
                self._form = form
        if self._loaded is None or self._places is None:
            return _fresh(merge, sidecars, dict(merge.tensors(lambda _: True)), name, self._dtype, self._device)
        self._copy(merge, self._places)
        return dataclasses.replace(self._loaded, name=name, digest=merge.digest)

    def _forget(self) -> None:
        """Before another model is loaded: two might not fit."""
        self._form, self._loaded, self._places, self._held = "", None, None, {}

    def _settle(self, merge: Merge, sidecars: Mapping[str, bytes], name: str) -> None:
        marked = _marked(merge.layout)
        loaded = _fresh(merge, sidecars, marked, name, self._dtype, self._device)
        self._places = _places(loaded.model, marked)
        self._loaded = None if self._places is None else loaded

    def _copy(self, merge: Merge, places: Mapping[str, "torch.Tensor"]) -> None:
        import torch

        def wanted(tensor: str) -> bool:
            source = merge.layout[tensor].source
            return tensor in places and (source is None or self._held.get(tensor) != source)

        with torch.no_grad():
            for tensor, value in merge.tensors(wanted):
                self._held[tensor] = None  # until it is there: a copy may be interrupted
                places[tensor].copy_(value)
                self._held[tensor] = merge.layout[tensor].source


def _form(layout: Mapping[str, Tensor], sidecars: Mapping[str, bytes]) -> str:
    """Equal for merges that one model can take."""
    tensors = [[name, str(one.dtype), one.shape] for name, one in layout.items()]
    files = [[name, hashlib.sha256(content).hexdigest()] for name, content in sorted(sidecars.items())]
    return hashlib.sha256(json.dumps([tensors, files]).encode()).hexdigest()


def _marked(layout: Mapping[str, Tensor]) -> "dict[str, torch.Tensor]":
    """For each tensor one of its shape that no other of that shape equals, nor itself in another order.

    Its number is in the magnitude, which every float format holds exactly; signs follow a pattern over the elements.
    """
    numbers: Counter[tuple[int, ...]] = Counter()
    marked: dict[str, torch.Tensor] = {}
    for name, one in layout.items():
        marked[name] = _mark(one, numbers[one.shape])
        numbers[one.shape] += 1
    return marked


def _mark(tensor: Tensor, number: int) -> "torch.Tensor":
    import torch

    if not tensor.dtype.is_float or number >= MARKS:
        return torch.zeros(tensor.shape, dtype=tensor.dtype.torch)  # has no place, and so none has
    magnitude = (MANTISSAS + number % MANTISSAS) * 2.0 ** (number // MANTISSAS - 21)
    generator = torch.Generator().manual_seed(0)
    signs = torch.randint(0, 2, (PERIOD,), generator=generator).mul_(2).sub_(1).to(tensor.dtype.torch)
    elements = math.prod(tensor.shape)
    return signs.mul_(magnitude).repeat(-(-elements // PERIOD))[:elements].view(tensor.shape)


def _places(model: Any, marked: "Mapping[str, torch.Tensor]") -> "dict[str, torch.Tensor] | None":
    """The parameter or buffer that each tensor of the files became; None unless each is one tensor's exact image.

    A tensor without a place is one that transformers does not load: the second name of tied weights.
    """
    names = {_key(tensor): name for name, tensor in marked.items()}
    places: dict[str, torch.Tensor] = {}
    for place in cast("dict[str, torch.Tensor]", model.state_dict()).values():
        name = names.get(_key(place))
        if name is None or not bool((place.cpu() == marked[name].to(place.dtype)).all()):
            return None
        places[name] = place
    return places


def _key(tensor: "torch.Tensor") -> tuple[float, tuple[int, ...]]:
    first = float(tensor.flatten()[0].abs()) if tensor.numel() and tensor.is_floating_point() else 0.0
    return first, tuple(tensor.shape)


def _fresh(
    merge: Merge,
    sidecars: Mapping[str, bytes],
    tensors: Mapping[str, "torch.Tensor"],
    name: str,
    dtype: str,
    device: str,
) -> Loaded:
    files = {file: _File(content) for file, content in sidecars.items()}
    # What `load_merged` reads of a merged checkpoint, without its card and manifest: the latter costs the whole merge.
    stand_in = _StandIn(files, tensors, _Plan(merge.digest))
    return load_merged(cast("MergedCheckpoint", stand_in), name, dtype=dtype, device=device)


@dataclasses.dataclass(frozen=True, slots=True)
class _File:
    content: bytes

    @property
    def size(self) -> int:
        return len(self.content)

    def read(self, start: int, stop: int) -> bytes:
        return self.content[start:stop]


@dataclasses.dataclass(frozen=True, slots=True)
class _Plan:
    digest: str


@dataclasses.dataclass(frozen=True, slots=True)
class _StandIn:
    files: Mapping[str, _File]
    tensors: Mapping[str, "torch.Tensor"]
    plan: _Plan
