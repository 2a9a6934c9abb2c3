"""The inner products of the models' vectors, from which methods find coefficients, and the sum that these weigh.

Inner products are gathered in double precision over the fixed blocks of a view, so that they are equal to the bit
wherever they are computed.
"""

import enum
import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from safegraft.methods import Input, TensorView
from safegraft_plugins.lanes import total

if TYPE_CHECKING:
    import torch


class Along(enum.StrEnum):
    """What counts as one vector. A tensor of one dimension is one vector in any case."""

    ALL = "all"  # the whole tensor
    LAST = "last"  # what varies in the last dimension alone: a matrix's rows
    FIRST = "first"  # what varies in the first dimension alone: a matrix's columns


def gram(view: TensorView, along: Along = Along.ALL) -> "torch.Tensor":
    """Inner products of all pairs of inputs, less the base where there is one: float64 [inputs, inputs, vectors].

    Vectors are in the order of the dimensions that they do not run along.
    """
    import torch

    width, count = _layout(view.shape, along)
    start = 0
    sums: torch.Tensor | None = None
    for inputs, base in view.blocks():
        vectors = _vectors(inputs, base)
        if sums is None:
            sums = vectors[0].new_zeros(len(vectors), len(vectors), count)
        for i, x in enumerate(vectors):
            for j, y in enumerate(vectors[: i + 1]):
                if along is Along.ALL or count == 1:
                    sums[i, j] += total(x * y)
                else:
                    _add(sums[i, j], x * y, start, width, along)
        start += vectors[0].numel()
    if sums is None:
        return torch.zeros(0, 0, count, dtype=torch.float64)
    for i in range(len(sums)):
        sums[:i, i] = sums[i, :i]
    return sums.cpu()


def gram_of_wholes(view: TensorView) -> list[list[float]]:
    """`gram` of whole tensors as vectors, in plain numbers."""
    return [[float(product) for product in row] for row in gram(view)[:, :, 0]]


def cosine(gram: "torch.Tensor", i: int, j: int, smallest: float) -> "torch.Tensor":
    """The cosines between the vectors of two inputs, [vectors]. `smallest` stands for a smaller product of norms:
    with a zero vector the cosine is 0. Equal vectors have exactly 1."""
    return (gram[i, j] / (gram[i, i] * gram[j, j]).sqrt().clamp(min=smallest)).clamp(-1, 1)


def weighted_sum(tensors: Sequence["torch.Tensor"], coefficients: Sequence[float]) -> "torch.Tensor":
    """sum_i c_i x_i. Overwrites `tensors`.

    Computed as x_k sum_i c_i + sum_i c_i (x_i - x_k), with k the input of the largest coefficient: where all
    tensors are equal and the coefficients sum to 1, the result is the tensor to the bit, and coefficients of
    zero leave no trace.
    """
    reference = max(range(len(tensors)), key=lambda index: abs(coefficients[index]))
    result = tensors[reference] * math.fsum(coefficients)
    for index, (tensor, coefficient) in enumerate(zip(tensors, coefficients, strict=True)):
        if index != reference and coefficient:
            result.add_(tensor.sub_(tensors[reference]).mul_(coefficient))
    return result


def _layout(shape: tuple[int, ...], along: Along) -> tuple[int, int]:
    """The length of a row of the tensor seen as a matrix that has the vectors as rows or columns; their number."""
    elements = math.prod(shape)
    if along is Along.ALL or len(shape) < 2 or not elements:
        return elements, 1
    if along is Along.LAST:
        return shape[-1], elements // shape[-1]
    return elements // shape[0], elements // shape[0]


def _vectors(inputs: Sequence[Input], base: "torch.Tensor | None") -> list["torch.Tensor"]:
    vectors = [one.tensor.double() for one in inputs]
    if base is not None:
        origin = base.double()
        vectors = [vector - origin for vector in vectors]
    return vectors


def _add(sums: "torch.Tensor", products: "torch.Tensor", start: int, width: int, along: Along) -> None:
    """Add the products of the elements from `start` on to the sums of the vectors that they belong to."""
    for row, column, grid in _grids(products, start, width):
        if along is Along.LAST:
            sums[row : row + grid.shape[0]] += grid.sum(1)
        else:
            sums[column : column + grid.shape[1]] += grid.sum(0)


def _grids(flat: "torch.Tensor", start: int, width: int) -> Iterator[tuple[int, int, "torch.Tensor"]]:
    """Part of a flattened matrix as up to three matrices, each with its place: the rest of a row, whole rows, and
    the beginning of a row."""
    elements = flat.numel()
    head = min(-start % width, elements)
    tail = (elements - head) % width
    if head:
        yield start // width, start % width, flat[:head].view(1, head)
    if elements - head - tail:
        yield (start + head) // width, 0, flat[head : elements - tail].view(-1, width)
    if tail:
        yield (start + elements - tail) // width, 0, flat[elements - tail :].view(1, tail)
