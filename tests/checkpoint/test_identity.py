"""An identity depends on content and file names, on nothing else, and on every byte it claims to cover."""

import hashlib
import json
import os
import shutil

import pytest

from safegraft.checkpoint import identity as sampling

LARGE = {"big": ("U8", (20_000,), bytes(20_000)), "small": ("U8", (3,), b"abc")}
FILES = {"tokenizer.json": b"{}", "additional_chat_templates/a.jinja": b"x"}

pytestmark = pytest.mark.usefixtures("large")


@pytest.fixture
def original(folders, encode):
    folder = folders.write("original", {"model.safetensors": encode(LARGE), **FILES})
    return folder, folders.open(folder).identity


def flip(path, at):
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)


def test_form(original):
    _, identity = original
    assert (identity.name, identity.scheme) == ("tiny", "sampled-sha256")
    assert len(bytes.fromhex(identity.digest)) == 32


def test_is_the_same_under_another_path_time_and_directory_order(folders, original, tmp_path):
    folder, identity = original
    copy = tmp_path / "elsewhere" / "copy"
    copy.mkdir(parents=True)
    for file in sorted(folder.rglob("*"), reverse=True):
        if file.is_file():
            target = copy / file.relative_to(folder)
            target.parent.mkdir(exist_ok=True)
            shutil.copyfile(file, target)
            os.utime(target, (1, 1))
    (copy / "README.md").write_text("files that do not come along do not count")
    assert folders.open(copy).identity == identity
    folder.rename(tmp_path / "renamed")
    assert folders.open(tmp_path / "renamed").identity == identity


def test_name_is_the_callers_and_not_part_of_the_digest(folders, original):
    folder, identity = original
    assert folders.open(folder, "other/name").identity == type(identity)("other/name", identity.scheme, identity.digest)


@pytest.mark.parametrize(
    ("file", "at"),
    [
        ("model.safetensors", -1),  # the small tensor: all of it is in the sample
        ("model.safetensors", -10_003),  # the middle of the big one
        ("config.json", 3),
        ("tokenizer.json", 0),
        ("additional_chat_templates/a.jinja", 0),
    ],
)
def test_changes_with_what_it_covers(folders, original, file, at):
    folder, identity = original
    if file == "config.json":
        (folder / file).write_text((folder / file).read_text() + " ")
    else:
        flip(folder / file, at)
    assert folders.open(folder).identity.digest != identity.digest


def test_sample_is_the_middle(folders, original):
    """What `sampled` promises, and what it does not: the first byte of a large tensor is not in it."""
    folder, identity = original
    header = len((folder / "model.safetensors").read_bytes()) - 20_003
    first, last = header + (20_000 - 4096) // 2, header + (20_000 + 4096) // 2 - 1
    for at, inside in ((first - 1, False), (first, True), (last, True), (last + 1, False)):
        flip(folder / "model.safetensors", at)
        assert (folders.open(folder).identity.digest != identity.digest) is inside
        flip(folder / "model.safetensors", at)


def test_header_counts_even_where_it_means_the_same(folders, original, framed):
    folder, identity = original
    content = (folder / "model.safetensors").read_bytes()
    length = int.from_bytes(content[:8], "little")
    (folder / "model.safetensors").write_bytes(framed(content[8 : 8 + length] + b" ", content[8 + length :]))
    assert folders.open(folder).identity.digest != identity.digest


def test_other_shards_are_another_identity(folders):
    """It tells files apart, not tensors: comparing tensors would take reading all of them."""
    tensors = {"a": ("U8", (1,), b"a"), "b": ("U8", (1,), b"b")}
    whole = folders.open(folders.single("whole", tensors)).identity
    halves = folders.open(folders.sharded([{"a": tensors["a"]}, {"b": tensors["b"]}], "halves")).identity
    assert whole.digest != halves.digest


def test_a_sidecar_more_or_less(folders, original):
    folder, identity = original
    (folder / "merges.txt").write_text("")
    assert folders.open(folder).identity.digest != identity.digest


def test_many_tensors_are_sampled_evenly(folders, monkeypatch):
    monkeypatch.setattr(sampling, "SAMPLED_TENSORS", 4)
    tensors = {f"t{index}": ("U8", (1,), b"x") for index in range(10)}
    original = folders.open(folders.single("whole", tensors)).identity.digest
    seen = [
        index
        for index in range(10)
        if folders.open(folders.single("whole", {**tensors, f"t{index}": ("U8", (1,), b"y")})).identity.digest
        != original
    ]
    assert seen == [0, 2, 5, 7]


# ---- with digests


def digests_of(folder):
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in folder.glob("*.safetensors")}


def test_digests_for_all_files_cover_every_byte(folders, original):
    folder, sampled = original
    complete = folders.open(folder, digests=digests_of(folder)).identity
    assert complete.scheme == "sha256"
    assert complete.digest != sampled.digest
    flip(folder / "model.safetensors", -20_003)  # not in the sample
    assert folders.open(folder).identity == sampled
    assert folders.open(folder, digests=digests_of(folder)).identity.digest != complete.digest


def test_digests_for_some_files_are_not_enough(folders):
    shards = [{"a": ("U8", (1,), b"a")}, {"b": ("U8", (1,), b"b")}]
    folder = folders.sharded(shards)
    digests = digests_of(folder)
    assert folders.open(folder, digests=digests).identity.scheme == "sha256"
    del digests["model-00002-of-00002.safetensors"]
    assert folders.open(folder, digests=digests).identity == folders.open(folder).identity


def test_sidecars_count_with_digests_too(folders, original):
    folder, _ = original
    before = folders.open(folder, digests=digests_of(folder)).identity
    (folder / "config.json").write_text(json.dumps({"model_type": "other"}))
    assert folders.open(folder, digests=digests_of(folder)).identity.digest != before.digest


def test_cache_and_known_digests_agree(folders, encode):
    content = encode(LARGE)
    sha256 = hashlib.sha256(content).hexdigest()
    snapshot = folders.cached({"model.safetensors": sha256}, {"model.safetensors": content})
    plain = folders.write("plain", {"model.safetensors": content})
    assert folders.open(snapshot).identity == folders.open(plain, digests={"model.safetensors": sha256}).identity


def test_digest_that_is_none(folders):
    with pytest.raises(ValueError, match="not a sha256"):
        folders.open(folders.single(), digests={"model.safetensors": "abc"})


def test_without_reading_weights_when_digests_are_known(folders, original, monkeypatch):
    folder, _ = original

    def no_sample(checkpoint, digest):
        raise AssertionError("weights were read")

    monkeypatch.setattr(sampling, "_sample", no_sample)
    folders.open(folder, digests=digests_of(folder))


def test_a_small_checkpoint_is_covered_byte_for_byte(folders, original, monkeypatch):
    monkeypatch.setattr("safegraft.checkpoint.folder.HASHED_BYTES", 1 << 20)
    folder, _ = original
    before = folders.open(folder).identity
    assert before.scheme == "sha256"
    sha256 = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    assert folders.open(folder, digests={"model.safetensors": sha256}).identity == before
    content = bytearray((folder / "model.safetensors").read_bytes())
    content[-4] ^= 1  # the end of the large tensor, which no sample reaches
    (folder / "model.safetensors").write_bytes(content)
    assert folders.open(folder).identity.digest != before.digest
