"""A model with a LoRA adapter added: the same tensors, computed when they are read.

Where the adapter's modules lie in the model is decided when it is opened, from names and shapes. Every byte range is
W + scale B A in float32, rounded once to the stored dtype, in bounded memory.
"""

import functools
import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from hashlib import sha256
from typing import TYPE_CHECKING

from safegraft.checkpoint.adapter import Adapter
from safegraft.checkpoint.adapter_declared import skipped, unadapted
from safegraft.checkpoint.adapter_modules import LoraModule
from safegraft.checkpoint.adapter_names import Target, find_tensors
from safegraft.checkpoint.findings import Findings, shown
from safegraft.checkpoint.hub_cache import hub_name
from safegraft.checkpoint.lora_tied import TiedHead
from safegraft.checkpoint.types import Checkpoint, Identity, TensorInfo
from safegraft.errors import InputChangedError, Problem

if TYPE_CHECKING:
    import torch

    from safegraft.checkpoint.lora_tiles import LoraTiles

PIECE = 1 << 17  # elements computed at a time


class LoraCheckpoint(Checkpoint):
    """`base` with `adapter` added. Closing it closes both.

    name: how messages call the two together. notes: what speaks against the two belonging together.

    Raises CheckpointError when a part of the adapter has no place in the base, or could have several: nothing of an
    adapter is left out.
    """

    def __init__(self, base: Checkpoint, adapter: Adapter, name: str) -> None:
        self._base = base
        self._adapter = adapter
        self.name = name
        self.config = base.config
        self.sidecars = base.sidecars
        self.licence = base.licence
        self.tensors = base.tensors
        self.identity = _identity(name, base.identity, adapter.identity)
        places = self._find_places()
        modules = adapter.content.modules.values()
        self._modules = {places[name]: module for module in modules if (name := f"{module.name}.weight") in places}
        self._biases = {places[f"{one.name}.bias"]: one for one in modules if one.bias is not None}
        self._replaced = {places[one]: new for one, new in adapter.content.replaced.items() if one in places}
        self.notes = self._doubts()

    @property
    def sources(self) -> tuple[str, ...]:
        return (*self._base.sources, *self._adapter.sources)

    def read_into(self, tensor: TensorInfo, start: int, buffer: memoryview) -> None:
        name = tensor.name
        if name not in self._modules and name not in self._biases and name not in self._replaced:
            self._base.read_into(tensor, start, buffer)
            return
        if start < 0 or start + buffer.nbytes > tensor.nbytes:
            raise ValueError(f"{name} has {tensor.nbytes} bytes: {buffer.nbytes} from {start} are out of range")
        target, itemsize = buffer.cast("B"), tensor.dtype.itemsize
        while target:
            first = start // itemsize
            last = min(-(-(start + len(target)) // itemsize), first + PIECE)
            begin = start - first * itemsize
            piece = _bytes_of(self._values(tensor, first, last))[begin : begin + len(target)]
            target[: len(piece)] = piece
            target = target[len(piece) :]
            start += len(piece)

    def expecting(self, ranges: Sequence[tuple[TensorInfo, int, int]]) -> AbstractContextManager[None]:
        return self._base.expecting(ranges)

    def interrupt(self) -> None:
        self._base.interrupt()

    def verify_all(self, cancelled: Callable[[], bool]) -> None:
        self._base.verify_all(cancelled)

    def verified(self) -> Mapping[str, bool]:
        return self._base.verified()

    def tokens(self) -> Mapping[str, int] | None:
        return self._base.tokens()

    def modified_ns(self) -> int:
        return max(self._base.modified_ns(), self._adapter.modified_ns())

    def verify_unchanged(self) -> None:
        problems: list[Problem] = []
        for one in (self._base, self._adapter):
            try:
                one.verify_unchanged()
            except InputChangedError as error:
                problems.extend(error.problems)
        if problems:
            raise InputChangedError(problems)

    def close(self) -> None:
        self._base.close()
        self._adapter.close()

    # -- where the adapter's parts lie ----------------------------------------------------------

    def _doubts(self) -> tuple[str, ...]:
        """What speaks against the two belonging together, and what the adapter seems to lack."""
        settings, modules = self._adapter.settings, self._adapter.content.modules
        changed = {*self._modules, *self._biases, *self._replaced}
        named, here = self._adapter.base_name, hub_name(self._base.name)
        doubts = [unadapted(settings, modules), skipped(settings, modules, self.tensors, changed)]
        if named and here and named.casefold() != here.casefold():
            doubts.append(f"its config names {named} as its model, and it is added to {here}")
        return tuple(f"{self._adapter.name}: {text}" for text in doubts if text)

    def _find_places(self) -> dict[str, str]:
        """Name in memory -> name in the base, for everything that the adapter changes."""
        findings = Findings(self.name)
        targets = TiedHead(self._base, self._adapter).settle(self._targets(findings), findings)
        places = find_tensors(targets, self.tensors, findings)
        for name, place in places.items():
            if not self.tensors[place].dtype.is_float:
                findings.add(f"{shown(place)}, which the adapter changes as {shown(name)}, holds no weights")
        findings.raise_if_any()
        return places

    def _targets(self, findings: Findings) -> Sequence[Target]:
        content = self._adapter.content
        shapes: dict[str, tuple[tuple[int, ...], ...]] = {}
        for module in content.modules.values():
            table, matrix = (module.inputs, module.outputs), (module.outputs, module.inputs)
            shapes[f"{module.name}.weight"] = (table,) if module.embedding else tuple({matrix: None, table: None})
            if module.bias is not None:
                shapes[f"{module.name}.bias"] = ((module.outputs,),)
        for name, tensor in content.replaced.items():
            if tensor.shape not in shapes.get(name, (tensor.shape,)):
                findings.add(f"{shown(tensor.name)} is {list(tensor.shape)}, which does not fit its own LoRA")
            shapes[name] = (tensor.shape,)
        return [Target(name, some) for name, some in shapes.items()]

    # -- values ---------------------------------------------------------------------------------

    @functools.cached_property
    def _tiles(self) -> "LoraTiles":
        from safegraft.checkpoint.lora_tiles import LoraTiles

        return LoraTiles(self._own, self._whole)

    def _values(self, tensor: TensorInfo, start: int, stop: int) -> "torch.Tensor":
        """Elements [start, stop), in the tensor's dtype."""
        from safegraft.checkpoint.lora_tiles import LowRank, compute_dtype, require_finite

        module, bias = self._modules.get(tensor.name), self._biases.get(tensor.name)
        if module is not None:
            values = self._tiles.values(LowRank(tensor, module, self._is_turned(tensor, module)), start, stop)
        elif bias is not None and bias.bias is not None:
            dtype = compute_dtype(tensor.dtype)
            added = _read(self._adapter, bias.bias, start, stop).to(dtype).mul_(bias.scale)
            values = self._own(tensor, start, stop).to(dtype).add_(added)
        else:
            return self._own(tensor, start, stop)
        stored = values.to(tensor.dtype.torch)
        require_finite(stored, lambda: self._own(tensor, start, stop), tensor, self._adapter.name)
        return stored

    def _own(self, tensor: TensorInfo, start: int, stop: int) -> "torch.Tensor":
        """Elements before anything is added, in the tensor's dtype: the base's, or what the adapter has instead."""
        from safegraft.checkpoint.lora_tiles import require_finite

        replaced = self._replaced.get(tensor.name)
        if replaced is None:
            return _read(self._base, tensor, start, stop)
        values = _read(self._adapter, replaced, start, stop)
        stored = values.to(tensor.dtype.torch)
        require_finite(stored, lambda: values, tensor, self._adapter.name)
        return stored

    def _whole(self, tensor: TensorInfo) -> "torch.Tensor":
        return _read(self._adapter, tensor, 0, tensor.elements).view(tensor.shape)

    def _is_turned(self, tensor: TensorInfo, module: LoraModule) -> bool:
        """Whether the weight is stored [in, out]. The shape tells; where it is square, the adapter's config."""
        if module.embedding or module.inputs == module.outputs:
            return module.embedding or self._adapter.settings.turned
        return tensor.shape == (module.inputs, module.outputs)


def add_adapter(base: Checkpoint, open_adapter: Callable[[], Adapter], name: str) -> LoraCheckpoint:
    """`base` with the adapter that `open_adapter` opens. Whatever is open is closed when something fails."""
    with ExitStack() as opened:
        opened.callback(base.close)
        adapter = open_adapter()
        opened.callback(adapter.close)
        checkpoint = LoraCheckpoint(base, adapter, name)
        opened.pop_all()
    return checkpoint


def _read(checkpoint: Checkpoint, tensor: TensorInfo, start: int, stop: int) -> "torch.Tensor":
    import torch

    raw = torch.empty((stop - start) * tensor.dtype.itemsize, dtype=torch.uint8)
    checkpoint.read_into(tensor, start * tensor.dtype.itemsize, raw.numpy().data)
    return raw.view(tensor.dtype.torch)


def _bytes_of(tensor: "torch.Tensor") -> memoryview:
    import torch

    return tensor.contiguous().view(torch.uint8).numpy().data


def _identity(name: str, base: Identity, adapter: Identity) -> Identity:
    """Both, and in which role. As complete as the less complete of the two."""
    sampled = "sampled-sha256" in (base.scheme, adapter.scheme)
    lines = [["base", base.scheme, base.digest], ["adapter", adapter.scheme, adapter.digest]]
    digest = sha256(json.dumps(["safegraft", "lora", 1, lines]).encode()).hexdigest()
    return Identity(name, "sampled-sha256" if sampled else "sha256", digest)
