"""Safety methods in whole merges: an aligned LLM and its kin have roles, the LVLM's own parts stay."""

from pathlib import Path
from typing import Any

import pytest
import torch

import safegraft
from safegraft.testing import tiny_llm, tiny_lvlm


def merge(tmp_path: Path, method: str, *, base: bool = False, roles: tuple[str, ...] = (), **shared: Any) -> Any:
    """The result's tensors and the LVLM's."""
    models: list[dict[str, Any]] = [{"model": str(tiny_lvlm(tmp_path / "lvlm", seed=1))}]
    models += [
        {"model": str(tiny_llm(tmp_path / role, seed=2 + number)), "role": role} for number, role in enumerate(roles)
    ]
    recipe: dict[str, Any] = {"merge_method": method, "models": models, "parameters": shared}
    if base:
        recipe["base_model"] = str(tiny_llm(tmp_path / "base", seed=9))
    with safegraft.open(recipe) as merged, safegraft.open({"merge_method": "passthrough", "models": models[:1]}) as own:
        return dict(merged.tensors), dict(own.tensors)


def changed(tmp_path: Path, method: str, **asked: Any) -> set[str]:
    result, own = merge(tmp_path, method, **asked)
    return {name for name in own if not torch.equal(result[name], own[name])}


@pytest.mark.parametrize(
    ("method", "asked"),
    [
        ("resta", {"roles": ("aligned", "unaligned")}),
        ("safe_lora", {"roles": ("aligned",), "base": True, "threshold": 1}),
        ("safemerge", {"roles": ("aligned", "safety_tuned"), "base": True, "threshold": 1}),
        ("safety_arithmetic", {"roles": ("harmful",), "base": True}),
        ("pre_post", {"roles": ("aligned",)}),
        ("mergealign", {"roles": ("aligned",), "base": True}),
        ("mergealign", {"roles": ("aligned",), "base": True, "interpolation": "slerp"}),
        ("difference_weighted", {"roles": ("aligned",)}),
        ("neuron_fusion", {"roles": ("aligned",)}),
        ("layer_swap", {"roles": ("aligned",), "k": 0}),
    ],
)
def test_the_language_model_changes_and_vision_does_not(tmp_path: Path, method: str, asked: dict[str, Any]) -> None:
    names = changed(tmp_path, method, **asked)
    assert any("layers.1.mlp.up_proj" in name for name in names)
    assert not any("vision" in name or "projector" in name for name in names)


def test_safe_lora_projects_so_many_matrices_of_the_whole_model(tmp_path: Path) -> None:
    shared = {"roles": ("aligned",), "base": True}
    matrices = changed(tmp_path, "safe_lora", threshold=1, **shared)
    assert len(matrices) == 14  # seven in each of two layers
    few = changed(tmp_path, "safe_lora", num_proj_layers=3, **shared)
    assert len(few) == 3
    assert few < matrices
    assert changed(tmp_path, "safe_lora", num_proj_layers=99, **shared) == matrices


def test_layer_swap_keeps_the_first_layers(tmp_path: Path) -> None:
    names = changed(tmp_path, "layer_swap", roles=("aligned",), k=1)
    assert names
    assert all(".layers.1." in name for name in names)
