"""preference_mask: which elements of a task vector may stay without harm to preferences (SOMF, arXiv 2405.09055).

    theta = A + m * (F - A),   m ~ RelaxedBernoulli(logits; temperature 0.5)
    loss  = -log sigmoid(beta [(log p(chosen) - log p_A(chosen)) - (log p(rejected) - log p_A(rejected))])

A is the aligned model, which is also DPO's reference, F the fine-tuned one. The logits begin at 0 and are trained
with Adam (learning rate 1e-3, beta 0.1) for 3 epochs, a sample at a time in the data's order; what is gathered is
sigmoid(logits). Tensors that are not wanted stay F's. The authors' code also divides the masked task vector by the
mask's mean; the paper's equation does not, nor does this.

Unlike all other statistics this one needs both models whole in memory, and more: 36 bytes a parameter. It is meant
for small models.
"""

# torch types its own functions in part.
# pyright: reportUnknownMemberType=false

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch.nn import functional

from safegraft.calibration.cache import Sheet
from safegraft.calibration.gradients import token_losses
from safegraft.calibration.mapping import Tensors
from safegraft.calibration.model import WorkingModel, read_tensor
from safegraft.calibration.progress import Cancelled, Progress, Report, stop_if
from safegraft.calibration.request import PREFERENCE_SETTINGS
from safegraft.calibration.wording import Worded
from safegraft.checkpoint.types import Checkpoint

RATE, BETA = PREFERENCE_SETTINGS["rate"], PREFERENCE_SETTINGS["beta"]
TEMPERATURE, EPOCHS = PREFERENCE_SETTINGS["temperature"], int(PREFERENCE_SETTINGS["epochs"])
LEAST_UNIFORM = 1e-6  # noise is drawn this far from 0 and 1, where its logit is infinite

Pair = tuple[Worded, Worded]


def train_mask(
    model: WorkingModel,
    aligned: Checkpoint,
    samples: Sequence[tuple[Callable[[], Worded], Callable[[], Worded]]],
    sheet: Sheet,
    seed: int,
    cancelled: Cancelled,
    report: Report,
) -> None:
    """Train the mask on (chosen, rejected) and put it on the sheet."""
    pairs = [(chosen(), rejected()) for chosen, rejected in samples]
    for part in model.parts:
        model.load(part)
    mask = _Mask(model, aligned, sheet, seed)
    total = (1 + EPOCHS) * len(pairs)
    done = 0
    margins: list[torch.Tensor] = []
    for pair in pairs:
        stop_if(cancelled)
        with torch.no_grad():
            margins.append(_margin(model, mask.aligned, pair))
        report(Progress(done := done + 1, total))
    optimizer = torch.optim.Adam(mask.logits.values(), lr=RATE)
    for pair, margin in _epochs(pairs, margins):
        stop_if(cancelled)
        optimizer.zero_grad()
        loss = -functional.logsigmoid(BETA * (_margin(model, mask.drawn(), pair) - margin))
        loss.backward()
        optimizer.step()
        report(Progress(done := done + 1, total))
    mask.write()


def _epochs(pairs: Sequence[Pair], margins: Sequence[torch.Tensor]) -> Iterator[tuple[Pair, torch.Tensor]]:
    for _ in range(EPOCHS):
        yield from zip(pairs, margins, strict=True)


def _margin(model: WorkingModel, parameters: Tensors, pair: Pair) -> torch.Tensor:
    """log p(chosen) - log p(rejected), each summed over its tokens."""
    chosen, rejected = (_log_probability(model, parameters, one) for one in pair)
    return chosen - rejected


def _log_probability(model: WorkingModel, parameters: Tensors, worded: Worded) -> torch.Tensor:
    arguments: dict[str, Any] = {**worded.inputs, "use_cache": False}
    outputs = torch.func.functional_call(model.module, parameters, (), arguments)
    return -token_losses(outputs, worded).sum()


class _Mask:
    """Logits for the wanted parameters of a model that is whole in memory."""

    def __init__(self, model: WorkingModel, aligned: Checkpoint, sheet: Sheet, seed: int) -> None:
        self._model = model
        self._sheet = sheet
        self._groups = [
            group for part in model.parts for group in part.groups if sheet.shapes.keys() & set(group.names)
        ]
        self._noise = torch.Generator().manual_seed(seed)
        self.aligned: Tensors = {}
        self._task_vector: Tensors = {}
        for group in self._groups:
            theirs = [read_tensor(aligned if name in sheet.shapes else model.checkpoint, name) for name in group.names]
            for target, value in group.converted(theirs).items():
                name = model.canonical(target)
                self.aligned[name] = value.float()
                self._task_vector[name] = model.parameter(name).detach() - self.aligned[name]
        self.logits = {name: torch.zeros_like(one).requires_grad_() for name, one in self._task_vector.items()}

    def drawn(self) -> Tensors:
        """The parameters under a mask drawn anew."""
        return {
            name: self.aligned[name] + self._relaxed(logits) * self._task_vector[name]
            for name, logits in self.logits.items()
        }

    def write(self) -> None:
        chances = {name: torch.sigmoid(logits.detach()) for name, logits in self.logits.items()}
        for group in self._groups:
            values = {target: chances[self._model.canonical(target)] for target in group.targets}
            for name, value in group.taken_back(values).items():
                if name in self._sheet.shapes:
                    self._sheet.put(name, value)

    def _relaxed(self, logits: torch.Tensor) -> torch.Tensor:
        uniform = torch.rand(logits.shape, generator=self._noise).clamp_(LEAST_UNIFORM, 1 - LEAST_UNIFORM)
        return torch.sigmoid((logits + torch.logit(uniform)) / TEMPERATURE)
