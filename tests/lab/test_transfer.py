"""The demo's checks notice what they are there to notice."""

import json
import shutil
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from safegraft.errors import DataCorruptedError, SafegraftError
from safegraft_trainers.lab.pairings import HOST, PAIRINGS
from safegraft_trainers.lab.shipped import CHECKPOINTS
from safegraft_trainers.lab.transfer import Merged, check_against_local, check_copied, check_files


@pytest.fixture
def merged(tmp_path: Path) -> Merged:
    """The host itself with a manifest, as if it had come from a server."""
    folder = tmp_path / "merged"
    shutil.copytree(CHECKPOINTS / HOST, folder)
    digests = {file.name: sha256(file.read_bytes()).hexdigest() for file in folder.iterdir()}
    manifest = json.dumps({"plan_digest": "d" * 64, "files": {name: {"sha256": one} for name, one in digests.items()}})
    (folder / "safegraft.json").write_text(manifest)
    digests["safegraft.json"] = sha256(manifest.encode()).hexdigest()
    return Merged(folder, "d" * 64, digests, size=1, first_byte=0.1, seconds=0.2)


def test_an_intact_merge_passes(merged: Merged) -> None:
    assert check_files(merged) == len(list((CHECKPOINTS / HOST).iterdir())) + 1
    check_copied(merged, load_file(merged.folder / "model.safetensors").keys(), CHECKPOINTS / HOST)


def flip_a_bit(folder: Path) -> None:
    weights = bytearray((folder / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (folder / "model.safetensors").write_bytes(weights)


def add_a_file(folder: Path) -> None:
    (folder / "modeling.py").write_text("")


def lose_a_file(folder: Path) -> None:
    (folder / "processor_config.json").unlink()


def list_another_digest(folder: Path) -> None:
    manifest = json.loads((folder / "safegraft.json").read_text())
    manifest["files"]["config.json"]["sha256"] = "0" * 64
    (folder / "safegraft.json").write_text(json.dumps(manifest))


@pytest.mark.parametrize("damage", [flip_a_bit, add_a_file, lose_a_file, list_another_digest])
def test_damaged_files_are_noticed(merged: Merged, damage: Callable[[Path], None]) -> None:
    damage(merged.folder)
    with pytest.raises(DataCorruptedError, match="not those that the server sent"):
        check_files(merged)


def test_a_manifest_of_another_plan_is_noticed(merged: Merged) -> None:
    other = Merged(merged.folder, "e" * 64, merged.sha256, merged.size, merged.first_byte, merged.seconds)
    with pytest.raises(DataCorruptedError, match="another plan"):
        check_files(other)


def test_a_changed_tensor_that_should_be_the_hosts_is_noticed_by_name(merged: Merged) -> None:
    weights = merged.folder / "model.safetensors"
    tensors = load_file(weights)
    changed, kept = "multi_modal_projector.linear_1.bias", "multi_modal_projector.linear_2.bias"
    tensors[changed][3] += 1
    save_file(tensors, weights, metadata={"format": "pt"})
    check_copied(merged, {kept}, CHECKPOINTS / HOST)
    with pytest.raises(DataCorruptedError, match=changed):
        check_copied(merged, {changed, kept}, CHECKPOINTS / HOST)


@pytest.mark.slow
def test_other_bytes_than_a_local_merge_gives_are_noticed_by_file(merged: Merged) -> None:
    with pytest.raises(DataCorruptedError, match=r"other bytes for .*model\.safetensors"):
        check_against_local(merged, PAIRINGS[0].recipe(0.5), CHECKPOINTS.parent)


@pytest.mark.slow
def test_a_local_merge_that_fails_says_why(merged: Merged) -> None:
    with pytest.raises(SafegraftError, match="no-such-method"):
        check_against_local(merged, PAIRINGS[0].recipe(0.5) | {"merge_method": "no-such-method"}, CHECKPOINTS.parent)
