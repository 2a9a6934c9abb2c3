"""The passes of samples through one model, with one layer's weights in memory at a time.

A sample runs through the model's own forward, and back through autograd, in a pass of its own (see turns.py). Where
a layer begins, the pass waits. Samples go in waves, and each wave reads the model's layers once for the way there and
once more for the way back; what a wave keeps between layers (the hidden states, of every layer where there is a way
back) is bounded by KEPT_BYTES, except that one sample is always taken.

Nothing here knows what is being gathered: an Observer does.
"""

# torch types its own functions in part.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils._pytree import tree_flatten, tree_unflatten

from safegraft.calibration.memory import give_back
from safegraft.calibration.model import Part, WorkingModel
from safegraft.calibration.progress import Cancelled, Progress, Report
from safegraft.calibration.turns import Turns
from safegraft.calibration.wording import Worded
from safegraft.errors import InputError, Problem, SafegraftError

KEPT_BYTES = 2 << 30
MOST_PASSES = 16  # threads at once; with so many, reading weights is a small part of the work

Outputs = Any  # what a model returns: transformers' ModelOutput


class Observer:
    """What is done with a model at work. `watch` and `settle` come in pairs around a part's time in memory; those of
    the resident part are the first and the last."""

    gradients: bool = False  # whether samples go back through the model

    def watch(self, part: Part) -> None:
        """A part's weights have come."""

    def settle(self, part: Part) -> None:
        """A part's weights are about to go."""

    def wanted(self, part: Part) -> bool:
        """Whether the gradients of some of its parameters are wanted."""
        return False

    def begin(self, sample: int) -> None:
        """A sample's pass begins, in this thread."""

    def seen(self, part: Part, output: Any) -> None:
        """A layer has answered."""

    def end(self, outputs: Outputs, worded: Worded) -> None:
        """A sample has come to the model's end; its way back, if there is one, is this method's business."""


def sweep(
    model: WorkingModel,
    observer: Observer,
    samples: Sequence[Callable[[], Worded]],
    cancelled: Cancelled,
    report: Report,
) -> None:
    """Show a model the samples, in their order. They are worded when their wave comes."""
    model.load(model.resident)
    observer.watch(model.resident)
    walk = _Walk(model, observer, cancelled, report, len(samples))
    walk.run(samples)
    observer.settle(model.resident)
    model.release(model.resident)


Stop = tuple[bool, int]  # (on the way back, a layer's place)


