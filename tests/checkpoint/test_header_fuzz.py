"""Whatever bytes stand in a file: CheckpointError or the tensors that safetensors sees, nothing else."""

import json

import safetensors
from hypothesis import given, settings
from hypothesis import strategies as st

from safegraft.errors import CheckpointError

TENSORS = {
    "model.layers.0.weight": ("BF16", (3, 2), b"0123456789ab"),
    "model.layers.10.bias": ("F32", (), b"wxyz"),
    "model.layers.2.empty": ("F16", (0, 4), b""),
    "steps": ("I64", (1,), b"01234567"),
}


def agrees_with_safetensors(parse, content):
    try:
        header = parse(content)
    except CheckpointError:
        return False
    theirs = dict(safetensors.deserialize(content))
    assert theirs.keys() == header.tensors.keys()
    for name, tensor in header.tensors.items():
        assert theirs[name]["dtype"] == tensor.dtype.value
        assert tuple(theirs[name]["shape"]) == tensor.shape
        assert theirs[name]["data"] == content[tensor.offset : tensor.offset + tensor.nbytes]
    return True


@settings(max_examples=400, deadline=None, derandomize=True, database=None)
@given(data=st.data())
def test_flipped_bytes(encode, parse, data):
    content = bytearray(encode(TENSORS, {"format": "pt"}))
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    agrees_with_safetensors(parse, bytes(content))


@settings(max_examples=300, deadline=None, derandomize=True, database=None)
@given(data=st.data())
def test_flipped_header_characters_that_stay_json_like(encode, parse, data):
    """Random bytes rarely survive the JSON parser: these aim at what comes after it."""
    content = bytearray(encode(TENSORS, {"format": "pt"}))
    header = range(9, content.index(b"}}") + 2)
    for _ in range(data.draw(st.integers(1, 2))):
        content[data.draw(st.sampled_from(header))] = data.draw(st.sampled_from(b'0123456789-+.eE,:[]{}" \\uaF_'))
    agrees_with_safetensors(parse, bytes(content))


@settings(max_examples=150, deadline=None, derandomize=True, database=None)
@given(data=st.data())
def test_truncated_and_extended_files_are_refused(encode, parse, data):
    content = encode(TENSORS)
    length = data.draw(st.integers(0, len(content) - 1))
    assert not agrees_with_safetensors(parse, content[:length])
    assert not agrees_with_safetensors(parse, content + data.draw(st.binary(min_size=1, max_size=20)))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)
ENTRY = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from(["U8", "BF16", "F4", "C64", "F8_E4M3", "x"]) | JSON,
        "shape": st.lists(st.integers(0, 3), max_size=3) | JSON,
        "data_offsets": st.lists(st.integers(0, 12), min_size=2, max_size=2) | JSON,
    },
    optional={"more": JSON},
)


@settings(max_examples=300, deadline=None, derandomize=True, database=None)
@given(
    entries=st.dictionaries(st.text(max_size=4) | st.just("__metadata__"), ENTRY | JSON, max_size=3),
    data=st.binary(max_size=12),
)
def test_any_json_as_a_header(framed, parse, entries, data):
    agrees_with_safetensors(parse, framed(json.dumps(entries).encode(), data))


@settings(max_examples=200, deadline=None, derandomize=True, database=None)
@given(data=st.data())
def test_every_sound_file_is_accepted(encode, parse, data):
    names = data.draw(st.lists(st.from_regex(r"[a-z]{1,8}(\.[0-9]{1,3})?", fullmatch=True), unique=True, max_size=5))
    tensors = {}
    for name in names:
        dtype, itemsize = data.draw(st.sampled_from([("U8", 1), ("BF16", 2), ("F32", 4), ("F64", 8), ("BOOL", 1)]))
        shape = data.draw(st.lists(st.integers(0, 4), max_size=3))
        size = itemsize
        for dimension in shape:
            size *= dimension
        tensors[name] = (dtype, shape, bytes(size))
    assert agrees_with_safetensors(parse, encode(tensors, {"format": "pt"}))
