"""Safety layers (arXiv 2408.17003): where a model begins to see harmful requests as something else.

    normal    mean over pairs of normal prompts            of cos(h_l(p), h_l(q))
    harmful   mean over pairs of a normal and a harmful    of cos(h_l(p), h_l(q))
    gap       normal - harmful

h_l is the state that layer l gives for a prompt's last token. Where the gap opens are the layers that tell the two
apart. All pairs count, as in safegraft's `layer_cosines`; the paper draws some.
"""

# torch types its own functions in part.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from dataclasses import dataclass
from typing import Any

import torch

from safegraft.errors import InputError, Problem


@dataclass(frozen=True, slots=True)
class SafetyLayers:
    """Curves over the language model's layers, from 0."""

    model: str
    normal: tuple[float, ...]
    harmful: tuple[float, ...]

    @property
    def gap(self) -> tuple[float, ...]:
        return tuple(normal - harmful for normal, harmful in zip(self.normal, self.harmful, strict=True))

    @property
    def widest(self) -> int:
        """The layer with the widest gap."""
        return max(range(len(self.gap)), key=lambda layer: self.gap[layer])

    @property
    def opens(self) -> int | None:
        """The first layer whose gap is at least half of the widest; None where no gap opens."""
        half = self.gap[self.widest] / 2
        return next((layer for layer, gap in enumerate(self.gap) if gap >= half), None) if half > 0 else None

    def to_dict(self) -> dict[str, Any]:
        return {
            "model": self.model,
            "normal_normal": list(self.normal),
            "normal_harmful": list(self.harmful),
            "gap": list(self.gap),
            "widest": self.widest,
            "opens": self.opens,
        }


def safety_layers(model: str, normal: torch.Tensor, harmful: torch.Tensor) -> SafetyLayers:
    """From states [samples, layers, width], see subject.Subject.states.

    Raises InputError with fewer than two normal prompts or no harmful one, and where a state is zero.
    """
    if len(normal) < 2 or not len(harmful):
        raise InputError(Problem(model, "safety layers need two normal prompts or more, and a harmful one"))
    ours, theirs = (_unit(model, states) for states in (normal, harmful))
    count = len(ours)
    # The sum over all pairs is the square of the sum; its diagonal, a prompt with itself, is `count`.
    alike = (ours.sum(0).square().sum(1) - count) / (count * (count - 1))
    apart = (ours.sum(0) * theirs.sum(0)).sum(1) / (count * len(theirs))
    return SafetyLayers(model, tuple(alike.tolist()), tuple(apart.tolist()))


def _unit(model: str, states: torch.Tensor) -> torch.Tensor:
    lengths = states.double().norm(dim=2, keepdim=True)
    if not (lengths > 0).all():
        raise InputError(Problem(model, "a layer gives a state of zero, which has no direction"))
    return states.double() / lengths
