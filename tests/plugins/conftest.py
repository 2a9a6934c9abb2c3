"""One method on some tensors, as the engine calls it; and how far apart two tensors are."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch

from safegraft.methods import Context, Granularity, Input, MergeMethod, Prepared, TensorView

BLOCK = 5  # elements: small, so that a few numbers come in several blocks


class Blocks(TensorView):
    def __init__(self, inputs: Sequence[Input], base: torch.Tensor | None, context: Context, cut: "Cutter") -> None:
        self.inputs = inputs
        self.base = base
        self.context = context
        self.shape = context.shape
        self.cut = cut

    def blocks(self) -> Iterator[tuple[Sequence[Input], torch.Tensor | None]]:
        for start in range(0, self.inputs[0].tensor.numel(), BLOCK):
            part = slice(start, start + BLOCK)

            def flat(tensor: torch.Tensor, part: slice = part) -> torch.Tensor:
                return tensor.flatten()[part].clone()

            yield [self.cut(one, flat) for one in self.inputs], None if self.base is None else flat(self.base)


Cutter = Callable[[Input, Callable[[torch.Tensor], torch.Tensor]], Input]


def cutter(method: type[MergeMethod]) -> Cutter:
    """Applies a cut to a model's tensor and to those of its statistics that are of the tensor's shape."""
    elementwise = {one.name for one in method.requires.calibration if one.statistic.elementwise}

    def cut(one: Input, how: Callable[[torch.Tensor], torch.Tensor]) -> Input:
        statistics = {
            name: how(value) if value is not None and name in elementwise else value
            for name, value in one.statistics.items()
        }
        return Input(one.model, how(one.tensor), one.parameters, statistics)

    return cut


def merge(
    method: type[MergeMethod],
    tensors: Sequence[torch.Tensor],
    each: Sequence[Mapping[str, Any]] | None = None,
    base: torch.Tensor | None = None,
    *,
    roles: Sequence[torch.Tensor] = (),
    statistics: Sequence[Mapping[str, torch.Tensor | None]] | None = None,
    layer: int | None = 0,
    layers: int = 1,
    seed: int = 0,
    vocabulary: bool = False,
    **shared: Any,
) -> torch.Tensor:
    """Merge copies of `tensors` with the parameters that a recipe would give.

    roles: tensors of the models with roles, in the order of `requires.roles`. statistics: of each of `tensors`.
    """
    parameters = method.Parameters.model_validate(shared)
    known = statistics or [{}] * len(tensors)
    inputs = [
        Input(f"model-{index}", tensor, method.InputParameters.model_validate(dict(own)), statistic)
        for index, (tensor, own, statistic) in enumerate(zip(tensors, each or [{}] * len(tensors), known, strict=True))
    ]
    inputs += [Input(role, tensor, None) for role, tensor in zip(method.requires.roles, roles, strict=True)]
    instance = method()
    shape = tuple(tensors[0].shape)
    name = "model.layers.0.mlp.up_proj.weight"
    context = Context(name, shape, 0, seed, parameters, None, None, layer, layers, vocabulary)
    state = instance.prepare(Blocks(inputs, base, context, cutter(method)), parameters)
    survey = instance.survey([Prepared(name, shape, layer, layers, parameters, state)])

    def shaped(tensor: torch.Tensor) -> torch.Tensor:
        return tensor.reshape(-1 if method.granularity is Granularity.ELEMENT else shape).clone()

    return instance.merge(
        [cutter(method)(one, shaped) for one in inputs],
        None if base is None else shaped(base),
        replace(context, state=state, survey=survey),
    ).view(shape)


def ulps(one: torch.Tensor, other: torch.Tensor) -> int:
    """The largest distance of two finite float32 or bfloat16 tensors, in representable values."""
    integers = {torch.float32: torch.int32, torch.bfloat16: torch.int16}[one.dtype]

    def ordered(tensor: torch.Tensor) -> torch.Tensor:
        bits = tensor.contiguous().view(integers).long()
        return torch.where(bits < 0, torch.iinfo(integers).min - bits, bits)  # both zeros become 0

    return int((ordered(one) - ordered(other)).abs().max())


@pytest.fixture(scope="session")
def merged() -> Callable[..., torch.Tensor]:
    return merge


@pytest.fixture(scope="session")
def ulps_apart() -> Callable[[torch.Tensor, torch.Tensor], int]:
    return ulps
