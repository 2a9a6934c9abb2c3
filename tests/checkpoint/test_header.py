"""Hostile and broken headers, one a line; each must be refused for its own reason."""

import json
import struct

import pytest
import safetensors

from safegraft.checkpoint import header as bounds
from safegraft.checkpoint.dtypes import DType
from safegraft.errors import CheckpointError

ONE = {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]}


def one(**changes):
    return json.dumps({"a": {**ONE, **changes}}).encode()


def named(name):
    return json.dumps({name: ONE}).encode()


def two(first, second, **changes):
    return json.dumps({"a": {**ONE, "data_offsets": first}, "b": {**ONE, "data_offsets": second, **changes}}).encode()


HOSTILE = {
    # what stands there: (header, data, part of the message)
    "not json": (b"{oops", b"", "not valid JSON"),
    "not utf-8": (b'{"\xff": 1}', b"", "not valid JSON: 'utf-8'"),
    "nul after json": (one() + b"\0", b"x", "not valid JSON"),
    "deep nesting": (b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}", b"", "nested too deeply"),
    "duplicate tensor": (b'{"a":%s,"a":%s}' % ((json.dumps(ONE).encode(),) * 2), b"x", "'a' stands twice"),
    "duplicate field": (
        b'{"a":{"dtype":"U8","dtype":"U8","shape":[1],"data_offsets":[0,1]}}',
        b"x",
        "'dtype' stands twice",
    ),
    "duplicate metadata": (b'{"__metadata__":{"k":"1","k":"2"}}', b"", "'k' stands twice"),
    "metadata number": (b'{"__metadata__":{"k":1}}', b"", "__metadata__ must be an object of strings"),
    "metadata null": (b'{"__metadata__":null}', b"", "__metadata__ must be an object of strings"),
    "metadata surrogate": (b'{"__metadata__":{"k":"\\ud800"}}', b"", "broken \\u escape"),
    "tensor is a list": (b'{"a":[1]}', b"", "must have dtype, shape, data_offsets"),
    "field missing": (b'{"a":{"dtype":"U8","shape":[1]}}', b"x", "must have dtype, shape, data_offsets"),
    "field unknown": (one(scale=1), b"x", "unknown fields: 'scale'"),
    "name empty": (named(""), b"x", "has an empty name"),
    "name nul": (named("a\0b"), b"x", "unprintable"),
    "name ansi": (named("a\x1b[31mb"), b"x", "unprintable"),
    "name bidi": (named("a\u202eb"), b"x", "unprintable"),
    "name surrogate": (named("\ud800"), b"x", "unprintable"),
    "name long": (named("n" * 1025), b"x", "1,025 characters"),
    "name path": (named("../../etc/passwd"), b"x", "looks like a file path"),
    "name absolute": (named("/etc/passwd"), b"x", "looks like a file path"),
    "name backslash": (named("a\\b"), b"x", "looks like a file path"),
    "name dots": (named("a..b"), b"x", "looks like a file path"),
    "dtype number": (one(dtype=3), b"x", "dtype must be a string"),
    "dtype unknown": (one(dtype="F33"), b"x", "dtype 'F33' (of 'a') is not one that safetensors knows"),
    "dtype member": (one(dtype="__class__"), b"x", "not one that safetensors knows"),
    "fp8": (one(dtype="F8_E4M3"), b"x", "F8_E4M3 (of 'a') cannot be merged: it holds quantised weights"),
    "fp8 e5m2": (one(dtype="F8_E5M2"), b"x", "F8_E5M2 (of 'a') cannot be merged: it holds quantised weights"),
    "fp4": (one(dtype="F4", shape=[2]), b"x", "F4 (of 'a') cannot be merged: it holds quantised weights"),
    "complex": (one(dtype="C64", data_offsets=[0, 8]), b"x" * 8, "C64 (of 'a') cannot be merged: no merge method"),
    "shape text": (one(shape="1"), b"x", "shape must be a list of integers"),
    "shape float": (one(shape=[1.0]), b"x", "shape must be a list of integers"),
    "shape bool": (one(shape=[True]), b"x", "shape must be a list of integers"),
    "shape negative": (one(shape=[-1]), b"x", "shape must be a list of integers"),
    "shape minus zero": (b'{"a":{"dtype":"U8","shape":[-0],"data_offsets":[0,0]}}', b"", "-0 is not an integer"),
    "shape nan": (b'{"a":{"dtype":"U8","shape":[NaN],"data_offsets":[0,0]}}', b"", "shape must be a list of integers"),
    "integer of 5000 digits": (b'{"a":{"dtype":"U8","shape":[%s]}}' % (b"9" * 5000), b"", "5,000 digits"),
    "rank": (one(shape=[1] * 10_000), b"x", "has 10,000 dimensions"),
    "overflow": (one(shape=[2**32, 2**32]), b"x", "larger than any file"),
    "overflow by item size": (one(dtype="F64", shape=[2**60]), b"x", "larger than any file"),
    "empty but absurd": (one(shape=[2**40, 0], data_offsets=[0, 0]), b"", "is empty, yet its shape is"),
    "offsets three": (one(data_offsets=[0, 1, 2]), b"x", "data_offsets must be two integers"),
    "offsets negative": (one(data_offsets=[-1, 0]), b"x", "data_offsets must be two integers"),
    "offsets reversed": (one(data_offsets=[1, 0]), b"x", "before its beginning"),
    "offsets beyond u64": (one(data_offsets=[0, 2**64]), b"x", "takes 1 bytes, its data_offsets span"),
    "size differs": (one(dtype="F32"), b"x", "F32 of shape [1] takes 4 bytes, its data_offsets span 1"),
    "hole at the start": (one(data_offsets=[1, 2]), b"xx", "bytes 0 to 1 before tensor 'a' belong to no tensor"),
    "hole": (two([0, 1], [2, 3]), b"xxx", "bytes 1 to 2 before tensor 'b' belong to no tensor"),
    "overlap": (two([0, 1], [0, 1]), b"x", "tensors 'a' and 'b' overlap"),
    "inside": (two([0, 3], [1, 2]), b"xxx", "tensors 'a' and 'b' overlap"),
    "empty tensor inside": (two([0, 2], [1, 1], shape=[0]), b"xx", "tensors 'a' and 'b' overlap"),
    "truncated": (one(shape=[100], data_offsets=[0, 100]), b"x" * 60, "is truncated"),
    "trailing": (one(), b"xyz", "2 bytes after its last tensor"),
}


