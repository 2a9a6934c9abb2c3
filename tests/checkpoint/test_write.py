"""What is written, safetensors and transformers read."""

import json

import pytest
import safetensors
from hypothesis import given, settings
from hypothesis import strategies as st

from safegraft.checkpoint.dtypes import DType
from safegraft.checkpoint.write import encode_header, encode_index


def assemble(tensors, metadata=None):
    header, begins = encode_header(tensors, metadata or {})
    datas = [bytes([index + 1]) * size(dtype, shape) for index, (_, dtype, shape) in enumerate(tensors)]
    assert begins == [sum(map(len, datas[:index])) for index in range(len(datas))]
    return header + b"".join(datas), datas


def size(dtype, shape):
    count = dtype.itemsize
    for dimension in shape:
        count *= dimension
    return count


TENSOR = st.tuples(st.sampled_from(DType), st.lists(st.integers(0, 4), max_size=3).map(tuple))
NAME = st.text(st.characters(exclude_categories=("C", "Z"), exclude_characters="/\\."), min_size=1, max_size=12)


@settings(max_examples=150, deadline=None, derandomize=True, database=None)
@given(
    tensors=st.dictionaries(NAME, TENSOR, max_size=5),
    metadata=st.dictionaries(st.text(max_size=5), st.text(max_size=5), max_size=3),
)
def test_any_header_is_read_by_safetensors_and_by_us(parse, tensors, metadata):
    in_order = [(name, dtype, shape) for name, (dtype, shape) in tensors.items()]
    content, datas = assemble(in_order, metadata)
    theirs = dict(safetensors.deserialize(content))
    ours = parse(content)
    assert ours.metadata == metadata
    assert ours.size % 8 == 0
    for (name, dtype, shape), data in zip(in_order, datas, strict=True):
        assert theirs[name] == {"dtype": dtype.value, "shape": list(shape), "data": data}
        tensor = ours.tensors[name]
        assert (tensor.dtype, tensor.shape) == (dtype, shape)
        assert content[tensor.offset : tensor.offset + tensor.nbytes] == data
    assert content[: ours.size] == encode_header(in_order, metadata)[0]


def test_exact_bytes():
    header, begins = encode_header([("b", DType.F32, (2, 1)), ("ü", DType.U8, ())], {"k": "v", "format": "pt"})
    text = (
        '{"__metadata__":{"format":"pt","k":"v"},"b":{"dtype":"F32","shape":[2,1],"data_offsets":[0,8]},'
        '"ü":{"dtype":"U8","shape":[],"data_offsets":[8,9]}}'
    ).encode()
    padded = text + b" " * (-len(text) % 8)
    assert header == len(padded).to_bytes(8, "little") + padded
    assert begins == [0, 8]


def test_metadata_order_does_not_matter():
    tensors = [("a", DType.U8, (1,))]
    assert encode_header(tensors, {"a": "1", "b": "2"}) == encode_header(tensors, {"b": "2", "a": "1"})


def test_same_bytes_as_safetensors_itself():
    import numpy as np
    from safetensors.numpy import save

    content, _ = assemble([("a", DType.F32, (2, 2)), ("b", DType.F32, (1,))], {"format": "pt"})
    arrays = {"a": np.frombuffer(b"\x01" * 16, "<f4").reshape(2, 2), "b": np.frombuffer(b"\x02" * 4, "<f4")}
    assert save(arrays, {"format": "pt"}) == content


@pytest.mark.parametrize("name", ["", "a/b", "../a", "a\nb", "x" * 1025, "__metadata__"])
def test_names_that_no_reader_should_accept(name):
    with pytest.raises(ValueError, match="tensor"):
        encode_header([(name, DType.U8, (1,))], {})


def test_name_given_twice():
    with pytest.raises(ValueError, match="'a' is given twice"):
        encode_header([("a", DType.U8, (1,)), ("a", DType.U8, (1,))], {})


def test_no_tensors():
    assert encode_header([], {}) == (b"\x08\0\0\0\0\0\0\0{}      ", [])


def test_index_is_what_transformers_writes_and_loads(tmp_path):
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(hidden_size=8, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2, vocab_size=40)
    model = LlamaForCausalLM(config)
    model.save_pretrained(tmp_path, max_shard_size="3KB")
    theirs = (tmp_path / "model.safetensors.index.json").read_bytes()
    weight_map = json.loads(theirs)["weight_map"]
    assert len(set(weight_map.values())) > 1
    parameters = {name: parameter.numel() for name, parameter in model.state_dict().items()}
    backwards = dict(reversed(weight_map.items()))
    assert encode_index(backwards, 4 * sum(parameters.values()), sum(parameters.values())) == theirs

    ours = tmp_path / "ours"
    ours.mkdir()
    (ours / "config.json").write_bytes((tmp_path / "config.json").read_bytes())
    (ours / "model.safetensors.index.json").write_bytes(encode_index(weight_map, 0, 0))
    for file in set(weight_map.values()):
        names = [name for name, place in weight_map.items() if place == file]
        header, _ = encode_header(
            [(name, DType.F32, tuple(model.state_dict()[name].shape)) for name in names], {"format": "pt"}
        )
        data = b"".join(model.state_dict()[name].numpy().tobytes() for name in names)
        (ours / file).write_bytes(header + data)
    loaded, report = LlamaForCausalLM.from_pretrained(ours, output_loading_info=True)
    assert not any(report.values())
    assert all(torch.equal(loaded.state_dict()[name], tensor) for name, tensor in model.state_dict().items())
    with safetensors.safe_open(ours / file, "pt") as opened:
        assert sorted(opened.keys()) == sorted(names)
