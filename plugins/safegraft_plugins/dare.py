"""DARE (arXiv 2311.03099)."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from safegraft import hookimpl
from safegraft.methods import MergeMethod
from safegraft_plugins.compiled import is_available
from safegraft_plugins.float_bits import keep, sign_bit_mask
from safegraft_plugins.magnitude import Walk
from safegraft_plugins.random_bits import limit, uniform
from safegraft_plugins.sparsified import Draw, Place, Sparsified
from safegraft_plugins.task_vectors import TaskVector, TaskVectorInputParameters, TaskVectorParameters

if TYPE_CHECKING:
    from safegraft.methods.compiled import Compiled


class DareParameters(TaskVectorParameters):
    rescale: bool | Literal["probability"] = Field(
        True,
        description="true: restore each task vector's L1 norm, as mergekit does; 'probability': divide what is kept by "
        "the density, as the paper does.",
    )


class DareLinear(Sparsified):
    """result = b + lambda sum_i w_i f_i m_i (x_i - b): the paper's drop and rescale before task arithmetic.

    Each element of each mask m_i is 1 with probability density, drawn from the seed, the model's place among those of
    nonzero weight and the element's position: the distribution is mergekit's, the draw is not. f_i depends on
    `rescale`:

    - true, mergekit's default: |x_i - b|_1 / |m_i (x_i - b)|_1, close to 1 / density in large tensors
    - "probability", the paper's: 1 / density, so that the expected result is task arithmetic's. Needs no second pass
    - false: 1
    """

    name = "dare_linear"
    summary = "Task arithmetic with randomly dropped elements, and the rest scaled up."
    reference = "https://arxiv.org/abs/2311.03099"
    elects = False
    Parameters = DareParameters
    InputParameters = TaskVectorInputParameters

    def choose_among(
        self, walk: Walk, own: Sequence[TaskVectorInputParameters], elements: int, parameters: DareParameters
    ) -> Mapping[int, Draw]:
        by_probability = parameters.rescale == "probability"
        return {
            index: Draw(limit(one.density), one.density if by_probability and one.density > 0 else 1.0)
            for index, one in enumerate(own)
            if one.density < 1
        }

    def sparsify(self, vector: TaskVector, place: Place, choice: Draw, parameters: DareParameters) -> None:
        delta = vector.delta
        numbers = uniform(place.seed, place.number, place.position, delta.numel(), delta.device)
        keep(delta, sign_bit_mask(numbers.sub_(choice.limit)))
        if choice.divisor != 1:
            delta.div_(choice.divisor)

    def compiled(self) -> "Compiled | None":
        if not is_available():
            return None
        from safegraft_plugins.compiled.sifted import CompiledSparsified

        return CompiledSparsified(self)


class DareTies(DareLinear):
    """result = b + lambda sum_i w_i f_i m_i (x_i - b), at each element over the models that agree with its sign.

    f_i and m_i are dare_linear's; agreement is ties', and `normalize` divides as it does there.
    """

    name = "dare_ties"
    summary = "DARE, and at each element only task vectors of the elected sign."
    elects = True


@hookimpl
def merge_methods() -> list[type[MergeMethod]]:
    return [DareLinear, DareTies]
