"""input_norm and input_gram: what comes into linear layers.

    input_norm   [in]       square root of the sum of x^2 over all tokens of all samples     (arXiv 2306.11695, eq. 1)
    input_gram   [in, in]   mean over samples of the mean over a sample's tokens of x x^T    (arXiv 2212.09849)

Of every nn.Linear whose weight is its own: not of an embedding that is also the output head, nor of experts stacked
in one tensor. Tokens are all positions of a sample, its image's too; in a vision tower they are patches. A layer that
is called several times for a sample counts each call as a sample; one that is never called has zeros.

In memory, beyond what model.py keeps: the sums of one layer's linear layers, and of those outside layers.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn

from safegraft.calibration.cache import Sheet
from safegraft.calibration.model import Part, WorkingModel
from safegraft.calibration.sweep import Observer
from safegraft.errors import NonFiniteError, Problem
from safegraft.methods.contract import Statistic


@dataclass(frozen=True, slots=True)
class Linear:
    """A tensor [out, in] of the checkpoint that is in the weight of a linear layer. columns: where in the checkpoint's
    rows each of the layer's inputs stands."""

    tensor: str
    weight: str
    columns: torch.Tensor


Linears = Mapping[Part, tuple[Linear, ...]]


def find_linears(model: WorkingModel, wanted: set[str]) -> Linears:
    """Those among the wanted tensors, by the part that they are in."""
    return {part: tuple(_linears_of(model, part, wanted)) for part in model.parts}


def shapes(model: WorkingModel, linears: Linears, statistic: Statistic) -> dict[str, tuple[int, ...]]:
    """Of what is gathered, by the tensor's name in the checkpoint."""
    names = [one.tensor for found in linears.values() for one in found]
    widths = {name: model.checkpoint.tensors[name].shape[1] for name in names}
    return {name: (width,) if statistic is Statistic.INPUT_NORM else (width, width) for name, width in widths.items()}


def _linears_of(model: WorkingModel, part: Part, wanted: set[str]) -> Iterator[Linear]:
    for group in part.groups:
        for name in group.names:
            if name in wanted and any(_is_linear(model, target) for target in group.targets):
                found = group.columns(name)
                if found is not None and _is_linear(model, found[0]):
                    yield Linear(name, *found)


def _is_linear(model: WorkingModel, target: str) -> bool:
    if not model.is_parameter(target):
        return False
    owners = model.owners(model.canonical(target))
    return len(owners) == 1 and isinstance(owners[0][0], nn.Linear) and owners[0][1] == "weight"


class Inputs(Observer, ABC):
    """Looks at what comes into the linear layers of the parts that are in memory."""

    def __init__(self, model: WorkingModel, linears: Linears, sheet: Sheet) -> None:
        self._model = model
        self._linears = linears
        self._sheet = sheet
        self._hooks: dict[Part, list[Any]] = {}

    def watch(self, part: Part) -> None:
        weights = sorted({one.weight for one in self._linears[part]})
        modules = [(weight, self._model.module.get_submodule(weight.rpartition(".")[0])) for weight in weights]
        self._hooks[part] = [
            module.register_forward_pre_hook(partial(self._look, weight)) for weight, module in modules
        ]

    def settle(self, part: Part) -> None:
        for hook in self._hooks.pop(part):
            hook.remove()

    @abstractmethod
    def finish(self) -> None:
        """Everything has been seen."""

    @abstractmethod
    def _look(self, weight: str, module: nn.Module, args: tuple[torch.Tensor, ...]) -> None:
        """Take in what comes into the linear layer of that weight: [..., in]."""

    def _checked(self, one: Linear, value: torch.Tensor) -> torch.Tensor:
        if not torch.isfinite(value).all():
            message = f"what comes into {one.tensor} is not finite: its weights are damaged"
            raise NonFiniteError(Problem(self._model.checkpoint.name, message))
        return value


class InputNorms(Inputs):
    """Sums of squares, kept to the end: they are small."""

    def __init__(self, model: WorkingModel, linears: Linears, sheet: Sheet) -> None:
        super().__init__(model, linears, sheet)
        self._sums: dict[str, torch.Tensor] = {}

    def finish(self) -> None:
        for one in (one for found in self._linears.values() for one in found):
            if one.weight in self._sums:
                norm = torch.empty(len(one.columns))
                norm[one.columns] = self._checked(one, self._sums[one.weight]).sqrt().float()
                self._sheet.put(one.tensor, norm)

    def _look(self, weight: str, module: nn.Module, args: tuple[torch.Tensor, ...]) -> None:
        squares = args[0].reshape(-1, args[0].shape[-1]).double().square().sum(0)
        self._sums[weight] = self._sums[weight] + squares if weight in self._sums else squares


class InputGrams(Inputs):
    """Products of inputs, brought to the sheet whenever a layer goes."""

    def __init__(self, model: WorkingModel, linears: Linears, sheet: Sheet, samples: int) -> None:
        super().__init__(model, linears, sheet)
        self._samples = samples
        self._sums: dict[str, torch.Tensor] = {}
        self._calls: dict[str, int] = {}
        self._last: tuple[torch.Tensor, int, torch.Tensor] | None = None  # an input, its version, its product

    def settle(self, part: Part) -> None:
        super().settle(part)
        for one in self._linears[part]:
            if one.weight in self._sums:
                product = self._checked(one, self._sums[one.weight]) / self._samples
                places = one.columns.argsort()  # the layer's input for each column of the checkpoint
                self._sheet.add(one.tensor, product[places][:, places])
        for one in self._linears[part]:
            self._sums.pop(one.weight, None)
        self._last = None

    def finish(self) -> None:
        for one in (one for found in self._linears.values() for one in found):
            calls = self._calls.get(one.weight, self._samples)
            if calls != self._samples:  # samples without an image did not come by, or some came more than once
                self._sheet.scale(one.tensor, self._samples / calls)

    def _look(self, weight: str, module: nn.Module, args: tuple[torch.Tensor, ...]) -> None:
        product = self._product(args[0])
        if weight in self._sums:
            self._sums[weight] += product
        else:
            self._sums[weight] = product.clone()
        self._calls[weight] = self._calls.get(weight, 0) + 1

    def _product(self, inputs: torch.Tensor) -> torch.Tensor:
        """Query, key and value are made from one input: its product is computed once."""
        if self._last is None or self._last[0] is not inputs or self._last[1] != inputs._version:
            tokens = inputs.reshape(-1, inputs.shape[-1])
            self._last = inputs, inputs._version, tokens.T @ tokens / len(tokens)
        return self._last[2]
