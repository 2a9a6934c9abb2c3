"""Methods that merge task vectors of linear layers as matrices. Knows which tensors are such matrices.

A task vector is w (x - b): the model's difference from the base, times the model's weight. A model with weight
zero is absent: it does not count among the N models either.
"""

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, Field

from safegraft.methods import Context, Granularity, Input, MergeMethod, Requirements
from safegraft_plugins.weights import check_range

if TYPE_CHECKING:
    import torch


class MatrixwiseParameters(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)

    scale: float = Field(1.0, alias="lambda", description="Factor on the merged task vector.", allow_inf_nan=False)


class MatrixwiseInputParameters(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    weight: float = Field(1.0, description="Factor on the model's task vector.", allow_inf_nan=False)


class Matrixwise(MergeMethod):
    """result = b + lambda M(t_1, ..., t_N), with t_i = w_i (x_i - b).

    A tensor [out, in] is one matrix to M. A tensor of rank 3, as of stacked experts [experts, out, in], is a
    batch of them, each merged by itself. All others (norms, biases, convolutions of rank 4 and more), and
    vocabulary tensors, whose rows are tokens and not directions of one linear map, are merged as
    `merge_elements` says.

    Task vectors are taken in the inputs' dtype; matrices are merged in float64. One matrix is merged at a
    time, in a few float64 temporaries of its size and of the square of its smaller side.
    """

    requires = Requirements(base="required", min_inputs=1)
    granularity = Granularity.TENSOR
    Parameters = MatrixwiseParameters
    InputParameters = MatrixwiseInputParameters

    @abstractmethod
    def merge_matrices(self, taus: "Sequence[torch.Tensor]", parameters: Any) -> "torch.Tensor":
        """M of at least one task vector [out, in] in the inputs' dtype, as a float64 matrix that may be kept."""

    def merge_elements(self, taus: "Sequence[torch.Tensor]", parameters: Any) -> "torch.Tensor":
        """What stands for M where there is no matrix: the mean of the task vectors, of any shape and float dtype."""
        return total(taus).div_(len(taus))

    def factor(self, parameters: Any, count: int) -> float:
        """lambda, for `count` models."""
        return parameters.scale

    def check(self, inputs: Sequence[Any], parameters: Any) -> Iterator[str]:
        yield from check_range([*(one.weight for one in inputs), self.factor(parameters, len(inputs))])

    def scratch(self, shape: tuple[int, ...], inputs: int, itemsize: int) -> int:
        """One matrix at a time, in float64: some four of its size for each model, eight more, three Gram matrices."""
        if len(shape) not in (2, 3):
            return 0
        rows, columns = shape[-2:]
        return 8 * ((4 * inputs + 8) * rows * columns + 3 * min(rows, columns) ** 2)

    def merge(self, inputs: Sequence[Input], base: "torch.Tensor | None", context: Context) -> "torch.Tensor":
        assert base is not None  # the engine hands over what `requires` asks for
        present = [one for one in inputs if one.parameters.weight != 0]
        if not present:
            return base
        taus = [one.tensor.sub_(base).mul_(one.parameters.weight) for one in present]
        factor = self.factor(context.parameters, len(taus))
        if context.vocabulary or base.ndim not in (2, 3):
            return base.add_(self.merge_elements(taus, context.parameters), alpha=factor)
        matrices = [base] if base.ndim == 2 else base.unbind()
        parts = zip(*([tau] if base.ndim == 2 else tau.unbind() for tau in taus), strict=True)
        for matrix, part in zip(matrices, parts, strict=True):
            matrix.add_(self.merge_matrices(part, context.parameters).mul_(factor).to(base.dtype))
        return base


def total(tensors: "Sequence[torch.Tensor]") -> "torch.Tensor":
    """The sum, in the order given, in memory of its own."""
    first, *others = tensors
    result = first.clone()
    for other in others:
        result.add_(other)
    return result
