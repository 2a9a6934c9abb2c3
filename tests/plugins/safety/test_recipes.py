"""Safety methods in whole merges: an aligned LLM and its kin have roles, the LVLM's own parts stay."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import safegraft
from safegraft.testing import tiny_llm, tiny_lvlm, words


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


@pytest.fixture
def rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A file of prompts, each with a good and a bad answer."""
    monkeypatch.setenv("SAFEGRAFT_CACHE", str(tmp_path / "cache"))
    known = list(words(20))
    rows = [
        {name: f"{known[at]} {known[at * step]}" for name, step in (("p", 2), ("r", 1), ("x", 3))} for at in range(6)
    ]
    file = tmp_path / "rows.jsonl"
    file.write_text("\n".join(json.dumps(row) for row in rows))
    return str(file)


OUTSIDE = {"model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"}


@pytest.mark.parametrize(
    ("method", "roles", "sets", "shared"),
    [
        ("antidote", [], {"harmful": {"prompt": "p", "response": "r"}}, {}),
        ("safe_delta", ["aligned"], {"safety": {"prompt": "p", "response": "r"}}, {"s": 1e6}),
        ("led", [], {"task": {"prompt": "p", "response": "r"}}, {}),
        ("somf", ["aligned"], {"preferences": {"prompt": "p", "chosen": "r", "rejected": "x"}}, {}),
        ("safety_layers", ["aligned"], {"normal": {"text": "p"}, "malicious": {"text": "x"}}, {}),
    ],
)
def test_with_models_at_work(
    tmp_path: Path, rows: str, method: str, roles: list[str], sets: dict[str, Any], shared: dict[str, Any]
) -> None:
    one, other, base = (str(tiny_llm(tmp_path / name, seed=seed)) for name, seed in (("f", 1), ("a", 2), ("b", 3)))
    recipe: dict[str, Any] = {
        "merge_method": method,
        "models": [{"model": one}, *({"model": other, "role": role} for role in roles)],
        "parameters": shared,
        "calibration": {name: {"data": rows, **columns} for name, columns in sets.items()},
    }
    if method == "led":
        recipe["base_model"] = base
    with (
        safegraft.open(recipe) as merged,
        safegraft.open({"merge_method": "passthrough", "models": [{"model": one}]}) as f,
    ):
        names = {name for name in f.tensors if not torch.equal(merged.tensors[name], f.tensors[name])}
    first, second = ({name for name in f.tensors if f"layers.{layer}." in name and "_proj" in name} for layer in (0, 1))
    assert names >= first
    assert names >= second or method == "safety_layers"
    assert names & OUTSIDE == {
        "antidote": set(),
        "safety_layers": set(),
    }.get(method, OUTSIDE)
