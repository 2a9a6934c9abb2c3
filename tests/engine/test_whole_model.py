"""What a method may ask for beyond one tensor: models with a role, a survey over all tensors, modifiers."""

from collections.abc import Iterator, Sequence
from typing import Any

import pytest
import torch
from pydantic import BaseModel, ConfigDict, Field
from safetensors.torch import load_file

from safegraft.engine.execute import MergedCheckpoint
from safegraft.engine.plan import make_plan
from safegraft.engine.task import Plan
from safegraft.errors import MergeCancelledError, PluginError, RecipeError
from safegraft.local import open_model
from safegraft.methods import (
    Context,
    Granularity,
    Input,
    MergeMethod,
    Modifier,
    Plugin,
    Prepared,
    Registry,
    Requirements,
    TensorView,
)
from safegraft.recipe import Recipe
from safegraft.testing import tiny_llm, tiny_lvlm


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Weight(Strict):
    weight: float = 1.0


class Push(MergeMethod):
    """input + weight (aligned - unaligned)."""

    name = "push"
    summary = "Pushes."
    reference = "https://example.org"
    requires = Requirements(base="forbidden", max_inputs=1, roles=("aligned", "unaligned"))
    granularity = Granularity.ELEMENT
    InputParameters = Weight

    def merge(self, inputs: Sequence[Input], base: torch.Tensor | None, context: Context) -> torch.Tensor:
        tuned, aligned, unaligned = inputs
        assert aligned.parameters is None
        return tuned.tensor + tuned.parameters.weight * (aligned.tensor - unaligned.tensor)


class Loudest(MergeMethod):
    """The input where its largest value is the largest of all tensors, zero elsewhere."""

    name = "loudest"
    summary = "The loudest tensor."
    reference = "https://example.org"
    requires = Requirements(base="ignored", max_inputs=1)
    granularity = Granularity.ELEMENT

    def prepare(self, view: TensorView, parameters: Any) -> float:
        assert view.shape == view.context.shape
        return max(float(inputs[0].tensor.max()) for inputs, _ in view.blocks())

    def survey(self, tensors: Sequence[Prepared]) -> str:
        return max(tensors, key=lambda one: one.state).tensor

    def merge(self, inputs: Sequence[Input], base: torch.Tensor | None, context: Context) -> torch.Tensor:
        assert context.state is not None
        return inputs[0].tensor if context.tensor == context.survey else inputs[0].tensor.mul_(0)


class Overwriting(MergeMethod):
    """The mean of base and input, with every argument spoilt on the way."""

    name = "overwriting"
    summary = "The mean."
    reference = "https://example.org"
    requires = Requirements(base="required", max_inputs=1)
    granularity = Granularity.ELEMENT

    def merge(self, inputs: Sequence[Input], base: torch.Tensor | None, context: Context) -> torch.Tensor:
        assert base is not None
        result = (inputs[0].tensor + base) / 2
        base.fill_(torch.nan)
        inputs[0].tensor.fill_(torch.nan)
        return result


class Factor(Strict):
    factor: float = Field(2.0, ge=0, le=10)


class Stretch(Modifier):
    name = "stretch"
    summary = "Stretches the difference."
    reference = "https://example.org"
    Parameters = Factor

    def modify(self, merged: torch.Tensor, base: torch.Tensor, context: Context) -> torch.Tensor:
        return base + context.parameters.factor * (merged - base)


class Short(Modifier):
    name = "short"
    summary = "Returns too little."
    reference = "https://example.org"

    def modify(self, merged: torch.Tensor, base: torch.Tensor, context: Context) -> torch.Tensor:
        return merged[:-1]


REGISTRY = Registry()
OWN = Plugin("test", "test", "safegraft", "0", (), None)
for method in (Push, Loudest, Overwriting):
    REGISTRY.add(method, OWN)
for modifier in (Stretch, Short):
    REGISTRY.add_modifier(modifier, OWN)


def planned(recipe: dict[str, Any]) -> Plan:
    return make_plan(Recipe.load(recipe), open_model, REGISTRY)


def merged(recipe: dict[str, Any], **how: Any) -> dict[str, torch.Tensor]:
    with MergedCheckpoint(planned(recipe), owns_plan=True, **how) as checkpoint:
        return dict(checkpoint.tensors)


def problems(recipe: dict[str, Any]) -> str:
    with pytest.raises(RecipeError) as caught:
        planned(recipe)
    return str(caught.value)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    root = tmp_path_factory.mktemp("models")
    llms = {name: str(tiny_llm(root / name, seed=seed)) for seed, name in enumerate(("base", "one", "two"))}
    return {**llms, "lvlm": str(tiny_lvlm(root / "lvlm", seed=9))}


def contents(folder: str) -> dict[str, torch.Tensor]:
    return load_file(f"{folder}/model.safetensors")


def equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


# -- roles --------------------------------------------------------------------------------------