@pytest.mark.parametrize(("text", "data", "message"), HOSTILE.values(), ids=HOSTILE)
def test_hostile_header_is_refused_with_its_reason(framed, parse, problems_of, text, data, message):
    problems = problems_of(lambda: parse(framed(text, data)))
    assert any(message in problem for problem in problems), problems
    assert all(problem.startswith("tiny/model.safetensors: ") for problem in problems)
    assert all(problem.isprintable() for problem in problems)


def test_truncated_file_tells_expected_and_real_size(framed, parse, problems_of):
    content = framed(one(shape=[100], data_offsets=[0, 100]), b"x" * 60)
    expected = f"its header describes {len(content) + 40} bytes, the file has {len(content)}"
    assert problems_of(lambda: parse(content)) == [
        f"tiny/model.safetensors: is truncated: {expected}. Download or copy it again"
    ]


def test_all_problems_of_a_file_come_together(framed, parse, problems_of):
    entries = {"": ONE, "b": {**ONE, "dtype": "F8_E4M3"}, "c": {**ONE, "extra": 1}, "d": {**ONE, "shape": [7]}}
    problems = problems_of(lambda: parse(framed(json.dumps(entries).encode(), b"x")))
    for part in ("empty name", "F8_E4M3", "unknown fields", "takes 7 bytes", "'' and 'b' overlap"):
        assert sum(part in problem for problem in problems) == 1, (part, problems)


def test_tensor_inside_another_is_one_problem(framed, parse, problems_of):
    assert problems_of(lambda: parse(framed(two([0, 3], [1, 2], shape=[1]).replace(b"[1]", b"[3]", 1), b"xxx"))) == [
        "tiny/model.safetensors: tensors 'a' and 'b' overlap"
    ]


def test_many_problems_are_counted_not_listed(framed, parse, problems_of):
    entries = {f"t{index}": {**ONE, "shape": "x"} for index in range(1000)}
    problems = problems_of(lambda: parse(framed(json.dumps(entries).encode(), b"x")))
    assert len(problems) == 21
    assert problems[-1] == "tiny/model.safetensors: 980 more problems of this file"


