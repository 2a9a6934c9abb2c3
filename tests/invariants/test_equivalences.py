"""Different ways of asking that must give the same tensors."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import safegraft
from safegraft.testing import llama_config, tiny_llm, words, write_checkpoint


def tensors(recipe: Any) -> dict[str, torch.Tensor]:
    with safegraft.open(recipe) as merged:
        return dict(merged.tensors)


def stored(folder: Path) -> dict[str, torch.Tensor]:
    return {name: tensor for file in folder.glob("*.safetensors") for name, tensor in load_file(file).items()}


def assert_equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys()
    assert [name for name in one if not torch.equal(one[name], other[name])] == []


@pytest.fixture
def inner_llm(models: Any, tmp_path: Path) -> Iterator[Path]:
    """The LLM inside the LVLM, as a checkpoint of its own."""
    inside = {
        name.removeprefix("language_model."): tensor
        for name, tensor in stored(models.lvlm).items()
        if name.startswith("language_model.")
    }
    return write_checkpoint(tmp_path / "inner", inside, llama_config(vocab=24), tokens=words(24))


def swap(recipe: dict[str, Any], old: Path, new: Path) -> dict[str, Any]:
    models = [{**one, "model": str(new) if one["model"] == str(old) else one["model"]} for one in recipe["models"]]
    return {**recipe, "models": models}


@pytest.mark.parametrize("method", ["linear", "task_arithmetic"])
def test_llm_into_lvlm_equals_llm_into_its_inner_llm(models: Any, inner_llm: Path, method: str) -> None:
    recipe = getattr(models, method)()
    whole = tensors(recipe)
    inner = tensors({**swap(recipe, models.lvlm, inner_llm), "host_model": str(inner_llm)})
    language = {
        name.removeprefix("language_model."): tensor
        for name, tensor in whole.items()
        if name.startswith("language_model.")
    }
    assert_equal(language, inner)


@pytest.mark.parametrize("method", ["linear", "slerp", "task_arithmetic"])
def test_shards_of_the_inputs_do_not_matter(models: Any, tmp_path: Path, method: str) -> None:
    recipe = getattr(models, method)()
    config = json.loads((models.lvlm / "config.json").read_text())
    single = write_checkpoint(tmp_path / "single", stored(models.lvlm), config, tokens=words(24))
    other = swap(recipe, models.lvlm, single)
    if recipe.get("base_model") == str(models.lvlm):
        other["base_model"] = str(single)
    assert_equal(tensors(recipe), tensors(other))


def test_permuted_vocabularies_change_nothing_but_the_order_of_rows(models: Any, tmp_path: Path) -> None:
    order = torch.randperm(20, generator=torch.Generator().manual_seed(5))
    inside = stored(models.llm)
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        inside[name] = inside[name][order].contiguous()
    tokens = {f"w{int(row)}": place for place, row in enumerate(order)}
    permuted = write_checkpoint(tmp_path / "permuted", inside, llama_config(vocab=20), tokens=tokens)
    assert_equal(tensors(models.linear()), tensors(swap(models.linear(), models.llm, permuted)))


def test_a_model_of_weight_zero_is_absent(models: Any) -> None:
    three = models.linear(0.25)
    three["models"].append({"model": str(models.other_lvlm), "parameters": {"weight": 0.0}})
    three["host_model"] = str(models.lvlm)
    two = tensors(models.linear(0.25))
    mixed = tensors(three)
    language = [name for name in two if name.startswith("language_model.")]
    assert all(torch.equal(two[name], mixed[name]) for name in language)


def test_a_model_merged_with_itself_is_itself(models: Any, tmp_path: Path) -> None:
    twin = tmp_path / "twin"
    twin.symlink_to(models.llm)
    recipe = {
        "models": [{"model": str(models.llm)}, {"model": str(twin)}],
        "merge_method": "linear",
        "parameters": {"weight": 0.5},
    }
    assert_equal(tensors(recipe), stored(models.llm))


def test_t_zero_is_the_base_and_weight_zero_the_base(models: Any) -> None:
    assert_equal(tensors(models.slerp(0.0)), stored(models.lvlm))
    assert_equal(tensors(models.slerp(1.0)), stored(models.other_lvlm))
    recipe = models.slerp(0.0)
    plain = {"models": recipe["models"], "base_model": recipe["base_model"], "merge_method": "task_arithmetic"}
    assert_equal(tensors({**plain, "parameters": {"weight": 0.0}}), stored(models.lvlm))


def test_passthrough_puts_the_llm_into_the_lvlm(models: Any) -> None:
    recipe = {"models": [{"model": str(models.llm)}], "merge_method": "passthrough", "host_model": str(models.lvlm)}
    merged, llm, lvlm = tensors(recipe), stored(models.llm), stored(models.lvlm)
    for name, tensor in merged.items():
        inner = llm.get(name.removeprefix("language_model.")) if name.startswith("language_model.") else None
        if inner is None:
            assert torch.equal(tensor, lvlm[name])
        else:
            assert torch.equal(tensor[: len(inner)], inner)
            assert torch.equal(tensor[len(inner) :], lvlm[name][len(inner) :])


def test_dtype_casts_before_and_out_dtype_after(models: Any, tmp_path: Path) -> None:
    half = tiny_llm(tmp_path / "half", seed=2, dtype=torch.bfloat16)
    recipe = {
        "models": [{"model": str(models.llm)}, {"model": str(models.base)}],
        "merge_method": "linear",
        "parameters": {"weight": 0.5},
    }
    cast = tensors({**recipe, "dtype": "bfloat16", "out_dtype": "float32"})
    mixed = {**recipe, "models": [{"model": str(half)}, recipe["models"][1]]}
    for name, tensor in cast.items():
        one = stored(half)[name].float()
        other = stored(models.base)[name].bfloat16().float()
        assert torch.equal(tensor, one.mul(0.5).add(other.mul(0.5)).div(1.0))
    assert {tensor.dtype for tensor in tensors(mixed).values()} == {torch.bfloat16}
