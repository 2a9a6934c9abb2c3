"""Inputs that change while they are in use are noticed, by path and by descriptor."""

import os

import pytest

from safegraft.errors import InputChangedError

SHARDS = ({"a": ("U8", (2,), b"ab")}, {"b": ("U8", (2,), b"cd")})


def read(checkpoint, name):
    tensor = checkpoint.tensors[name]
    buffer = bytearray(tensor.nbytes)
    checkpoint.read_into(tensor, 0, memoryview(buffer))
    return bytes(buffer)


def changed(checkpoint):
    with pytest.raises(InputChangedError) as caught:
        checkpoint.verify_unchanged()
    return [str(problem) for problem in caught.value.problems]


def test_content_changed_in_place(folders):
    folder = folders.sharded(SHARDS)
    checkpoint = folders.open(folder)
    for file in sorted(folder.glob("*.safetensors")):
        status = file.stat()
        with file.open("r+b") as opened:
            opened.seek(-1, os.SEEK_END)
            opened.write(b"!")
        os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    assert [line.split(":")[0] for line in changed(checkpoint)] == [
        "tiny/model-00001-of-00002.safetensors",
        "tiny/model-00002-of-00002.safetensors",
    ]


def test_replaced_by_another_file_of_the_same_size_and_time(folders):
    file = folders.single() / "model.safetensors"
    checkpoint = folders.open(file.parent)
    other = file.with_name("other")
    other.write_bytes(file.read_bytes())
    os.utime(other, ns=(file.stat().st_atime_ns, file.stat().st_mtime_ns))
    other.replace(file)
    assert changed(checkpoint)
    assert read(checkpoint, "model.layers.0.weight") == b"abcdef"  # the opened file is still there to read


def test_removed(folders):
    folder = folders.single()
    checkpoint = folders.open(folder)
    (folder / "model.safetensors").unlink()
    assert changed(checkpoint)


def test_truncated_while_open(folders):
    folder = folders.single()
    checkpoint = folders.open(folder)
    os.truncate(folder / "model.safetensors", checkpoint.tensors["model.layers.1.steps"].offset + 3)
    assert read(checkpoint, "model.layers.0.weight") == b"abcdef"
    with pytest.raises(InputChangedError, match=r"tiny/model\.safetensors: changed while it was in use"):
        read(checkpoint, "model.layers.1.steps")


def test_reading_does_not_count_as_a_change(folders):
    folder = folders.single()
    checkpoint = folders.open(folder)
    (folder / "model.safetensors").read_bytes()
    (folder / "config.json").write_text("{}")
    (folder / "unrelated.txt").write_text("new")
    checkpoint.verify_unchanged()
