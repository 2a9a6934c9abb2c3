"""A checkpoint behind a network is what the same files in a folder are: contents, names, errors and merges."""

import contextlib
import json
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from memorystore import MemoryStore, together

from safegraft.adapter.merge import merge_adapters
from safegraft.checkpoint.adapter import AdapterFolder
from safegraft.checkpoint.folder import FolderCheckpoint
from safegraft.checkpoint.identity import identify
from safegraft.checkpoint.lora import add_adapter
from safegraft.checkpoint.types import Checkpoint, Identity
from safegraft.engine.execute import MergedCheckpoint
from safegraft.engine.folder import write_folder
from safegraft.engine.plan import make_plan
from safegraft.errors import CheckpointError, InputChangedError, SafegraftError
from safegraft.local import open_model
from safegraft.methods import Registry
from safegraft.recipe import read_recipe
from safegraft.remote.adapter import RemoteAdapter
from safegraft.remote.checkpoint import RemoteCheckpoint
from safegraft.testing import read_header, tiny_llm, tiny_lvlm

CARD = b"---\nlicense: Apache-2.0\n---\n# A model\n"


def read(checkpoint: Checkpoint, name: str) -> bytes:
    tensor = checkpoint.tensors[name]
    buffer = bytearray(tensor.nbytes)
    checkpoint.read_into(tensor, 0, memoryview(buffer))
    return bytes(buffer)


