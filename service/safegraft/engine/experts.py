"""Mixture-of-experts models whose experts are stored one by one here and stacked there.

    one by one   P.experts.0.gate_proj.weight [I, H], .up_proj.weight [I, H], .down_proj.weight [H, I]; P.experts.1. ...
    stacked      P.experts.gate_up_proj [E, 2I, H]    P.experts.down_proj [E, H, I]
    transposed   P.experts.gate_up_proj [E, H, 2I]    P.experts.down_proj [E, I, H]

The name of a stacked tensor spells what lies in it, in order (gate_up_proj: gate_proj, then up_proj). Shapes
tell which way round the matrices lie: all of an expert's the same way. Where names and shapes do not tell
(other names, square matrices, biases or scales beside the weights, with which gate and up come interleaved),
experts are left as they are, and alignment says what does not fit.

Works on names, shapes and dtypes alone; `composed.py` reads.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from safegraft.checkpoint.types import Checkpoint, TensorInfo
from safegraft.engine.anatomy import split_layer
from safegraft.engine.composed import Block, ComposedCheckpoint, ComposedTensor, Matrix

WEIGHT = ".weight"

Shape = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Experts:
    """What became of an input's experts.

    checkpoint: the input with its experts in the host's form; the input itself when there is nothing to do.
    notes: what a reader of the plan should know. misfits: why some experts are not in the host's form,
    which matters only if they are then found to have no counterpart.
    """

    checkpoint: Checkpoint
    notes: tuple[str, ...] = ()
    misfits: tuple[str, ...] = ()


def fuse_experts(host: Checkpoint, other: Checkpoint) -> Experts:
    """Give the experts of `other` the form they have in the host: stacked, one by one, or the other way round."""
    composed: list[ComposedTensor] = []
    notes: dict[str, int] = {}
    misfits: dict[str, str] = {}
    theirs = _find_experts(host)
    for place, modules in _find_experts(other).items():
        forms = {module.form: module for module in theirs.get(place, ())}
        for module in modules:
            if not forms or any(module.resembles(form) for form in forms.values()):
                continue
            try:
                way, tensors = _refit(list(forms.values()), module)
            except _MisfitError as error:
                misfits.setdefault(str(error), f"{module.path} cannot take the form of the host's experts: {error}")
                continue
            composed += tensors
            notes[f"{way} ({place}"] = notes.get(f"{way} ({place}", 0) + 1
    if not composed:
        return Experts(other, misfits=tuple(misfits.values()))
    return Experts(
        ComposedCheckpoint(other, composed),
        tuple(f"{other.name}: {note} of {count} {'layer' if count == 1 else 'layers'})" for note, count in notes.items()),
        tuple(misfits.values()),
    )
