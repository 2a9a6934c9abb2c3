"""Merging models that have adapters: as if the adapter had been merged first, and without a path in what comes out."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import safegraft


@pytest.fixture
def parts(models: Any, write_lora: Any, tmp_path: Path) -> tuple[Path, Path]:
    """An adapter for the aligned LLM, and the same model with it merged in."""
    lora = write_lora(tmp_path / "safety-lora", models.llm)
    merged = tmp_path / "merged-before"
    merged.mkdir()
    for file in models.llm.iterdir():
        (merged / file.name).write_bytes(file.read_bytes())
    tensors, factors = load_file(models.llm / "model.safetensors"), load_file(lora / "adapter_model.safetensors")
    for name in tensors:
        module = f"base_model.model.{name.removesuffix('.weight')}"
        if f"{module}.lora_A.weight" in factors:
            tensors[name] += 1.5 * (factors[f"{module}.lora_B.weight"] @ factors[f"{module}.lora_A.weight"])
    save_file(tensors, merged / "model.safetensors", {"format": "pt"})
    return lora, merged


def recipe(models: Any, llm: str) -> dict[str, Any]:
    asked = models.linear(0.25)
    asked["models"][0]["model"] = llm
    return asked


def test_an_adapter_counts_as_if_it_had_been_merged_before(
    models: Any, parts: tuple[Path, Path], tmp_path: Path
) -> None:
    lora, merged = parts
    safegraft.merge(recipe(models, f"{models.llm}+{lora}"), out=tmp_path / "one")
    safegraft.merge(recipe(models, str(merged)), out=tmp_path / "two")
    one, two = (load_file(tmp_path / out / "model.safetensors") for out in ("one", "two"))
    assert one.keys() == two.keys()
    for name in one:
        torch.testing.assert_close(one[name], two[name], rtol=2e-6, atol=2e-7)


@pytest.mark.parametrize("cuts", [{"threads": 1}, {"threads": 3}, {"threads": 2, "max_shard_size": 3000}])
def test_threads_and_shards_change_no_bit(models: Any, parts: tuple[Path, Path], tmp_path: Path, cuts: Any) -> None:
    asked = recipe(models, f"{models.llm}+{parts[0]}")
    safegraft.merge(asked, out=tmp_path / "out", **cuts)
    found = {n: t for file in (tmp_path / "out").glob("*.safetensors") for n, t in load_file(file).items()}
    with safegraft.open(asked, threads=1) as merged:
        assert found.keys() == set(merged.tensors)
        for name, tensor in found.items():
            assert torch.equal(tensor, merged.tensors[name])


def test_no_path_comes_out_and_the_manifest_is_a_recipe(
    models: Any, parts: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = recipe(models, f"{models.llm}+{parts[0]}")
    result = safegraft.merge(asked, out=tmp_path / "out")
    for name in ("README.md", "safegraft.json"):
        text = (tmp_path / "out" / name).read_text()
        assert "aligned-llm+safety-lora" in text
        assert str(tmp_path) not in text
        assert models.llm.parent.name not in text
    manifest = json.loads((tmp_path / "out" / "safegraft.json").read_text())
    beside = tmp_path / "beside"
    beside.mkdir()
    for folder in (models.llm, models.lvlm, parts[0]):
        (beside / folder.name).symlink_to(folder)
    monkeypatch.chdir(beside)
    plan = safegraft.plan(manifest["recipe"])
    assert plan.digest == result.digest
    plan.close()


def test_another_adapter_is_another_plan(models: Any, write_lora: Any, tmp_path: Path) -> None:
    digests: set[str] = set()
    for place, seed in (("a", 1), ("b", 2), ("c", 1)):
        (tmp_path / place).mkdir()
        lora = write_lora(tmp_path / place / "lora", models.llm, seed=seed)
        plan = safegraft.plan(recipe(models, f"{models.llm}+{lora}"))
        digests.add(plan.digest)
        plan.close()
    assert len(digests) == 2


def test_what_is_no_model_with_an_adapter_is_told_when_planning(models: Any, write_lora: Any, tmp_path: Path) -> None:
    lora = write_lora(tmp_path / "lora", models.llm, targets="lm_head.weight")
    plan = safegraft.plan(recipe(models, f"{models.llm}+{lora}"))
    plan.close()
    for reference, problem in {
        str(lora): "is a PEFT adapter, not a model",
        f"{models.llm}+{tmp_path / 'nothing'}": "no such folder",
        f"{models.base}+{models.llm}": "is a model, not an adapter",
    }.items():
        with pytest.raises(safegraft.InputError, match=problem):
            safegraft.plan(recipe(models, reference))
