"""What several models learnt from one base, and whether they agree: their task vectors, tau = model - base.

    cosine           <tau_i, tau_j> / (||tau_i|| ||tau_j||)     (arXiv 2212.04089, figure 5)
    sign agreement   share of equal signs among the elements that both changed    (arXiv 2306.01708)

Two random vectors agree in half of the signs and have a cosine near 0. Streamed, a block of each model at a time.
"""

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from safegraft.errors import NonFiniteError, Problem
from safegraft_trainers.analyze.kinds import in_order
from safegraft_trainers.analyze.layout import Layout, Place
from safegraft_trainers.analyze.weights import Report, unreported


@dataclass(slots=True)
class Agreement:
    """Of two task vectors, over what both models have: sums, from which the numbers come."""

    one_square: float = 0.0
    other_square: float = 0.0
    product: float = 0.0
    equal_signs: int = 0
    both_changed: int = 0

    @property
    def cosine(self) -> float | None:
        """None where one of the two changed nothing."""
        length = math.sqrt(self.one_square) * math.sqrt(self.other_square)
        return max(-1.0, min(1.0, self.product / length)) if length else None

    @property
    def sign_agreement(self) -> float | None:
        return self.equal_signs / self.both_changed if self.both_changed else None

    def add(self, other: "Agreement") -> None:
        self.one_square += other.one_square
        self.other_square += other.other_square
        self.product += other.product
        self.equal_signs += other.equal_signs
        self.both_changed += other.both_changed

    def to_dict(self) -> dict[str, Any]:
        return {
            "cosine": self.cosine,
            "sign_agreement": self.sign_agreement,
            "one_norm": math.sqrt(self.one_square),
            "other_norm": math.sqrt(self.other_square),
            "both_changed": self.both_changed,
        }


@dataclass(slots=True)
class Pair:
    """Two models' task vectors, over all and by (stack, layer) and (part, kind)."""

    one: str
    other: str
    overall: Agreement = field(default_factory=Agreement)
    layers: dict[tuple[str, int], Agreement] = field(default_factory=dict[tuple[str, int], Agreement])
    kinds: dict[tuple[str, str], Agreement] = field(default_factory=dict[tuple[str, str], Agreement])

    def add(self, place: Place, found: Agreement) -> None:
        self.overall.add(found)
        if place.layer is not None:
            self.layers.setdefault((place.stack, place.layer), Agreement()).add(found)
        self.kinds.setdefault((place.part, place.kind), Agreement()).add(found)

    def to_dict(self) -> dict[str, Any]:
        order = in_order({kind for _, kind in self.kinds})
        kinds = sorted(self.kinds.items(), key=lambda item: (item[0][0], order.index(item[0][1])))
        return {
            "one": self.one,
            "other": self.other,
            "overall": self.overall.to_dict(),
            "layers": [{"stack": s, "layer": n, **found.to_dict()} for (s, n), found in sorted(self.layers.items())],
            "kinds": [{"part": part, "kind": kind, **found.to_dict()} for (part, kind), found in kinds],
        }


@dataclass(frozen=True, slots=True)
class TaskVectors:
    """norms: model -> (||tau||, ||base||), over what the model shares with the base."""

    base: str
    norms: dict[str, tuple[float, float]]
    pairs: tuple[Pair, ...]
    left_out: dict[str, dict[str, str]]

    def to_dict(self) -> dict[str, Any]:
        norms = [
            {"model": model, "norm": norm, "base_norm": base, "relative": norm / base if base else None}
            for model, (norm, base) in self.norms.items()
        ]
        pairs = [pair.to_dict() for pair in self.pairs]
        return {"base": self.base, "norms": norms, "pairs": pairs, "left_out": self.left_out}


def task_vectors(
    models: Sequence[str],
    base: str,
    *,
    vocabulary: bool = True,
    names: Mapping[str, str] | None = None,
    progress: Report = unreported,
) -> TaskVectors:
    """Task vectors of `models` from `base`, and what all pairs of them have in common.

    Raises UsageError, InputError (AlignmentError, NonFiniteError).
    """
    with Layout([*models, base], vocabulary=vocabulary, names=names) as layout:
        known = layout.names
        squares = {model: [0.0, 0.0] for model in models}
        pairs = {(one, other): Pair(known[one], known[other]) for one, other in itertools.combinations(models, 2)}
        done = 0
        for place in layout.places:
            progress(done, layout.nbytes, place.name)
            if base in place.models and len(place.models) > 1:
                _measure(layout, place, base, squares, pairs)
            done += layout.bytes_of(place)
        progress(layout.nbytes, layout.nbytes, "")
        norms = {known[model]: (math.sqrt(tau), math.sqrt(own)) for model, (tau, own) in squares.items()}
        return TaskVectors(known[base], norms, tuple(pairs.values()), layout.left_out)


def _measure(
    layout: Layout,
    place: Place,
    base: str,
    squares: dict[str, list[float]],
    pairs: dict[tuple[str, str], Pair],
) -> None:
    there = [model for model in place.models if model != base]
    found = {pair: Agreement() for pair in pairs if set(pair) <= set(there)}
    for block in layout.blocks(place):
        values = dict(zip(place.models, block, strict=True))
        origin = values.pop(base)
        taus = {model: value - origin for model, value in values.items()}
        own = _dot(origin, origin)
        lengths = {model: _dot(tau, tau) for model, tau in taus.items()}
        if not all(map(math.isfinite, [own, *lengths.values()])):
            who = " or ".join(sorted(layout.names[model] for model in place.models))
            raise NonFiniteError(Problem(place.name, f"holds NaN or inf in {who}"))
        for model, length in lengths.items():
            squares[model][0] += length
            squares[model][1] += own
        for (one, other), agreement in found.items():
            agreement.add(_agreement(taus[one], taus[other], lengths[one], lengths[other]))
    for pair, agreement in found.items():
        pairs[pair].add(place, agreement)


def _agreement(one: torch.Tensor, other: torch.Tensor, one_square: float, other_square: float) -> Agreement:
    both = (one != 0) & (other != 0)
    equal = ((one > 0) == (other > 0)) & both
    return Agreement(one_square, other_square, _dot(one, other), int(equal.sum()), int(both.sum()))


def _dot(one: torch.Tensor, other: torch.Tensor) -> float:
    return float(torch.dot(one.double(), other.double()))
