"""layer_cosines: how far a model keeps malicious queries apart from normal ones, layer by layer (arXiv 2408.17003).

    [layers, 2] of the language model's stack, in its order:
    [l, 0]  mean over pairs of different normal samples of cos(h_l(p), h_l(q))
    [l, 1]  mean over pairs of a normal and a malicious sample

h_l is what layer l gives for the last token of a sample: of the prompt as the model sees it before it answers, or of
the text. All pairs count; the paper draws some. Two sets, in this order: normal, malicious. Every tensor of the
language model's layers has the same matrix; other tensors have none.
"""

# torch types its own functions in part.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

import threading
from typing import Any

import torch
from torch.utils._pytree import tree_leaves

from safegraft.calibration.cache import Sheet
from safegraft.calibration.model import Part, WorkingModel
from safegraft.calibration.sweep import Observer
from safegraft.errors import NonFiniteError, Problem

NORMAL, MALICIOUS = 0, 1


def shapes(model: WorkingModel, wanted: set[str]) -> dict[str, tuple[int, ...]]:
    """Of what is gathered, by the tensor's name in the checkpoint."""
    layers = [model.layers[place] for place in model.decoder]
    names = [name for part in layers for group in part.groups for name in group.names if name in wanted]
    return {name: (len(layers), 2) for name in names}


class Cosines(Observer):
    """Sums of unit vectors tell the mean cosine over all pairs: the states themselves need not be kept."""

    def __init__(self, model: WorkingModel, sheet: Sheet, normal: int, malicious: int) -> None:
        self._model = model
        self._sheet = sheet
        self._counts = (normal, malicious)
        self._sums = torch.zeros(len(model.decoder), 2, model.hidden_size, dtype=torch.float64)
        self._local = threading.local()  # a sample's pass is a thread

    def begin(self, sample: int) -> None:
        self._local.set = NORMAL if sample < self._counts[NORMAL] else MALICIOUS

    def seen(self, part: Part, output: Any) -> None:
        if part.place not in self._model.decoder:
            return
        state = next(leaf for leaf in tree_leaves(output) if torch.is_tensor(leaf))[0, -1].double()
        length = state.norm()
        if not torch.isfinite(length) or not length:
            message = (
                f"layer {part.place - self._model.decoder.start} gives a state without direction: zero, NaN or inf"
            )
            raise NonFiniteError(Problem(self._model.checkpoint.name, message))
        self._sums[part.place - self._model.decoder.start, self._local.set] += state / length

    def finish(self) -> None:
        """Everything has been seen."""
        normal, malicious = self._counts
        ours, theirs = self._sums[:, NORMAL], self._sums[:, MALICIOUS]
        alike = ((ours * ours).sum(1) - normal) / (normal * (normal - 1))
        apart = (ours * theirs).sum(1) / (normal * malicious)
        matrix = torch.stack([alike, apart], 1).float()
        for name in self._sheet.shapes:
            self._sheet.put(name, matrix)
