"""What a plan asks of models at work: which data, of whom, and what is wrong before anything runs."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import LlamaConfig, LlamaForCausalLM

import safegraft
from safegraft.errors import RecipeError
from safegraft.testing import llama_config, tiny_llm, tiny_lvlm

SET = {"prompt": "q", "response": "a", "samples": 3}


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("models")
    for seed, name in enumerate(("one", "two", "aligned")):
        tiny_llm(root / name, seed=seed)
    tiny_lvlm(root / "lvlm", seed=7)
    for name, first in (("data", 0), ("other", 9)):
        rows = [{"q": f"w{first + row}", "a": f"w{first + row + 1} w{first + row + 2}"} for row in range(5)]
        (root / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return root


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SAFEGRAFT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def fisher(here: Path, *models: dict[str, Any], **more: Any) -> dict[str, Any]:
    named = [{**model, "model": str(here / model["model"])} for model in models]
    return {"merge_method": "fisher", "models": named, **more}


def task(here: Path, name: str = "data", **more: Any) -> dict[str, Any]:
    return {"task": {**SET, "data": str(here / f"{name}.jsonl"), **more}}


def problems(recipe: dict[str, Any]) -> str:
    with pytest.raises(safegraft.SafegraftError) as caught:
        safegraft.plan(recipe)
    assert caught.value.exit_code in (2, 3)
    return str(caught.value)


def digests(recipe: dict[str, Any]) -> tuple[str, dict[tuple[str, str, str], str]]:
    plan = safegraft.plan(recipe)
    try:
        found = {(method, name, Path(model).name): one.digest for (method, name, model), one in plan.statistics.items()}
        return plan.digest, found
    finally:
        plan.close()


def test_a_model_s_own_data_come_before_the_recipe_s(here: Path) -> None:
    shared = fisher(here, {"model": "one"}, {"model": "two"}, calibration=task(here))
    own = fisher(here, {"model": "one", "calibration": task(here, "other")}, {"model": "two"}, calibration=task(here))
    (before, known), (after, changed) = digests(shared), digests(own)
    assert before != after
    assert known["fisher", "fisher", "one"] != changed["fisher", "fisher", "one"]
    assert known["fisher", "fisher", "two"] == changed["fisher", "fisher", "two"]


def test_which_rows_are_drawn_is_part_of_the_digest(here: Path, tmp_path: Path) -> None:
    models = {"model": "one"}, {"model": "two"}
    before, _ = digests(fisher(here, *models, calibration=task(here)))
    again, _ = digests(fisher(here, *models, calibration=task(here)))
    reseeded, _ = digests(fisher(here, *models, calibration=task(here, seed=1)))
    assert before == again != reseeded


@pytest.mark.parametrize(
    ("calibration", "said"),
    [
        (None, "calibration: fisher needs data called 'task', and "),
        ({"taks": {**SET, "data": "x"}}, "fisher needs data called 'task'"),
        ({"task": {"data": "x"}}, "calibration.task: say which columns to read: `text` or "),
        ({"task": {**SET}}, "calibration.task: `data` is missing"),
        ({"task": {**SET, "data": "nowhere.jsonl"}}, "data: there is no file nowhere.jsonl; "),
        ({"task": {**SET, "data": "x", "samples": 0}}, "samples: expected a whole number from 1 to"),
        ({"task": {**SET, "data": "x", "promt": "q"}}, "promt: unknown key; did you mean 'prompt'?"),
    ],
)
def test_wrong_data_are_told_before_work_starts(here: Path, calibration: dict[str, Any] | None, said: str) -> None:
    more = {} if calibration is None else {"calibration": calibration}
    assert said in problems(fisher(here, {"model": "one"}, {"model": "two"}, **more))


def test_a_misspelt_set_is_pointed_at(here: Path) -> None:
    wrong = {"taks": task(here)["task"]}
    assert "add it here, or rename 'taks'" in problems(
        fisher(here, {"model": "one"}, {"model": "two"}, calibration=wrong)
    )
    linear = fisher(here, {"model": "one", "parameters": {"weight": 1}}, calibration=wrong)
    plan = safegraft.plan({**linear, "merge_method": "linear"})
    assert any("calibration.taks: is read by none of linear: they ask for no data" in one for one in plan.warnings)
    plan.close()


def test_layers_beyond_the_model_are_an_error(here: Path) -> None:
    models = [{"model": str(here / "one")}, {"model": str(here / "aligned"), "role": "aligned"}]
    recipe = {"merge_method": "safety_layers", "models": models, "parameters": {"first": 0, "last": 2}}
    with safegraft.open(recipe) as merged, pytest.raises(RecipeError, match="layers are 0 to 1"):
        _ = merged.tensors["model.layers.0.mlp.up_proj.weight"]


def test_not_with_slices_or_another_vocabulary(here: Path) -> None:
    recipe = fisher(here, {"model": "one"}, {"model": "two"}, calibration=task(here), tokenizer_source="base")
    with pytest.raises(RecipeError, match="cannot be combined with `tokenizer`"):
        safegraft.plan({**recipe, "base_model": str(here / "one")})


def test_a_statistic_that_parameters_make_needless_is_not_gathered(here: Path, cache: Path) -> None:
    models = [{"model": str(here / "one")}, {"model": str(here / "aligned"), "role": "aligned"}]
    recipe = {"merge_method": "safety_layers", "models": models, "parameters": {"first": 1, "last": 1, "t": 1.0}}
    plan = safegraft.plan(recipe)
    assert plan.statistics == {}
    plan.close()
    one, aligned = (load_file(here / name / "model.safetensors") for name in ("one", "aligned"))
    with safegraft.open(recipe) as merged:
        for layer, expected in (("0", one), ("1", aligned)):
            name = f"model.layers.{layer}.mlp.up_proj.weight"
            assert torch.equal(merged.tensors[name], expected[name])
    assert not cache.exists()
    assert "needs data called 'normal'" in problems({**recipe, "parameters": {"first": 1}})


def test_a_merge_tells_what_models_are_put_to_work_for(here: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    for name in ("one", "two"):
        LlamaForCausalLM(LlamaConfig(**llama_config(vocab=20))).save_pretrained(tmp_path / name)
        for file in ("tokenizer.json", "tokenizer_config.json"):
            shutil.copy(here / "one" / file, tmp_path / name)
    models = [{"model": str(tmp_path / name)} for name in ("one", "two")]
    told: list[str] = []
    recipe = {"merge_method": "fisher", "models": models, "calibration": task(here)}
    safegraft.merge(recipe, out=tmp_path / "out", progress=lambda progress: told.append(progress.file))
    for name in ("one", "two"):
        assert any(re.fullmatch(rf"gradient_square of {name}, \d+ %", one) for one in told)
    assert told[-1] == "safegraft.json"
