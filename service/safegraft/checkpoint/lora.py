"""A model with a LoRA adapter added: the same tensors, computed when they are read.

Where the adapter's modules lie in the model is decided when it is opened, from names and shapes. Every byte range is
W + scale B A in float32, rounded once to the stored dtype, in bounded memory.
"""

import functools
import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from hashlib import sha256
from typing import TYPE_CHECKING

from safegraft.checkpoint.adapter import AdapterFolder
from safegraft.checkpoint.adapter_modules import LoraModule
from safegraft.checkpoint.adapter_names import Target, find_tensors, has_place
from safegraft.checkpoint.config import subconfigs
from safegraft.checkpoint.findings import Findings, listed, shown
from safegraft.checkpoint.types import Checkpoint, Identity, TensorInfo
from safegraft.errors import InputChangedError, Problem

if TYPE_CHECKING:
    import torch

    from safegraft.checkpoint.lora_tiles import LoraTiles

PIECE = 1 << 17  # elements computed at a time
_COMPARED = 1 << 20  # bytes


class LoraCheckpoint(Checkpoint):
    """`base` with `adapter` added. Closing it closes both.

    name: how messages call the two together.

    Raises CheckpointError when a part of the adapter has no place in the base, or could have several: nothing of an
    adapter is left out.
    """

    def __init__(self, base: Checkpoint, adapter: AdapterFolder, name: str) -> None:
        self._base = base
        self._adapter = adapter
        self.name = name
        self.config = base.config
        self.sidecars = base.sidecars
        self.tensors = base.tensors
        self.identity = _identity(name, base.identity, adapter.identity)
        places = self._find_places()
        modules = adapter.content.modules.values()
        self._modules = {places[f"{module.name}.weight"]: module for module in modules}
        self._biases = {places[f"{one.name}.bias"]: one for one in modules if one.bias is not None}
        self._replaced = {places[one]: new for one, new in adapter.content.replaced.items() if one in places}

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

    def _find_places(self) -> dict[str, str]:
        """Name in memory -> name in the base, for everything that the adapter changes."""
        findings = Findings(self.name)
        targets = [target for target in self._targets(findings) if not self._is_tied_copy(target.name)]
        places = find_tensors(targets, self.tensors, findings)
        for name, place in places.items():
            if not self.tensors[place].dtype.is_float:
                findings.add(f"{shown(place)}, which the adapter changes as {shown(name)}, holds no weights")
        homeless = [one.name for one in targets if self._has_tied_rows(one) and not has_place(one.name, self.tensors)]
        if homeless:
            findings.add(
                f"{listed(homeless)}: the base ties its output head to its embedding, so there is no head of its own "
                "to change"
            )
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

    def _is_tied_copy(self, name: str) -> bool:
        """PEFT saves the head of a tied model a second time; the model has it once, as its embedding."""
        replaced = self._adapter.content.replaced
        tensor = replaced.get(name)
        if tensor is None or has_place(name, self.tensors):
            return False
        twins = [one for other, one in replaced.items() if other != name and has_place(other, self.tensors)]
        return any(self._same_content(tensor, twin) for twin in twins)

    def _same_content(self, one: TensorInfo, other: TensorInfo) -> bool:
        if (one.shape, one.dtype) != (other.shape, other.dtype):
            return False
        for start in range(0, one.nbytes, _COMPARED):
            length = min(_COMPARED, one.nbytes - start)
            contents = [bytearray(length), bytearray(length)]
            for tensor, content in zip((one, other), contents, strict=True):
                self._adapter.read_into(tensor, start, memoryview(content))
            if contents[0] != contents[1]:
                return False
        return True

    def _has_tied_rows(self, target: Target) -> bool:
        """Whether it has a row a token in a model that has such a matrix only once."""
        levels = [self.config, *(inner for _, inner in subconfigs(self.config))]
        sizes = [level.get("vocab_size") for level in levels]
        ties = any(level.get("tie_word_embeddings") is True for level in levels)
        return ties and any(shape[0] in sizes for shape in target.shapes if shape)

    # -- values ---------------------------------------------------------------------------------

    @functools.cached_property
    def _tiles(self) -> "LoraTiles":
        from safegraft.checkpoint.lora_tiles import LoraTiles

        return LoraTiles(self._own, self._whole)

    def _values(self, tensor: TensorInfo, start: int, stop: int) -> "torch.Tensor":
        """Elements [start, stop), in the tensor's dtype."""
        from safegraft.checkpoint.lora_tiles import LowRank, compute_dtype

        module, bias = self._modules.get(tensor.name), self._biases.get(tensor.name)
        if module is not None:
            values = self._tiles.values(LowRank(tensor, module, self._is_turned(tensor, module)), start, stop)
        elif bias is not None and bias.bias is not None:
            dtype = compute_dtype(tensor.dtype)
            added = _read(self._adapter, bias.bias, start, stop).to(dtype).mul_(bias.scale)
            values = self._own(tensor, start, stop).to(dtype).add_(added)
        else:
            values = self._own(tensor, start, stop)
        return values.to(tensor.dtype.torch)

    def _own(self, tensor: TensorInfo, start: int, stop: int) -> "torch.Tensor":
        """Elements before anything is added, in the tensor's dtype: the base's, or what the adapter has instead."""
        replaced = self._replaced.get(tensor.name)
        if replaced is None:
            return _read(self._base, tensor, start, stop)
        return _read(self._adapter, replaced, start, stop).to(tensor.dtype.torch)

    def _whole(self, tensor: TensorInfo) -> "torch.Tensor":
        return _read(self._adapter, tensor, 0, tensor.elements).view(tensor.shape)

    def _is_turned(self, tensor: TensorInfo, module: LoraModule) -> bool:
        """Whether the weight is stored [in, out]. The shape tells; where it is square, the adapter's config."""
        if module.embedding or module.inputs == module.outputs:
            return module.embedding or self._adapter.settings.turned
        return tensor.shape == (module.inputs, module.outputs)


def add_adapter(base: Checkpoint, open_adapter: Callable[[], AdapterFolder], name: str) -> LoraCheckpoint:
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