def pushed(folders: dict[str, str], **more: Any) -> dict[str, Any]:
    models = [
        {"model": folders["one"], "role": "unaligned"},
        {"model": folders["lvlm"], "parameters": {"weight": 0.5}},
        {"model": folders["two"], "role": "aligned"},
    ]
    return {"merge_method": "push", "models": models, **more}


def test_models_with_a_role_come_last_in_the_methods_order(folders: dict[str, str]) -> None:
    lvlm, one, two = (contents(folders[name]) for name in ("lvlm", "one", "two"))
    result = merged(pushed(folders))
    name = "model.layers.1.mlp.down_proj.weight"
    expected = lvlm[f"language_model.{name}"] + 0.5 * (two[name] - one[name])
    assert torch.equal(result[f"language_model.{name}"], expected)
    rows = one["lm_head.weight"].shape[0]
    expected = lvlm["language_model.lm_head.weight"].clone()
    expected[:rows] += 0.5 * (two["lm_head.weight"] - one["lm_head.weight"])
    assert torch.equal(result["language_model.lm_head.weight"], expected)
    assert torch.equal(result["multi_modal_projector.linear_1.weight"], lvlm["multi_modal_projector.linear_1.weight"])


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda models: models.pop(0), "push needs a model with `role: unaligned` among `models`"),
        (
            lambda models: models[0].update(role="alined"),
            "push has no role 'alined'; a model's role may be 'aligned' or",
        ),
        (lambda models: models[0].update(role="aligned"), "is the role of"),
        (lambda models: models[1].update(role="harmful"), "push needs at least 1 models without a role"),
    ],
)
def test_wrong_roles_are_told_before_work_starts(folders: dict[str, str], change: Any, said: str) -> None:
    recipe = pushed(folders)
    change(recipe["models"])
    assert said in problems(recipe)


def test_a_role_without_a_method_for_it(folders: dict[str, str]) -> None:
    models = [{"model": folders["one"]}, {"model": folders["two"], "role": "aligned"}]
    assert "loudest has no role 'aligned'; a model's role may be none" in problems(
        {"merge_method": "loudest", "models": models}
    )


def test_parameters_of_a_model_with_a_role_are_not_ignored_in_silence(folders: dict[str, str]) -> None:
    recipe = pushed(folders)
    recipe["models"][0]["parameters"] = {"weight": 2}
    plan = planned(recipe)
    assert any("has no effect here" in warning for warning in plan.warnings)
    plan.close()


def test_a_role_changes_the_digest_and_other_recipes_keep_theirs(folders: dict[str, str]) -> None:
    digests: list[str] = []
    for roles in (("aligned", "unaligned"), ("unaligned", "aligned")):
        models = [{"model": folders["lvlm"]}]
        models += [{"model": folders[name], "role": role} for name, role in zip(("one", "two"), roles, strict=True)]
        plan = planned({"merge_method": "push", "models": models})
        digests.append(plan.digest)
        plan.close()
    assert len(set(digests)) == 2


# -- surveys ------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", [{"threads": 1}, {"threads": 3, "block_elements": 7}], ids=str)
def test_a_survey_sees_every_tensor(folders: dict[str, str], how: dict[str, Any]) -> None:
    recipe = {"merge_method": "loudest", "models": [{"model": folders["one"]}]}
    stored = contents(folders["one"])
    (loudest,) = [name for name, tensor in stored.items() if float(tensor.max()) == max(map(_largest, stored.values()))]
    result = merged(recipe, **how)
    assert torch.equal(result[loudest], stored[loudest])
    assert all(not tensor.any() for name, tensor in result.items() if name != loudest)


def _largest(tensor: torch.Tensor) -> float:
    return float(tensor.max())


def test_a_survey_can_be_cancelled(folders: dict[str, str]) -> None:
    plan = planned({"merge_method": "loudest", "models": [{"model": folders["one"]}]})
    with MergedCheckpoint(plan, owns_plan=True) as checkpoint:
        with pytest.raises(MergeCancelledError):
            list(checkpoint.files["model.safetensors"].stream(cancelled=iter([False, False, True]).__next__))
        assert checkpoint.files["model.safetensors"].read()  # asked again, it begins anew


def test_what_fails_in_a_survey_is_named(folders: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Loudest, "survey", lambda self, tensors: 1 / 0)
    with pytest.raises(PluginError, match=r"method loudest failed on .*: ZeroDivisionError"):
        merged({"merge_method": "loudest", "models": [{"model": folders["one"]}]})


# -- modifiers ----------------------------------------------------------------------------------


def modified(folders: dict[str, str], *modifiers: dict[str, Any], host: str = "one") -> dict[str, Any]:
    return {
        "merge_method": "overwriting",
        "base_model": folders["base"],
        "models": [{"model": folders[host]}],
        "modifiers": list(modifiers),
    }


