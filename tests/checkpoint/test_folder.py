"""Folders: sound ones read back byte for byte, unsound ones say everything that is wrong with them."""

import json
import os
import threading
from pathlib import Path

import pytest

from safegraft.checkpoint.dtypes import DType
from safegraft.checkpoint.folder import FolderCheckpoint
from safegraft.errors import CheckpointError

SHARDS = (
    {"layers.10.weight": ("U8", (2,), b"ab"), "layers.9.weight": ("F32", (1,), b"wxyz")},
    {"layers.2.weight": ("BF16", (2,), b"cdef"), "norm": ("U8", (), b"g")},
)


def read(checkpoint, name, start=0, stop=None):
    tensor = checkpoint.tensors[name]
    buffer = bytearray((tensor.nbytes if stop is None else stop) - start)
    checkpoint.read_into(tensor, start, memoryview(buffer))
    return bytes(buffer)


def test_single_file(folders, weights):
    checkpoint = folders.open(folders.single(), "a/name")
    assert checkpoint.name == checkpoint.identity.name == "a/name"
    assert checkpoint.config["model_type"] == "llama"
    assert list(checkpoint.sidecars) == ["config.json"]
    assert checkpoint.tokens() is None
    assert {name: (t.dtype, t.shape) for name, t in checkpoint.tensors.items()} == {
        name: (DType(dtype), shape) for name, (dtype, shape, _) in weights.items()
    }
    assert {name: read(checkpoint, name) for name in checkpoint.tensors} == {
        name: data for name, (_, _, data) in weights.items()
    }
    checkpoint.verify_unchanged()


def test_shards_read_as_one_in_natural_order(folders):
    checkpoint = folders.open(folders.sharded(SHARDS))
    assert list(checkpoint.tensors) == ["layers.2.weight", "layers.9.weight", "layers.10.weight", "norm"]
    assert [read(checkpoint, name) for name in checkpoint.tensors] == [b"cdef", b"wxyz", b"ab", b"g"]
    assert checkpoint.tensors["norm"].file == "model-00002-of-00002.safetensors"


def test_names_that_sort_by_numbers_do_not_trip_over_other_digits(folders):
    tensors = dict.fromkeys(("b.²", "b.٣", "1", "a01", "a1", "a.10", "a.9"), ("U8", (1,), b"x"))
    assert list(folders.open(folders.single(tensors=tensors)).tensors) == [
        "1",
        "a01",
        "a1",
        "a.9",
        "a.10",
        "b.²",
        "b.٣",
    ]


def test_ranges_of_a_tensor(folders):
    checkpoint = folders.open(folders.single())
    assert read(checkpoint, "model.layers.0.weight", 2, 5) == b"cde"
    assert read(checkpoint, "model.layers.0.weight", 6, 6) == b""
    for start, length in ((-1, 1), (0, 7), (6, 1)):
        with pytest.raises(ValueError, match="out of range"):
            checkpoint.read_into(checkpoint.tensors["model.layers.0.weight"], start, memoryview(bytearray(length)))


def test_reads_into_buffers_of_any_item_size(folders):
    checkpoint = folders.open(folders.single())
    buffer = memoryview(bytearray(8)).cast("q")
    checkpoint.read_into(checkpoint.tensors["model.layers.1.steps"], 0, buffer)
    assert buffer.tobytes() == b"12345678"


def test_many_threads_read_at_once(folders):
    size, count = 40_000, 8
    tensors = {f"t{index}": ("U8", (size,), bytes([index]) * size) for index in range(count)}
    checkpoint = folders.open(folders.single(tensors=tensors))
    wrong: list[str] = []
    together = threading.Barrier(count)

    def worker(seed: int) -> None:
        together.wait()
        for step in range(60):
            index, start = (seed + step) % count, (seed * 7919 + step * 104_729) % (size - 1000)
            if read(checkpoint, f"t{index}", start, start + 1000) != bytes([index]) * 1000:
                wrong.append(f"t{index}[{start}]")

    threads = [threading.Thread(target=worker, args=(seed,)) for seed in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_short_reads_are_continued(folders, monkeypatch):
    """The kernel may return fewer bytes than asked for, at any time."""
    checkpoint = folders.open(folders.single())
    whole = os.preadv
    monkeypatch.setattr(os, "preadv", lambda fd, buffers, offset: whole(fd, [buffers[0][:3]], offset))
    assert read(checkpoint, "model.embed.weight") == bytes(range(32))


def test_input_output_error_names_the_file(folders, monkeypatch):
    checkpoint = folders.open(folders.single())

    def fail(fd, buffers, offset):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "preadv", fail)
    with pytest.raises(CheckpointError, match=r"tiny/model\.safetensors: cannot be read: the storage reports"):
        read(checkpoint, "model.embed.weight")


