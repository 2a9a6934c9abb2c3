"""The shard index: hostile ones, and those that disagree with their shards."""

import json

import pytest

from safegraft.errors import CheckpointError

SHARDS = (
    {"layers.10.weight": ("U8", (2,), b"ab"), "layers.9.weight": ("F32", (1,), b"wxyz")},
    {"layers.2.weight": ("BF16", (2,), b"cdef"), "norm": ("U8", (), b"g")},
)
INDEX = "model.safetensors.index.json"


@pytest.mark.parametrize(
    "file",
    ["../model.safetensors", "/etc/model.safetensors", "a/b.safetensors", "..\\x.safetensors", "a\0.safetensors"],
)
def test_index_may_name_bare_files_only(folders, problems_of, file):
    folder = folders.sharded(SHARDS, weight_map={"norm": file})
    (problem,) = problems_of(lambda: folders.open(folder))
    assert problem.startswith(f"tiny/{INDEX}: weight_map names ")
    assert "not the bare name" in problem


@pytest.mark.parametrize(
    ("weight_map", "message"),
    [
        ({"norm": "other.safetensors"}, "'other.safetensors', which is not there"),
        ({"norm": "pytorch_model.bin"}, "'pytorch_model.bin', which is not a .safetensors file"),
        ({"norm": ".."}, "not a .safetensors file"),
        ({"norm": 3}, "'3', which is not a .safetensors file"),
        ({"norm": None}, "'None', which is not a .safetensors file"),
        ({}, "must have a weight_map"),
        ([], "must have a weight_map"),
        ("model.safetensors", "must have a weight_map"),
    ],
)
def test_broken_weight_map(folders, problems_of, weight_map, message):
    (problem,) = problems_of(lambda: folders.open(folders.sharded(SHARDS, weight_map=weight_map)))
    assert problem.startswith(f"tiny/{INDEX}: ")
    assert message in problem


def test_index_with_a_tensor_twice(folders, problems_of):
    folder = folders.sharded(SHARDS)
    (folder / INDEX).write_bytes(b'{"weight_map":{"a":"x.safetensors","a":"y.safetensors"}}')
    assert "'a' stands twice" in problems_of(lambda: folders.open(folder))[0]


def test_index_too_large(folders, problems_of, monkeypatch):
    monkeypatch.setattr("safegraft.checkpoint.contents.MAX_INDEX_BYTES", 10)
    assert "more than 10 are not accepted" in problems_of(lambda: folders.open(folders.sharded(SHARDS)))[0]


def test_too_many_shards(folders, problems_of, monkeypatch):
    monkeypatch.setattr("safegraft.checkpoint.weights.MAX_SHARDS", 1)
    assert "lists 2 files; 1 are accepted" in problems_of(lambda: folders.open(folders.sharded(SHARDS)))[0]


@pytest.mark.parametrize("sharded", [True, False])
def test_too_many_tensors(folders, problems_of, monkeypatch, sharded):
    monkeypatch.setattr("safegraft.checkpoint.weights.MAX_CHECKPOINT_TENSORS", 2)
    folder = folders.sharded(SHARDS) if sharded else folders.single()
    assert "tensors; 2 are accepted" in problems_of(lambda: folders.open(folder))[0]


def test_no_tensors_at_all(folders, problems_of):
    assert problems_of(lambda: folders.open(folders.single(tensors={}))) == [
        "tiny: has no tensors: its weight files are empty"
    ]


def test_index_and_shards_disagree(folders, problems_of):
    first, second = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
    weight_map = {"layers.10.weight": first, "gone": first, "layers.9.weight": second, "layers.2.weight": second}
    problems = problems_of(lambda: folders.open(folders.sharded(SHARDS, weight_map=weight_map)))
    assert problems == [
        f"tiny: {INDEX} lists 'gone' in '{first}', which does not hold it",
        f"tiny: '{first}' holds 'layers.9.weight', which {INDEX} lists in another file",
        f"tiny: {INDEX} lists 'layers.9.weight' in '{second}', which does not hold it",
        f"tiny: '{second}' holds 'norm', which {INDEX} does not list",
    ]


def test_tensor_in_two_shards(folders, problems_of):
    shards = ({"a": ("U8", (1,), b"x"), "b": ("U8", (1,), b"x")}, {"a": ("U8", (1,), b"y")})
    (problem,) = problems_of(lambda: folders.open(folders.sharded(shards)))
    assert "'model-00001-of-00002.safetensors' holds 'a', which" in problem


def test_single_file_and_index_of_other_files(folders, problems_of, encode, weights):
    folder = folders.sharded(SHARDS)
    (folder / "model.safetensors").write_bytes(encode(weights))
    (problem,) = problems_of(lambda: folders.open(folder))
    assert "two sets of weights" in problem


def test_single_file_with_an_index_of_itself(folders, encode, weights):
    folder = folders.single()
    (folder / INDEX).write_text(json.dumps({"weight_map": dict.fromkeys(weights, "model.safetensors")}))
    assert list(folders.open(folder).tensors) == list(weights)
    (folder / INDEX).write_text(json.dumps({"weight_map": dict.fromkeys([*weights, "more"], "model.safetensors")}))
    with pytest.raises(CheckpointError, match=r"lists 'more' in 'model\.safetensors', which does not hold it"):
        folders.open(folder)


def test_stray_safetensors_beside_the_indexed_ones_are_not_read(folders):
    folder = folders.sharded(SHARDS)
    (folder / "consolidated.safetensors").write_bytes(b"not even safetensors")
    assert len(folders.open(folder).tensors) == 4