@pytest.mark.parametrize("host", ["one", "lvlm"])
def test_modifiers_change_the_difference_from_the_base_in_order(folders: dict[str, str], host: str) -> None:
    plain = merged(modified(folders, host=host))
    base = contents(folders["base"])
    twice = merged(modified(folders, {"name": "stretch"}, {"name": "stretch", "parameters": {"factor": 3}}, host=host))
    prefix = "language_model." if host == "lvlm" else ""
    for name, origin in base.items():
        rows = slice(0, origin.shape[0])
        once = origin + 2.0 * (plain[prefix + name][rows] - origin)
        assert torch.allclose(twice[prefix + name][rows], origin + 3.0 * (once - origin), atol=1e-5)


def test_a_modifiers_parameters_follow_gradients_and_filters(folders: dict[str, str]) -> None:
    factor = [{"filter": "mlp", "value": [0, 1]}, {"value": 1}]
    plain, result = (
        merged(modified(folders)),
        merged(modified(folders, {"name": "stretch", "parameters": {"factor": factor}})),
    )
    base = contents(folders["base"])
    assert torch.equal(result["model.layers.0.mlp.up_proj.weight"], base["model.layers.0.mlp.up_proj.weight"])
    for name in ("model.layers.1.mlp.up_proj.weight", "lm_head.weight"):
        assert torch.allclose(result[name], plain[name], atol=1e-6)


@pytest.mark.parametrize("block", [1, 7, 10**6])
def test_cuts_change_nothing_about_modifiers(folders: dict[str, str], block: int) -> None:
    recipe = modified(folders, {"name": "stretch"}, host="lvlm")
    assert equal(merged(recipe, block_elements=block), merged(recipe))


def wrong_modifiers(folders: dict[str, str]) -> Iterator[tuple[dict[str, Any], str]]:
    yield modified(folders, {"name": "strech"}), "modifiers[0].name: unknown modifier 'strech'. did you mean 'stretch'?"
    yield modified(folders, {"name": "stretch", "parameters": {"facto": 1}}), "did you mean 'factor'?"
    yield modified(folders, {"name": "stretch", "parameters": {"factor": 11}}), "must be a number from 0 to 10"
    yield modified(folders, {"parameters": {}}), "modifiers[0]: `name` is missing"
    without_base = {
        "merge_method": "loudest",
        "models": [{"model": folders["one"]}],
        "modifiers": [{"name": "stretch"}],
    }
    yield without_base, "modifiers change the difference from a `base_model`; name one"


def test_wrong_modifiers_are_told_before_work_starts(folders: dict[str, str]) -> None:
    for recipe, said in wrong_modifiers(folders):
        assert said in problems(recipe)


def test_a_modifier_that_returns_something_else_is_named(folders: dict[str, str]) -> None:
    with pytest.raises(PluginError, match=r"modifier short returned \[\d+\] torch.float32 for .*; \[\d+\]"):
        merged(modified(folders, {"name": "short"}))


def test_an_ignored_base_is_still_what_modifiers_measure_from(folders: dict[str, str]) -> None:
    recipe = modified(folders, {"name": "stretch", "parameters": {"factor": 0}})
    recipe["merge_method"] = "loudest"
    recipe["models"] = [{"model": folders["base"]}]
    assert equal(merged(recipe), contents(folders["base"]))


@pytest.mark.parametrize("raised", [SystemExit(0), BaseException("out")])
def test_a_plugin_that_wants_to_leave_is_named(
    folders: dict[str, str], monkeypatch: pytest.MonkeyPatch, raised: BaseException
) -> None:
    def leave(self: Overwriting, inputs: Any, base: Any, context: Any) -> None:
        raise raised

    monkeypatch.setattr(Overwriting, "merge", leave)
    with pytest.raises(PluginError, match=rf"method overwriting failed on .*: {type(raised).__name__}"):
        merged(modified(folders))


@pytest.mark.parametrize("result", [torch.eye(3).to_sparse(), torch.empty(3, device="meta")])
def test_tensors_without_values_are_refused(
    folders: dict[str, str], monkeypatch: pytest.MonkeyPatch, result: torch.Tensor
) -> None:
    monkeypatch.setattr(Overwriting, "merge", lambda *_: result)
    with pytest.raises(PluginError, match="overwriting returned a sparse tensor or one without values for"):
        merged(modified(folders))


def test_a_method_that_takes_no_base_has_no_modifiers(folders: dict[str, str]) -> None:
    recipe = pushed(folders, modifiers=[{"name": "stretch"}])
    assert "push takes no `base_model`, from which modifiers measure: they cannot be used with it" in problems(recipe)
    assert "name one" not in problems(recipe)


def test_an_unknown_modifier_hides_no_other_problem(folders: dict[str, str]) -> None:
    recipe = modified(folders, {"name": "strech"}, {"name": "stretch", "parameters": {"facto": 1}})
    recipe["parameters"] = {"lamda": 1}
    told = problems(recipe)
    assert "unknown modifier 'strech'" in told
    assert "modifiers[1].parameters.facto: stretch has no parameter of this name" in told
    assert "parameters.lamda: overwriting has no parameter of this name" in told
