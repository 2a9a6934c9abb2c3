"""Model breadcrumbs (arXiv 2312.06795)."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

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


class BreadcrumbsParameters(TaskVectorParameters):
    rescale: bool = Field(False, description="Restore each task vector's L1 norm after trimming.")


class BreadcrumbsInputParameters(TaskVectorInputParameters):
    gamma: float = Field(
        0.01, description="Share of the task vector's largest elements that is dropped as outliers.", ge=0, le=1
    )


class Band(NamedTuple):
    """Kept are the elements of `upper` that are not in `outliers`."""

    upper: Largest
    outliers: Largest


class Breadcrumbs(Sparsified):
    """result = b + lambda sum_i w_i m_i (x_i - b).

    m_i keeps int(density n) elements: dropped are the int(gamma n) of largest magnitude, and the smallest. Where
    density and gamma add up to more than 1, fewer of the largest are dropped. Of equal magnitudes those with the lowest
    index count as larger; mergekit picks any. A density of 1 drops nothing, outliers included.

    In fp32 equal to mergekit 0.1.5 apart from the choice among equal magnitudes; in bf16 mergekit rounds every step.
    """

    name = "breadcrumbs"
    summary = "Task arithmetic without each task vector's smallest elements and its outliers."
    reference = "https://arxiv.org/abs/2312.06795"
    elects = False
    Parameters = BreadcrumbsParameters
    InputParameters = BreadcrumbsInputParameters

    def choose_among(
        self, walk: Walk, own: Sequence[BreadcrumbsInputParameters], elements: int, parameters: Any
    ) -> Mapping[int, Band]:
        counts = {index: band_counts(one, elements) for index, one in enumerate(own) if one.density < 1}
        return {index: Band(*both) for index, both in largest(walk, counts, elements).items()}

    def sparsify(self, vector: TaskVector, place: Place, choice: Band, parameters: Any) -> None:
        magnitudes = magnitude(vector.delta)
        inside = belongs(magnitudes.clone(), choice.upper, place.position)
        outside = belongs(magnitudes, choice.outliers, place.position)
        keep(vector.delta, inside.bitwise_xor_(outside))  # the outliers are among the upper ones

    def compiled(self) -> "Compiled | None":
        if not is_available():
            return None
        from safegraft_plugins.compiled.sifted import CompiledSparsified

        return CompiledSparsified(self)


class BreadcrumbsTies(Breadcrumbs):
    """result = b + lambda sum_i w_i m_i (x_i - b), at each element over the models that agree with its sign.

    m_i is breadcrumbs'; agreement is ties', and `normalize` divides as it does there.
    """

    name = "breadcrumbs_ties"
    summary = "Breadcrumbs, and at each element only task vectors of the elected sign."
    elects = True


def band_counts(own: BreadcrumbsInputParameters, elements: int) -> list[int]:
    """How many elements are not too small, and how many of these are outliers; both counted as mergekit does."""
    kept = int(own.density * elements)
    small = max(0, elements - kept - int(own.gamma * elements))
    return [elements - small, elements - small - kept]


@hookimpl
def merge_methods() -> list[type[MergeMethod]]:
    return [Breadcrumbs, BreadcrumbsTies]
