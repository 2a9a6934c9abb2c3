"""Uploads on disk: only verified bytes get in, checkpoints are made of them, and the unused expire."""

import hashlib
import json
import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from safegraft.errors import CheckpointError, DataCorruptedError, UsageError
from safegraft.rpc.blobs import Blob, BlobStore, parse_manifest
from safegraft.rpc.models import Models


def blob_of(content: bytes) -> Blob:
    return Blob(hashlib.sha256(content).hexdigest(), len(content))


@pytest.fixture
def store(tmp_path: Path) -> BlobStore:
    store = BlobStore(tmp_path)
    store.prepare()
    return store


@pytest.fixture
def put(store: BlobStore) -> Callable[[bytes], Blob]:
    def put(content: bytes) -> Blob:
        blob = blob_of(content)
        if not store.has(blob):
            write(store, blob, content)
        return blob

    return put


def write(store: BlobStore, blob: Blob, content: bytes) -> None:
    store.reserve(blob)
    incoming = store.receive(blob)
    try:
        incoming.open()
        incoming.append(content[incoming.committed :])
        incoming.finish()
    finally:
        incoming.close()


@given(content=st.binary(max_size=300), cut=st.integers(0, 300))
@settings(deadline=None)
def test_a_blob_arrives_in_any_two_parts(tmp_path_factory: pytest.TempPathFactory, content: bytes, cut: int):
    store = BlobStore(tmp_path_factory.mktemp("blobs"))
    store.prepare()
    blob, cut = blob_of(content), min(cut, len(content))
    store.reserve(blob)
    first = store.receive(blob)
    first.open()
    first.append(content[:cut])
    first.close()
    assert store.committed(blob) == cut
    assert store.used() == blob.size, "the whole blob is reserved"
    write(store, blob, content)
    assert store.has(blob)
    assert store.committed(blob) == store.used() == blob.size
    assert (store.blobs / blob.sha256).read_bytes() == content


def test_other_bytes_are_thrown_away(store: BlobStore):
    blob = blob_of(b"right")
    with pytest.raises(DataCorruptedError, match="send it anew"):
        write(store, blob, b"wrong")
    assert not store.has(blob)
    assert store.committed(blob) == store.used() == 0
    write(store, blob, b"right")
    assert store.has(blob)


def test_a_blob_takes_no_more_than_it_promised(store: BlobStore):
    blob = blob_of(b"abc")
    with pytest.raises(UsageError, match="beyond"):
        write(store, blob, b"abcd")
    assert store.committed(blob) == 0


def test_closing_waits_for_a_write_that_was_left_behind(store: BlobStore):
    content = os.urandom(8 << 20)
    blob = blob_of(content)
    store.reserve(blob)
    incoming = store.receive(blob)
    incoming.open()
    writer = threading.Thread(target=incoming.append, args=(content,))
    writer.start()
    while incoming.committed == 0 and writer.is_alive():
        time.sleep(0)
    incoming.close()
    writer.join()
    assert store.committed(blob) == blob.size


@pytest.mark.parametrize("sha256", ["", "x" * 64, "0" * 63, "A" * 64, "../" + "0" * 61])
def test_digests_are_hex(sha256: str):
    with pytest.raises(UsageError, match="hex"):
        Blob(sha256, 1)


def manifest(files: dict[str, Blob]) -> bytes:
    return json.dumps(
        {"files": {name: {"sha256": one.sha256, "size": one.size} for name, one in files.items()}}
    ).encode()


@pytest.mark.parametrize(("name", "shown"), [("aligned-llm", "aligned-llm"), (None, "upload:x")])
def test_an_uploaded_checkpoint_goes_by_its_name(
    root: Path, store: BlobStore, put: Callable[[bytes], Blob], name: str | None, shown: str
):
    files = {path.name: put(path.read_bytes()) for path in (root / "llm").iterdir()}
    document = json.loads(manifest(files))
    sha256 = put(json.dumps({"name": name, **document}).encode()).sha256
    checkpoint = Models((), store).open(f"upload:{sha256}")
    assert checkpoint.name == (shown if name else f"upload:{sha256}")
    checkpoint.close()


