"""Plans from headers alone: who contributes, what is refused, what the digest covers."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

import safegraft
from safegraft.api import registry
from safegraft.checkpoint.types import Checkpoint
from safegraft.engine.identity import public_names
from safegraft.engine.plan import make_plan
from safegraft.engine.task import Plan, TensorTask
from safegraft.errors import AlignmentError, CheckpointError, InputError, PluginError, Problem, RecipeError, UsageError
from safegraft.methods import Granularity, MergeMethod, Plugin, Registry, Requirements

LLM_CONFIG = {"vocab_size": 6, "num_hidden_layers": 1}
LVLM_CONFIG: dict[str, Any] = {"text_config": {**LLM_CONFIG, "vocab_size": 8}, "vision_config": {}}
LLM_SHAPES = {
    "model.embed_tokens.weight": (6, 4),
    "model.layers.0.mlp.up_proj.weight": (8, 4),
    "model.layers.0.self_attn.q_proj.weight": (4, 4),
    "lm_head.weight": (6, 4),
}
LVLM_SHAPES = {
    "language_model.model.embed_tokens.weight": (8, 4),
    "language_model.model.layers.0.mlp.up_proj.weight": (8, 4),
    "language_model.model.layers.0.self_attn.q_proj.weight": (4, 4),
    "language_model.lm_head.weight": (8, 4),
    "vision_tower.patch.weight": (4, 3),
}
TOKENS = {f"t{row}": row for row in range(6)}
LVLM_TOKENS = {**TOKENS, "<image>": 6, "<pad>": 7}

Open = Callable[[str], Checkpoint]


@pytest.fixture
def zoo(headers: Callable[..., Checkpoint]) -> Open:
    """Models by name that consist of headers alone."""
    known: dict[str, Checkpoint] = {}
    for name in ("base", "llm", "llm2"):
        known[name] = headers(name, LLM_SHAPES, LLM_CONFIG, TOKENS)
    for name in ("lvlm", "lvlm2"):
        known[name] = headers(name, LVLM_SHAPES, LVLM_CONFIG, LVLM_TOKENS)
    known["untokenized"] = headers("untokenized", LLM_SHAPES, LLM_CONFIG, None)
    known["wide"] = headers("wide", {**LLM_SHAPES, "model.layers.0.mlp.up_proj.weight": (9, 4)}, LLM_CONFIG, TOKENS)

    def open_model(reference: str) -> Checkpoint:
        if reference not in known:
            raise CheckpointError(Problem(reference, "no such folder"))
        return known[reference]

    return open_model


def make(zoo: Open, models: list[str] | dict[str, float], method: str = "linear", **more: Any) -> Plan:
    weights = models if isinstance(models, dict) else dict.fromkeys(models, 1.0)
    wants_weight = method in ("linear", "task_arithmetic")
    entries = [
        {"model": name, **({"parameters": {"weight": w}} if wants_weight else {})} for name, w in weights.items()
    ]
    recipe = safegraft.Recipe.load({"models": entries, "merge_method": method, **more})
    return make_plan(recipe, zoo, registry())


def task(plan: Plan, ending: str) -> TensorTask:
    (found,) = [task for task in plan.tensors if task.name.endswith(ending)]
    return found


def who(task: TensorTask) -> list[str]:
    return [one.model for one in task.inputs]


# -- who contributes --------------------------------------------------------------------------------


def test_llm_and_lvlm_share_the_language_model_and_nothing_else(zoo: Open) -> None:
    plan = make(zoo, ["llm", "lvlm"])
    assert plan.host_model == "lvlm"
    assert {t.name: t.action for t in plan.tensors} == {
        name: "copy" if name.startswith("vision") else "merge" for name in LVLM_SHAPES
    }
    assert task(plan, "patch.weight").note == "only the host has it"
    assert task(plan, "embed_tokens.weight").rows is not None
    assert task(plan, "embed_tokens.weight").rows.shared_rows == 6  # type: ignore[union-attr]
    assert any("6 of 8 vocabulary rows are shared" in warning for warning in plan.warnings)


def test_two_lvlms_share_everything(zoo: Open) -> None:
    plan = make(zoo, ["lvlm2", "lvlm"])
    assert plan.host_model == "lvlm2"
    assert all(t.action == "merge" and t.rows is None for t in plan.tensors)
    assert any("Set `host_model` to choose another" in warning for warning in plan.warnings)


def test_a_three_way_mix_merges_each_tensor_over_those_that_have_it(zoo: Open) -> None:
    plan = make(zoo, ["llm", "lvlm", "lvlm2"], host_model="lvlm")
    assert who(task(plan, "q_proj.weight")) == ["llm", "lvlm", "lvlm2"]
    assert who(task(plan, "patch.weight")) == ["lvlm", "lvlm2"]
    assert "llm has no such tensor" in task(plan, "patch.weight").note


def test_the_base_may_be_a_plain_llm_under_an_lvlm_host(zoo: Open) -> None:
    plan = make(zoo, ["llm", "lvlm"], "task_arithmetic", base_model="base")
    assert plan.host_model == "lvlm"
    q_proj = task(plan, "q_proj.weight")
    assert who(q_proj) == ["llm", "lvlm"]
    assert q_proj.base is not None
    assert q_proj.base.model == "base"
    assert task(plan, "patch.weight").action == "copy"


def test_a_tensor_the_base_lacks_is_the_hosts(zoo: Open) -> None:
    plan = make(zoo, ["lvlm", "lvlm2"], "task_arithmetic", base_model="base")
    patch = task(plan, "patch.weight")
    assert patch.action == "copy"
    assert patch.note == "the base base has no such tensor"


def test_the_host_may_be_the_base(zoo: Open) -> None:
    plan = make(zoo, ["llm"], "task_arithmetic", base_model="lvlm")
    assert plan.host_model == "lvlm"
    assert who(task(plan, "q_proj.weight")) == ["llm"]


def test_a_host_that_is_no_input_lends_its_frame(zoo: Open) -> None:
    plan = make(zoo, ["llm"], "passthrough", host_model="lvlm")
    assert who(task(plan, "q_proj.weight")) == ["llm"]
    assert task(plan, "patch.weight").action == "copy"


def test_an_unlisted_base_is_an_input_where_the_method_ignores_bases(zoo: Open) -> None:
    plan = make(zoo, ["llm", "lvlm"], base_model="base", parameters={"weight": 2.0})
    assert who(task(plan, "q_proj.weight")) == ["llm", "lvlm", "base"]


@pytest.mark.parametrize(
    ("models", "more", "host"),
    [
        (["llm", "llm2"], {}, "llm"),
        (["llm", "llm2"], {"base_model": "llm2"}, "llm2"),
        (["lvlm", "lvlm2"], {"base_model": "lvlm2"}, "lvlm2"),
        (["llm", "lvlm"], {"host_model": "llm"}, "llm"),
    ],
)
def test_the_host(zoo: Open, models: list[str], more: Mapping[str, str], host: str) -> None:
    assert make(zoo, models, **more).host_model == host


def test_embeddings_host_leaves_vocabulary_tensors_alone_whatever_their_rows(zoo: Open) -> None:
    plan = make(zoo, ["untokenized", "lvlm"], embeddings="host")
    for ending in ("embed_tokens.weight", "lm_head.weight"):
        assert task(plan, ending).action == "copy"
        assert task(plan, ending).note == "embeddings: host"
    assert task(plan, "q_proj.weight").action == "merge"


def test_overrides_choose_method_and_parameters_by_glob(zoo: Open) -> None:
    overrides = [
        {"tensors": "*.mlp.*", "method": "task_arithmetic", "models": [{"model": "lvlm", "parameters": {"weight": 3}}]},
        {"tensors": "*.lm_head.weight", "parameters": {"weight": 5}},
    ]
    plan = make(zoo, ["llm", "lvlm"], overrides=overrides, base_model="base", parameters={"weight": 1.0})
    up = task(plan, "up_proj.weight")
    assert (up.method, [one.parameters.weight for one in up.inputs]) == ("task_arithmetic", [1, 3])
    assert [one.parameters.weight for one in task(plan, "lm_head.weight").inputs] == [5, 5, 5]
    assert task(plan, "q_proj.weight").method == "linear"


def test_dtypes_of_the_result(zoo: Open) -> None:
    assert {str(t.dtype) for t in make(zoo, ["llm", "lvlm"]).tensors} == {"F32"}
    assert {str(t.dtype) for t in make(zoo, ["llm", "lvlm"], dtype="bfloat16").tensors} == {"BF16"}
    mixed = make(zoo, ["llm", "lvlm"], dtype="bfloat16", out_dtype="float16")
    assert {str(t.dtype) for t in mixed.tensors} == {"F16"}


# -- what is refused --------------------------------------------------------------------------------


def test_all_problems_come_at_once_and_the_recipes_decide_the_kind(zoo: Open) -> None:
    recipe = safegraft.Recipe.load(
        "models:\n"
        "  - model: nowhere\n"
        "    parameters: {wieght: 0.5}\n"
        "  - model: lvlm\n"
        "    parameters: {weight: .inf}\n".replace("weight: .inf", "weight: 1.0")
        + "merge_method: liner\n"
    )
    with pytest.raises(RecipeError) as caught:
        make_plan(recipe, zoo, registry())
    text = str(caught.value)
    assert "recipe:6: merge_method: unknown method 'liner'. did you mean 'linear'?" in text
    assert "nowhere: no such folder" in text


def test_misspelt_parameters_are_named_with_their_line(zoo: Open) -> None:
    text = "merge_method: linear\nmodels:\n- {model: lvlm, parameters: {weight: 1}}\n- model: llm\n"
    text += "  parameters: {wieght: 1}\n"
    with pytest.raises(RecipeError, match=r"recipe:5: models\[1\]\.parameters\.wieght: .*did you mean 'weight'"):
        make_plan(safegraft.Recipe.load(text), zoo, registry())


def test_weights_that_sum_to_zero(zoo: Open) -> None:
    with pytest.raises(RecipeError, match="sum to zero"):
        make(zoo, {"llm": 1.0, "lvlm": -1.0})
    make(zoo, {"llm": 1.0, "lvlm": -1.0}, parameters={"normalize": False})


@pytest.mark.parametrize(
    ("models", "method", "more", "message"),
    [
        (["llm", "lvlm"], "slerp", {"parameters": {"t": 0.5}}, "slerp needs a `base_model`"),
        (
            ["llm", "lvlm", "lvlm2"],
            "slerp",
            {"parameters": {"t": 0.5}, "base_model": "lvlm"},
            "at most 1 models beside the base; the recipe has 2",
        ),
        (["lvlm"], "slerp", {"parameters": {"t": 0.5}, "base_model": "lvlm"}, "at least 1 models beside the base"),
        (["llm", "lvlm"], "passthrough", {}, "at most 1 models; the recipe has 2"),
        (["llm", "lvlm"], "slerp", {"parameters": {"t": 1.5}, "base_model": "lvlm"}, r"parameters\.t"),
    ],
)
def test_what_a_method_needs(zoo: Open, models: list[str], method: str, more: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        make(zoo, models, method, **more)


def test_unequal_rows_without_a_tokenizer_cannot_be_paired(zoo: Open) -> None:
    with pytest.raises(AlignmentError, match=r"has 6 rows.* has 8, and untokenized has no tokenizer") as caught:
        make(zoo, ["untokenized", "lvlm"])
    assert caught.value.exit_code == 3


def test_equal_rows_without_a_tokenizer_are_paired_by_position(zoo: Open) -> None:
    plan = make(zoo, ["untokenized", "llm"])
    assert task(plan, "embed_tokens.weight").rows is None
    assert task(plan, "embed_tokens.weight").action == "merge"


def test_a_shape_that_differs_is_refused_before_a_weight_is_read(zoo: Open) -> None:
    with pytest.raises(AlignmentError, match=r"wide: .*up_proj\.weight is \[9, 4\] here and \[8, 4\] in the host"):
        make(zoo, ["wide", "lvlm"])


def test_every_input_that_is_broken_is_named(zoo: Open) -> None:
    with pytest.raises(InputError) as caught:
        make(zoo, ["gone", "lvlm", "lost"])
    assert [problem.where for problem in caught.value.problems] == ["gone", "lost"]


def test_merging_nothing_is_refused(zoo: Open) -> None:
    entry = {"parameters": {"weight": 1}, "tensor_map": {"": None}}
    recipe = {"models": [{"model": name, **entry} for name in ("llm", "base")], "merge_method": "linear"}
    with pytest.raises(RecipeError, match="nothing would be merged"):
        make_plan(safegraft.Recipe.load({**recipe, "host_model": "lvlm"}), zoo, registry())


def test_a_tensor_map_on_the_host_is_refused(zoo: Open) -> None:
    models = [
        {"model": "llm", "parameters": {"weight": 1}},
        {"model": "lvlm", "parameters": {"weight": 1}, "tensor_map": {"x.": "y."}},
    ]
    recipe = safegraft.Recipe.load({"models": models, "merge_method": "linear"})
    with pytest.raises(RecipeError, match=r"models\[1\]\.tensor_map: has no effect on the host model itself"):
        make_plan(recipe, zoo, registry())


def test_a_shard_size_below_one_byte_is_refused(zoo: Open) -> None:
    with pytest.raises(UsageError, match="at least 1 byte"):
        make_plan(
            safegraft.Recipe.load({"models": [{"model": "llm"}], "merge_method": "passthrough"}),
            zoo,
            registry(),
            max_shard_size=0,
        )


# -- the digest -------------------------------------------------------------------------------------


def digest(recipe: Any, **more: Any) -> str:
    plan = safegraft.plan(recipe, **more)
    plan.close()
    return plan.digest


def test_the_digest_tells_what_matters_from_what_does_not(models: Any, tmp_path: Path) -> None:
    same = digest(models.linear(0.25))
    assert digest(models.linear(0.25)) == same
    moved = tmp_path / "elsewhere"
    for name in ("aligned-llm", "adapted-lvlm"):
        shutil.copytree(models.llm.parent / name, moved / name)
    recipe = json.loads(json.dumps(models.linear(0.25)).replace(str(models.llm.parent), str(moved)))
    assert digest(recipe) == same
    for other in (
        digest(models.linear(0.5)),
        digest(models.linear(0.25, seed=1)),
        digest(models.linear(0.25, embeddings="host")),
        digest(models.linear(0.25, dtype="bfloat16")),
        digest(models.linear(0.25), max_shard_size=2000),
    ):
        assert other != same


def test_other_weights_under_the_same_names_change_the_digest(models: Any, tmp_path: Path) -> None:
    from safegraft.testing import tiny_llm

    recipe = models.linear()
    before = digest(recipe)
    other = tiny_llm(tmp_path / "aligned-llm", seed=99)
    recipe["models"][0]["model"] = str(other)
    assert digest(recipe) != before


@pytest.mark.parametrize("hash_seed", ["0", "1", "4242"])
def test_the_digest_does_not_depend_on_the_hash_seed(models: Any, hash_seed: str) -> None:
    code = f"import safegraft; print(safegraft.plan({models.task_arithmetic()!r}).digest)"
    run = subprocess.run(
        [sys.executable, "-c", code],
        env={"PYTHONHASHSEED": hash_seed, "PATH": ""},
        capture_output=True,
        text=True,
        check=True,
    )
    assert run.stdout.strip() == digest(models.task_arithmetic())


def test_the_document_names_every_file_and_tensor(models: Any) -> None:
    plan = safegraft.plan(models.linear(), max_shard_size=3000)
    document = json.loads(json.dumps(plan.to_dict()))
    plan.close()
    assert document["digest"] == plan.digest
    assert [file["name"] for file in document["files"]][-1] == "safegraft.json"
    assert sum(file["size_bytes"] for file in document["files"]) == plan.total_size
    merged = [tensor for tensor in document["tensors"] if tensor["action"] == "merge"]
    assert all(tensor["method"] == "linear" and len(tensor["inputs"]) == 2 for tensor in merged)
    assert {tensor["action"] for tensor in document["tensors"]} == {"merge", "copy"}
    assert document["cost"]["bytes_written"] == sum(task.nbytes for task in plan.tensors)


@pytest.mark.parametrize(
    ("references", "names"),
    [
        (["/a/b/llm", "x/lvlm"], ["llm", "lvlm"]),
        (["/a/one/model", "/a/two/model"], ["one/model", "two/model"]),
        (["./llm", "llm"], ["llm", "llm-2"]),
        (["/", "."], ["model", "model-2"]),
        (["org/name", "upload:abc"], ["name", "upload:abc"]),
        (["org/name@" + "5" * 40, "x/name"], ["org/name@" + "5" * 40, "name"]),
    ],
)
def test_public_names_are_short_unlike_and_no_paths(references: list[str], names: list[str]) -> None:
    assert list(public_names({reference: (reference,) for reference in references}).values()) == names


@pytest.mark.parametrize(
    ("sources", "names"),
    [
        ([("/a/b/llm", "/home/x/lora")], ["llm+lora"]),
        ([("/a/b/llm", "/x/lora"), ("/a/c/llm", "/x/lora")], ["b/llm+lora", "c/llm+lora"]),
        ([("/a/llm", "/x/lora"), ("/a/llm", "/y/lora"), ("/a/llm",)], ["a/llm+lora", "a/llm+lora-2", "llm"]),
        ([("/a/b/llm", "org/lora@" + "5" * 40)], ["llm+org/lora@" + "5" * 40]),
        ([("org/name@" + "6" * 40, "/x/lora")], ["org/name@" + "6" * 40 + "+lora"]),
        ([("/", ".")], ["model+model"]),
        ([("/a/b/name@" + "5" * 40,)], ["name@" + "5" * 40]),
    ],
)
def test_public_names_with_adapters_are_no_paths_either(sources: list[tuple[str, ...]], names: list[str]) -> None:
    assert list(public_names(dict(zip("abcdef", sources, strict=False))).values()) == names


class Moody(MergeMethod):
    """Its check raises, or gives no iterator at all."""

    name = "moody"
    summary = "Moody."
    reference = "https://example.org"
    requires = Requirements()
    granularity = Granularity.ELEMENT

    def check(self, inputs: Any, parameters: Any) -> Any:
        raise ValueError("not today")

    def merge(self, inputs: Any, base: Any, context: Any) -> Any:
        raise AssertionError("never planned")


class Silent(Moody):
    name = "silent"

    def check(self, inputs: Any, parameters: Any) -> Any:
        return None


@pytest.mark.parametrize("method", [Moody, Silent])
def test_a_check_that_breaks_is_the_plugins_fault(zoo: Open, method: type[MergeMethod]) -> None:
    mine = Registry.discover()
    mine.add(method, Plugin(method.name, "tests", "tests", "1", (method.name,), None))
    recipe = safegraft.Recipe.load({"models": [{"model": "llm"}, {"model": "lvlm"}], "merge_method": method.name})
    with pytest.raises(PluginError, match=rf"method {method.name} failed in check\(\)"):
        make_plan(recipe, zoo, mine)


def test_parameters_without_effect_are_told(zoo: Open) -> None:
    plan = make(zoo, ["llm"], "task_arithmetic", base_model="lvlm", parameters={"int8_mask": True, "density": 0.5})
    told = [warning for warning in plan.warnings if "has no effect with task_arithmetic" in warning]
    assert [warning.split(": ")[1] for warning in told] == ["parameters.int8_mask", "parameters.density"]


def test_a_filter_that_fits_nothing_is_told(zoo: Open) -> None:
    plan = make(zoo, ["llm", "lvlm"], overrides=[{"tensors": "*.nothing", "parameters": {"weight": 2}}])
    assert any("'*.nothing' matches no tensor" in warning for warning in plan.warnings)
