"""One method on one tensor, as the engine calls it; and how far apart two tensors are."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import pytest
import torch

from safegraft.methods import Context, Input, MergeMethod, TensorView

BLOCK = 5  # elements: small, so that a few numbers come in several blocks


class Blocks(TensorView):
    def __init__(self, inputs: Sequence[Input], base: torch.Tensor | None) -> None:
        self.shape = tuple(inputs[0].tensor.shape)
        self.inputs = inputs
        self.base = base

    def blocks(self) -> Iterator[tuple[Sequence[Input], torch.Tensor | None]]:
        for start in range(0, self.inputs[0].tensor.numel(), BLOCK):
            cut = slice(start, start + BLOCK)
            inputs = [Input(one.model, one.tensor.flatten()[cut].clone(), one.parameters) for one in self.inputs]
            yield inputs, None if self.base is None else self.base.flatten()[cut].clone()


def merge(
    method: type[MergeMethod],
    tensors: Sequence[torch.Tensor],
    each: Sequence[Mapping[str, Any]] | None = None,
    base: torch.Tensor | None = None,
    **shared: Any,
) -> torch.Tensor:
    """Merge copies of `tensors` with the parameters that a recipe would give."""
    parameters = method.Parameters.model_validate(shared)
    inputs = [
        Input(f"model-{index}", tensor.clone(), method.InputParameters.model_validate(dict(own)))
        for index, (tensor, own) in enumerate(zip(tensors, each or [{}] * len(tensors), strict=True))
    ]
    instance = method()
    state = instance.prepare(Blocks(inputs, base), parameters)
    flat = [Input(one.model, one.tensor.flatten(), one.parameters) for one in inputs]
    context = Context("layers.0.weight", tuple(tensors[0].shape), 0, 0, parameters, state)
    result = instance.merge(flat, None if base is None else base.flatten().clone(), context)
    return result.view(tensors[0].shape)


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