@pytest.fixture(params=["llm", "lvlm in shards"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    made = tiny_llm(tmp_path / "m") if request.param == "llm" else tiny_lvlm(tmp_path / "m", shards=3)
    (made / "README.md").write_bytes(CARD)
    (made / "training_args.bin").write_bytes(b"\x80\x02}q\0.")
    (made / "additional_chat_templates").mkdir()
    (made / "additional_chat_templates" / "tools.jinja").write_text("{{ tools }}")
    return made


def header_sizes(store: MemoryStore) -> int:
    return sum(
        8 + int.from_bytes(content[:8], "little")
        for file, content in store.contents.items()
        if file.endswith(".safetensors")
    )


def small_files(store: MemoryStore) -> int:
    """Bytes of everything that is no weight and belongs to the model."""
    return sum(
        len(content)
        for file, content in store.contents.items()
        if not file.endswith(".safetensors") and file != "training_args.bin"
    )


# ---- opening


def test_it_is_what_the_folder_is(folder: Path) -> None:
    local = FolderCheckpoint(folder, "org/model@" + "c" * 40)
    store = MemoryStore.of(folder, modified_ns=7)
    remote = RemoteCheckpoint(store)
    assert remote.identity == local.identity
    assert remote.identity.scheme == "sha256"
    assert remote.tensors == local.tensors
    assert list(remote.tensors) == list(local.tensors)
    assert (remote.name, remote.config, remote.sidecars) == (local.name, local.config, local.sidecars)
    assert "additional_chat_templates/tools.jinja" in remote.sidecars
    assert remote.tokens() == local.tokens()
    assert remote.tokens()
    assert remote.licence == local.licence
    assert remote.licence is not None
    assert remote.licence.id == "apache-2.0"
    assert remote.modified_ns() == 7
    for name in remote.tensors:
        assert read(remote, name) == read(local, name)
    remote.verify_unchanged()
    remote.close()
    remote.close()
    local.close()


def test_opening_moves_headers_and_small_files_and_not_a_byte_more(folder: Path) -> None:
    store = MemoryStore.of(folder)
    RemoteCheckpoint(store).close()
    assert store.bytes_read == small_files(store) + header_sizes(store)
    for file in store.contents:
        assert set(store.times(file)) <= {0, 1}
        if file.endswith(".safetensors"):
            size = 8 + int.from_bytes(store.contents[file][:8], "little")
            assert store.times(file) == [1] * size + [0] * (len(store.contents[file]) - size)


def test_files_are_opened_in_parallel(tmp_path: Path) -> None:
    def before(file: str, start: int, stop: int) -> None:
        if file.endswith(".safetensors") and start == 0:
            three.wait(20)  # none goes on before all have been asked for

    three = threading.Barrier(3)
    store = MemoryStore.of(tiny_lvlm(tmp_path / "m", shards=3), before=before)
    RemoteCheckpoint(store).close()


@pytest.mark.parametrize("shards", [1, 2])
def test_without_known_digests_a_sample_names_it_as_it_does_a_large_folder(
    tmp_path: Path, shards: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tiny_lvlm(tmp_path / "m", shards=shards)
    monkeypatch.setattr("safegraft.checkpoint.identity.SAMPLED_BYTES", 64)
    monkeypatch.setattr("safegraft.checkpoint.folder.HASHED_BYTES", -1)  # as if it were large
    local = FolderCheckpoint(folder, "org/model@" + "c" * 40)
    store = MemoryStore.of(folder, sha256=False, before=lambda *_: time.sleep(0.002))
    most_reading: list[int] = []

    def identified(checkpoint: Checkpoint, files: Any) -> Identity:
        store.most_reading = 0
        result = identify(checkpoint, files)
        most_reading.append(store.most_reading)
        return result

    monkeypatch.setattr("safegraft.remote.checkpoint.identify", identified)
    remote = RemoteCheckpoint(store)
    assert most_reading[0] > 1  # in parallel
    assert remote.identity.scheme == "sampled-sha256"
    assert remote.identity.digest != local.identity.digest  # what the store calls their versions counts, too
    assert remote.identity == RemoteCheckpoint(MemoryStore.of(folder, sha256=False)).identity
    sampled = sum(min(64, tensor.nbytes) for tensor in remote.tensors.values())
    assert store.bytes_read == small_files(store) + header_sizes(store) + sampled
    assert remote.verified() == {}  # there is nothing to compare with
    assert store.live < 100_000  # sidecars and headers: the window of the sample is gone
    remote.close()
    local.close()


# ---- what is wrong with it


def broken(files: dict[str, bytes]) -> dict[str, dict[str, bytes]]:
    shards = [file for file in files if file.endswith(".safetensors")]
    index = "model.safetensors.index.json"
    return {
        "nothing": {},
        "no config": {file: content for file, content in files.items() if file != "config.json"},
        "no index": {file: content for file, content in files.items() if file != index},
        "a shard is missing": {file: content for file, content in files.items() if file != shards[0]},
        "all of it": {**files, "config.json": b"[]", shards[0]: b"", shards[1]: files[shards[1]][:-3], shards[2]: b"x"},
        "bad index": {**files, index: b"{}"},
        "an adapter": {"adapter_config.json": b"{}", "adapter_model.safetensors": b"x"},
        "pickle": {"config.json": files["config.json"], "pytorch_model.bin": b"x"},
    }


@pytest.mark.parametrize(
    "what",
    ["nothing", "no config", "no index", "a shard is missing", "all of it", "bad index", "an adapter", "pickle"],
)
def test_problems_are_those_of_the_folder_all_at_once(tmp_path: Path, what: str) -> None:
    files = broken(dict(MemoryStore.of(tiny_lvlm(tmp_path / "good", shards=3)).contents))[what]
    folder = tmp_path / "bad"
    folder.mkdir()
    for file, content in files.items():
        (folder / file).write_bytes(content)
    with pytest.raises(CheckpointError) as local:
        FolderCheckpoint(folder, "org/bad")
    store = MemoryStore(files, "org/bad")
    with pytest.raises(CheckpointError) as remote:
        RemoteCheckpoint(store)
    assert str(remote.value) == str(local.value)
    assert len(remote.value.problems) == {"all of it": 4, "nothing": 2}.get(what, 1)
    assert store.closed


@pytest.mark.parametrize("file", ["config.json", "tokenizer.json"])
def test_a_sidecar_that_is_not_the_listed_one_is_refused(folder: Path, file: str) -> None:
    store = MemoryStore.of(folder)
    store.contents[file] = store.contents[file][:-1] + b" "
    with pytest.raises(InputChangedError, match=rf"org/model@c+/{file}: does not have the sha256"):
        RemoteCheckpoint(store)
    assert store.closed


def test_files_too_large_are_refused_unread(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = MemoryStore.of(folder)
    for module in ("checkpoint.contents", "remote.checkpoint"):
        monkeypatch.setattr(f"safegraft.{module}.MAX_SIDECAR_BYTES", 100)
    with pytest.raises(CheckpointError, match=r"tokenizer\.json: has .* bytes; more than 100 are not accepted"):
        RemoteCheckpoint(store)
    assert not any(store.times("tokenizer.json"))


def test_a_store_that_fails_is_closed_and_leaves_no_thread(folder: Path) -> None:
    def before(file: str, start: int, stop: int) -> None:
        raise CheckpointError(f"{file} cannot be had")

    store = MemoryStore.of(folder, before=before)
    with pytest.raises(CheckpointError) as caught:
        RemoteCheckpoint(store)
    assert {"config.json cannot be had", "tokenizer.json cannot be had"} <= set(map(str, caught.value.problems))
    assert store.closed
    assert not any(one.name.startswith("safegraft-open") for one in threading.enumerate())


def test_ranges_outside_a_tensor_and_reading_after_the_end(folder: Path) -> None:
    remote = RemoteCheckpoint(MemoryStore.of(folder))
    tensor = next(iter(remote.tensors.values()))
    remote.read_into(tensor, tensor.nbytes, memoryview(b""))
    for start, length in ((-1, 1), (0, tensor.nbytes + 1), (tensor.nbytes, 1)):
        with pytest.raises(ValueError, match="out of range"):
            remote.read_into(tensor, start, memoryview(bytearray(length)))
    wide = memoryview(bytearray(16)).cast("q")
    remote.read_into(tensor, 0, wide)
    assert wide.tobytes() == read(remote, tensor.name)[:16]
    remote.close()
    with pytest.raises(ValueError, match="has been closed"):
        read(remote, tensor.name)


# ---- verifying


def everything(remote: RemoteCheckpoint) -> list[tuple[Any, int, int]]:
    """All tensors, in the order in which they lie."""
    tensors = sorted(remote.tensors.values(), key=lambda one: (one.file, one.offset))
    return [(tensor, 0, tensor.nbytes) for tensor in tensors]


def test_files_that_are_read_as_they_lie_are_verified(folder: Path) -> None:
    store = MemoryStore.of(folder)
    remote = RemoteCheckpoint(store, memory=2048)
    files = {tensor.file for tensor in remote.tensors.values()}
    assert remote.verified() == dict.fromkeys(files, False)
    ranges = everything(remote)
    with remote.expecting(ranges):
        for tensor, _, _ in ranges:
            read(remote, tensor.name)
    assert remote.verified() == dict.fromkeys(files, True)
    remote.verify_unchanged()
    remote.close()


def test_files_of_which_a_part_was_read_are_not(folder: Path) -> None:
    remote = RemoteCheckpoint(MemoryStore.of(folder))
    ranges = everything(remote)
    skipped = ranges[0][0]
    with remote.expecting(ranges[1:]):
        for tensor, _, _ in ranges[1:]:
            read(remote, tensor.name)
    assert [file for file, done in remote.verified().items() if not done] == [skipped.file]
    remote.close()


def test_a_changed_byte_is_found_when_the_file_has_passed(folder: Path) -> None:
    store = MemoryStore.of(folder)
    remote = RemoteCheckpoint(store)
    ranges = everything(remote)
    last = ranges[-1][0]
    changed = bytearray(store.contents[last.file])
    changed[last.offset] ^= 1
    store.contents[last.file] = bytes(changed)
    with remote.expecting(ranges), contextlib.suppress(InputChangedError):  # raised once the last byte has come
        for tensor, _, _ in ranges:
            read(remote, tensor.name)
    for look in (remote.verify_unchanged, lambda: read(remote, last.name)):
        with pytest.raises(InputChangedError, match=rf"{last.file}: does not have the sha256"):
            look()
    assert remote.verified()[last.file] is False
    remote.close()


# ---- merging


class Remotes:
    """Opens the models of a recipe as remote ones, under the names that local ones have."""

    def __init__(self, **options: Any) -> None:
        self.options = options
        self.stores: dict[str, MemoryStore] = {}

    def __call__(self, reference: str) -> Checkpoint:
        base, _, lora = reference.partition("+")
        model = RemoteCheckpoint(self.store(base), **self.options)
        return add_adapter(model, lambda: RemoteAdapter(self.store(lora)), reference) if lora else model

    def store(self, reference: str) -> MemoryStore:
        self.stores[reference] = store = MemoryStore.of(Path(reference), reference)
        return store


def planned(recipe: dict[str, Any], opener: Callable[[str], Checkpoint], **options: Any) -> Any:
    return make_plan(read_recipe(recipe), opener, Registry.discover(), **options)


def merged_files(plan: Any, **options: Any) -> dict[str, bytes]:
    with MergedCheckpoint(plan, owns_plan=True, **options) as merged:
        return {name: file.read() for name, file in merged.files.items()}


@pytest.mark.parametrize("kind", ["linear", "slerp", "task_arithmetic", "ties"])
@pytest.mark.parametrize("memory", [700, 1 << 20])
def test_a_merge_gives_the_same_bytes(models: Any, kind: str, memory: int) -> None:
    recipe = models.task_arithmetic(merge_method="ties") if kind == "ties" else getattr(models, kind)()
    remotes = Remotes(memory=memory)
    local, remote = planned(recipe, open_model), planned(recipe, remotes)
    assert remote.digest == local.digest
    for store in remotes.stores.values():
        assert store.bytes_read == small_files(store) + header_sizes(store)  # planning has read no weight
    assert merged_files(remote, threads=3, block_elements=300) == merged_files(local, threads=1)
    assert all(store.closed for store in remotes.stores.values())


def test_a_merge_moves_each_byte_once(models: Any) -> None:
    remotes = Remotes()
    plan = planned(models.linear(), remotes, max_shard_size=40_000)
    with MergedCheckpoint(plan, threads=2, block_elements=256, owns_plan=True) as merged:
        for file in merged.files.values():
            if file.name.endswith(".safetensors"):
                file.read()
    for store in remotes.stores.values():
        for file in store.contents:
            if file.endswith(".safetensors"):
                assert set(store.times(file)) == {1}


def test_of_a_model_that_gives_some_layers_only_those_move(models: Any) -> None:
    model = str(models.llm)
    slices = [{"sources": [{"model": model, "layer_range": [1, 2]}]}]
    remotes = Remotes()
    plan = planned({"slices": slices, "merge_method": "passthrough"}, remotes)
    (store,) = remotes.stores.values()
    with MergedCheckpoint(plan, owns_plan=True) as merged:
        merged.files["model.safetensors"].read()
    header = read_header(models.llm / "model.safetensors")
    offset = header_sizes(store)
    counts = store.times("model.safetensors")
    for name, entry in header.items():
        if name != "__metadata__":
            start, stop = entry["data_offsets"]
            assert set(counts[offset + start : offset + stop]) == {0 if ".layers.0." in name else 1}, name


def test_a_changed_input_leaves_nothing_behind(models: Any, tmp_path: Path) -> None:
    remotes = Remotes()
    plan = planned(models.linear(), remotes)
    store = remotes.stores[str(models.llm)]
    content = bytearray(store.contents["model.safetensors"])
    content[-2] ^= 1  # a small change of one value
    store.contents["model.safetensors"] = bytes(content)
    with pytest.raises(InputChangedError, match=r"model\.safetensors: does not have the sha256"):
        write_folder(plan, tmp_path / "out")
    plan.close()
    assert list(tmp_path.iterdir()) == []


def test_a_store_that_fails_while_merging_says_so(models: Any, tmp_path: Path) -> None:
    remotes = Remotes()
    plan = planned(models.linear(), remotes)

    def before(file: str, start: int, stop: int) -> None:
        raise CheckpointError("the network is gone")

    remotes.stores[str(models.lvlm)].before = before
    with pytest.raises(SafegraftError, match="the network is gone"):
        write_folder(plan, tmp_path / "out")
    plan.close()


def test_several_streams_at_a_time_from_several_threads(models: Any) -> None:
    remotes = Remotes(memory=3000)
    expected = merged_files(planned(models.task_arithmetic(), open_model, max_shard_size=4000))
    plan = planned(models.task_arithmetic(), remotes, max_shard_size=4000)
    with MergedCheckpoint(plan, threads=2, block_elements=128, owns_plan=True) as merged:

        def same(name: str) -> None:
            assert merged.files[name].read() == expected[name]

        together([lambda name=name: same(name) for name in merged.files])


# ---- adapters


@pytest.fixture
def lora(models: Any, write_lora: Any, tmp_path: Path) -> Path:
    return write_lora(tmp_path / "safety-lora", models.llm)


@pytest.mark.parametrize("sha256", [True, False])
def test_an_adapter_is_what_its_folder_is(lora: Path, sha256: bool) -> None:
    local = AdapterFolder(lora, "org/lora")
    store = MemoryStore.of(lora, "org/lora", sha256=sha256)
    remote = RemoteAdapter(store, memory=4096)
    if sha256:  # else it has been hashed here, as small local ones are
        assert store.bytes_read == small_files(store) + header_sizes(store)
    assert remote.identity == local.identity
    assert (remote.tensors, remote.settings, remote.content) == (local.tensors, local.settings, local.content)
    assert list(remote.tensors) == list(local.tensors)
    assert (remote.sidecars, remote.config, remote.base_name) == (local.sidecars, local.config, local.base_name)
    assert remote.tokens() is None

    def compare() -> None:
        for name in remote.tensors:
            assert read(remote, name) == read(local, name)

    together([compare] * 3)
    if sha256:
        header, size = header_sizes(store), len(store.contents["adapter_model.safetensors"])
        blocks = [one for one in store.requests if one[0] == "adapter_model.safetensors" and one[1] >= header]
        assert len(blocks) == -(-(size - header) // (4096 // 16))  # the file's blocks, and not tensor by tensor
    remote.verify_unchanged()
    assert remote.verified() == ({"adapter_model.safetensors": True} if sha256 else {})
    remote.close()
    remote.close()
    assert store.closed
    local.close()


@pytest.mark.parametrize("remote_parts", ["base", "adapter", "both"])
def test_a_model_with_an_adapter_may_be_remote_in_any_part(models: Any, lora: Path, remote_parts: str) -> None:
    recipe = models.linear()
    recipe["models"][0]["model"] = f"{models.llm}+{lora}"
    remotes = Remotes(memory=2000)

    def mixed(reference: str) -> Checkpoint:
        base, _, adapter = reference.partition("+")
        model = remotes(base) if remote_parts != "adapter" else FolderCheckpoint(Path(base), base)
        if not adapter:
            return model
        opened = (
            AdapterFolder(Path(adapter), adapter) if remote_parts == "base" else RemoteAdapter(remotes.store(adapter))
        )
        return add_adapter(model, lambda: opened, reference)

    local, remote = planned(recipe, open_model), planned(recipe, mixed)
    assert remote.digest == local.digest
    for store in remotes.stores.values():
        assert store.bytes_read == small_files(store) + header_sizes(store)
    assert merged_files(remote, threads=2) == merged_files(local)
    assert all(store.closed for store in remotes.stores.values())


def test_adapters_alone_are_merged_from_stores(models: Any, lora: Path, write_lora: Any, tmp_path: Path) -> None:
    other = write_lora(tmp_path / "other-lora", models.llm, seed=2)
    recipe = read_recipe(
        {
            "models": [{"model": str(lora)}, {"model": str(other)}],
            "merge_method": "linear",
            "parameters": {"weight": 0.5},
        }
    )
    results = [
        merge_adapters(recipe, opener, Registry.discover(), tmp_path / out).result.files
        for out, opener in (
            ("one", lambda reference: AdapterFolder(Path(reference), reference)),
            ("two", lambda reference: RemoteAdapter(MemoryStore.of(Path(reference), reference))),
        )
    ]
    assert results[0] == results[1]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"adapter_config.json": json.dumps({"peft_type": "IA3"}).encode()}, "of 'IA3'"),
        ({"adapter_model.safetensors": b"x"}, "is not a safetensors file"),
        ({"adapter_model.safetensors": None}, "is the download complete"),
        ({"adapter_config.json": None}, "is not an adapter"),
    ],
)
def test_a_bad_adapter_is_refused_and_its_store_closed(lora: Path, change: dict[str, Any], message: str) -> None:
    files = {**MemoryStore.of(lora).contents, **change}
    store = MemoryStore({file: content for file, content in files.items() if content is not None}, "org/lora")
    with pytest.raises(CheckpointError, match=message):
        RemoteAdapter(store)
    assert store.closed
