"""Mixture-of-experts models whose experts are stored in another form than the host's.

    one by one   P.experts.0.gate_proj.weight [I, H], .up_proj.weight [I, H], .down_proj.weight [H, I]; P.experts.1. ...
    stacked      P.experts.gate_up_proj [E, 2I, H], P.experts.down_proj [E, H, I]
    transposed   P.experts.gate_up_proj [E, H, 2I], P.experts.down_proj [E, I, H]

A stacked tensor's name spells what lies in it, in order: gate_up_proj is gate_proj, then up_proj. Its shape
tells which way round, and all matrices of an expert lie the same way. Where names and shapes do not tell
(other names; square matrices; biases or scales beside the weights, as models have that interleave gate and
up), experts are left as they are, and alignment says what does not fit.

Works on names, shapes and dtypes alone; `composed.py` reads.
"""

from collections.abc import Container, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace

from safegraft.checkpoint.types import Checkpoint, TensorInfo
from safegraft.engine.anatomy import split_layer
from safegraft.engine.composed import Block, ComposedCheckpoint, ComposedTensor, Matrix

WEIGHT = ".weight"

Shape = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Experts:
    """What became of an input's experts.

    checkpoint: the input with its experts in the host's form; the input itself when there is nothing to do.
    notes: what a reader of the plan should know. misfits: why some experts stay as they are, which matters
    only if they turn out to have no counterpart.
    """

    checkpoint: Checkpoint
    notes: tuple[str, ...] = ()
    misfits: tuple[str, ...] = ()


def fuse_experts(host: Checkpoint, other: Checkpoint) -> Experts:
    """Give the experts of `other` the form that the host's have: stacked, one by one, or transposed."""
    composed: list[ComposedTensor] = []
    notes: dict[str, int] = {}
    misfits: dict[str, str] = {}
    host_modules = _modules_of(host)
    for place, modules in _modules_of(other).items():
        forms = {module.form: module for module in host_modules.get(place, ())}
        for module in modules:
            others = [form for form in forms.values() if _differs(form, module)]
            if not others or module.form in forms:
                continue
            try:
                refitted = _refit(others, module)
            except _MisfitError as error:
                misfits.setdefault(str(error), f"the experts of {module.path} do not take the host's form: {error}")
                continue
            composed += refitted.tensors
            note = f"{refitted.note} ({place}"
            notes[note] = notes.get(note, 0) + 1
    return Experts(
        ComposedCheckpoint(other, composed) if composed else other,
        tuple(
            f"{other.name}: {note} of {count} {'layer' if count == 1 else 'layers'})" for note, count in notes.items()
        ),
        tuple(misfits.values()),
    )


class _MisfitError(Exception):
    """Why a layer's experts cannot take the host's form."""


@dataclass(slots=True)
class _Module:
    """The experts of one layer: `P.experts`.

    single: projection -> expert -> matrix. stacked: name -> tensor of rank 3.
    beside: what else there is, by name and shape.
    """

    path: str
    single: dict[str, dict[int, TensorInfo]] = field(default_factory=dict[str, dict[int, TensorInfo]])
    stacked: dict[str, TensorInfo] = field(default_factory=dict[str, TensorInfo])
    beside: set[tuple[str, Shape]] = field(default_factory=set[tuple[str, Shape]])

    @property
    def form(self) -> object:
        """Equal for layers whose experts are stored alike."""
        single = {(name, expert, one.shape) for name, experts in self.single.items() for expert, one in experts.items()}
        return frozenset(single), frozenset(_shapes(self.stacked).items()), frozenset(self.beside)


@dataclass(frozen=True, slots=True)
class _Refitted:
    note: str
    tensors: tuple[ComposedTensor, ...]


# -- what is there ------------------------------------------------------------------------------------


