"""Output shards: which tensor lies in which file at which offset, known before one weight is read."""

from collections.abc import Sequence

from safegraft.checkpoint.write import encode_header, encode_index
from safegraft.engine.task import PlannedFile, PlannedTensor, TensorTask

INDEX = "model.safetensors.index.json"
METADATA = {"format": "pt"}


def weight_files(tasks: Sequence[TensorTask], max_shard_size: int) -> list[PlannedFile]:
    """Pack the tasks, in the given order, into shards of at most `max_shard_size` bytes of tensors,
    and add the index when there is more than one. A larger tensor gets a shard of its own."""
    shards: list[list[TensorTask]] = [[]]
    filled = 0
    for task in tasks:
        if shards[-1] and filled + task.nbytes > max_shard_size:
            shards.append([])
            filled = 0
        shards[-1].append(task)
        filled += task.nbytes
    if len(shards) == 1:
        return [_weight_file("model.safetensors", shards[0])]
    names = [f"model-{number:05d}-of-{len(shards):05d}.safetensors" for number in range(1, len(shards) + 1)]
    files = [_weight_file(name, shard) for name, shard in zip(names, shards, strict=True)]
    index = encode_index(
        {task.name: name for name, shard in zip(names, shards, strict=True) for task in shard},
        total_size=sum(task.nbytes for task in tasks),
        total_parameters=sum(task.elements for task in tasks),
    )
    return [*files, PlannedFile(INDEX, len(index), "index", content=index)]


def least_shard_size(files: Sequence[PlannedFile]) -> int:
    """The smallest `max_shard_size` that gives these very weight files: all that there is to know of their layout.

    What was asked for would say less: many sizes give the same files, and equal plans are to have equal manifests.
    """
    shards = [file for file in files if file.kind == "weights" and len(file.tensors) > 1]
    return max((file.size - len(file.header) for file in shards), default=1)


def _weight_file(name: str, shard: Sequence[TensorTask]) -> PlannedFile:
    # Wider dtypes first keeps every tensor aligned to its own size, as safetensors itself does.
    ordered = sorted(shard, key=lambda task: -task.dtype.itemsize)
    header, offsets = encode_header([(task.name, task.dtype, task.shape) for task in ordered], METADATA)
    tensors = tuple(PlannedTensor(task, len(header) + at) for task, at in zip(ordered, offsets, strict=True))
    size = len(header) + sum(task.nbytes for task in ordered)
    return PlannedFile(name, size, "weights", header=header, tensors=tensors)
