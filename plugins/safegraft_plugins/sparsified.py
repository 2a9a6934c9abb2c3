"""Sparsify every task vector, then add them up: what TIES, DARE, DELLA and breadcrumbs have in common."""

from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

from safegraft.methods import Context, Granularity, Input, MergeMethod, Requirements, TensorView
from safegraft_plugins.lanes import total
from safegraft_plugins.magnitude import Walk
from safegraft_plugins.sign_election import elected_sum
from safegraft_plugins.task_vectors import TaskVector, elements_of, flat_blocks, parameters_of, task_vectors
from safegraft_plugins.weights import check_range, check_sum

if TYPE_CHECKING:
    import torch

LEAST_NORM = 1e-7  # mergekit's: task vectors whose L1 norm is smaller are not rescaled


class Place(NamedTuple):
    """Where a cut of a task vector lies, and what else its random numbers depend on."""

    seed: int
    number: int  # of the task vector among those that take part
    position: int


class Draw(NamedTuple):
    """Keep the elements whose random number is below `limit`, and divide them."""

    limit: int
    divisor: float


@dataclass(frozen=True, slots=True)
class Found:
    """What `prepare` found: by the task vector's index, how it is sparsified and the factor that restores its norm."""

    choices: Mapping[int, Any]
    factors: Mapping[int, float]


class Sparsified(MergeMethod):
    """result = b + lambda sum_i w_i f_i s_i(x_i - b): s_i sparsifies a task vector to its density, f_i rescales it.

    `elects`: at each element only task vectors with the elected sign are summed. Densities of 1 leave a task vector
    as it is. `rescale: true` is mergekit's: f_i brings the L1 norm of the sparsified task vector back to that of the
    whole one. Norms are summed in float64 over fixed blocks, in mergekit in float32: f_i may differ in its last bits.
    """

    requires = Requirements(base="required", min_inputs=1)
    granularity = Granularity.ELEMENT
    elects: ClassVar[bool]

    def check(self, inputs: Sequence[Any], parameters: Any) -> Iterator[str]:
        weights = [one.weight for one in inputs]
        yield from check_range([*weights, parameters.scale])
        if parameters.normalize and not self.elects:
            yield from check_sum(weights)

    def walk(self, view: TensorView) -> Iterator[tuple[int, list[TaskVector]]]:
        """Position and task vectors of the whole tensor, in cuts that `sparsify` can take."""
        return flat_blocks(view)

    def choose(self, view: TensorView, parameters: Any) -> Mapping[int, Any]:
        """What `sparsify` has to know of whole task vectors, by their index."""

        def walk() -> Iterator[Sequence["torch.Tensor"]]:
            return ([one.delta for one in vectors] for _, vectors in self.walk(view))

        return self.choose_among(walk, parameters_of(view), elements_of(view), parameters)

    def choose_among(self, walk: Walk, own: Sequence[Any], elements: int, parameters: Any) -> Mapping[int, Any]:
        """What `choose` returns, from the magnitudes of task vectors with the parameters `own`."""
        return {}

    @abstractmethod
    def sparsify(self, vector: TaskVector, place: Place, choice: Any, parameters: Any) -> None:
        """Zero what is dropped of a task vector's cut, in place. Its density is below 1."""

    def prepare(self, view: TensorView, parameters: Any) -> Found:
        if all(own.density >= 1 for own in parameters_of(view)):
            return Found({}, {})
        choices = self.choose(view, parameters)
        return Found(choices, self.norm_factors(view, parameters, choices) if parameters.rescale is True else {})

    def norm_factors(self, view: TensorView, parameters: Any, choices: Mapping[int, Any]) -> dict[int, float]:
        before: dict[int, float] = {}
        after: dict[int, float] = {}
        for position, vectors in self.walk(view):
            for index, vector in enumerate(vectors):
                if vector.parameters.density >= 1:
                    continue
                before[index] = before.get(index, 0.0) + l1_norm(vector.delta)
                self.sparsify(vector, Place(view.context.seed, index, position), choices.get(index), parameters)
                after[index] = after.get(index, 0.0) + l1_norm(vector.delta)
        return {
            index: before[index] / after[index]
            for index in before
            if before[index] >= LEAST_NORM and after[index] >= LEAST_NORM
        }

    def merge(self, inputs: Sequence[Input], base: "torch.Tensor | None", context: Context) -> "torch.Tensor":
        assert base is not None  # the engine hands over what `requires` asks for
        vectors = task_vectors(inputs, base)
        if not vectors:
            return base
        found: Found = context.state
        for number, vector in enumerate(vectors):
            if vector.parameters.density < 1:
                place = Place(context.seed, number, context.position)
                self.sparsify(vector, place, found.choices.get(number), context.parameters)
            vector.delta.mul_(vector.parameters.weight * found.factors.get(number, 1.0))
        merged = self.combine(vectors, normalize=context.parameters.normalize)
        if context.parameters.scale != 1:
            merged.mul_(context.parameters.scale)
        return merged.add_(base)

    def combine(self, vectors: Sequence[TaskVector], *, normalize: bool) -> "torch.Tensor":
        weights = [one.parameters.weight for one in vectors]
        deltas = [one.delta for one in vectors]
        if self.elects:
            return elected_sum(deltas, weights, normalize=normalize)
        first, *others = deltas
        for other in others:
            first.add_(other)
        return first.div_(first.new_tensor(weights).sum()) if normalize else first


def l1_norm(tensor: "torch.Tensor") -> float:
    return total(tensor.flatten().double().abs_())