def _modules_of(checkpoint: Checkpoint) -> dict[str, list[_Module]]:
    """By their place in a layer (`mlp.experts`), in the order of layers, all that may be experts."""
    found: dict[tuple[str, str], _Module] = {}
    for tensor in checkpoint.tensors.values():
        outer = split_layer(tensor.name)
        if outer is None:
            continue
        inner = split_layer(outer[2])
        place, expert, name = inner or (outer[2].rpartition(".")[0], None, outer[2].rpartition(".")[2])
        path = f"{outer[0]}.{outer[1]}.{place}"
        module = found.setdefault((place, path), _Module(path))
        projection = name.removesuffix(WEIGHT)
        if expert is not None and projection != name and "." not in projection and len(tensor.shape) == 2:
            module.single.setdefault(projection, {})[expert] = tensor
        elif expert is None and len(tensor.shape) == 3 and tensor.elements:
            module.stacked[name] = tensor
        else:
            module.beside.add((outer[2], tensor.shape))
    modules: dict[str, list[_Module]] = {}
    for (place, _), module in found.items():
        if module.single or len(module.stacked) > 1:
            modules.setdefault(place, []).append(module)
    return modules


def _differs(host: _Module, own: _Module) -> bool:
    """Whether one has its experts one by one where the other stacks them, or stacks them the other way round."""
    if own.single or host.single:
        return not (own.single and host.single)
    ours, theirs = _shapes(own.stacked), _shapes(host.stacked)
    swapped = {name: (count, columns, rows) for name, (count, rows, columns) in theirs.items()}
    return ours == swapped


def _shapes(stacked: Mapping[str, TensorInfo]) -> dict[str, Shape]:
    return {name: tensor.shape for name, tensor in stacked.items()}


# -- from form to form --------------------------------------------------------------------------------


def _refit(forms: list[_Module], own: _Module) -> _Refitted:
    """The one way in which `own` takes one of the host's forms."""
    found: list[_Refitted] = []
    misfits: list[_MisfitError] = []
    for host in forms:
        try:
            found.append(_refit_to(host, own))
        except _MisfitError as error:
            misfits.append(error)
    if not found:
        raise misfits[0]
    if len(found) > 1:
        raise _MisfitError("it has more than one that they could take")
    return found[0]


def _refit_to(host: _Module, own: _Module) -> _Refitted:
    unpaired = sorted(own.beside ^ host.beside)
    if unpaired:
        name, shape = unpaired[0]
        raise _MisfitError(f"{name} {list(shape)} stands beside the matrices in one of the two only")
    if not (own.single or host.single):
        return _Refitted("experts are stacked the other way round than the host's; they are transposed", _turn(own))
    if not (own.single or host.stacked):
        return _Refitted("experts are stacked; they meet the host's, which are stored one by one", _split(host, own))
    if not (own.stacked or host.single):
        tensors = _stack(host, own)
        meet = _listed(host.stacked) + (", transposed" if tensors[0].blocks[0].turned else "")
        return _Refitted(f"experts are stored one by one; they meet the host's stacked {meet}", tensors)
    raise _MisfitError("some of their matrices are stacked, others are not")


def _stack(host: _Module, own: _Module) -> tuple[ComposedTensor, ...]:
    """One by one -> stacked."""
    count, shapes = _uniform(own.single)
    turned = _is_turned(count, shapes, host.stacked)
    composed: list[ComposedTensor] = []
    for name, stacked in host.stacked.items():
        parts = [own.single[part] for part in _parts(name, shapes)]
        first = parts[0][0]
        other = next((one for part in parts for one in part.values() if one.dtype is not first.dtype), None)
        if other is not None:
            raise _MisfitError(f"some of their matrices are {first.dtype}, others {other.dtype}")
        info = TensorInfo(f"{own.path}.{name}", first.dtype, stacked.shape, first.file, first.offset)
        blocks = (Block(tuple(_whole(part[expert]) for part in parts), turned) for expert in range(count))
        composed.append(ComposedTensor(info, tuple(blocks)))
    return tuple(composed)


