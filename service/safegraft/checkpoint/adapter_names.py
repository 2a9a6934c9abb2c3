"""Finds the tensors of a checkpoint that an adapter's modules mean.

An adapter has the names that modules had in memory when it was trained, a checkpoint those of its files; the two
differ in their prefixes: `model.language_model.layers.0...` and `language_model.model.layers.0...`. A name is
split before the number of its layer (or, without one, before its last two parts), and each prefix is rewritten
into the one prefix under which every name finds a tensor of a fitting shape.
"""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from safegraft.checkpoint.findings import Findings, listed, shown
from safegraft.checkpoint.types import TensorInfo


@dataclass(frozen=True, slots=True)
class Target:
    """A tensor that an adapter changes, by its name in memory, and the shapes it may have."""

    name: str
    shapes: tuple[tuple[int, ...], ...]


def find_tensors(targets: Sequence[Target], tensors: Mapping[str, TensorInfo], findings: Findings) -> dict[str, str]:
    """Name in memory -> name in the checkpoint, for all targets; what finds no place is told to `findings`."""
    by_ending: dict[str, list[str]] = defaultdict(list)  # ending -> prefixes in the checkpoint
    for name in tensors:
        prefix, ending = _split(name)
        by_ending[ending].append(prefix)
    groups: dict[str, list[Target]] = defaultdict(list)
    for target in targets:
        groups[_split(target.name)[0]].append(target)
    found: dict[str, str] = {}
    for prefix, group in groups.items():
        place = _place(prefix, group, by_ending, tensors, findings)
        if place is not None:
            found.update((target.name, place + _split(target.name)[1]) for target in group)
    _refuse_collisions(found, findings)
    return found


def has_place(name: str, tensors: Mapping[str, TensorInfo]) -> bool:
    """Whether the checkpoint has a tensor of that ending at all, whatever its shape."""
    ending = _split(name)[1]
    return any(one == ending or one.endswith("." + ending) for one in tensors)


def _split(name: str) -> tuple[str, str]:
    """("model.", "layers.3.mlp.up_proj.weight"): a prefix that ends in a dot or is empty, and the rest."""
    parts = name.split(".")
    numbers = [index for index, part in enumerate(parts[1:], start=1) if part.isdecimal()]
    cut = numbers[0] - 1 if numbers else max(0, len(parts) - 2)
    return "".join(part + "." for part in parts[:cut]), ".".join(parts[cut:])


def _place(
    prefix: str,
    group: Sequence[Target],
    by_ending: Mapping[str, Sequence[str]],
    tensors: Mapping[str, TensorInfo],
    findings: Findings,
) -> str | None:
    """The checkpoint's prefix for one prefix of the adapter."""
    fits: Counter[str] = Counter()
    for target in group:
        ending = _split(target.name)[1]
        fits.update(place for place in by_ending.get(ending, ()) if tensors[place + ending].shape in target.shapes)
    complete = [place for place, count in fits.items() if count == len(group)]
    if prefix in complete:
        return prefix
    alike = {place: _shared_parts(prefix, place) for place in complete}
    best = [place for place in complete if alike[place] == max(alike.values())]
    if len(best) == 1:
        return best[0]
    if best:
        examples = listed([place + _split(group[0].name)[1] for place in sorted(best)])
        findings.add(f"module {shown(group[0].name)} could mean {examples}: nothing tells which")
    else:
        findings.add(_explain(group, fits, by_ending, tensors))
    return None


def _shared_parts(one: str, other: str) -> int:
    """How many parts two prefixes have in common, in whatever order: `model.language_model` became
    `language_model.model`."""
    return (Counter(one.split(".")) & Counter(other.split("."))).total()


def _explain(
    group: Sequence[Target],
    fits: Counter[str],
    by_ending: Mapping[str, Sequence[str]],
    tensors: Mapping[str, TensorInfo],
) -> str:
    """What is missing, and where the most of the group would have found a place."""
    places = Counter(place for target in group for place in by_ending.get(_split(target.name)[1], ()))
    closest = max(places, key=lambda place: (fits[place], places[place], place), default=None)
    if closest is None:
        return f"the base has nothing like {listed([target.name for target in group])}"
    for target in group:
        name = closest + _split(target.name)[1]
        if name not in tensors:
            what = f"{shown(name)} is not there"
        elif tensors[name].shape not in target.shapes:
            wanted = " or ".join(str(list(shape)) for shape in target.shapes)
            what = f"{shown(name)} is {list(tensors[name].shape)}, and the adapter is for {wanted}"
        else:
            continue
        head = f"{fits[closest]} of {len(group)} tensors like {shown(group[0].name)} fit the base"
        return f"{head}; the closest is {shown(closest + '*')}, where {what}"
    raise AssertionError("a prefix under which everything fits was not taken")


def _refuse_collisions(found: Mapping[str, str], findings: Findings) -> None:
    owners: dict[str, str] = {}
    for name, place in found.items():
        if place in owners:
            findings.add(f"{shown(owners[place])} and {shown(name)} both mean {shown(place)} of the base")
        owners.setdefault(place, name)
