"""Mixtures of experts in other forms than `save_pretrained` writes today.

Qwen3-VL-MoE files on the Hub hold each expert's matrices transposed; an LLM saved as it is in memory has its
experts stacked instead of one by one.
"""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file


@pytest.fixture
def moe(families: Any) -> Any:
    return families["qwen3_vl_moe"]


@pytest.fixture
def transposed(tmp_path: Path) -> Callable[[Any], Any]:
    """The same model with its experts as on the Hub."""

    def rewrite(specimen: Any) -> Any:
        folder = tmp_path / f"{specimen.folder.name}-transposed"
        folder.mkdir()
        for file in specimen.folder.glob("*.json"):
            (folder / file.name).write_bytes(file.read_bytes())
        transpose(specimen.folder / "model.safetensors", folder / "model.safetensors")
        return dataclasses.replace(specimen, folder=folder)

    return rewrite


def transpose(source: Path, target: Path) -> None:
    tensors = load_file(source)
    for name, tensor in tensors.items():
        if ".experts." in name:
            tensors[name] = tensor.transpose(1, 2).contiguous()
    save_file(tensors, target, {"format": "pt"})


def assert_merged(zoo: Any, moe: Any, out: Path, expected: torch.nn.Module) -> None:
    """The folder holds `expected` in the Hub's form, to the bit, and loads as `expected`."""
    wanted = out.with_name("wanted")
    zoo.save(expected, wanted, moe.on_disk, None)
    transpose(wanted / "model.safetensors", wanted / "model.safetensors")
    assert zoo.bytes_of(out) == zoo.bytes_of(wanted)
    loaded, info = type(expected).from_pretrained(out, output_loading_info=True)
    assert {problem: keys for problem, keys in info.items() if keys} == {}
    state = loaded.state_dict()
    assert [name for name, tensor in expected.state_dict().items() if not torch.equal(state[name], tensor)] == []


@pytest.fixture
def stacked(tmp_path: Path) -> Callable[[Any], Any]:
    """The same LLM, saved as it is in memory."""

    def save(specimen: Any) -> Any:
        folder = tmp_path / f"{specimen.folder.name}-stacked"
        specimen.model.save_pretrained(folder, save_original_format=False)
        (folder / "tokenizer.json").write_bytes((specimen.folder / "tokenizer.json").read_bytes())
        return dataclasses.replace(specimen, folder=folder)

    return save


def note_of(plan: Any) -> str:
    (note,) = (warning for warning in plan.warnings if "experts" in warning)
    return note


def test_an_llm_into_the_hubs_form(zoo: Any, moe: Any, transposed: Any, merge: Any, tmp_path: Path) -> None:
    host, llm = transposed(zoo.host(moe)), zoo.llm(moe)
    plan = merge(zoo.recipe("linear", {llm: 1.0, host: 1.0}), tmp_path / "out")
    assert_merged(zoo, moe, tmp_path / "out", zoo.grafted(moe, host, llm, zoo.average))
    assert "one by one; they meet the host's stacked down_proj and gate_up_proj, transposed" in note_of(plan)


def test_a_stacked_llm_into_the_hubs_form(
    zoo: Any, moe: Any, transposed: Any, stacked: Any, merge: Any, tmp_path: Path
) -> None:
    host, llm = transposed(zoo.host(moe)), stacked(zoo.llm(moe))
    plan = merge(zoo.recipe("linear", {llm: 1.0, host: 1.0}), tmp_path / "out")
    assert_merged(zoo, moe, tmp_path / "out", zoo.grafted(moe, host, llm, zoo.average))
    assert "stacked the other way round" in note_of(plan)


def test_an_lvlm_saved_today_into_the_hubs_form(
    zoo: Any, moe: Any, transposed: Any, merge: Any, tmp_path: Path
) -> None:
    host, other = transposed(zoo.host(moe)), zoo.host(moe, seed=2)
    merge(zoo.recipe("linear", {other: 1.0, host: 1.0}, host_model=host.reference), tmp_path / "out")
    assert_merged(zoo, moe, tmp_path / "out", zoo.mixed(host, other, zoo.average))


@pytest.mark.parametrize("turned", [False, True])
def test_a_stacked_llm_into_a_host_with_experts_one_by_one(
    turned: bool, zoo: Any, families: Any, transposed: Any, stacked: Any, merge: Any, tmp_path: Path
) -> None:
    omni = families["qwen3_omni_moe_thinker"]
    host, llm = zoo.host(omni), stacked(zoo.llm(omni))
    plan = merge(zoo.recipe("linear", {transposed(llm) if turned else llm: 1.0, host: 1.0}), tmp_path / "out")
    zoo.assert_merged(omni, tmp_path / "out", zoo.grafted(omni, host, llm, zoo.average))
    assert "experts are stacked; they meet the host's, which are stored one by one" in note_of(plan)
