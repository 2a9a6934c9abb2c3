"""LED-Merging: locate, elect, disjoint (arXiv 2502.16770)."""

import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict, Field

from safegraft import hookimpl
from safegraft.methods import Calibration, Context, Granularity, Input, MergeMethod, Requirements, Statistic, TensorView
from safegraft_plugins.float_bits import keep, magnitude
from safegraft_plugins.magnitude import Largest, belongs, largest
from safegraft_plugins.task_vectors import elements_of
from safegraft_plugins.weights import check_range

if TYPE_CHECKING:
    import torch

EXPERT, BASE = "saliency", "base_saliency"
Elected = Mapping[int, tuple[Largest, Largest]]  # by the input's index: what its expert needs, and what the base


class LedParameters(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    alpha: float = Field(0.9, allow_inf_nan=False, description="Factor on the sum of the experts' updates.")


class LedInputParameters(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    weight: float = Field(1.0, allow_inf_nan=False, description="Factor on the expert's update.")
    density: float = Field(
        0.4,
        ge=0,
        le=1,
        description="Share of the elements that is located; the paper has 0.1 for safety, 0.4 for maths, 0.5 for code.",
    )


class Led(MergeMethod):
    """result = b + alpha sum_i w_i m_i (x_i - b), with disjoint masks m_i.

    x_i are the experts, a safety-aligned one among them, each with its own calibration set `task`; b is the base.

    - locate: the saliency mean |theta dL/dtheta| of expert i and that of the base, both on the expert's data; of each
      the int(density n) largest elements of the tensor, at least one, of equal ones those with the lowest index,
      and none of saliency zero
    - elect: e_i is where both have located
    - disjoint: m_i is e_i without what another expert has elected too

    An expert of weight zero takes no part and elects nothing. Where a saliency is not defined for a tensor, the
    expert's update is left out.
    """

    name = "led"
    summary = "Updates only where base and expert both need the element, and no other expert does."
    reference = "https://arxiv.org/abs/2502.16770"
    requires = Requirements(
        base="required",
        min_inputs=1,
        calibration=(
            Calibration(EXPERT, Statistic.SALIENCY),
            Calibration(BASE, Statistic.SALIENCY, model="base"),
        ),
    )
    granularity = Granularity.ELEMENT
    Parameters = LedParameters
    InputParameters = LedInputParameters

    def check(self, inputs: Sequence[LedInputParameters], parameters: LedParameters) -> Iterator[str]:
        yield from check_range([*(one.weight for one in inputs), parameters.alpha])

    def prepare(self, view: TensorView, parameters: LedParameters) -> Elected:
        inputs, _ = next(view.blocks())
        elements = elements_of(view)
        counts: dict[int, list[int]] = {}
        for index in located(inputs):
            density = inputs[index].parameters.density
            count = max(1, int(density * elements)) if density > 0 else 0
            counts[2 * index] = counts[2 * index + 1] = [count]
        found = largest(lambda: (both(one) for one, _ in view.blocks()), counts, elements)
        return {index: (salient(found[2 * index]), salient(found[2 * index + 1])) for index in located(inputs)}

    def merge(self, inputs: Sequence[Input], base: "torch.Tensor | None", context: Context) -> "torch.Tensor":
        assert base is not None  # the engine hands over what `requires` asks for
        state: Elected = context.state
        elected = {index: elect(inputs[index], two, context.position) for index, two in state.items()}
        votes = base.new_zeros(base.shape).int()
        for mask in elected.values():
            votes.sub_(mask)  # its elements are -1 where they are set
        merged = base.clone()
        for index, mask in elected.items():
            update = keep(inputs[index].tensor.sub_(base), mask.masked_fill_(votes > 1, 0))
            merged.add_(update.mul_(inputs[index].parameters.weight * context.parameters.alpha))
        return merged


def located(inputs: Sequence[Input]) -> list[int]:
    """The experts that take part."""
    return [
        index
        for index, one in enumerate(inputs)
        if one.parameters.weight != 0 and all(saliency is not None for saliency in saliencies(one))
    ]


def saliencies(one: Input) -> "tuple[torch.Tensor | None, torch.Tensor | None]":
    return one.statistics[EXPERT], one.statistics[BASE]


def both(inputs: Sequence[Input]) -> "list[torch.Tensor]":
    """Every input's saliency and the base's beside it; where there is none, something of the same length."""
    return [one.tensor if saliency is None else saliency for one in inputs for saliency in saliencies(one)]


def salient(found: Sequence[Largest]) -> Largest:
    """What `largest` has found, without elements that are zero."""
    (one,) = found
    return one if one.bits else Largest(1, sys.maxsize)


def elect(one: Input, two: tuple[Largest, Largest], position: int) -> "torch.Tensor":
    """The mask of the elements that expert and base both need."""
    masks = [
        belongs(magnitude(saliency), share, position)
        for saliency, share in zip(saliencies(one), two, strict=True)
        if saliency is not None
    ]
    return masks[0].bitwise_and_(masks[1])


@hookimpl
def merge_methods() -> list[type[MergeMethod]]:
    return [Led]
