"""How far a model's weights are from those of the model it came from, tensor by tensor.

    relative change   ||B - A|| / ||A||          (Frobenius)
    cosine            <A, B> / (||A|| ||B||)

Streamed: one block of each model at a time, and one difference whole where its spectrum is asked for.
"""

import math
from collections.abc import Callable, Hashable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch

from safegraft.errors import NonFiniteError, Problem
from safegraft_trainers.analyze.kinds import in_order
from safegraft_trainers.analyze.layout import LANGUAGE_MODEL, Layout, Place
from safegraft_trainers.analyze.spectrum import Spectrum, spectrum_of

Key = TypeVar("Key", bound=Hashable)
Report = Callable[[int, int, str], None]  # done, of how much, at what


def unreported(done: int, total: int, doing: str) -> None:
    """The default for `progress`."""


@dataclass(frozen=True, slots=True)
class Change:
    """Sums over a tensor, or over several: squares of the reference, of the model, of the difference; products."""

    elements: int = 0
    reference_square: float = 0.0
    model_square: float = 0.0
    difference_square: float = 0.0
    product: float = 0.0

    @property
    def relative(self) -> float | None:
        """||B - A|| / ||A||; None where A is zero and B is not."""
        if not self.difference_square:
            return 0.0
        return math.sqrt(self.difference_square / self.reference_square) if self.reference_square else None

    @property
    def cosine(self) -> float | None:
        """Between -1 and 1; None where A or B is zero."""
        length = math.sqrt(self.reference_square) * math.sqrt(self.model_square)
        if not length:
            return None
        if not self.difference_square:
            return 1.0  # where the rounding of the square root would say nearly so
        return max(-1.0, min(1.0, self.product / length))

    def to_dict(self) -> dict[str, Any]:
        return {
            "elements": self.elements,
            "relative_change": self.relative,
            "cosine": self.cosine,
            "reference_norm": math.sqrt(self.reference_square),
            "model_norm": math.sqrt(self.model_square),
            "difference_norm": math.sqrt(self.difference_square),
        }


def total(changes: Iterable[Change]) -> Change:
    """The change of all of them as one long vector."""
    many = list(changes)
    return Change(
        sum(one.elements for one in many),
        math.fsum(one.reference_square for one in many),
        math.fsum(one.model_square for one in many),
        math.fsum(one.difference_square for one in many),
        math.fsum(one.product for one in many),
    )


@dataclass(frozen=True, slots=True)
class TensorChange:
    """name, part, stack, layer, kind, shape: see layout.Place. spectrum: of the difference; None for vectors and where
    it was not asked for."""

    name: str
    part: str
    stack: str
    layer: int | None
    kind: str
    shape: tuple[int, ...]
    change: Change
    spectrum: Spectrum | None

    def to_dict(self) -> dict[str, Any]:
        place: dict[str, Any] = {
            "name": self.name,
            "part": self.part,
            "stack": self.stack or None,
            "layer": self.layer,
            "kind": self.kind,
            "shape": list(self.shape),
        }
        return {**place, **self.change.to_dict(), **_spectral(self.spectrum)}


def _spectral(spectrum: Spectrum | None) -> dict[str, Any]:
    if spectrum is None:
        return {"spectral_norm": None, "effective_rank": None, "stable_rank": None, "full_rank": None}
    return {
        "spectral_norm": spectrum.spectral_norm,
        "effective_rank": spectrum.effective_rank,
        "stable_rank": spectrum.stable_rank,
        "full_rank": spectrum.rank,
    }


@dataclass(frozen=True, slots=True)
class Group:
    """Tensors that go together: of a layer, of a kind, or both; None where they are of all."""

    part: str
    stack: str | None
    layer: int | None
    kind: str | None
    tensors: tuple[TensorChange, ...]

    @property
    def change(self) -> Change:
        return total(one.change for one in self.tensors)

    @property
    def spectral_norm(self) -> float | None:
        """The largest of the differences'."""
        return max((one.spectrum.spectral_norm for one in self.tensors if one.spectrum), default=None)

    @property
    def rank_share(self) -> float | None:
        """The mean of effective rank / full rank, over the matrices that differ: small where a few directions hold
        the change, as after a LoRA."""
        shares = [one.spectrum.effective_rank / one.spectrum.rank for one in self.tensors if one.spectrum]
        moved = [share for share in shares if share > 0]
        return sum(moved) / len(moved) if moved else None

    def to_dict(self) -> dict[str, Any]:
        place: dict[str, Any] = {"part": self.part, "stack": self.stack, "layer": self.layer, "kind": self.kind}
        spectral = {"spectral_norm": self.spectral_norm, "effective_rank_share": self.rank_share}
        return {**place, "tensors": len(self.tensors), **self.change.to_dict(), **spectral}