def test_closed_checkpoint_does_not_read_somebody_elses_file(folders):
    checkpoint = folders.open(folders.single())
    tensor = checkpoint.tensors["model.embed.weight"]
    checkpoint.close()
    checkpoint.close()
    with pytest.raises(ValueError, match="has been closed"):
        checkpoint.read_into(tensor, 0, memoryview(bytearray(1)))


def descriptors():
    return sorted(
        os.readlink(f"/proc/self/fd/{fd}")
        for fd in os.listdir("/proc/self/fd")
        if os.path.islink(f"/proc/self/fd/{fd}")
    )


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="counts descriptors through /proc")
def test_no_descriptor_is_left_open(folders):
    folder = folders.sharded(SHARDS)
    before = descriptors()
    checkpoint = FolderCheckpoint(folder, "tiny")
    assert len(descriptors()) == len(before) + 2
    checkpoint.close()
    assert descriptors() == before
    (folder / "model-00002-of-00002.safetensors").write_bytes(b"")
    with pytest.raises(CheckpointError) as caught:
        FolderCheckpoint(folder, "tiny")
    assert descriptors() == before, caught


# ---- what is no checkpoint


def test_missing_folder(folders, problems_of, tmp_path):
    assert problems_of(lambda: folders.open(tmp_path / "none", "org/none")) == ["org/none: there is no such folder"]


def test_file_instead_of_a_folder(folders, problems_of):
    path = folders.single() / "model.safetensors"
    assert problems_of(lambda: folders.open(path)) == [
        "tiny: is not a folder: name the folder that holds config.json and the weights"
    ]


def test_nul_in_the_path(folders, problems_of, tmp_path):
    assert "NUL" in problems_of(lambda: folders.open(tmp_path / "a\0b"))[0]


def test_empty_folder_lacks_both_things(folders, problems_of):
    problems = problems_of(lambda: folders.open(folders.write("tiny", {}, config=None)))
    assert len(problems) == 2
    assert problems[0].startswith("tiny/config.json: is not there")
    assert problems[1].startswith("tiny: has neither model.safetensors nor model.safetensors.index.json")


@pytest.mark.parametrize(
    ("files", "parts"),
    [
        (["pytorch_model.bin"], ["only as pickle ('pytorch_model.bin')", "save_pretrained"]),
        (["pytorch_model-00001-of-00002.bin", "pytorch_model-00002-of-00002.bin"], ["as pickle", "00001-of-00002"]),
        (["consolidated.00.pth", "x.pt", "y.ckpt", "z.PKL"], ["as pickle", "'consolidated.00.pth'", "1 more"]),
        (["optimizer.pt", "training_args.bin", "rng_state_0.pth"], ["no weights are here"]),
        (["model-00001-of-00002.safetensors"], ["has shards", "no model.safetensors.index.json"]),
        (["adapter_model.safetensors", "adapter_config.json"], ["is a PEFT adapter, not a model", "BASE+ADAPTER"]),
        (["adapter_model.bin"], ["PEFT adapter", "BASE+ADAPTER"]),
        (["pytorch_model.safetensors"], ["holds 'pytorch_model.safetensors'", "rename"]),
        (["model.fp16.safetensors", "pytorch_model.bin"], ["holds 'model.fp16.safetensors'"]),
        (["llama.gguf"], ["'llama.gguf'", "a format that is not read"]),
        (["tf_model.h5"], ["'tf_model.h5'", "a format that is not read"]),
    ],
)
def test_other_weights_are_refused_by_name(folders, problems_of, files, parts):
    folder = folders.write("tiny", dict.fromkeys(files, b"\x80\x02}q\0."))
    (problem,) = problems_of(lambda: folders.open(folder))
    for part in parts:
        assert part in problem