def test_unsupported_dtype_is_one_problem_whatever_the_number_of_tensors(framed, parse, problems_of):
    entries = {f"t{index}": {**ONE, "dtype": "F8_E5M2", "data_offsets": [index, index + 1]} for index in range(50)}
    problems = problems_of(lambda: parse(framed(json.dumps(entries).encode(), b"x" * 50)))
    assert len(problems) == 1
    assert "F8_E5M2 (of 't0', 't1', 't2' and 47 more)" in problems[0]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty (0 bytes)"),
        (b"abc", "not a safetensors file"),
        (struct.pack("<Q", 0), "not a safetensors file"),
        (struct.pack("<Q", 2) + b"[]", "not a safetensors file"),
        (struct.pack("<Q", 100_000_001) + b"{", "more than 100,000,000 are not accepted"),
        (struct.pack("<Q", 2**63 + 5) + b"{}", "more than 100,000,000 are not accepted"),
        (struct.pack("<Q", 50) + b'{"a"', "truncated inside its header: that needs 58 bytes, the file has 12"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull"),
        (b"PK\x03\x04" + b"\0" * 40, "PyTorch pickle"),
        (b"\x80\x02}q\0." + b"\0" * 40, "Python pickle"),
        (b"GGUF\x03\0\0\0" + b"\0" * 40, "GGUF"),
        (b"<!DOCTYPE html><html>", "web page"),
    ],
)
def test_what_is_no_safetensors_file_is_called_what_it_is(parse, problems_of, content, message):
    (problem,) = problems_of(lambda: parse(content))
    assert message in problem


def test_file_that_shrinks_while_its_header_is_read(problems_of, encode, weights):
    content = encode(weights)
    (problem,) = problems_of(
        lambda: bounds.read_header(lambda offset, length: content[offset:40][:length], len(content), "f", "n")
    )
    assert "it changed meanwhile" in problem


def test_more_tensors_than_accepted(framed, parse, problems_of, monkeypatch):
    monkeypatch.setattr(bounds, "MAX_TENSORS", 3)
    entries = {f"t{index}": {**ONE, "data_offsets": [index, index + 1]} for index in range(4)}
    (problem,) = problems_of(lambda: parse(framed(json.dumps(entries).encode(), b"x" * 4)))
    assert "holds 4 tensors; more than 3 in one file are not accepted" in problem
    del entries["t3"]
    assert len(parse(framed(json.dumps(entries).encode(), b"x" * 3)).tensors) == 3


def test_header_of_too_many_values_is_refused_before_it_is_parsed(framed, parse, problems_of):
    text = b'{"a":[' + b"[]," * bounds.MAX_JSON_VALUES + b"[]]}"
    (problem,) = problems_of(lambda: parse(framed(text, b"")))
    assert "more than 3,000,000 JSON values" in problem


@pytest.mark.parametrize(
    ("shape", "data"),
    [((), b"x"), ((0,), b""), ((0, 4096), b""), ((4096, 0, 14336), b""), ((1,) * bounds.MAX_RANK, b"x")],
)
def test_odd_but_sound_shapes(encode, parse, shape, data):
    header = parse(encode({"a": ("U8", shape, data)}))
    assert header.tensors["a"].shape == shape
    assert header.tensors["a"].nbytes == len(data)


@pytest.mark.parametrize(
    "name", ["n" * bounds.MAX_NAME_LENGTH, "Gewichte.für.Ähnliches", "a b", "层.0", "a.b[0]", "__class__"]
)
def test_odd_but_sound_names(encode, parse, name):
    assert list(parse(encode({name: ("U8", (1,), b"x")})).tensors) == [name]


@pytest.mark.parametrize("padding", [b"", b" ", b"       ", b"\n\t "])
def test_padding_after_the_header(framed, parse, padding):
    header = parse(framed(one() + padding, b"x"))
    assert header.tensors["a"].offset == header.size == 8 + len(one()) + len(padding)


@pytest.mark.parametrize("dtype", list(DType))
def test_every_dtype_has_safetensors_name_and_size(encode, parse, dtype):
    content = encode({"a": (dtype.value, (3,), bytes(3 * dtype.itemsize))})
    assert safetensors.deserialize(content)[0][1]["dtype"] == dtype.value
    assert parse(content).tensors["a"].dtype is dtype


def test_sound_file(encode, parse, weights):
    content = encode(weights, {"format": "pt"})
    header = parse(content, "model-2.safetensors")
    assert header.metadata == {"format": "pt"}
    assert list(header.tensors) == list(weights)
    for name, (dtype, shape, data) in weights.items():
        tensor = header.tensors[name]
        assert (tensor.name, tensor.dtype, tensor.shape, tensor.file) == (name, dtype, shape, "model-2.safetensors")
        assert content[tensor.offset : tensor.offset + tensor.nbytes] == data


def test_tensors_come_in_the_order_of_their_data(framed, parse):
    assert list(parse(framed(two([1, 2], [0, 1]), b"xx")).tensors) == ["b", "a"]


def test_two_files_of_problems_keep_their_names(framed, parse):
    with pytest.raises(CheckpointError, match="other/shard-7"):
        parse(framed(b"{}", b"x"), "shard-7", "other")
