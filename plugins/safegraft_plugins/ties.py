"""TIES (arXiv 2306.01708)."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pydantic import Field

from safegraft import hookimpl
from safegraft.methods import MergeMethod
from safegraft_plugins.compiled import is_available
from safegraft_plugins.float_bits import keep, magnitude
from safegraft_plugins.magnitude import Largest, Walk, belongs, largest
from safegraft_plugins.sparsified import Place, Sparsified
from safegraft_plugins.task_vectors import (
    TaskVector,
    TaskVectorInputParameters,
    TaskVectorParameters,
)

if TYPE_CHECKING:
    from safegraft.methods.compiled import Compiled


class TiesParameters(TaskVectorParameters):
    normalize: bool = Field(
        True, description="Divide, at each element, by the sum of the weights of the models that take part there."
    )
    rescale: bool = Field(False, description="Restore each task vector's L1 norm after trimming.")


class Ties(Sparsified):
    """result = b + lambda sum_i w_i t_i / sum_i w_i, at each element over the models that agree with its sign.

    Trim, elect, merge: algorithm 1 of the paper, with a weight a model. t_i is what trimming leaves of x_i - b: the
    int(density n) elements of largest magnitude, at least one; of equal magnitudes at the threshold those with the
    lowest index, where mergekit picks any. The elected sign is that of sum_i w_i t_i, plus where that is zero. A model
    takes part in an element if w_i t_i has the elected sign there. Weights that cancel are not divided by: where their
    sum is below a millionth of their sizes' (mergekit: where it is zero).

    In fp32 equal to mergekit 0.1.5 apart from the choice among equal magnitudes; in bf16 mergekit rounds every step.
    """

    name = "ties"
    summary = "Task vectors trimmed to their largest elements; at each element those of the elected sign are averaged."
    reference = "https://arxiv.org/abs/2306.01708"
    elects = True
    Parameters = TiesParameters
    InputParameters = TaskVectorInputParameters

    def choose_among(
        self, walk: Walk, own: Sequence[TaskVectorInputParameters], elements: int, parameters: Any
    ) -> Mapping[int, Largest]:
        counts = {
            index: [max(1, int(one.density * elements)) if one.density > 0 else 0]
            for index, one in enumerate(own)
            if one.density < 1
        }
        return {index: kept for index, (kept,) in largest(walk, counts, elements).items()}

    def sparsify(self, vector: TaskVector, place: Place, choice: Largest, parameters: Any) -> None:
        keep(vector.delta, belongs(magnitude(vector.delta), choice, place.position))

    def compiled(self) -> "Compiled | None":
        if not is_available():
            return None
        from safegraft_plugins.compiled.sifted import CompiledSparsified

        return CompiledSparsified(self)


@hookimpl
def merge_methods() -> list[type[MergeMethod]]:
    return [Ties]
