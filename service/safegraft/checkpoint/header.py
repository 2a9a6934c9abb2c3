"""Parses a safetensors header and holds it to bounds of our own.

safetensors itself accepts duplicate keys, unknown fields, names such as "../../x", ranks of
thousands and empty tensors of absurd shape. A header that passes here is one that safetensors
accepts too, with the same tensors. Reads bytes through a callable: knows no files and no folders.
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

from safegraft.checkpoint.dtypes import DType
from safegraft.checkpoint.findings import Findings, listed, shown
from safegraft.checkpoint.strict_json import as_list, as_object, is_natural, parse_json
from safegraft.checkpoint.types import TensorInfo
from safegraft.errors import CheckpointError, Problem

LENGTH_BYTES = 8  # a little-endian unsigned integer before the JSON
METADATA_KEY = "__metadata__"

MAX_HEADER_BYTES = 100_000_000  # safetensors' own bound
MAX_TENSORS = 100_000  # in one file; the largest models have some 70,000 in all of their shards
MAX_JSON_VALUES = 3_000_000  # a header of nothing but "[],[],..." would fill gigabytes when parsed
MAX_NAME_LENGTH = 1024
MAX_RANK = 16
MAX_TENSOR_BYTES = 2**63 - 1
MAX_DIGITS = 20  # of an unsigned 64-bit integer
MAX_EMPTY_SPAN = 2**31  # product of the other dimensions of a tensor with a dimension of 0

_FIELDS = ("dtype", "shape", "data_offsets")
_QUANTISED = "it holds quantised weights, which mean nothing without their scales. Use the unquantised weights"
_UNSUPPORTED = {
    "F8_E4M3": _QUANTISED,
    "F8_E5M2": _QUANTISED,
    "F8_E8M0": _QUANTISED,
    "F8_E4M3FNUZ": _QUANTISED,
    "F8_E5M2FNUZ": _QUANTISED,
    "F6_E2M3": _QUANTISED,
    "F6_E3M2": _QUANTISED,
    "F4": _QUANTISED,
    "C64": "no merge method is defined on complex numbers, and language models have none",
}
# What people have under a .safetensors name when it is something else.
_IMPOSTORS = (
    (b"version https:", "a Git LFS pointer: the weights were not downloaded; run `git lfs pull`"),
    (b"PK\x03\x04", "a zip archive, most likely a PyTorch pickle: save the model as safetensors"),
    (b"\x80", "a Python pickle: save the model as safetensors"),
    (b"GGUF", "a GGUF file: use the original safetensors weights"),
    (b"<", "a web page, most likely an error page of a failed download: download it again"),
)
_PREFIX_BYTES = 16


@dataclass(frozen=True, slots=True)
class Header:
    """A sound header. `tensors` are in the order of their data."""

    tensors: dict[str, TensorInfo]
    metadata: dict[str, str]
    sha256: str  # hex, of the length prefix and the JSON: the file's first `size` bytes
    size: int  # bytes before the data


@dataclass(frozen=True, slots=True)
class _Entry:
    name: str
    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


def read_header(read: Callable[[int, int], bytes], file_size: int, file_name: str, checkpoint_name: str) -> Header:
    """Read and check the header of one safetensors file.

    `read(offset, length)` returns that many bytes, or fewer at the end of the file; `file_size` is
    in bytes. Raises CheckpointError with all problems of the file.
    """
    where = f"{checkpoint_name}/{file_name}"
    content = _read_content(read, file_size, where)
    entries = _parse(content[LENGTH_BYTES:], where)

    findings = Findings(where)
    metadata = _metadata(entries.pop(METADATA_KEY, {}), findings)
    if len(entries) > MAX_TENSORS:
        findings.add(f"holds {len(entries):,} tensors; more than {MAX_TENSORS:,} in one file are not accepted")
        findings.raise_if_any()
    parsed = [_entry(name, value, findings) for name, value in entries.items()]
    sound = [entry for entry in parsed if entry is not None]
    _check_sizes(sound, findings)
    if len(sound) == len(parsed):
        # With an entry missing, every hole found would be an echo of that one.
        _check_layout(sound, len(content), file_size, findings)
    findings.raise_if_any()

    in_order = sorted(sound, key=lambda entry: (entry.begin, entry.end))
    tensors = {
        entry.name: TensorInfo(entry.name, DType(entry.dtype), entry.shape, file_name, len(content) + entry.begin)
        for entry in in_order
    }
    return Header(tensors, metadata, hashlib.sha256(content).hexdigest(), len(content))


def name_problem(name: str) -> str | None:
    """Why a tensor may not be called that, or None."""
    if not name:
        return "has an empty name"
    if len(name) > MAX_NAME_LENGTH:
        return f"has a name of {len(name):,} characters; {MAX_NAME_LENGTH:,} are accepted"
    if not name.isprintable():
        return "has control or other unprintable characters in its name"
    if "/" in name or "\\" in name or ".." in name:
        return "has a name that looks like a file path"
    return None


def _read_content(read: Callable[[int, int], bytes], file_size: int, where: str) -> bytes:
    """The length prefix and the JSON."""
    if file_size == 0:
        raise CheckpointError(Problem(where, "is empty (0 bytes): download or copy it again"))
    prefix = read(0, _PREFIX_BYTES)
    length = int.from_bytes(prefix[:LENGTH_BYTES], "little")
    if prefix[LENGTH_BYTES : LENGTH_BYTES + 1] != b"{":
        what = next((what for magic, what in _IMPOSTORS if prefix.startswith(magic)), None)
        message = f"is {what}" if what else "is not a safetensors file: no header stands at its beginning"
        raise CheckpointError(Problem(where, message))
    if length > MAX_HEADER_BYTES:
        message = f"claims a header of {length:,} bytes; more than {MAX_HEADER_BYTES:,} are not accepted"
        raise CheckpointError(Problem(where, message))
    size = LENGTH_BYTES + length
    if size > file_size:
        message = f"is truncated inside its header: that needs {size:,} bytes, the file has {file_size:,}"
        raise CheckpointError(Problem(where, f"{message}. Download or copy it again"))
    content = read(0, size)
    if len(content) < size:
        message = f"ended at byte {len(content):,} while its header of {size:,} bytes was read: it changed meanwhile"
        raise CheckpointError(Problem(where, message))
    return content


def _parse(content: bytes, where: str) -> dict[str, Any]:
    if content.count(b",") + content.count(b"[") + content.count(b"{") > MAX_JSON_VALUES:
        message = f"has a header of more than {MAX_JSON_VALUES:,} JSON values, which no model needs"
        raise CheckpointError(Problem(where, message))
    parsed = as_object(parse_json(content, where, parse_int=_integer))
    if parsed is None:
        raise CheckpointError(Problem(where, "has a header that is not a JSON object"))
    return parsed


def _integer(text: str) -> int:
    if text == "-0":  # equal to 0 for Python, a float for safetensors
        raise ValueError("-0 is not an integer")
    if len(text) > MAX_DIGITS:
        raise ValueError(f"an integer of {len(text):,} digits")
    return int(text)


def _metadata(value: Any, findings: Findings) -> dict[str, str]:
    entries = as_object(value)
    if entries is None or not all(isinstance(text, str) for text in entries.values()):
        findings.add(f"{METADATA_KEY} must be an object of strings")
        return {}
    if any(_has_surrogate(key) or _has_surrogate(text) for key, text in entries.items()):
        findings.add(f"{METADATA_KEY} holds a broken \\u escape")
    return entries


def _has_surrogate(text: str) -> bool:
    return not text.isascii() and any("\ud800" <= character <= "\udfff" for character in text)


def _entry(name: str, value: Any, findings: Findings) -> _Entry | None:
    """One tensor's description, or None when it has no usable dtype, shape or place."""
    tensor = f"tensor {shown(name)}"
    problem = name_problem(name)
    if problem:
        findings.add(f"{tensor} {problem}")
    fields = as_object(value)
    if fields is None or any(field not in fields for field in _FIELDS):
        findings.add(f"{tensor} must have {', '.join(_FIELDS)}")
        return None
    unknown = [field for field in fields if field not in _FIELDS]
    if unknown:
        findings.add(f"{tensor} has unknown fields: {listed(unknown)}")
    dtype = fields["dtype"]
    shape = _naturals(fields["shape"])
    offsets = _naturals(fields["data_offsets"])
    if not isinstance(dtype, str):
        findings.add(f"{tensor}: dtype must be a string")
    if shape is None:
        findings.add(f"{tensor}: shape must be a list of integers from 0 up")
    if offsets is None or len(offsets) != 2:
        findings.add(f"{tensor}: data_offsets must be two integers from 0 up")
    elif offsets[0] > offsets[1]:
        findings.add(f"{tensor}: its data ends at byte {offsets[1]:,}, before its beginning at {offsets[0]:,}")
    elif isinstance(dtype, str) and shape is not None:
        return _Entry(name, dtype, shape, *offsets)
    return None


