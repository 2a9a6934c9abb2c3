"""A merge copied into the model in memory is the merge loaded afresh."""

import io
from collections.abc import Iterator, Mapping
from typing import Any

import pytest
import torch
from safetensors.torch import save

from safegraft.errors import DataCorruptedError
from safegraft_trainers.lab.shipped import CHECKPOINTS
from safegraft_trainers.sweep import resident as module
from safegraft_trainers.sweep.merged import LocalMerger, Merge, read_safetensors
from safegraft_trainers.sweep.resident import Resident


def recipe(strength: float, *names: str) -> dict[str, Any]:
    first, second = names
    weights = {first: strength, second: 1 - strength}
    models = [{"model": str(CHECKPOINTS / name), "parameters": {"weight": one}} for name, one in weights.items()]
    return {"merge_method": "linear", "models": models}


def states(resident: Resident, recipes: list[dict[str, Any]]) -> Iterator[tuple[str, Mapping[str, torch.Tensor]]]:
    for one in recipes:
        with LocalMerger(1).open(one) as merge:
            loaded = resident.load(merge, "x")
            yield loaded.digest, {name: tensor.clone() for name, tensor in loaded.model.state_dict().items()}


LVLM = ("aligned-llm", "adapted-lvlm")
LLM = ("base-llm", "aligned-llm")


@pytest.mark.parametrize("dtype", ["auto", "float32"])
def test_in_place_equals_afresh(dtype: str) -> None:
    # From an LVLM to an LLM and back: the model in memory is exchanged, and comes back whole.
    recipes = [recipe(0.2, *LVLM), recipe(0.7, *LVLM), recipe(0.5, *LLM), recipe(0.2, *LVLM)]
    kept = list(states(Resident(dtype), recipes))
    fresh = list(states(Resident(dtype, in_place=False), recipes))
    assert [digest for digest, _ in kept] == [digest for digest, _ in fresh]
    for (_, one), (_, other) in zip(kept, fresh, strict=True):
        assert one.keys() == other.keys()
        assert all(torch.equal(one[name], other[name]) for name in one)
    assert not torch.equal(*(kept[index][1]["lm_head.weight"] for index in (0, 1)))


def test_the_model_is_loaded_once_and_copied_tensors_are_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    loads: list[str] = []
    load = module.load_merged
    monkeypatch.setattr(module, "load_merged", lambda *given, **named: (loads.append("x"), load(*given, **named))[1])
    resident, read = Resident(), []
    for strength in (0.2, 0.7, 0.9):
        with LocalMerger(1).open(recipe(strength, *LVLM)) as merge:
            resident.load(Counting(merge, names := []), "x")
            read.append(names)
            merged = {name for name, one in merge.layout.items() if one.source is None}
    assert len(loads) == 1
    assert set(read[0]) > merged
    assert set(read[1]) == set(read[2]) == merged
    assert any("vision" in name for name in read[0])


class Counting:
    """A merge that notes which tensors are read."""

    def __init__(self, merge: Merge, names: list[str]) -> None:
        self.digest, self.warnings, self.layout, self.sidecars = (
            merge.digest,
            merge.warnings,
            merge.layout,
            merge.sidecars,
        )
        self._merge, self._names = merge, names

    def tensors(self, wanted: Any) -> Iterator[tuple[str, torch.Tensor]]:
        for name, tensor in self._merge.tensors(wanted):
            self._names.append(name)
            yield name, tensor


def test_a_copy_that_was_interrupted_is_made_again() -> None:
    resident = Resident()
    with LocalMerger(1).open(recipe(0.3, *LVLM)) as merge:
        whole = {name: tensor.clone() for name, tensor in resident.load(merge, "x").model.state_dict().items()}
    with LocalMerger(1).open(recipe(0.9, *LVLM)) as merge, pytest.raises(ArithmeticError):
        resident.load(Breaking(merge, []), "x")
    with LocalMerger(1).open(recipe(0.3, *LVLM)) as merge:
        again = resident.load(merge, "x").model.state_dict()
        assert all(torch.equal(tensor, again[name]) for name, tensor in whole.items())


class Breaking(Counting):
    def tensors(self, wanted: Any) -> Iterator[tuple[str, torch.Tensor]]:
        for number, one in enumerate(super().tensors(wanted)):
            if number == 5:
                raise ArithmeticError
            yield one


class Rebuilt(torch.nn.Module):
    """A model whose parameter is made of a file's tensor by more than a new name."""

    def __init__(self, parameter: torch.Tensor) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(parameter)


@pytest.mark.parametrize(
    "change",
    [
        lambda one: one.T.contiguous(),
        lambda one: one[torch.tensor([0, 2, 1, 3, 4, 5, 6, 7])],
        lambda one: one.view(2, 4, 8).transpose(0, 1).reshape(8, 8),
        lambda one: one.repeat(2, 1),
        lambda one: one * 2,
    ],
)
def test_what_transformers_rebuilds_is_not_taken_for_renamed(change: Any) -> None:
    from safegraft.checkpoint.dtypes import DType
    from safegraft_trainers.sweep.merged import Tensor

    marked = module._marked({name: Tensor(DType.BF16, (8, 8)) for name in ("a", "b")})
    same = module._places(Rebuilt(marked["b"].float()), marked)
    assert same is not None
    assert list(same) == ["b"]
    assert module._places(Rebuilt(change(marked["b"].clone())), marked) is None


def test_marks_differ_and_survive_every_float_format() -> None:
    from safegraft.checkpoint.dtypes import DType
    from safegraft_trainers.sweep.merged import Tensor

    marked = module._marked({str(number): Tensor(DType.F32, (1,)) for number in range(module.MARKS)})
    values = torch.cat(list(marked.values())).abs()
    assert len(values.unique()) == module.MARKS
    assert all(torch.equal(values.to(dtype).float(), values) for dtype in (torch.bfloat16, torch.float16))


# -- a stream of bytes ------------------------------------------------------------------------------


def chunks(content: bytes, size: int) -> Iterator[bytes]:
    source = io.BytesIO(content)
    return iter(lambda: source.read(size), b"")


@pytest.mark.parametrize("size", [1, 7, 64, 1 << 20])
def test_tensors_of_a_stream_whatever_its_chunks(size: int) -> None:
    tensors = {"a": torch.arange(6.0).view(2, 3), "b": torch.ones(3, dtype=torch.bfloat16), "none": torch.empty(0, 4)}
    found = dict(read_safetensors(chunks(save(tensors), size), "f", lambda name: name != "b"))
    assert found.keys() == {"a", "none"}
    assert all(torch.equal(one, tensors[name]) for name, one in found.items())


@pytest.mark.parametrize("cut", [4, 40, -1])
def test_a_stream_that_ends_early_is_an_error(cut: int) -> None:
    content = save({"a": torch.arange(60.0)})[:cut]
    with pytest.raises(DataCorruptedError, match="ends before"):
        list(read_safetensors(chunks(content, 16), "f", lambda _: True))


def test_bytes_after_the_last_tensor_are_an_error() -> None:
    with pytest.raises(DataCorruptedError, match="more bytes"):
        list(read_safetensors(chunks(save({"a": torch.arange(6.0)}) + b"x", 16), "f", lambda _: True))
