"""Symlinks and special files: what a folder may reach, and that nothing blocks."""

import os
import socket

import pytest

from safegraft.errors import CheckpointError

SHA = "ab" * 32
XET = "cd" * 32


@pytest.fixture
def linked(folders, encode, weights):
    """A folder whose model.safetensors is a symlink to the given target, after the file was put at `real`."""

    def make(real, target=None):
        folder = folders.write("models/tiny", {})
        real.parent.mkdir(parents=True, exist_ok=True)
        real.write_bytes(encode(weights))
        (folder / "model.safetensors").symlink_to(target or real)
        return folder

    return make


def test_symlink_within_the_folder(folders, linked, tmp_path):
    folder = linked(tmp_path / "models/tiny/data/weights", "data/weights")
    assert folders.open(folder).tensors


def test_symlink_that_leaves_the_folder(folders, linked, tmp_path, problems_of):
    folder = linked(tmp_path / "models/secret/weights")
    assert problems_of(lambda: folders.open(folder)) == [
        "tiny/model.safetensors: is a symlink that leads out of the checkpoint. Put the file itself in the folder"
    ]


def test_symlink_to_a_neighbour_whose_name_begins_alike(folders, linked, tmp_path):
    with pytest.raises(CheckpointError, match="leads out of the checkpoint"):
        folders.open(linked(tmp_path / "models/tiny-secret/weights"))


def test_symlink_through_a_symlink_out_of_the_folder(folders, linked, tmp_path):
    (tmp_path / "outside").mkdir()
    folder = linked(tmp_path / "outside/weights", "inner/weights")
    (folder / "inner").symlink_to(tmp_path / "outside")
    with pytest.raises(CheckpointError, match="leads out of the checkpoint"):
        folders.open(folder)


def test_a_root_allows_what_lies_below_it(folders, linked, tmp_path):
    folder = linked(tmp_path / "models/shared/weights")
    assert folders.open(folder, root=tmp_path / "models").tensors
    with pytest.raises(CheckpointError, match="leads out of the checkpoint"):
        folders.open(folder, root=tmp_path / "models/tiny")


def test_the_folder_itself_must_lie_below_the_root(folders, tmp_path):
    folder = folders.single("elsewhere/tiny")
    (tmp_path / "models").mkdir()
    (tmp_path / "models/tiny").symlink_to(folder)
    with pytest.raises(CheckpointError, match="out of the folder that models are served from"):
        folders.open(tmp_path / "models/tiny", root=tmp_path / "models")
    assert folders.open(tmp_path / "models/tiny").tensors  # named by the user, the folder is where it is


def test_sidecar_and_index_symlinks_are_held_to_the_same_rule(folders, tmp_path, problems_of):
    folder = folders.single()
    (tmp_path / "secret.json").write_text("{}")
    (folder / "tokenizer.json").symlink_to(tmp_path / "secret.json")
    (folder / "model.safetensors.index.json").symlink_to(tmp_path / "secret.json")
    assert [problem.split(":")[0] for problem in problems_of(lambda: folders.open(folder))] == [
        "tiny/tokenizer.json",
        "tiny/model.safetensors.index.json",
    ]


def test_folder_of_chat_templates_that_is_a_symlink(folders, tmp_path, problems_of):
    folder = folders.single()
    (tmp_path / "private").mkdir()
    (tmp_path / "private/letter.jinja").write_text("secret")
    (folder / "additional_chat_templates").symlink_to(tmp_path / "private")
    (problem,) = problems_of(lambda: folders.open(folder))
    assert problem.startswith("tiny/additional_chat_templates: is a symlink that leads out")


def test_dangling_and_circular_symlinks(folders, tmp_path, problems_of):
    folder = folders.write("tiny", {})
    (folder / "model.safetensors").symlink_to("gone")
    assert "a symlink to nothing" in problems_of(lambda: folders.open(folder))[0]
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors").symlink_to("model.safetensors")
    assert "leads in a circle" in problems_of(lambda: folders.open(folder))[0]


@pytest.mark.timeout(20)
def test_named_pipe_is_refused_without_waiting_for_a_writer(folders, problems_of):
    folder = folders.single()
    (folder / "model.safetensors").unlink()
    os.mkfifo(folder / "model.safetensors")
    os.mkfifo(folder / "tokenizer.json")
    assert problems_of(lambda: folders.open(folder)) == [
        "tiny/tokenizer.json: is a named pipe, not a regular file",
        "tiny/model.safetensors: is a named pipe, not a regular file",
    ]


@pytest.mark.timeout(20)
def test_named_pipe_that_took_the_place_of_a_file_just_before_it_is_opened(folders, problems_of, monkeypatch):
    folder = folders.single()
    look = os.stat
    regular = look(folder / "config.json")
    (folder / "model.safetensors").unlink()
    os.mkfifo(folder / "model.safetensors")
    monkeypatch.setattr(os, "stat", lambda path, **o: look(path, **o) if "follow_symlinks" not in o else regular)
    assert problems_of(lambda: folders.open(folder)) == ["tiny/model.safetensors: is a named pipe, not a regular file"]


