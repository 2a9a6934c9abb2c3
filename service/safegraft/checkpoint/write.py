"""The bytes of safetensors headers and of the shard index. Writes no files."""

import json
from collections.abc import Mapping, Sequence
from math import prod

from safegraft.checkpoint.dtypes import DType
from safegraft.checkpoint.header import LENGTH_BYTES, METADATA_KEY, name_problem

_ALIGNMENT = 8  # safetensors pads headers so that the data begin at a multiple of it


def encode_header(
    tensors: Sequence[tuple[str, DType, tuple[int, ...]]], metadata: Mapping[str, str]
) -> tuple[bytes, list[int]]:
    """The header of a file that holds `tensors` (name, dtype, shape), their data in this order without gaps.

    Returns the bytes that the file begins with, and for each tensor where its data begin: in bytes
    after the header. Equal arguments give equal bytes. Data are aligned to their item size when the
    dtypes come in falling order of it.
    Raises ValueError for a name that no reader should accept, or one given twice.
    """
    header: dict[str, object] = {}
    if metadata:
        header[METADATA_KEY] = {key: metadata[key] for key in sorted(metadata)}
    position = 0
    begins: list[int] = []
    for name, dtype, shape in tensors:
        problem = "is given twice or reserved" if name in header or name == METADATA_KEY else name_problem(name)
        if problem:
            raise ValueError(f"tensor {name!r} {problem}")
        begins.append(position)
        end = position + prod(shape) * dtype.itemsize
        header[name] = {"dtype": dtype.value, "shape": list(shape), "data_offsets": [position, end]}
        position = end
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    return len(text).to_bytes(LENGTH_BYTES, "little") + text, begins


def encode_index(weight_map: Mapping[str, str], total_size: int, total_parameters: int) -> bytes:
    """model.safetensors.index.json as transformers writes it.

    weight_map: tensor -> file name. total_size: bytes of all tensors, without headers.
    """
    index = {
        "metadata": {"total_parameters": total_parameters, "total_size": total_size},
        "weight_map": dict(weight_map),
    }
    return (json.dumps(index, indent=2, sort_keys=True) + "\n").encode()