@dataclass(frozen=True)
class Comparison:
    """A model against the reference. left_out: public name -> tensors that are compared with nothing -> why."""

    reference: str
    model: str
    tensors: tuple[TensorChange, ...]
    left_out: dict[str, dict[str, str]] = field(default_factory=dict[str, dict[str, str]])
    notes: tuple[str, ...] = ()

    @property
    def overall(self) -> Change:
        return total(one.change for one in self.tensors)

    @property
    def parts(self) -> list[str]:
        """The language model first."""
        return sorted({one.part for one in self.tensors}, key=lambda part: (part != LANGUAGE_MODEL, part))

    def stacks(self) -> dict[str, str]:
        """Stacks of layers -> the part that they are of; the language model's first."""
        found = {one.stack: one.part for part in self.parts for one in self.tensors if one.part == part and one.stack}
        return found

    def by_part(self) -> list[Group]:
        found = _grouped(self.tensors, lambda one: one.part)
        return [Group(part, None, None, None, found[part]) for part in self.parts]

    def by_layer(self) -> list[Group]:
        """The language model's layers first."""
        found = _grouped(self.tensors, lambda one: (one.stack, one.layer))
        layers = sorted((stack, layer) for stack, layer in found if layer is not None)
        return [
            Group(part, stack, layer, None, found[stack, layer])
            for one, part in self.stacks().items()
            for stack, layer in layers
            if stack == one
        ]

    def by_kind(self) -> list[Group]:
        found = _grouped(self.tensors, lambda one: (one.part, one.kind))
        kinds = in_order({kind for _, kind in found})
        places = [(part, kind) for part in self.parts for kind in kinds if (part, kind) in found]
        return [Group(part, None, None, kind, found[part, kind]) for part, kind in places]

    def by_layer_and_kind(self) -> list[Group]:
        groups: list[Group] = []
        for layer in self.by_layer():
            found = _grouped(layer.tensors, lambda one: one.kind)
            groups += [Group(layer.part, layer.stack, layer.layer, kind, found[kind]) for kind in in_order(set(found))]
        return groups

    def ranking(self) -> list[Group]:
        """Layers of all stacks, those that moved most (relative change) first."""
        return sorted(self.by_layer(), key=lambda group: -_moved(group.change))

    def ranked_tensors(self) -> list[TensorChange]:
        return sorted(self.tensors, key=lambda one: -_moved(one.change))

    def to_dict(self) -> dict[str, Any]:
        return {
            "reference": self.reference,
            "model": self.model,
            "overall": self.overall.to_dict(),
            "parts": [one.to_dict() for one in self.by_part()],
            "layers": [one.to_dict() for one in self.by_layer()],
            "kinds": [one.to_dict() for one in self.by_kind()],
            "layers_and_kinds": [one.to_dict() for one in self.by_layer_and_kind()],
            "ranking": [{"stack": one.stack, "layer": one.layer} for one in self.ranking()],
            "tensors": [one.to_dict() for one in self.tensors],
            "left_out": self.left_out,
            "notes": list(self.notes),
        }


def _grouped(
    tensors: Iterable[TensorChange], key: Callable[[TensorChange], Key]
) -> dict[Key, tuple[TensorChange, ...]]:
    found: dict[Key, list[TensorChange]] = {}
    for one in tensors:
        found.setdefault(key(one), []).append(one)
    return {name: tuple(members) for name, members in found.items()}


def _moved(change: Change) -> float:
    """For ranking: from zero to something is the farthest."""
    return math.inf if change.relative is None else change.relative


def compare(
    reference: str,
    model: str,
    *,
    spectral: bool = True,
    vocabulary: bool = True,
    device: str = "cpu",
    names: Mapping[str, str] | None = None,
    progress: Report = unreported,
) -> Comparison:
    """Compare a model with the reference it was derived from: LLM with LLM, LVLM with LVLM, or either with the other,
    over the language model that both have.

    Args:
        spectral: also the spectrum of each matrix's difference, which takes most of the time.
        vocabulary: compare embeddings and heads; needs tokenizers where the vocabularies differ in size.
        device: where spectra are computed.
        names: see layout.Layout.

    Raises UsageError, InputError (AlignmentError, NonFiniteError).
    """
    with Layout([reference, model], vocabulary=vocabulary, names=names) as layout:
        done = 0
        tensors: list[TensorChange] = []
        for place in layout.places:
            progress(done, layout.nbytes, place.name)
            if len(place.models) == 2:
                tensors.append(_measure(layout, place, reference, spectral, device))
            done += layout.bytes_of(place)
        progress(layout.nbytes, layout.nbytes, "")
        known = layout.names
        return Comparison(known[reference], known[model], tuple(tensors), layout.left_out, tuple(layout.notes))


def _measure(layout: Layout, place: Place, reference: str, spectral: bool, device: str) -> TensorChange:
    first = place.models.index(reference)
    wanted = spectral and len(place.shape) > 1
    whole = torch.empty(place.elements) if wanted else None
    sums = torch.zeros(4, dtype=torch.float64)
    at = 0
    for block in layout.blocks(place):
        ours, theirs = block[first], block[1 - first]
        difference = theirs - ours
        sums += torch.stack([_dot(ours, ours), _dot(theirs, theirs), _dot(difference, difference), _dot(ours, theirs)])
        if whole is not None:
            whole[at : at + len(difference)] = difference
        at += len(difference)
    if not torch.isfinite(sums).all():
        raise NonFiniteError(Problem(place.name, f"holds NaN or inf in {' or '.join(sorted(layout.names.values()))}"))
    spectrum = spectrum_of(whole.view(place.shape), device) if whole is not None else None
    change = Change(place.elements, *(float(value) for value in sums))
    return TensorChange(place.name, place.part, place.stack, place.layer, place.kind, place.shape, change, spectrum)


def _dot(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    return torch.dot(one.double(), other.double())
