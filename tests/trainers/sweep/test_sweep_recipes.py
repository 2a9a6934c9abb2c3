"""Strengths become recipes: for every method of the table as written down, planned, and of effect."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import safegraft
from safegraft.api import registry
from safegraft.testing import tiny_llm, tiny_lvlm
from safegraft_trainers.sweep.candidates import arms_of
from safegraft_trainers.sweep.rules import RULES, Strength, parse_strength
from safegraft_trainers.sweep.spec import SweepSpec

GOLDEN = yaml.safe_load(Path(__file__).with_name("recipes.yaml").read_text())
ALONE = ("safety_arithmetic", "antidote")  # a pairing of theirs has one model
NEED_TWO = ("consensus_ta", "model_stock")  # inputs beside a base

SETS = ("task", "harmful", "safety", "normal", "malicious")
NAMES = ("llm", "lvlm", "base", "unaligned", "harmful", "chat")


def spec(method: Any, models: dict[str, str], *, base: bool, strengths: list[float]) -> SweepSpec:
    name = method if isinstance(method, str) else method["method"]
    roles = {"unaligned": "unaligned", "harmful": "harmful", "aligned": "chat"}
    pairing = {"name": "p", "models": ["lvlm"] if name in ALONE else ["llm", "lvlm"], "roles": roles}
    return SweepSpec.load(
        {
            "models": models,
            "pairings": [pairing | ({"base": "base"} if base else {})],
            "methods": [method],
            "strengths": strengths,
            "suites": ["x=y"],
            "objectives": [{"metric": "helpfulness", "direction": "higher"}],
        }
    )


def recipes(of: SweepSpec) -> list[dict[str, Any]]:
    (arm,) = arms_of(of)
    return [dict(candidate.recipe) for candidate in arm.grid()]


@pytest.mark.parametrize("name", GOLDEN)
def test_recipes_are_as_written_down(name: str) -> None:
    method, without, _ = name.partition(" without base")
    made = recipes(spec(method, {one: one for one in NAMES}, base=not without, strengths=[0.25]))
    assert made == [GOLDEN[name]]


def test_every_method_has_a_rule_and_every_rule_a_method() -> None:
    assert {name.removeprefix("mergekit:") for name in registry().names()} - {"passthrough"} == set(RULES)
    assert set(RULES) == {name.partition(" ")[0] for name in GOLDEN}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("models")
    made = {name: tiny_llm(folder / name, seed=seed) for seed, name in enumerate(NAMES) if name != "lvlm"}
    return {name: str(path) for name, path in made.items()} | {"lvlm": str(tiny_lvlm(folder / "lvlm"))}


@pytest.fixture(scope="module")
def calibration(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    data = tmp_path_factory.mktemp("data") / "data.jsonl"
    row = {"prompt": "w1 w2", "response": "w3", "chosen": "w4", "rejected": "w5"}
    data.write_text("\n".join(json.dumps(row) for _ in range(4)))
    sets: dict[str, Any] = {name: {"data": str(data), "prompt": "prompt", "response": "response"} for name in SETS}
    sets["preferences"] = {"data": str(data), "prompt": "prompt", "chosen": "chosen", "rejected": "rejected"}
    return sets


@pytest.mark.parametrize("method", RULES)
def test_every_method_plans_and_its_strength_has_an_effect(
    method: str, models: dict[str, str], calibration: dict[str, Any]
) -> None:
    requires = registry().get(method).requires
    entry: dict[str, Any] = {"method": method}
    if requires.calibration:
        entry["recipe"] = {"calibration": calibration}
    base = requires.base == "required"
    made = recipes(spec(entry, models, base=base, strengths=[0.25, 0.75]))
    assert len(made) == (1 if RULES[method].parameter is None else 2)
    plans = [safegraft.plan(one) for one in made]
    assert any(task.action == "merge" for task in plans[0].tensors)
    assert len({plan.digest for plan in plans}) == len(made)
    for plan in plans:
        plan.close()
    if requires.calibration or len(made) == 1 or method in WITHOUT_EFFECT_HERE:
        return  # models that were never trained have nothing to show at work
    one, other = map(merged, made)
    assert any(not torch.equal(one[name], other[name]) for name in one)


# Of two layers none comes after the fifth, and random weights fall on one side of these thresholds.
WITHOUT_EFFECT_HERE = ("layer_swap", "safe_lora", "ramplus_tl", "safemerge")


def merged(recipe: dict[str, Any]) -> dict[str, torch.Tensor]:
    with safegraft.open(recipe, threads=1) as opened:
        return dict(opened.tensors)


@pytest.mark.parametrize(
    "method",
    [
        *("linear", "slerp", "nuslerp", "multislerp", "task_arithmetic", "ties", "dare_linear", "della_linear"),
        *("pre_post", "mergealign", "difference_weighted", "breadcrumbs"),
    ],
)
def test_strength_0_is_the_last_model_and_1_the_first(method: str, tmp_path: Path) -> None:
    models = {name: str(tiny_llm(tmp_path / name, seed=seed)) for seed, name in enumerate(NAMES)}
    entry: dict[str, Any] = {"method": method}
    if method == "breadcrumbs":
        entry["parameters"] = {"gamma": 0}  # it drops the largest elements otherwise
    none, whole = recipes(spec(entry, models, base=method == "mergealign", strengths=[0, 1]))
    for recipe, name in ((none, "lvlm"), (whole, "llm")):
        expected = merged({"merge_method": "passthrough", "models": [{"model": models[name]}]})
        found = merged(recipe)
        # multislerp merges directions, and norms apart: equal up to rounding.
        assert all(torch.allclose(found[key], expected[key], atol=1e-5) for key in expected)


def test_fixed_parameters_roles_and_further_keys_stand_in_the_recipe() -> None:
    entry = {
        "method": "dare_ties",
        "label": "sparse",
        "parameters": {"density": 0.3, "rescale": False},
        "strength": "first.weight",
        "recipe": {"dtype": "float32", "seed": 3},
    }
    (made,) = recipes(spec(entry, {one: one for one in NAMES}, base=True, strengths=[0.4]))
    assert made == {
        "merge_method": "dare_ties",
        "models": [{"model": "llm", "parameters": {"weight": 0.4}}, {"model": "lvlm"}],
        "base_model": "base",
        "parameters": {"density": 0.3, "rescale": False},
        "dtype": "float32",
        "seed": 3,
    }


def test_shares_of_three_models_and_a_host() -> None:
    document = {
        "models": {one: one for one in NAMES},
        "pairings": [{"name": "p", "models": ["llm", "lvlm", "harmful"], "host": "lvlm"}],
        "methods": ["linear"],
        "strengths": [0.4],
        "suites": ["x=y"],
        "objectives": [{"metric": "helpfulness", "direction": "higher"}],
    }
    (made,) = recipes(SweepSpec.load(document))
    assert [one["parameters"]["weight"] for one in made["models"]] == [0.4, 0.3, 0.3]
    assert made["host_model"] == "lvlm"


def test_gaps_of_a_template_are_filled_with_numbers_and_names() -> None:
    document = {
        "models": {one: f"zoo/{one}" for one in NAMES},
        "recipes": [
            {
                "name": "late",
                "recipe": {
                    "merge_method": "linear",
                    "models": [
                        {"model": "${llm}", "parameters": {"weight": "${strength}"}},
                        {"model": "${ lvlm }", "parameters": {"weight": "${1 - strength}"}},
                    ],
                    "overrides": [{"tensors": "*", "parameters": {"note": "s=${strength}"}}],
                },
            }
        ],
        "strengths": [0.1],
        "suites": ["x=y"],
        "objectives": [{"metric": "helpfulness", "direction": "higher"}],
    }
    (arm,) = arms_of(SweepSpec.load(document))
    (candidate,) = arm.grid()
    assert candidate.name == "late@0.1"
    assert [(one["model"], one["parameters"]["weight"]) for one in candidate.recipe["models"]] == [
        ("zoo/llm", 0.1),
        ("zoo/lvlm", 0.9),
    ]
    assert candidate.recipe["overrides"][0]["parameters"]["note"] == "s=0.1"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("parameters.t", Strength("parameters", "t")),
        ("1 - parameters.lambda", Strength("parameters", "lambda", rest=True)),
        ("share.weight", Strength("share", "weight")),
        ("each.density", Strength("each", "density")),
        ("1 - first.lambda", Strength("first", "lambda", rest=True)),
    ],
)
def test_places_of_a_strength(text: str, expected: Strength) -> None:
    assert parse_strength(text) == expected


@pytest.mark.parametrize("text", ["", "t", "weights.t", "parameters.", "1 - share.weight", "2 - parameters.t", "a.b.c"])
def test_no_places_of_a_strength(text: str) -> None:
    with pytest.raises(ValueError, match="no place for a strength"):
        parse_strength(text)
