"""CABS (arXiv 2503.01874)."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict, Field

from safegraft import hookimpl
from safegraft.methods import Context, Granularity, Input, MergeMethod, Requirements, TensorView
from safegraft_plugins.float_bits import keep, magnitude
from safegraft_plugins.task_vectors import TaskVector, parameters_of, task_vectors, whole_rows
from safegraft_plugins.weights import check_range

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray

NOBODY = -1


class CabsParameters(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    n: int = Field(64, description="How many elements of each block a model keeps.", ge=1)
    m: int = Field(256, description="Elements in a block.", ge=1)


class CabsInputParameters(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    weight: float = Field(1.0, description="Factor on what the model keeps: the paper's lambda.", allow_inf_nan=False)


class Cabs(MergeMethod):
    """result = b + sum_i w_i m_i (x_i - b) with masks m_i that do not overlap (algorithm 1 of the paper).

    The models prune in the recipe's order. Each keeps, in every block of m neighbouring elements, the n of largest
    magnitude among those that no earlier model has kept (of equal ones the lowest index). When n times the number of
    models is more than m, later models find fewer than n left and keep these. Elements that equal the base's are kept
    by nobody, where the authors' code lets a model keep them from later ones.

    Blocks lie within a row (the first dimension) of a tensor, and in the whole of a vector. A shorter block at the end
    keeps the same share, rounded up, where the authors' code drops it. float64 is ranked as float32. n = 64 and m = 256
    are what the authors merge two models of 7B parameters with, at weights of 1.2.
    """

    name = "cabs"
    summary = "Task vectors pruned n:m one after the other, each among the elements that the earlier ones left."
    reference = "https://arxiv.org/abs/2503.01874"
    requires = Requirements(base="required", min_inputs=1)
    granularity = Granularity.ROW
    Parameters = CabsParameters
    InputParameters = CabsInputParameters

    def check(self, inputs: Sequence[CabsInputParameters], parameters: CabsParameters) -> Iterator[str]:
        yield from check_range([one.weight for one in inputs])
        if parameters.n > parameters.m:
            yield f"n is {parameters.n} and m {parameters.m}: of m elements at most m can be kept"

    def prepare(self, view: TensorView, parameters: CabsParameters) -> "NDArray[np.int16] | None":
        """Of a vector, whose cuts may fall into blocks: who keeps each element."""
        if len(view.shape) > 1:
            return None
        if not parameters_of(view):
            return None
        ((_, vectors),) = whole_rows(view)
        return owners(vectors, parameters).ravel()

    def merge(self, inputs: Sequence[Input], base: "torch.Tensor | None", context: Context) -> "torch.Tensor":
        import numpy as np
        import torch

        vectors = task_vectors(inputs, base)
        assert base is not None  # the engine hands over what `requires` asks for
        if not vectors:
            return base
        if context.state is None:
            kept_by = owners(vectors, context.parameters)
        else:
            kept_by = context.state[context.position : context.position + base.numel()]
        for index, (own, delta) in enumerate(vectors):
            mask = torch.as_tensor((kept_by == index).astype(np.int32)).neg_().view(delta.shape)
            base.add_(keep(delta, mask.to(delta.device)).mul_(own.weight))
        return base


def owners(vectors: Sequence[TaskVector], parameters: CabsParameters) -> "NDArray[np.int16]":
    """Who keeps each element of whole rows, [rows, elements of a row]: an index in `vectors`, or NOBODY."""
    import numpy as np

    rows = len(vectors[0].delta)
    kept_by = np.full((rows, vectors[0].delta.numel() // rows), NOBODY, np.int16)
    backwards = np.arange(kept_by.shape[1], dtype=np.int64)[::-1]
    for index, (_, delta) in enumerate(vectors):
        magnitudes = magnitude(delta).cpu().numpy().reshape(kept_by.shape).astype(np.int64)
        magnitudes[kept_by != NOBODY] = 0
        # No two keys of a row are equal; of equal magnitudes the lowest index has the largest key.
        largest = largest_of_blocks(magnitudes << 32 | backwards, parameters.n, parameters.m)
        kept_by[largest & (magnitudes > 0)] = index
    return kept_by


def largest_of_blocks(keys: "NDArray[np.int64]", n: int, m: int) -> "NDArray[np.bool_]":
    """Where the n largest keys of each m neighbours in a row are; keys: [rows, L], all different within a row."""
    import numpy as np

    found = np.empty(keys.shape, np.bool_)
    rows, length = keys.shape
    whole = length - length % m
    for part, block, count in (
        (slice(whole), m, n),
        (slice(whole, length), length - whole, -(-n * (length - whole) // m)),
    ):
        if block:
            blocks = keys[:, part].reshape(rows, -1, block)
            least = np.partition(blocks, block - count, axis=2)[:, :, block - count, None]
            found[:, part] = (blocks >= least).reshape(rows, -1)
    return found


@hookimpl
def merge_methods() -> list[type[MergeMethod]]:
    return [Cabs]
