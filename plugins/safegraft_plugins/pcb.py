"""PCB-Merging, parameter competition balancing (arXiv 2410.02396)."""

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict, Field

from safegraft import hookimpl
from safegraft.methods import Context, Granularity, Input, MergeMethod, Requirements, TensorView
from safegraft_plugins.float_bits import keep, magnitude
from safegraft_plugins.magnitude import EVERYTHING, Largest, belongs, thresholds
from safegraft_plugins.task_vectors import elements_of, flat_blocks, parameters_of, task_vectors
from safegraft_plugins.weights import check_range

if TYPE_CHECKING:
    import torch

FLAT = 1e-30  # products that differ by less are equal
SMALLEST = 1e-30  # a sum of scores is either larger or zero


class PcbParameters(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    ratio: float = Field(0.2, description="Share of each task vector's elements that is kept, by score.", gt=0, le=1)


class PcbInputParameters(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    weight: float = Field(
        1.0, description="Factor on the model's task vector: the paper's lambda.", allow_inf_nan=False
    )


Pair = tuple[int, int]  # of task vectors, i <= j


@dataclass(frozen=True, slots=True)
class Balance:
    """Of a tensor's task vectors: the extremes of their products t_i t_j, and the means that make exp a softmax.

    intra: the mean of exp(N norm(t_i t_i) - N). inter: the mean of exp(norm(t_i t_j)).
    """

    lowest: Mapping[Pair, float]
    highest: Mapping[Pair, float]
    intra: Mapping[int, float]
    inter: Mapping[Pair, float]

    def normalized(self, deltas: "Sequence[torch.Tensor]", pair: Pair) -> "torch.Tensor":
        """norm(t_i t_j), from 0 to 1 over the tensor."""
        product = deltas[pair[0]] * deltas[pair[1]]
        low, high = self.lowest[pair], self.highest[pair]
        return product.sub_(low).div_(high - low).clamp_(0, 1) if high - low > FLAT else product.zero_()

    def intra_exponential(self, deltas: "Sequence[torch.Tensor]", index: int) -> "torch.Tensor":
        """exp(N norm(t_i t_i) - N): a softmax does not see the shift, and no number of models overflows it."""
        return self.normalized(deltas, (index, index)).sub_(1).mul_(len(deltas)).exp_()

    def scores(self, deltas: "Sequence[torch.Tensor]") -> "list[torch.Tensor]":
        """beta_i times the square of the tensor's size, which cancels in the merge. New memory."""
        import torch

        count = len(deltas)
        inter = [torch.zeros_like(delta) for delta in deltas]
        for i, j in pairs(count):
            softmax = self.normalized(deltas, (i, j)).exp_().div_(self.inter[i, j])
            for index in {i, j}:
                inter[index].add_(softmax)
        return [self.intra_exponential(deltas, i).div_(self.intra[i]).mul_(inter[i]) for i in range(count)]


@dataclass(frozen=True, slots=True)
class Found:
    balance: Balance
    kept: Sequence[Largest]  # by score


class Pcb(MergeMethod):
    """result = b + sum_i m_i beta_i w_i t_i / sum_i m_i beta_i, t_i = x_i - b; b where no m_i is 1.

    Equations 1 to 4 of the paper, for N task vectors:

    - intra-balancing: softmax(N norm(t_i t_i)); inter-balancing: sum_j softmax(norm(t_i t_j)); beta_i is their product
    - drop: m_i = 1 where beta_i is at least its element of rank (1 - ratio) D in ascending order (from 0)
    - norm scales to 0 ... 1 by minimum and maximum; all products equal (within 1e-30) are 0

    Softmax, norm and ranks are taken over each tensor (of D elements), where the paper takes them over the whole model:
    so every tensor keeps the same share. norm is what the authors' code does; its scores are otherwise not the paper's
    (it clamps the extremes and has tanh of t_i times the sum of all for inter-balancing), and this is the paper.
    """

    name = "pcb"
    summary = "Each element a mean of task vectors, weighted by how much it matters to each and agrees with the others."
    reference = "https://arxiv.org/abs/2410.02396"
    requires = Requirements(base="required", min_inputs=1)
    granularity = Granularity.ELEMENT
    Parameters = PcbParameters
    InputParameters = PcbInputParameters

    def check(self, inputs: Sequence[PcbInputParameters], parameters: PcbParameters) -> Iterator[str]:
        yield from check_range([one.weight for one in inputs])

    def prepare(self, view: TensorView, parameters: PcbParameters) -> Found | None:
        count = len(parameters_of(view))
        if not count:
            return None
        balance = measure(view, count)
        elements = elements_of(view)
        rank = elements - int((1 - parameters.ratio) * elements)
        if rank == elements:
            return Found(balance, [EVERYTHING] * count)
        found = thresholds(
            lambda: (balance.scores(deltas) for deltas in walk(view)), {(index, rank) for index in range(count)}
        )
        return Found(balance, [EVERYTHING._replace(bits=found[index, rank].bits) for index in range(count)])

    def merge(self, inputs: Sequence[Input], base: "torch.Tensor | None", context: Context) -> "torch.Tensor":
        import torch

        vectors = task_vectors(inputs, base)
        assert base is not None  # the engine hands over what `requires` asks for
        if not vectors:
            return base
        found: Found = context.state
        scores = found.balance.scores([one.delta for one in vectors])
        total, divisor = torch.zeros_like(base), torch.zeros_like(base)
        for vector, score, kept in zip(vectors, scores, found.kept, strict=True):
            keep(score, belongs(magnitude(score), kept, context.position))
            divisor.add_(score)
            total.add_(score.mul_(vector.delta), alpha=vector.parameters.weight)
        return total.div_(divisor.clamp_(min=SMALLEST)).add_(base)


def measure(view: TensorView, count: int) -> Balance:
    """Two walks: extremes, then means of exponentials in float64."""
    import torch

    lowest = dict.fromkeys(pairs(count), math.inf)
    highest = dict.fromkeys(pairs(count), -math.inf)
    for deltas in walk(view):
        for i, j in lowest:
            low, high = torch.aminmax(deltas[i] * deltas[j])
            lowest[i, j], highest[i, j] = min(lowest[i, j], float(low)), max(highest[i, j], float(high))
    balance = Balance(lowest, highest, {}, {})
    intra, inter = dict.fromkeys(range(count), 0.0), dict.fromkeys(pairs(count), 0.0)
    for deltas in walk(view):
        for i, j in inter:
            inter[i, j] += float(balance.normalized(deltas, (i, j)).exp_().sum(dtype=torch.float64))
        for i in intra:
            intra[i] += float(balance.intra_exponential(deltas, i).sum(dtype=torch.float64))
    elements = elements_of(view)
    return Balance(
        lowest,
        highest,
        {index: total / elements for index, total in intra.items()},
        {pair: total / elements for pair, total in inter.items()},
    )


def walk(view: TensorView) -> "Iterator[list[torch.Tensor]]":
    return ([one.delta for one in vectors] for _, vectors in flat_blocks(view))


def pairs(count: int) -> Iterator[Pair]:
    return itertools.combinations_with_replacement(range(count), 2)


@hookimpl
def merge_methods() -> list[type[MergeMethod]]:
    return [Pcb]