def test_socket_is_refused(folders, problems_of, monkeypatch):
    folder = folders.single()
    (folder / "model.safetensors").unlink()
    monkeypatch.chdir(folder)  # a socket's path may have no more than about 100 characters
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("model.safetensors")
        assert "is a socket" in problems_of(lambda: folders.open(folder))[0]


def test_device_is_refused(folders, problems_of):
    folder = folders.write("tiny", {})
    (folder / "model.safetensors").symlink_to("/dev/zero")
    assert "is a device" in problems_of(lambda: folders.open(folder, root="/"))[0]


def test_folder_in_place_of_a_file(folders, problems_of):
    folder = folders.write("tiny", {})
    (folder / "model.safetensors").mkdir()
    assert "has neither model.safetensors" in problems_of(lambda: folders.open(folder))[0]
    (folder / "LICENSE").mkdir()
    assert len(problems_of(lambda: folders.open(folder))) == 1


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_unreadable_file(folders, problems_of):
    folder = folders.single()
    (folder / "model.safetensors").chmod(0)
    assert "permission denied" in problems_of(lambda: folders.open(folder))[0]


def test_too_many_open_files_says_what_to_do(folders, problems_of, monkeypatch):
    folder = folders.single()

    def refuse(path, flags):
        raise OSError(24, "Too many open files", path)

    monkeypatch.setattr(os, "open", refuse)
    assert "raise the limit (ulimit -n)" in problems_of(lambda: folders.open(folder))[0]


# ---- Hugging Face cache


def cached_files(encode, weights):
    return {"model.safetensors": encode(weights), "additional_chat_templates/tool.jinja": b"t"}


def test_cache_snapshot_reads_its_blobs(folders, encode, weights):
    snapshot = folders.cached({"model.safetensors": SHA}, cached_files(encode, weights))
    checkpoint = folders.open(snapshot, "acme/tiny")
    assert list(checkpoint.tensors) == list(weights)
    assert list(checkpoint.sidecars) == ["additional_chat_templates/tool.jinja", "config.json"]
    assert (checkpoint.identity.name, checkpoint.identity.scheme) == ("acme/tiny", "sha256")


def test_cache_snapshot_may_not_link_out_of_its_repository(folders, encode, weights, tmp_path):
    snapshot = folders.cached({}, cached_files(encode, weights))
    other = tmp_path / "hub/models--acme--private/blobs" / SHA
    other.parent.mkdir(parents=True)
    other.write_bytes(b"secret")
    (snapshot / "vocab.json").symlink_to(other)
    with pytest.raises(CheckpointError, match=r"vocab\.json: is a symlink that leads out"):
        folders.open(snapshot)


def test_store_that_cached_repositories_share(folders, encode, weights, tmp_path):
    """Blobs may be symlinks into hub/blobs/xx/<xet hash>; their own names stay the sha256."""
    snapshot = folders.cached({"model.safetensors": SHA}, cached_files(encode, weights))
    blob = tmp_path / "hub/models--acme--tiny/blobs" / SHA
    store = tmp_path / "hub/blobs" / XET[:2]
    store.mkdir(parents=True)
    blob.rename(store / XET)
    blob.symlink_to(os.path.relpath(store / XET, blob.parent))
    direct = folders.open(snapshot).identity
    assert direct.scheme == "sha256"
    (store / XET).rename(store / "anything")
    blob.unlink()
    blob.symlink_to(store / "anything")
    with pytest.raises(CheckpointError, match="leads out"):
        folders.open(snapshot)


@pytest.mark.usefixtures("large")
def test_only_blobs_are_known_by_their_sha256(folders, encode, weights, tmp_path):
    snapshot = folders.cached({"model.safetensors": SHA}, cached_files(encode, weights))
    (tmp_path / "hub/models--acme--tiny/blobs" / SHA).rename(tmp_path / "hub/models--acme--tiny" / XET)
    (snapshot / "model.safetensors").unlink()
    (snapshot / "model.safetensors").symlink_to(f"../../{XET}")
    assert folders.open(snapshot).identity.scheme == "sampled-sha256"


@pytest.mark.parametrize("place", ["snapshots/main", "revisions/" + "c" * 40])
def test_what_only_resembles_the_cache_gets_no_privilege(folders, encode, weights, tmp_path, place):
    snapshot = folders.cached({"model.safetensors": SHA}, cached_files(encode, weights))
    repository = tmp_path / "hub/models--acme--tiny"
    (repository / place).parent.mkdir(exist_ok=True)
    snapshot.rename(repository / place)
    with pytest.raises(CheckpointError, match="leads out of the checkpoint"):
        folders.open(repository / place)


def test_symlink_to_a_snapshot_is_the_snapshot(folders, encode, weights, tmp_path):
    snapshot = folders.cached({"model.safetensors": SHA}, cached_files(encode, weights))
    (tmp_path / "mine").symlink_to(snapshot)
    assert folders.open(tmp_path / "mine").identity.scheme == "sha256"