class _Walk:
    def __init__(
        self, model: WorkingModel, observer: Observer, cancelled: Cancelled, report: Report, samples: int
    ) -> None:
        self.model = model
        self.observer = observer
        self.turns: Turns[Stop] = Turns(self._begin, self._end, _order, cancelled)
        self._report = report
        self._here: Part | None = None  # the layer whose weights are in memory
        self._done = 0
        self._total = samples * len(model.layers) * (1 + observer.gradients)
        self._width = 0

    def run(self, samples: Sequence[Callable[[], Worded]]) -> None:
        forwards = {part: part.module.forward for part in self.model.layers if part.module is not None}
        try:
            for part, forward in forwards.items():
                assert part.module is not None
                part.module.forward = self._stopping(part, forward)
            first = 0
            for wave in self._waves(samples):
                self._width = len(wave)
                self.turns.run([self._pass(first + index, worded) for index, worded in enumerate(wave)])
                first += len(wave)
                self._leave()
                self._progress(self._total * first // len(samples))
        finally:
            for part in forwards:
                assert part.module is not None
                del part.module.forward
            if self._here is not None:
                self.model.release(self._here)

    def _waves(self, samples: Iterable[Callable[[], Worded]]) -> Iterator[list[Worded]]:
        wave: list[Worded] = []
        kept = 0
        for make in samples:
            worded = make()
            size = self._kept_bytes(worded)
            if wave and (kept + size > KEPT_BYTES or len(wave) == MOST_PASSES):
                yield wave
                wave, kept = [], 0
            wave.append(worded)
            kept += size
        if wave:
            yield wave

    def _kept_bytes(self, worded: Worded) -> int:
        hidden = self.model.hidden_size * len(worded.tokens) * 4
        inputs = sum(value.nbytes for value in worded.inputs.values() if torch.is_tensor(value))
        return inputs + hidden * (len(self.model.layers) + 1 if self.observer.gradients else 2)

    def _pass(self, sample: int, worded: Worded) -> Callable[[], None]:
        def run() -> None:
            # Threads begin with autograd as it is by default.
            with torch.set_grad_enabled(self.observer.gradients):
                self.observer.begin(sample)
                with _explained(self.model.checkpoint.name, worded):
                    self.observer.end(self.model.module(**worded.inputs, use_cache=False), worded)

        return run

    def _stopping(self, part: Part, forward: Callable[..., Any]) -> Callable[..., Any]:
        """A layer's forward that waits for its turn."""

        def there(*args: Any, **kwargs: Any) -> Any:
            self.turns.wait_for((False, part.place))
            output = forward(*args, **kwargs)
            self.observer.seen(part, output)
            return output

        def there_and_back(*args: Any, **kwargs: Any) -> Any:
            leaves, spec = tree_flatten((args, kwargs))
            visit = _Visit(self, part, forward, leaves, spec)
            tensors = [leaf for leaf in leaves if torch.is_tensor(leaf)]
            made = _Layer.apply(visit, visit.anchor, *tensors)
            return visit.outputs_with(made)

        return there_and_back if self.observer.gradients else there

    def _begin(self, stop: Stop) -> None:
        part = self.model.layers[stop[1]]
        if self._here is not part:
            self._leave()
            self.model.load(part)
            self._here = part
            self.observer.watch(part)

    def _end(self, stop: Stop) -> None:
        self._progress(self._done + self._width)

    def _leave(self) -> None:
        if self._here is not None:
            self.observer.settle(self._here)
            self.model.release(self._here)
            self._here = None
            give_back()

    def _progress(self, done: int) -> None:
        self._done = min(done, self._total)
        self._report(Progress(self._done, self._total))


@contextmanager
def _explained(model: str, worded: Worded) -> Generator[None]:
    """Say which model failed on which sample."""
    try:
        yield
    except (SafegraftError, MemoryError):
        raise
    except Exception as error:  # a model is a stranger's, and transformers raises what it likes
        message = f"{model} cannot be put to work on it: {type(error).__name__}: {error}"
        raise InputError(Problem(worded.where, message)) from error


def _order(stop: Stop) -> tuple[int, int]:
    """All passes go there before any comes back; the way back begins at the last layer."""
    back, place = stop
    return (1, -place) if back else (0, place)


_HOLE = object()  # where a tensor goes; the tensors themselves would be kept alive by their own history


class _Visit:
    """One call of a layer: what it was called with, and how to call it again with the tensors changed."""

    def __init__(self, walk: _Walk, part: Part, forward: Callable[..., Any], leaves: Sequence[Any], spec: Any) -> None:
        self.walk = walk
        self.part = part
        self._forward = forward
        self._leaves = [None if torch.is_tensor(leaf) else leaf for leaf in leaves]
        self._places = [index for index, leaf in enumerate(leaves) if torch.is_tensor(leaf)]
        self._spec = spec
        self._answer: tuple[list[Any], Any] = ([], None)
        # Without an input that asks for a gradient, autograd would not come back to the layer's own parameters.
        self.anchor = torch.zeros((), requires_grad=walk.observer.wanted(part))

    def call(self, tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """The tensors of the layer's answer, in order; the rest of it is kept for `outputs_with`."""
        leaves = list(self._leaves)
        for place, tensor in zip(self._places, tensors, strict=True):
            leaves[place] = tensor
        args, kwargs = tree_unflatten(leaves, self._spec)
        outputs, spec = tree_flatten(self._forward(*args, **kwargs))
        self._answer = ([_HOLE if torch.is_tensor(one) else one for one in outputs], spec)
        return [one for one in outputs if torch.is_tensor(one)]

    def outputs_with(self, tensors: Sequence[torch.Tensor]) -> Any:
        """The layer's answer, with these tensors in it."""
        outputs, spec = self._answer
        rest = iter(tensors)
        return tree_unflatten([next(rest) if one is _HOLE else one for one in outputs], spec)


class _Layer(torch.autograd.Function):
    """A layer that keeps its inputs alone and is computed once more on the way back, when its weights are there."""

    @staticmethod
    def forward(ctx: Any, visit: _Visit, anchor: torch.Tensor, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        visit.walk.turns.wait_for((False, visit.part.place))
        ctx.visit = visit
        ctx.save_for_backward(*tensors)
        with torch.no_grad():
            outputs = visit.call(tensors)
        ctx.mark_non_differentiable(*[one for one in outputs if not one.is_floating_point()])
        return tuple(outputs)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor | None) -> tuple[torch.Tensor | None, ...]:
        visit: _Visit = ctx.visit
        visit.walk.turns.wait_for((True, visit.part.place))
        asked: tuple[bool, ...] = ctx.needs_input_grad[2:]
        with torch.enable_grad():
            tensors = [
                tensor.detach().requires_grad_(asks) for tensor, asks in zip(ctx.saved_tensors, asked, strict=True)
            ]
            outputs = visit.call(tensors)
        heads = [
            (output, gradient)
            for output, gradient in zip(outputs, gradients, strict=True)
            if gradient is not None and output.requires_grad
        ]
        torch.autograd.backward([output for output, _ in heads], [gradient for _, gradient in heads])
        give_back()  # before the next pass makes as much again in a thread of its own
        return None, None, *(tensor.grad for tensor in tensors)
