"""What a plan will cost: bytes exactly, memory and time as estimates."""

import os
from collections.abc import Mapping, Sequence

from safegraft.checkpoint.types import Checkpoint
from safegraft.engine.composed import KEPT_BYTES, ComposedCheckpoint
from safegraft.engine.task import Cost, TensorTask
from safegraft.engine.virtual import stored
from safegraft.methods.contract import Granularity, MergeMethod

PROCESS = 280 << 20  # bytes: an interpreter with torch, and the scratch memory of a few threads
NOMINAL_SPEED = 400e6  # bytes read and written a second: a cautious guess


def estimate(
    tasks: Sequence[TensorTask], checkpoints: Mapping[str, Checkpoint], methods: Mapping[str, MergeMethod]
) -> Cost:
    """Add up the tasks."""
    read = sum(checkpoints[one.model].tensors[one.tensor].nbytes for task in tasks for one in task.contributions)
    written = sum(task.nbytes for task in tasks)
    wholes = sorted(_whole(task, methods[task.method]) for task in tasks if task.method is not None)
    whole = sum(wholes[-len(os.sched_getaffinity(0)) :])  # as many at a time as there are threads by default
    turned = sum(KEPT_BYTES for one in checkpoints.values() if isinstance(stored(one), ComposedCheckpoint))
    return Cost(
        bytes_read=read,
        bytes_written=written,
        peak_memory_bytes=PROCESS + whole + turned,
        merged_elements=sum(task.elements for task in tasks if task.action == "merge"),
        seconds=(read + written) / NOMINAL_SPEED,
    )


def _whole(task: TensorTask, method: MergeMethod) -> int:
    """Bytes for a tensor that may not be cut: every contribution, the result, and what the method needs beside them."""
    if method.granularity is not Granularity.TENSOR:
        return 0
    shape, itemsize = task.rows.shared_shape if task.rows else task.shape, task.compute_dtype.itemsize
    held = task.elements * itemsize * (len(task.contributions) + 2)
    return held + method.scratch(shape, len(task.inputs), itemsize)
