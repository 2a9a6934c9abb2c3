"""gradient_square and saliency: the loss's gradients, sample by sample.

    gradient_square   1/n sum_i (dL_i/dw)^2        the diagonal of the empirical Fisher matrix (arXiv 2111.09832, eq. 3)
    saliency          1/n sum_i |w dL_i/dw|        the SNIP score (arXiv 2502.16770, eq. 2)

L_i is the mean cross-entropy of a sample's response tokens, so every sample weighs the same. A weight with two uses
(an embedding that is the output head too) has one gradient, the sum over its uses.

In memory, beyond what model.py keeps: one layer's sums and the largest gradient; of the wanted parameters that stay
in memory, their sums; of a head tied to the embedding, the rows of each sample's tokens.
"""

# torch types its own functions in part.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from safegraft.calibration.cache import Sheet
from safegraft.calibration.mapping import Group
from safegraft.calibration.model import Part, WorkingModel
from safegraft.calibration.sweep import Observer, Outputs
from safegraft.calibration.wording import Worded
from safegraft.errors import InputError, NonFiniteError, Problem
from safegraft.methods.contract import Statistic

# (gradient, weight) -> what is summed up
Score = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def _square(gradient: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return gradient.square()


def _saliency(gradient: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return (weight * gradient).abs_()


SCORES: dict[Statistic, Score] = {Statistic.GRADIENT_SQUARE: _square, Statistic.SALIENCY: _saliency}


def mean_loss(outputs: Outputs, worded: Worded) -> torch.Tensor:
    """The mean cross-entropy of the tokens that count."""
    return token_losses(outputs, worded).mean()


def token_losses(outputs: Outputs, worded: Worded) -> torch.Tensor:
    """The cross-entropy of each token that counts.

    Raises NonFiniteError where one is not finite, InputError where the model answers with another number of tokens.
    """
    logits: torch.Tensor = outputs.logits[0]
    if len(logits) != len(worded.tokens):
        message = f"the model answers its {len(worded.tokens)} tokens with {len(logits)}: its loss is not defined"
        raise InputError(Problem(worded.where, message))
    losses = functional.cross_entropy(logits[worded.targets - 1], worded.tokens[worded.targets], reduction="none")
    if not torch.isfinite(losses).all():
        raise NonFiniteError(Problem(worded.where, "the model's loss is NaN or infinite: its weights are damaged"))
    return losses


def shapes(model: WorkingModel, wanted: set[str]) -> dict[str, tuple[int, ...]]:
    """Of what is gathered: every tensor that makes parameters, by its name in the checkpoint."""
    return {
        info.name: info.shape
        for part in model.parts
        for group in part.groups
        for _, info in group.sources
        if info.name in wanted and any(model.is_parameter(target) for target in group.targets)
    }


@dataclass
class _Pass:
    """Of one sample: which rows of an embedding it looks up, and what its gradient as output head is there."""

    rows: dict[str, torch.Tensor] = field(default_factory=dict[str, torch.Tensor])
    held: dict[str, torch.Tensor] = field(default_factory=dict[str, torch.Tensor])


class Gradients(Observer):
    """Sums up a score of each sample's gradients on a sheet."""

    gradients = True

    def __init__(self, model: WorkingModel, score: Score, sheet: Sheet, samples: int) -> None:
        self._model = model
        self._score = score
        self._sheet = sheet
        self._samples = samples
        self._sums: dict[str, torch.Tensor] = {}
        self._local = threading.local()  # a sample's pass is a thread
        wanted = [group for part in model.parts for group in part.groups if sheet.shapes.keys() & set(group.names)]
        targets = [target for group in wanted for target in group.targets]
        self._wanted = {model.canonical(target) for target in targets if model.is_parameter(target)}

    def wanted(self, part: Part) -> bool:
        return not self._wanted.isdisjoint(part.parameters)

    def watch(self, part: Part) -> None:
        for name in part.parameters:
            if name in self._wanted:
                self._watch_parameter(name)

    def settle(self, part: Part) -> None:
        sums = {name: self._sums.pop(name).div_(self._samples) for name in part.parameters if name in self._sums}
        for group in part.groups:
            self._write(group, {target: sums[name] for target in group.targets if (name := self._name(target)) in sums})

    def begin(self, sample: int) -> None:
        self._local.sample = _Pass()

    def end(self, outputs: Outputs, worded: Worded) -> None:
        loss = mean_loss(outputs, worded)
        del outputs
        if loss.requires_grad:
            loss.backward()
        sample = self._sample
        for name in list(sample.held):  # looked up, yet without a gradient of its own
            self._add_rows(name, self._model.parameter(name), sample.rows[name], sample.held.pop(name))

    @property
    def _sample(self) -> _Pass:
        return self._local.sample

    def _name(self, target: str) -> str:
        return self._model.canonical(target)

    def _write(self, group: Group, sums: dict[str, torch.Tensor]) -> None:
        if not sums:
            return
        for name, value in group.taken_back(sums).items():
            if name in self._sheet.shapes:
                if not torch.isfinite(value).all():
                    raise NonFiniteError(Problem(self._model.checkpoint.name, f"the gradient of {name} is not finite"))
                self._sheet.add(name, value)

    def _watch_parameter(self, name: str) -> None:
        owners = self._model.owners(name)
        embeddings = [module for module, _ in owners if isinstance(module, nn.Embedding)]
        for module in embeddings:
            module.sparse = True  # a sample's gradient has only the rows of its tokens
        parameter = self._model.parameter(name).requires_grad_()
        parameter.register_post_accumulate_grad_hook(partial(self._take, name))
        others = [(module, attribute) for module, attribute in owners if not isinstance(module, nn.Embedding)]
        if not embeddings or not others:
            return
        # As one leaf, the gradient as output head, as large as the head, would wait for that as embedding in every
        # pass that is under way. As two, it is summed up at once, but for the rows that both have.
        for module in embeddings:
            module.register_forward_pre_hook(partial(self._note_rows, name))
        twin = nn.Parameter(parameter.detach())
        twin.register_post_accumulate_grad_hook(partial(self._take_twin, name))
        for module, attribute in others:
            setattr(module, attribute, twin)

    def _note_rows(self, name: str, module: nn.Module, args: tuple[Any, ...]) -> None:
        before = self._sample.rows.get(name)
        looked_up = args[0].unique() if before is None else torch.cat([before, args[0].flatten()]).unique()
        self._sample.rows[name] = looked_up

    def _take_twin(self, name: str, twin: torch.Tensor) -> None:
        gradient = _taken(twin)
        rows = self._sample.rows.get(name)
        if rows is not None:
            self._sample.held[name] = gradient[rows]
            gradient[rows] = 0
        self._sum(name).add_(self._score(gradient, twin.detach()))

    def _take(self, name: str, parameter: torch.Tensor) -> None:
        gradient = _taken(parameter)
        if not gradient.is_sparse:
            self._sum(name).add_(self._score(gradient, parameter.detach()))
            return
        gradient = gradient.coalesce()
        rows, values = gradient.indices()[0], gradient.values()
        held = self._sample.held.pop(name, None)
        if held is not None:
            all_rows = self._sample.rows[name]
            held[torch.searchsorted(all_rows, rows)] += values
            rows, values = all_rows, held
        self._add_rows(name, parameter, rows, values)

    def _add_rows(self, name: str, parameter: torch.Tensor, rows: torch.Tensor, values: torch.Tensor) -> None:
        self._sum(name)[rows] += self._score(values, parameter.detach()[rows])

    def _sum(self, name: str) -> torch.Tensor:
        if name not in self._sums:
            self._sums[name] = torch.zeros(self._model.parameter(name).shape)
        return self._sums[name]


def _taken(parameter: torch.Tensor) -> torch.Tensor:
    gradient = parameter.grad
    assert gradient is not None  # the hook runs when it has come
    parameter.grad = None
    return gradient
