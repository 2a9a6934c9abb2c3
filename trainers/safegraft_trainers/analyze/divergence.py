"""Whether adaptation and safety pull the weights the same way (objective divergence, arXiv 2410.07571).

    cosine        of the two losses' mean gradients: 1 the same way, 0 unrelated, -1 against each other
    consistency   of one loss, the cosine of its gradients over two halves of its samples

Gradients of few samples are noisy, and noise alone makes a cosine small: a cosine near 0 says something only where both
losses are consistent. In memory: the model, its gradients, and four sums of them in float32 on the cpu.
"""

# torch types its own functions in part.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn

from safegraft.calibration import DataSet
from safegraft.engine.anatomy import split_layer
from safegraft.errors import NonFiniteError, Problem
from safegraft_trainers.analyze.kinds import EMBEDDINGS, HEAD, in_order, kind_of
from safegraft_trainers.analyze.layout import LANGUAGE_MODEL
from safegraft_trainers.analyze.subject import Subject

Loss = Callable[[], torch.Tensor]
Gradients = dict[str, torch.Tensor]  # by parameter; those that no sample reaches are missing


@dataclass(frozen=True, slots=True)
class Halves:
    """Mean gradients over the samples of even and of odd number; the latter empty of a single sample."""

    even: Gradients
    odd: Gradients
    samples: int

    def mean(self, name: str) -> torch.Tensor:
        if not self.odd:
            return self.even[name]
        share = (self.samples // 2) / self.samples  # of the odd ones
        return self.even[name] * (1 - share) + self.odd[name] * share


@dataclass(frozen=True, slots=True)
class Seat:
    """Where a parameter is in the model."""

    part: str
    layer: int | None
    kind: str


@dataclass(frozen=True, slots=True)
class Pull:
    """Of a group of parameters: layer and kind are None where they are of all. The norms are of the mean gradients.
    None where a gradient is zero, or of a consistency where there is one sample."""

    part: str | None
    layer: int | None
    kind: str | None
    cosine: float | None
    adaptation_norm: float
    safety_norm: float
    adaptation_consistency: float | None
    safety_consistency: float | None

    def to_dict(self) -> dict[str, Any]:
        return {
            "part": self.part,
            "layer": self.layer,
            "kind": self.kind,
            "cosine": self.cosine,
            "adaptation_norm": self.adaptation_norm,
            "safety_norm": self.safety_norm,
            "adaptation_consistency": self.adaptation_consistency,
            "safety_consistency": self.safety_consistency,
        }


@dataclass(frozen=True, slots=True)
class Divergence:
    """unreached: parameters that one of the losses does not depend on (a vision tower, without images): they are in
    no number."""

    model: str
    adaptation_samples: int
    safety_samples: int
    overall: Pull
    layers: tuple[Pull, ...]
    kinds: tuple[Pull, ...]
    layers_and_kinds: tuple[Pull, ...]
    unreached: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        return {
            "model": self.model,
            "adaptation_samples": self.adaptation_samples,
            "safety_samples": self.safety_samples,
            "overall": self.overall.to_dict(),
            "layers": [one.to_dict() for one in self.layers],
            "kinds": [one.to_dict() for one in self.kinds],
            "layers_and_kinds": [one.to_dict() for one in self.layers_and_kinds],
            "unreached": list(self.unreached),
        }


def divergence(subject: Subject, adaptation: DataSet, safety: DataSet) -> Divergence:
    """Compare the gradients of two sets of prompts with responses at a model's weights. The model is left as it was.

    Raises InputError, NonFiniteError.
    """
    model: Any = subject.model
    sets = [[partial(subject.loss, one) for one in subject.worded(data)] for data in (adaptation, safety)]
    before = {name: one.requires_grad for name, one in model.named_parameters()}
    model.requires_grad_(True)
    try:
        one, other = (mean_gradients(model, losses) for losses in sets)
    finally:
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(before[name])
    return compare_gradients(subject.name, one, other, seats_of(model))


def mean_gradients(model: nn.Module, losses: Sequence[Loss]) -> Halves:
    """Of losses of a model's parameters, each sample weighing the same. Raises NonFiniteError."""
    halves: tuple[Gradients, Gradients] = ({}, {})
    counts = (len(losses) + 1) // 2, len(losses) // 2
    for number, loss in enumerate(losses):
        model.zero_grad(set_to_none=True)
        loss().backward()
        for name, parameter in model.named_parameters():
            if parameter.grad is not None:
                gradient = parameter.grad.detach().to("cpu", torch.float32) / counts[number % 2]
                sums = halves[number % 2]
                sums[name] = sums[name].add_(gradient) if name in sums else gradient.clone()
    model.zero_grad(set_to_none=True)
    even, odd = halves
    if odd:  # what only some samples reach has a gradient of zero in the others
        for ours, theirs in ((even, odd), (odd, even)):
            for name in theirs.keys() - ours.keys():
                ours[name] = torch.zeros_like(theirs[name])
    damaged = [name for half in halves for name, one in half.items() if not torch.isfinite(one).all()]
    if damaged:
        raise NonFiniteError(Problem(damaged[0], "its gradient is NaN or inf"))
    return Halves(even, odd, len(losses))


def compare_gradients(model: str, adaptation: Halves, safety: Halves, seats: Mapping[str, Seat]) -> Divergence:
    """Cosines over groups of the parameters that both losses reach."""
    shared = [name for name in seats if name in adaptation.even and name in safety.even]
    dots = {name: _dots(adaptation, safety, name) for name in shared}

    def pull(names: Iterable[str], part: str | None, layer: int | None, kind: str | None) -> Pull:
        return _pull(torch.stack([dots[name] for name in names]).sum(0), part, layer, kind)

    def groups(key: Callable[[Seat], Any]) -> dict[Any, list[str]]:
        found: dict[Any, list[str]] = {}
        for name in shared:
            found.setdefault(key(seats[name]), []).append(name)
        return found

    order = in_order({seat.kind for seat in seats.values()})
    by_layer = groups(lambda seat: (seat.part, seat.layer))
    by_kind = groups(lambda seat: (seat.part, seat.kind))
    by_both = groups(lambda seat: (seat.part, seat.layer, seat.kind))
    return Divergence(
        model=model,
        adaptation_samples=adaptation.samples,
        safety_samples=safety.samples,
        overall=_pull(sum(dots.values(), torch.zeros(_DOTS, dtype=torch.float64)), None, None, None),
        layers=tuple(
            pull(names, part, layer, None)
            for (part, layer), names in sorted(
                (item for item in by_layer.items() if item[0][1] is not None), key=lambda item: _first(item[0])
            )
        ),
        kinds=tuple(
            pull(names, part, None, kind)
            for (part, kind), names in sorted(
                by_kind.items(), key=lambda item: (*_first((item[0][0], 0))[:2], order.index(item[0][1]))
            )
        ),
        layers_and_kinds=tuple(
            pull(names, part, layer, kind) for (part, layer, kind), names in by_both.items() if layer is not None
        ),
        unreached=tuple(name for name in seats if name not in dots),
    )


def seats_of(model: Any) -> dict[str, Seat]:
    """Of every parameter of a transformers model, by its name there; a tied one once."""
    modules: dict[int, str] = {id(module): name for name, module in model.named_modules()}
    decoder = modules[id(model.get_decoder())]
    embeddings, head = model.get_input_embeddings(), model.get_output_embeddings()
    seats: dict[str, Seat] = {}
    for name, parameter in model.named_parameters():
        inside = split_layer(name)
        kind = kind_of(inside[2] if inside else name)
        if embeddings is not None and parameter is embeddings.weight:
            kind = EMBEDDINGS
        elif head is not None and parameter is head.weight:
            kind = HEAD
        language = kind in (EMBEDDINGS, HEAD) or not decoder or name.startswith(f"{decoder}.")
        part = LANGUAGE_MODEL if language else next(word for word in name.split(".") if word != "model")
        seats[name] = Seat(part, inside[1] if inside else None, kind)
    return seats


_DOTS = 9  # <a,s>, <a,a>, <s,s>, and of each loss's halves <e,o>, <e,e>, <o,o>


def _dots(adaptation: Halves, safety: Halves, name: str) -> torch.Tensor:
    one, other = adaptation.mean(name), safety.mean(name)
    values = [_dot(one, other), _dot(one, one), _dot(other, other)]
    for halves in (adaptation, safety):
        even, odd = halves.even[name], halves.odd.get(name)
        values += [0.0, 0.0, 0.0] if odd is None else [_dot(even, odd), _dot(even, even), _dot(odd, odd)]
    return torch.tensor(values, dtype=torch.float64)


def _pull(dots: torch.Tensor, part: str | None, layer: int | None, kind: str | None) -> Pull:
    values: list[float] = dots.tolist()
    return Pull(
        part,
        layer,
        kind,
        _cosine(*values[:3]),
        math.sqrt(values[1]),
        math.sqrt(values[2]),
        _cosine(*values[3:6]),
        _cosine(*values[6:9]),
    )


def _cosine(product: float, one: float, other: float) -> float | None:
    length = math.sqrt(one) * math.sqrt(other)
    return max(-1.0, min(1.0, product / length)) if length else None


def _dot(one: torch.Tensor, other: torch.Tensor) -> float:
    return float(torch.dot(one.flatten().double(), other.flatten().double()))


def _first(place: tuple[str, int]) -> tuple[bool, str, int]:
    """The language model before other parts."""
    part, layer = place
    return (part != LANGUAGE_MODEL, part, layer)
