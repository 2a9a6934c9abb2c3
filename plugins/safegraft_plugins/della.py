"""DELLA (arXiv 2406.11617)."""

import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from safegraft import hookimpl
from safegraft.methods import Granularity, MergeMethod, TensorView
from safegraft_plugins.float_bits import keep, magnitude, sign_bit_mask
from safegraft_plugins.random_bits import BITS, limit, uniform
from safegraft_plugins.sparsified import Place, Sparsified
from safegraft_plugins.task_vectors import (
    TaskVector,
    TaskVectorInputParameters,
    TaskVectorParameters,
    whole_rows,
)

if TYPE_CHECKING:
    import torch


class DellaLinearParameters(TaskVectorParameters):
    rescale: bool | Literal["probability"] = Field(
        True,
        description="true: restore each task vector's L1 norm, as mergekit does; 'probability': divide what is kept by "
        "its probability of being kept, as the paper does.",
    )


class DellaParameters(DellaLinearParameters):
    normalize: bool = Field(
        True, description="Divide, at each element, by the sum of the weights of the models that take part there."
    )


class DellaInputParameters(TaskVectorInputParameters):
    epsilon: float = Field(
        0.15,
        description="The probability of being kept runs from density - epsilon to density + epsilon by magnitude.",
        ge=0,
        lt=0.5,
    )


class DellaLinear(Sparsified):
    """result = b + lambda sum_i w_i f_i m_i (x_i - b): the paper's drop step (MAGPRUNE), without its election.

    As in mergekit, magnitudes are ranked within a row of a matrix, along the second dimension of a tensor that has
    more, and in the whole of a vector. Of L elements the k-th smallest (from 0; of equal ones the lowest index first,
    where mergekit takes any order) is kept with probability density - epsilon + 2 epsilon k / (L - 1); the only element
    of a row with probability density, where mergekit fails. A density of 0 drops everything, of 1 nothing; between them
    density - epsilon and density + epsilon must lie between 0 and 1.

    Numbers are drawn from the seed, the model's place among those of nonzero weight, and the row and rank: the
    distribution is mergekit's, the draw is not. f_i depends on `rescale`, as in dare_linear; "probability" is the
    paper's, each kept element divided by its own probability. float64 is ranked as float32.
    """

    name = "della_linear"
    summary = "Task arithmetic with randomly dropped elements, small ones more often, and the rest scaled up."
    reference = "https://arxiv.org/abs/2406.11617"
    granularity = Granularity.ROW
    elects = False
    Parameters = DellaLinearParameters
    InputParameters = DellaInputParameters

    def check(self, inputs: Sequence[DellaInputParameters], parameters: DellaLinearParameters) -> Iterator[str]:
        yield from super().check(inputs, parameters)
        for own in inputs:
            if 0 < own.density < 1 and not own.epsilon < own.density < 1 - own.epsilon:
                yield (
                    f"density {own.density:g} and epsilon {own.epsilon:g} give probabilities from "
                    f"{own.density - own.epsilon:g} to {own.density + own.epsilon:g}; they must lie between 0 and 1"
                )

    def walk(self, view: TensorView) -> Iterator[tuple[int, list[TaskVector]]]:
        return whole_rows(view)

    def choose(self, view: TensorView, parameters: DellaLinearParameters) -> "Mapping[int, torch.Tensor]":
        """Of a vector, whose cuts do not show the ranks: the factor of every element."""
        if len(view.shape) > 1:
            return {}
        (_, vectors), *_ = self.walk(view)
        seed = view.context.seed
        return {
            index: row_factors(vector, Place(seed, index, 0), parameters).flatten()
            for index, vector in enumerate(vectors)
            if vector.parameters.density < 1
        }

    def sparsify(
        self, vector: TaskVector, place: Place, choice: "torch.Tensor | None", parameters: DellaLinearParameters
    ) -> None:
        if choice is None:
            vector.delta.mul_(row_factors(vector, place, parameters))
        else:
            vector.delta.mul_(choice[place.position : place.position + vector.delta.numel()])


class Della(DellaLinear):
    """result = b + lambda sum_i w_i f_i m_i (x_i - b) / sum_i w_i, at each element over the models that agree with its
    sign: the paper's drop, elect and fuse. f_i and m_i are della_linear's, agreement is ties'.
    """

    name = "della"
    summary = "DELLA: drop by rank of magnitude, elect signs, average."
    elects = True
    Parameters = DellaParameters


def row_factors(vector: TaskVector, place: Place, parameters: DellaLinearParameters) -> "torch.Tensor":
    """What whole rows [rows, L, ...] of a task vector are multiplied by: 0 where dropped; float32."""
    import torch

    own: DellaInputParameters = vector.parameters
    if own.density <= 0:
        return torch.zeros_like(vector.delta)
    turned = vector.delta.movedim(1, -1)
    ranked = ranks_to_columns(turned.reshape(-1, turned.shape[-1]))
    by_probability = parameters.rescale == "probability"
    limits, values = limits_and_values(own.density, own.epsilon, ranked.shape[1], by_probability, ranked.device)
    numbers = uniform(place.seed, place.number, place.position, ranked.numel(), ranked.device)
    kept = sign_bit_mask(numbers.view(ranked.shape).sub_(limits))
    by_rank = keep(values.expand(ranked.shape).clone(), kept)
    by_column = torch.empty_like(by_rank).scatter_(1, ranked, by_rank)
    return by_column.view(turned.shape).movedim(-1, 1)


def ranks_to_columns(rows: "torch.Tensor") -> "torch.Tensor":
    """int64 like `rows` [n, L]: at [i, k] the column of the k-th smallest magnitude of row i."""
    import numpy as np
    import torch

    # Magnitude above, column below: no two keys of a row are equal, so that any sorting algorithm gives the same order.
    keys = magnitude(rows).long().bitwise_left_shift_(32)
    keys.bitwise_or_(torch.arange(rows.shape[1], device=rows.device))
    ordered = torch.as_tensor(np.sort(keys.cpu().numpy(), axis=1)).to(rows.device)
    return ordered.bitwise_and_((1 << BITS) - 1)


@functools.lru_cache(maxsize=64)  # a model has few lengths of rows, and each of them many cuts
def limits_and_values(
    density: float, epsilon: float, length: int, by_probability: bool, device: "torch.device"
) -> "tuple[torch.Tensor, torch.Tensor]":
    """By rank: below which number an element is kept (int32), and by what it is multiplied then. Not to be changed."""
    import torch

    probabilities = keep_probabilities(density, epsilon, length)
    limits = torch.tensor([limit(one) for one in probabilities], dtype=torch.int32, device=device)
    values = torch.ones(length, device=device)
    return limits, values.div_(torch.tensor(probabilities, device=device)) if by_probability else values


def keep_probabilities(density: float, epsilon: float, length: int) -> list[float]:
    """By rank, from the smallest magnitude."""
    if length == 1:
        return [density]
    return [density - epsilon + 2 * epsilon * rank / (length - 1) for rank in range(length)]


@hookimpl
def merge_methods() -> list[type[MergeMethod]]:
    return [DellaLinear, Della]