@pytest.mark.parametrize("name", ["../up", "a/b", ".hidden", "", 7, ["x"]])
def test_a_name_that_is_no_bare_name_is_refused(name: object):
    document = {"name": name, "files": {"config.json": {"sha256": "0" * 64, "size": 1}}}
    with pytest.raises(CheckpointError, match="is not a bare name"):
        parse_manifest("upload:x", json.dumps(document).encode())


def test_an_uploaded_checkpoint_opens_with_its_digests(root: Path, store: BlobStore, put: Callable[[bytes], Blob]):
    files = {path.name: put(path.read_bytes()) for path in (root / "llm").iterdir()}
    sha256 = put(manifest(files)).sha256
    checkpoint = Models((), store).open(f"upload:{sha256}")
    assert checkpoint.identity.scheme == "sha256"
    assert checkpoint.tensors
    checkpoint.close()
    assert {path.name for path in (store.checkpoints / sha256).iterdir()} == set(files)


def test_many_may_assemble_at_once(root: Path, store: BlobStore, put: Callable[[bytes], Blob]):
    files = {path.name: put(path.read_bytes()) for path in (root / "llm").iterdir()}
    sha256 = put(manifest(files)).sha256
    with ThreadPoolExecutor(8) as threads:
        folders = list(threads.map(lambda _: store.assemble(sha256), range(16)))
    assert len({folder.path for folder in folders}) == 1
    assert os.listdir(store.checkpoints) == [sha256], "nothing half-made is left"


def test_what_is_missing_is_listed(store: BlobStore, put: Callable[[bytes], Blob]):
    sha256 = put(manifest({"a": blob_of(b"a"), "b": blob_of(b"b"), "c": put(b"c")})).sha256
    with pytest.raises(CheckpointError) as caught:
        store.assemble(sha256)
    assert [problem.where.rpartition(" ")[2] for problem in caught.value.problems] == ["a", "b"]
    with pytest.raises(CheckpointError, match="upload it"):
        store.assemble("0" * 64)
    with pytest.raises(CheckpointError, match="hex"):
        store.assemble("../../etc")


GOOD = {"sha256": "0" * 64, "size": 1}


@pytest.mark.parametrize(
    "document",
    [
        "nonsense",
        "[]",
        "{}",
        '{"files": {}}',
        '{"files": []}',
        "[" * 100_000,
        *(
            json.dumps({"files": {name: GOOD}})
            for name in ("../x", "a/b", "..", ".hidden", "", "a\0b", "a\nb", "x" * 300)
        ),
        *(
            json.dumps({"files": {"a": entry}})
            for entry in (
                1,
                {},
                {"sha256": "0" * 64},
                {**GOOD, "size": -1},
                {**GOOD, "size": True},
                {**GOOD, "size": 1.5},
                {**GOOD, "sha256": "x"},
            )
        ),
    ],
)
def test_hostile_manifests_are_refused(document: str):
    with pytest.raises(CheckpointError, match="manifest"):
        parse_manifest("upload:x", document.encode())


def test_the_unused_expire_and_the_used_do_not(root: Path, store: BlobStore, put: Callable[[bytes], Blob]):
    def age(path: Path) -> None:
        os.utime(path, (0, 0))

    files = {path.name: put(path.read_bytes()) for path in (root / "llm").iterdir()}
    sha256 = put(manifest(files)).sha256
    folder = store.assemble(sha256).path
    loose, fresh = put(b"loose"), put(b"fresh")
    store.reserve(partial := blob_of(b"never sent"))
    for path in [*store.blobs.iterdir(), *store.partials.iterdir(), folder]:
        age(path)
    assert store.has(fresh), "asking marks it as used"

    store.sweep(frozenset({sha256}), 3600)
    assert not store.has(loose)
    assert not store.reserved(partial)
    assert store.has(fresh)
    assert store.assemble(sha256).path.is_dir(), "a merge needs it"

    for path in [*store.blobs.iterdir(), folder]:
        age(path)
    store.sweep(frozenset(), 3600)
    store.sweep(frozenset(), 3600)  # the blobs are free only when no checkpoint holds them
    assert not folder.exists()
    assert store.used() == 0
