"""Tells checkpoints what is about to be read of them, so that those on a network can fetch it ahead.

A hint: nothing is computed from it. Reads plans, no weights.
"""

from collections.abc import Generator, Sequence
from contextlib import ExitStack, contextmanager

from safegraft.checkpoint.types import TensorInfo
from safegraft.engine.task import Plan, PlannedTensor, TensorTask
from safegraft.methods.contract import MergeMethod


@contextmanager
def expecting(plan: Plan, placed: Sequence[PlannedTensor], start: int, stop: int) -> Generator[None]:
    """Within the block bytes [start, stop) of a file are computed, in which these tensors lie."""
    ranges: dict[str, list[tuple[TensorInfo, int, int]]] = {}
    for one in placed:
        for contribution in one.task.contributions:
            tensor = plan.checkpoints[contribution.model].tensors[contribution.tensor]
            first, last = _bytes_of(plan, one, tensor, start, stop)
            ranges.setdefault(contribution.model, []).append((tensor, first, last))
    with ExitStack() as told:
        for model, expected in ranges.items():
            told.enter_context(plan.checkpoints[model].expecting(expected))
        yield


def _bytes_of(plan: Plan, placed: PlannedTensor, tensor: TensorInfo, start: int, stop: int) -> tuple[int, int]:
    """Which bytes of an input's tensor are needed for bytes [start, stop) of the file. Rather a few too many than one
    too few: cuts do not end where a range does."""
    task = placed.task
    if tensor.elements != task.elements or _needs_whole(plan, task):
        return 0, tensor.nbytes
    first = max(0, start - placed.offset) // task.dtype.itemsize
    last = -(-min(task.nbytes, stop - placed.offset) // task.dtype.itemsize)
    return first * tensor.dtype.itemsize, last * tensor.dtype.itemsize


def _needs_whole(plan: Plan, task: TensorTask) -> bool:
    if task.method is None:
        return False
    method = plan.methods[task.method]
    return method.granularity == "tensor" or type(method).prepare is not MergeMethod.prepare