def _split(host: _Module, own: _Module) -> tuple[ComposedTensor, ...]:
    """Stacked -> one by one."""
    count, shapes = _uniform(host.single)
    turned = _is_turned(count, shapes, own.stacked)
    composed: list[ComposedTensor] = []
    for name, stacked in own.stacked.items():
        for expert, matrix in enumerate(_slices(stacked)):
            block = Block((matrix,), turned)
            skip = 0
            for part in _parts(name, shapes):
                single = f"{own.path}.{expert}.{part}{WEIGHT}"
                info = TensorInfo(single, stacked.dtype, shapes[part], stacked.file, stacked.offset)
                composed.append(ComposedTensor(info, (block,), skip))
                skip += info.nbytes
    return tuple(composed)


def _turn(own: _Module) -> tuple[ComposedTensor, ...]:
    """Stacked one way round -> the other."""
    composed: list[ComposedTensor] = []
    for stacked in own.stacked.values():
        count, rows, columns = stacked.shape
        info = replace(stacked, shape=(count, columns, rows))
        composed.append(ComposedTensor(info, tuple(Block((one,), turned=True) for one in _slices(stacked))))
    return tuple(composed)


def _whole(tensor: TensorInfo) -> Matrix:
    rows, columns = tensor.shape
    return Matrix(tensor, 0, rows, columns)


def _slices(stacked: TensorInfo) -> Iterator[Matrix]:
    """The matrix of each expert."""
    count, rows, columns = stacked.shape
    for expert in range(count):
        yield Matrix(stacked, expert * rows * columns * stacked.dtype.itemsize, rows, columns)


# -- what names and shapes tell -----------------------------------------------------------------------


def _parts(name: str, single: Container[str]) -> tuple[str, ...]:
    """gate_up_proj -> gate_proj, up_proj; a name that single experts have too stands for itself."""
    *words, kind = name.split("_")
    return (name,) if name in single else tuple(f"{word}_{kind}" for word in words)


def _uniform(single: Mapping[str, Mapping[int, TensorInfo]]) -> tuple[int, dict[str, Shape]]:
    """How many experts there are, and the shape of each projection, the same for all of them."""
    count = 1 + max(expert for experts in single.values() for expert in experts)
    shapes: dict[str, Shape] = {}
    for name, experts in single.items():
        missing = next((expert for expert in range(count) if expert not in experts), None)
        if missing is not None:
            raise _MisfitError(f"of {count} experts, expert {missing} has no {name}")
        shapes[name] = experts[0].shape
        for expert, tensor in experts.items():
            if tensor.shape != shapes[name]:
                raise _MisfitError(
                    f"{name} of expert {expert} is {list(tensor.shape)}, that of expert 0 is {list(shapes[name])}"
                )
    return count, shapes


def _is_turned(count: int, shapes: Mapping[str, Shape], stacked: Mapping[str, TensorInfo]) -> bool:
    """Whether the stacked tensors hold the matrices of `count` experts transposed."""
    names = {name: _parts(name, shapes) for name in stacked}
    if not all(names.values()) or sorted(part for parts in names.values() for part in parts) != sorted(shapes):
        raise _MisfitError(f"{_listed(stacked)} cannot be told to consist of {_listed(shapes)}")
    plain: dict[str, Shape] = {}
    for name, parts in names.items():
        if len({shapes[part][1] for part in parts}) > 1:
            raise _MisfitError(f"{_listed(parts)} are not of one width")
        plain[name] = (count, sum(shapes[part][0] for part in parts), shapes[parts[0]][1])
    turned = {name: (count, columns, rows) for name, (_, rows, columns) in plain.items()}
    found = _shapes(stacked)
    if plain == turned == found:
        raise _MisfitError("square matrices do not tell which way round they are stacked")
    if found in (plain, turned):
        return found == turned
    for name, shape in found.items():
        if shape not in (plain[name], turned[name]):
            ways = f"{list(plain[name])}, or transposed {list(turned[name])}"
            raise _MisfitError(f"{name} is stacked as {list(shape)}; single experts make {ways}")
    raise _MisfitError(f"of {_listed(stacked)}, some are stacked one way round and some the other")


def _listed(names: Iterable[str]) -> str:
    *most, last = names
    return f"{', '.join(most)} and {last}" if most else last