def test_pickle_beside_safetensors_is_ignored(folders):
    folder = folders.single(**{"pytorch_model.bin": b"\x80\x02"})
    assert folders.open(folder).tensors


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not valid JSON"),
        (b"\xff", "not valid JSON"),
        (b"[1]", "must hold a JSON object"),
        (b'{"a":1,"a":2}', "'a' stands twice"),
        (b'{"a":' * 60 + b"1" + b"}" * 60, "nested more than 50 levels"),
        (b'{"a":' * 5000 + b"1" + b"}" * 5000, "nested too deeply"),
    ],
)
def test_broken_config(folders, problems_of, content, message):
    folder = folders.single(**{"config.json": content})
    (problem,) = problems_of(lambda: folders.open(folder))
    assert problem.startswith("tiny/config.json: ")
    assert message in problem


@pytest.mark.parametrize(
    ("config", "part"),
    [
        ({"quantization_config": {"quant_method": "gptq", "bits": 4}}, "quantization_config says"),
        ({"text_config": {"quantization_config": {"quant_method": "gptq"}}}, "text_config.quantization_config says"),
        ({"thinker_config": {"text_config": {"quantization_config": {"quant_method": "gptq"}}}}, "thinker_config.text"),
        ({"compression_config": {"quant_method": "gptq"}}, "compression_config says"),
    ],
)
def test_quantised_config_is_refused_with_its_method(folders, problems_of, config, part):
    folder = folders.single(**{"config.json": json.dumps({"model_type": "llama", **config}).encode()})
    (problem,) = problems_of(lambda: folders.open(folder))
    assert problem.startswith("tiny/config.json: ")
    assert part in problem
    assert "method 'gptq'" in problem


@pytest.mark.parametrize("value", [None, {}])
def test_empty_quantisation_config_is_none(folders, value):
    folder = folders.single(**{"config.json": json.dumps({"quantization_config": value}).encode()})
    assert folders.open(folder).tensors


def test_every_problem_of_a_folder_at_once(folders, problems_of):
    folder = folders.sharded(
        [
            {"a": ("U8", (2,), b"x")},
            {"b": ("U8", (1,), b"y")},
            {"c": ("F8_E4M3", (1,), b"z")},
            {"d": ("U8", (1,), b"y")},
        ]
    )
    (folder / "model-00004-of-00004.safetensors").write_bytes(b"short")
    (folder / "config.json").write_text("[]")
    problems = problems_of(lambda: folders.open(folder))
    assert [problem.split(": ")[0] for problem in problems] == [
        "tiny/config.json",
        "tiny/model-00001-of-00004.safetensors",
        "tiny/model-00003-of-00004.safetensors",
        "tiny/model-00004-of-00004.safetensors",
    ]


def test_messages_show_the_given_name_never_the_path(folders, problems_of, tmp_path):
    folder = folders.sharded(SHARDS, weight_map={"norm": "gone.safetensors"})
    (folder / "config.json").unlink()
    (folder / "config.json").symlink_to(tmp_path / "nowhere")
    (folder / "vocab.json").symlink_to("/etc/hosts")
    problems = problems_of(lambda: folders.open(folder, "org/model"))
    assert len(problems) == 3
    assert all(problem.startswith("org/model") for problem in problems)
    assert not any(str(tmp_path) in problem or "hosts" in problem for problem in problems)


def test_what_safetensors_wrote_is_read(folders):
    import numpy as np
    from safetensors.numpy import save

    arrays = {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.array(7), "c": np.zeros((0, 2), np.float16)}
    checkpoint = folders.open(folders.write("tiny", {"model.safetensors": save(arrays, {"format": "pt"})}))
    assert {name: read(checkpoint, name) for name in checkpoint.tensors} == {k: v.tobytes() for k, v in arrays.items()}