def _naturals(value: Any) -> tuple[int, ...] | None:
    items = as_list(value)
    return tuple(items) if items is not None and all(map(is_natural, items)) else None


def _check_sizes(entries: Sequence[_Entry], findings: Findings) -> None:
    """dtypes we read, shapes of sane rank and size, and as many bytes as those ask for."""
    refused: dict[str, list[str]] = {}
    for entry in entries:
        tensor = f"tensor {shown(entry.name)}"
        dtype = DType.__members__.get(entry.dtype)
        if len(entry.shape) > MAX_RANK:
            findings.add(f"{tensor} has {len(entry.shape):,} dimensions; {MAX_RANK} are accepted")
        elif 0 in entry.shape and prod(size or 1 for size in entry.shape) > MAX_EMPTY_SPAN:
            findings.add(f"{tensor} is empty, yet its shape is {list(entry.shape)}")
        elif dtype is None:
            refused.setdefault(entry.dtype, []).append(entry.name)
        elif (needed := prod(entry.shape) * dtype.itemsize) > MAX_TENSOR_BYTES:
            findings.add(f"{tensor} of shape {list(entry.shape)} would be larger than any file")
        elif needed != entry.end - entry.begin:
            findings.add(
                f"{tensor}: {dtype.value} of shape {list(entry.shape)} takes {needed:,} bytes, "
                f"its data_offsets span {entry.end - entry.begin:,}"
            )
    for spelling, names in refused.items():
        reason = _UNSUPPORTED.get(spelling)
        if reason:
            findings.add(f"dtype {spelling} (of {listed(names)}) cannot be merged: {reason}")
        else:
            findings.add(f"dtype {shown(spelling)} (of {listed(names)}) is not one that safetensors knows")


def _check_layout(entries: Sequence[_Entry], header_size: int, file_size: int, findings: Findings) -> None:
    """The data follow each other without hole or overlap, and fill the file to its last byte."""
    position, previous = 0, ""
    for entry in sorted(entries, key=lambda entry: (entry.begin, entry.end)):
        if entry.begin > position:
            findings.add(f"bytes {position:,} to {entry.begin:,} before tensor {shown(entry.name)} belong to no tensor")
        elif entry.begin < position:
            findings.add(f"tensors {shown(previous)} and {shown(entry.name)} overlap")
        if entry.end >= position:
            position, previous = entry.end, entry.name
    expected = header_size + position
    if expected > file_size:
        message = f"is truncated: its header describes {expected:,} bytes, the file has {file_size:,}"
        findings.add(f"{message}. Download or copy it again")
    elif expected < file_size:
        findings.add(
            f"has {file_size - expected:,} bytes after its last tensor: its header describes {expected:,} bytes, "
            f"the file has {file_size:,}"
        )
