"""One method on some tensors, as the engine calls it; and how far apart two tensors are."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import pytest
import torch

from safegraft.methods import Context, Granularity, Input, MergeMethod, Prepared, TensorView

BLOCK = 5  # elements: small, so that a few numbers come in several blocks


class Blocks(TensorView):
    def __init__(self, inputs: Sequence[Input], base: torch.Tensor | None) -> None:
        self.shape = tuple(inputs[0].tensor.shape)
        self.inputs = inputs
        self.base = base

    def blocks(self) -> Iterator[tuple[Sequence[Input], torch.Tensor | None]]:
        for start in range(0, self.inputs[0].tensor.numel(), BLOCK):
            cut = slice(start, start + BLOCK)

            def part(tensor: torch.Tensor | None, cut: slice = cut) -> torch.Tensor | None:
                whole = tensor is None or tensor.shape != self.shape
                return tensor if whole else tensor.flatten()[cut].clone()

            inputs = [
                Input(
                    one.model,
                    one.tensor.flatten()[cut].clone(),
                    one.parameters,
                    {name: part(statistic) for name, statistic in one.statistics.items()},
                )
                for one in self.inputs
            ]
            yield inputs, part(self.base)


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
    **shared: Any,
) -> torch.Tensor:
    """Merge copies of `tensors` with the parameters that a recipe would give.

    roles: tensors of the models with roles, in the order of `requires.roles`. statistics: of each input.
    """
    parameters = method.Parameters.model_validate(shared)
    known = statistics or [{}] * len(tensors)
    inputs = [
        Input(f"model-{index}", tensor.clone(), method.InputParameters.model_validate(dict(own)), statistic)
        for index, (tensor, own, statistic) in enumerate(zip(tensors, each or [{}] * len(tensors), known, strict=True))
    ]
    inputs += [Input(role, tensor.clone(), None) for role, tensor in zip(method.requires.roles, roles, strict=True)]
    instance = method()
    shape = tuple(tensors[0].shape)
    state = instance.prepare(Blocks(inputs, base), parameters)
    survey = instance.survey([Prepared("layers.0.weight", shape, layer, layers, parameters, state)])
    cut = (tensors[0].numel(),) if method.granularity is Granularity.ELEMENT else shape

    def view(tensor: torch.Tensor | None) -> torch.Tensor | None:
        return tensor if tensor is None or tuple(tensor.shape) != shape else tensor.reshape(cut).clone()

    shaped = [
        Input(
            one.model,
            one.tensor.reshape(cut),
            one.parameters,
            {name: view(statistic) for name, statistic in one.statistics.items()},
        )
        for one in inputs
    ]
    context = Context("layers.0.weight", shape, 0, seed, parameters, state, survey, layer, layers)
    return instance.merge(shaped, view(base), context).view(shape)


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
