"""What the engine tells checkpoints before it reads: everything that it reads, and little else."""

from contextlib import contextmanager
from pathlib import Path

import pytest

from safegraft.checkpoint.folder import FolderCheckpoint
from safegraft.engine.execute import MergedCheckpoint
from safegraft.engine.plan import make_plan
from safegraft.engine.virtual import VirtualCheckpoint
from safegraft.methods import Registry
from safegraft.recipe import read_recipe


class Watched(VirtualCheckpoint):
    """Notes what is announced and what is read, as sets of (file, byte)."""

    def __init__(self, folder: str) -> None:
        super().__init__(FolderCheckpoint(Path(folder), Path(folder).name))
        self.open = False
        self.announced: set[tuple[str, int]] = set()
        self.read: set[tuple[str, int]] = set()
        self.unannounced: list[str] = []

    @contextmanager
    def expecting(self, ranges):
        for tensor, start, stop in ranges:
            assert 0 <= start <= stop <= tensor.nbytes
            self.announced |= {(tensor.file, at) for at in range(tensor.offset + start, tensor.offset + stop)}
        self.open = True
        yield
        self.open = False

    def read_into(self, tensor, start, buffer) -> None:
        own = {(tensor.file, tensor.offset + start + at) for at in range(buffer.nbytes)}
        self.read |= own
        if not self.open or not own <= self.announced:
            self.unannounced.append(tensor.name)
        super().read_into(tensor, start, buffer)


@pytest.fixture
def watched() -> dict[str, Watched]:
    return {}


@pytest.fixture
def merged_of(watched):
    opened: list[MergedCheckpoint] = []

    def build(recipe):
        def open_model(reference: str) -> Watched:
            watched[Path(reference).name] = one = Watched(reference)
            return one

        plan = make_plan(read_recipe(recipe), open_model, Registry.discover(), max_shard_size=40_000)
        for one in watched.values():
            one.read.clear()  # planning has looked at samples
            one.unannounced.clear()
        opened.append(MergedCheckpoint(plan, threads=2, block_elements=512, owns_plan=True))
        return opened[-1]

    yield build
    for one in opened:
        one.close()


@pytest.mark.parametrize("kind", ["linear", "slerp", "task_arithmetic"])
def test_a_whole_file_is_announced_byte_for_byte(models, merged_of, watched, kind: str) -> None:
    merged = merged_of(getattr(models, kind)())
    for file in merged.files.values():
        if file.name.endswith(".safetensors"):
            for one in watched.values():
                one.read.clear()
                one.announced.clear()
            file.read()
            for one in watched.values():
                assert not one.unannounced
                assert one.announced == one.read


def test_of_a_range_only_what_it_needs_is_announced(models, merged_of, watched) -> None:
    merged = merged_of(models.linear())
    file = max((one for one in merged.plan.files if one.tensors), key=lambda one: one.size)
    largest = max((one for one in file.tensors if one.task.rows is None), key=lambda one: one.task.nbytes)
    middle = largest.offset + largest.task.nbytes // 2
    merged.files[file.name].read(middle, middle + 64)
    for one in watched.values():
        assert len(one.announced) <= 64
        assert one.announced <= one.read  # cuts do not end where a range does


def test_models_whose_layers_are_shown_in_another_order_are_told_of_what_they_store(models, merged_of, watched) -> None:
    model = str(models.llm)
    slices = [
        {"sources": [{"model": model, "layer_range": [1, 2]}]},
        {"sources": [{"model": model, "layer_range": [0, 1]}]},
    ]
    merged = merged_of({"slices": slices, "merge_method": "passthrough"})
    for file in merged.files.values():
        if file.name.endswith(".safetensors"):
            file.read()
    (only,) = watched.values()
    assert only.read
    assert not only.unannounced
