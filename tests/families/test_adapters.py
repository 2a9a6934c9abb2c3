"""Adapters trained on LVLMs in memory find their tensors in every naming on disk."""

import copy
import dataclasses
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file

from safegraft.errors import CheckpointError
from safegraft.local import open_model

# PEFT multiplies whole matrices, safegraft tiles of them: a float32 may differ in its last bits, a bfloat16, which
# PEFT rounds twice, in its last.
TOLERANCES = {torch.float32: (2e-6, 2e-7), torch.bfloat16: (2**-6, 2**-9)}

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")


def merged_by_peft(specimen: Any, folder: Path, **config: Any) -> Any:
    """Save an adapter for the specimen's model, every number of it random; returns PEFT's merge in memory."""
    model = get_peft_model(
        copy.deepcopy(specimen.model), LoraConfig(r=3, lora_alpha=5, **config), autocast_adapter_dtype=False
    )
    generator = torch.Generator().manual_seed(5)
    for tensor in model.parameters():
        if tensor.requires_grad:
            tensor.data += 0.3 * torch.randn(tensor.shape, generator=generator).to(tensor.dtype)
    model.save_pretrained(folder)
    return model.merge_and_unload()


KINDS = [
    "llava", "llava_in_memory", "llava_hub", "llava_twin", "llava_pixtral_twin", "llava_next", "llava_onevision",
    "qwen2_vl", "qwen2_vl_twin", "qwen2_5_vl", "qwen2_5_vl_in_memory", "qwen3_vl", "gemma3", "paligemma",
    "idefics3", "mllama", "internvl", "mistral3",
]  # fmt: skip


def tensors_of(reference: str) -> dict[str, torch.Tensor]:
    checkpoint = open_model(reference)
    found: dict[str, torch.Tensor] = {}
    for name, info in checkpoint.tensors.items():
        content = bytearray(info.nbytes)
        checkpoint.read_into(info, 0, memoryview(content))
        found[name] = torch.frombuffer(content, dtype=info.dtype.torch).reshape(info.shape)
    checkpoint.close()
    return found


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("part", ["decoder", "everything"])
def test_an_adapter_is_what_peft_merges(zoo: Any, families: Any, kind: str, part: str, tmp_path: Path) -> None:
    family = families[kind]
    host = zoo.host(family)
    decoder = rf"{re.escape(family.decoder)}\.layers\.\d+\..*(q|v|up|down)_proj"
    expected = merged_by_peft(host, tmp_path / "lora", target_modules=decoder if part == "decoder" else "all-linear")
    zoo.save(expected, tmp_path / "expected", family.on_disk, None)
    before, after = (load_file(one / "model.safetensors") for one in (host.folder, tmp_path / "expected"))
    found = tensors_of(f"{host.folder}+{tmp_path / 'lora'}")
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert len(changed) >= (12 if part == "decoder" else 20)
    for name, tensor in found.items():
        rtol, atol = TOLERANCES[tensor.dtype] if name in changed else (0, 0)
        torch.testing.assert_close(tensor, after[name], rtol=rtol, atol=atol)


def test_an_adapter_of_an_llm_fits_the_lvlm_around_it(zoo: Any, families: Any, tmp_path: Path) -> None:
    family = families["llava"]
    host, llm = zoo.host(family), zoo.llm(family)
    merged_by_peft(llm, tmp_path / "lora", target_modules=["q_proj"])
    checkpoint = tensors_of(f"{host.folder}+{tmp_path / 'lora'}")
    before = load_file(host.folder / "model.safetensors")
    changed = {name for name, tensor in checkpoint.items() if not torch.equal(tensor, before[name])}
    assert changed == {f"language_model.model.layers.{layer}.self_attn.q_proj.weight" for layer in range(3)}


def test_two_places_that_fit_equally_are_refused(zoo: Any, families: Any, tmp_path: Path) -> None:
    """The vision tower of this one has the language model's sizes, and both are as far from `model.layers`."""
    family = families["llava_in_memory_hub_tower"]
    twin = families["llava_twin"]
    host = zoo.host(dataclasses.replace(twin, name="llava_twin_in_memory", on_disk=family.on_disk))
    names = [name for name in load_file(host.folder / "model.safetensors") if name.endswith("layers.0.mlp.fc1.weight")]
    assert names
    merged_by_peft(zoo.llm(family), tmp_path / "lora", target_modules=["q_proj"])
    with pytest.raises(CheckpointError, match="nothing tells which"):
        tensors_of(f"{host.folder}+{tmp_path / 'lora'}")


def test_parts_that_are_called_otherwise_on_disk_are_refused(zoo: Any, families: Any, tmp_path: Path) -> None:
    """Only prefixes are rewritten; where a file has other names within a layer, nothing is guessed."""
    host = zoo.host(families["molmo2"])
    merged_by_peft(host, tmp_path / "lora", target_modules="all-linear")
    with pytest.raises(CheckpointError, match=r"nothing like 'model.language_model.layers.0.mlp.down_proj.weight'"):
        tensors_of(f"{host.folder}+{tmp_path / 'lora'}")
