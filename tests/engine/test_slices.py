"""Results put together from layers and parts: who meets whom, what is refused, what the config says."""

import importlib.util
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

import safegraft
from safegraft.api import registry
from safegraft.checkpoint.types import Checkpoint
from safegraft.engine.modules import Parts, comes_after_layers
from safegraft.engine.plan import make_plan
from safegraft.engine.slices import relayered_config
from safegraft.engine.task import Plan, TensorTask
from safegraft.errors import AlignmentError, RecipeError
from safegraft.testing import tiny_llm, tiny_lvlm

TOKENS = {f"t{row}": row for row in range(6)}


def shapes(layers: int, prefix: str = "", width: int = 4, head: bool = True) -> dict[str, tuple[int, ...]]:
    found: dict[str, tuple[int, ...]] = {f"{prefix}model.embed_tokens.weight": (6, width)}
    for layer in range(layers):
        found[f"{prefix}model.layers.{layer}.mlp.up_proj.weight"] = (8, width)
        found[f"{prefix}model.layers.{layer}.input_layernorm.weight"] = (width,)
    found[f"{prefix}model.norm.weight"] = (width,)
    return found | ({f"{prefix}lm_head.weight": (6, width)} if head else {})


Open = Callable[[str], Checkpoint]


@pytest.fixture
def zoo(headers: Callable[..., Checkpoint]) -> Open:
    """A, B: LLMs of four layers; deep: of nine; wide; tied: its head is its embedding. V, W: LVLMs of four layers."""

    def llm(name: str, layers: int, **more: Any) -> Checkpoint:
        config = {"vocab_size": 6, "num_hidden_layers": layers, "tie_word_embeddings": not more.get("head", True)}
        return headers(name, shapes(layers, **more), config, TOKENS)

    def lvlm(name: str) -> Checkpoint:
        vision = {"vision_tower.blocks.0.proj.weight": (3, 3), "vision_tower.blocks.1.proj.weight": (3, 3)}
        projector = {"multi_modal_projector.linear.weight": (4, 3)}
        config = {"text_config": {"vocab_size": 6, "num_hidden_layers": 4}, "vision_config": {"num_hidden_layers": 2}}
        return headers(name, {**shapes(4, "language_model."), **vision, **projector}, config, TOKENS)

    known = {name: llm(name, 4) for name in "AB"} | {name: lvlm(name) for name in "VW"}
    known |= {"deep": llm("deep", 9), "wide": llm("wide", 4, width=5), "tied": llm("tied", 4, head=False)}
    return known.__getitem__


def source(model: str, first: int, stop: int, **parameters: Any) -> dict[str, Any]:
    return {"model": model, "layer_range": [first, stop], "parameters": parameters}


def make(zoo: Open, slices: Sequence[Sequence[Mapping[str, Any]]], method: str = "passthrough", **more: Any) -> Plan:
    asked = {"merge_method": method, "slices": [{"sources": sources} for sources in slices], **more}
    return make_plan(safegraft.Recipe.load(asked), zoo, registry())


def task(plan: Plan, ending: str) -> TensorTask:
    (found,) = [task for task in plan.tensors if task.name.endswith(ending)]
    return found


def who(plan: Plan, ending: str) -> list[tuple[str, str]]:
    return [(one.model, one.tensor) for one in task(plan, ending).contributions]


def refused(kind: type[Exception], zoo: Open, *args: Any, **more: Any) -> str:
    with pytest.raises(kind) as caught:
        make(zoo, *args, **more)
    return str(caught.value)


# -- who meets whom -----------------------------------------------------------------------------------


def test_each_layer_comes_from_where_the_slice_says(zoo: Open) -> None:
    plan = make(zoo, [[source("A", 0, 2)], [source("deep", 7, 9)], [source("A", 1, 2)]])
    assert plan.host_model == "A"
    assert sum("up_proj" in task.name for task in plan.tensors) == 5
    assert who(plan, "layers.1.mlp.up_proj.weight") == [("A", "model.layers.1.mlp.up_proj.weight")]
    assert who(plan, "layers.3.mlp.up_proj.weight") == [("deep", "model.layers.8.mlp.up_proj.weight")]
    assert who(plan, "layers.4.mlp.up_proj.weight") == [("A", "model.layers.4.mlp.up_proj.weight")]  # shown as 4
    assert all(task.action == "merge" for task in plan.tensors)


def test_ends_belong_to_the_first_and_the_last_slice(zoo: Open) -> None:
    plan = make(zoo, [[source("B", 0, 2)], [source("A", 2, 4)]], host_model="deep")
    assert who(plan, "embed_tokens.weight") == [("B", "model.embed_tokens.weight")]
    assert who(plan, "model.norm.weight") == [("A", "model.norm.weight")]
    assert who(plan, "lm_head.weight") == [("A", "lm_head.weight")]


def test_a_middle_slice_needs_no_ends(zoo: Open) -> None:
    """The tied model has no head, which matters only where its head would be used."""
    plan = make(zoo, [[source("A", 0, 1)], [source("tied", 1, 2)], [source("A", 2, 3)]])
    assert who(plan, "lm_head.weight") == [("A", "lm_head.weight")]
    plan = make(zoo, [[source("A", 0, 1)], [source("tied", 1, 2)]])
    assert who(plan, "lm_head.weight") == [("tied", "model.embed_tokens.weight")]


def test_an_lvlm_keeps_what_lies_outside_its_language_model(zoo: Open) -> None:
    plan = make(zoo, [[source("A", 0, 3)], [source("V", 1, 3)]])
    assert plan.host_model == "V"
    assert who(plan, "layers.0.mlp.up_proj.weight") == [("A", "model.layers.0.mlp.up_proj.weight")]
    assert task(plan, "vision_tower.blocks.1.proj.weight").action == "copy"
    config = json.loads(next(file.content or b"" for file in plan.files if file.name == "config.json"))
    assert config["text_config"]["num_hidden_layers"] == 5
    assert config["vision_config"]["num_hidden_layers"] == 2


def test_towers_of_two_lvlms_meet_as_in_the_first_slice(zoo: Open) -> None:
    slices = [[source("V", 0, 2), source("W", 0, 2)], [source("V", 2, 4)]]
    plan = make(zoo, slices, "linear", parameters={"weight": 1})
    assert [one.model for one in task(plan, "blocks.1.proj.weight").inputs] == ["V", "W"]
    assert [one.model for one in task(plan, "model.norm.weight").inputs] == ["V"]


def test_gradients_run_over_a_slice(zoo: Open) -> None:
    slices = [[source("A", 0, 3, weight=[0, 1])], [source("B", 0, 1, weight=[5, 7])]]
    plan = make(zoo, slices, "linear", parameters={"normalize": False})

    def weight(ending: str) -> float:
        return task(plan, ending).inputs[0].parameters.weight

    assert [weight(f"layers.{layer}.mlp.up_proj.weight") for layer in range(4)] == [0, 0.5, 1, 7]
    assert [weight("embed_tokens.weight"), weight("model.norm.weight")] == [0, 5]


def test_settings_are_looked_for_from_the_source_outwards(zoo: Open) -> None:
    module = {
        "slices": [
            {"sources": [source("A", 0, 1, weight=1), source("B", 0, 1)], "parameters": {"weight": 2}},
            {"sources": [source("A", 1, 2), source("B", 1, 2, weight={"filter": "mlp", "value": 7})]},
        ],
        "parameters": {"weight": 3},
    }
    asked = {"merge_method": "linear", "modules": {"default": module}, "parameters": {"weight": 4, "normalize": False}}
    plan = make_plan(safegraft.Recipe.load(asked), zoo, registry())

    def weights(ending: str) -> list[float]:
        return [one.parameters.weight for one in task(plan, ending).inputs]

    assert weights("layers.0.mlp.up_proj.weight") == [1, 2]
    assert weights("layers.1.mlp.up_proj.weight") == [3, 7]
    assert weights("layers.1.input_layernorm.weight") == [3, 3]
    assert task(plan, "layers.1.input_layernorm.weight").parameters.normalize is False


def test_the_digest_knows_the_layers(zoo: Open) -> None:
    digests = {make(zoo, [[source("A", first, first + 2)]]).digest for first in range(3)}
    assert len(digests) == 3


def test_the_host_of_a_frankenmerge_is_read_at_its_own_layers(tmp_path: Path) -> None:
    llm, lvlm = tiny_llm(tmp_path / "llm", layers=3, seed=1), tiny_lvlm(tmp_path / "lvlm", layers=2, seed=2, shards=2)
    slices = [[source(str(lvlm), 1, 2)], [source(str(llm), 2, 3)], [source(str(lvlm), 0, 2)]]
    recipe = {"merge_method": "passthrough", "slices": [{"sources": sources} for sources in slices]}
    with safegraft.open(recipe) as merged, safegraft.open({**recipe, "slices": recipe["slices"][2:]}) as straight:
        prefix = "language_model.model.layers"
        for suffix in ("mlp.down_proj.weight", "input_layernorm.weight"):
            found = [merged.tensors[f"{prefix}.{layer}.{suffix}"] for layer in range(4)]
            own = [straight.tensors[f"{prefix}.{layer}.{suffix}"] for layer in range(2)]
            assert [found[0].tolist(), found[2].tolist(), found[3].tolist()] == [one.tolist() for one in (own[1], *own)]
            assert found[1].tolist() not in [one.tolist() for one in own]


# -- what is refused ----------------------------------------------------------------------------------


def test_all_ranges_beyond_the_models_are_told_at_once(zoo: Open) -> None:
    message = refused(RecipeError, zoo, [[source("A", 0, 5)], [source("deep", 8, 10)], [source("V", 3, 9)]])
    assert "slices[0].sources[0].layer_range: [0, 5] goes beyond the layers of A, which are 0 to 3" in message
    assert "slices[1].sources[0].layer_range: [8, 10] goes beyond the layers of deep, which are 0 to 8" in message
    assert "slices[2].sources[0].layer_range: [3, 9] goes beyond the layers of V" in message
    assert "the range ends at 4 at most" in message


def test_layers_that_do_not_fit(zoo: Open) -> None:
    message = refused(AlignmentError, zoo, [[source("A", 0, 2)], [source("wide", 2, 4)]])
    assert "4 tensors of the layers that are named have no counterpart in the host A, among them" in message
    assert "model.layers.2." in message


def test_a_slice_with_too_many_or_too_few_sources(zoo: Open) -> None:
    slices = [[source("A", 0, 2), source("B", 0, 2)]]
    message = refused(RecipeError, zoo, slices)
    assert "slices[0]: passthrough takes at most 1 models; the slice has 2" in message
    message = refused(RecipeError, zoo, [[source("A", 0, 2)]], "slerp", base_model="A", parameters={"t": 0.5})
    assert "slices[0]: slerp needs at least 1 models beside the base; the slice has 0" in message


def test_the_base_of_a_slice_is_one_of_its_sources(zoo: Open) -> None:
    slices = [[source("A", 0, 2), source("B", 0, 2)], [source("B", 2, 4)]]
    message = refused(RecipeError, zoo, slices, "task_arithmetic", base_model="A", parameters={"weight": 1})
    assert "slices[1]: the base A is not among the sources: list it with its layers" in message
    assert "slices[0]" not in message


def test_a_base_that_the_method_ignores_need_not_be_there(zoo: Open) -> None:
    plan = make(zoo, [[source("B", 0, 2)]], base_model="deep")
    assert plan.host_model == "deep"
    assert all({one.model for one in task.contributions} == {"B"} for task in plan.tensors)


def test_missing_and_unknown_settings_are_told_where_slices_have_them(zoo: Open) -> None:
    message = refused(RecipeError, zoo, [[source("A", 0, 1, wieght=1)]], "linear")
    assert (
        "slices[0].sources[0].parameters.wieght: linear has no parameter of this name; did you mean 'weight'" in message
    )
    message = refused(RecipeError, zoo, [[source("A", 0, 1)]], "linear")
    assert "give it under slices[0].sources[0].parameters or slices[0].parameters or parameters" in message


@pytest.mark.parametrize(
    ("modules", "message"),
    [
        ({"decoder": {}}, "modules.decoder: the host V has no module of this name; it has text_decoder, "),
        ({"default": {}, "text_decoder": {}}, "modules.default: is the whole model, and stands beside parts of it"),
        ({"vision_tower": {}, "vision_model": {}}, "modules.vision_tower: is the same module as vision_model"),
    ],
)
def test_modules_that_the_host_has_not(zoo: Open, modules: dict[str, Any], message: str) -> None:
    asked = {name: {"models": [{"model": "V"}]} for name in modules}
    recipe = {"merge_method": "passthrough", "modules": asked}
    with pytest.raises(RecipeError) as caught:
        make_plan(safegraft.Recipe.load(recipe), zoo, registry())
    assert message in str(caught.value)


def test_modules_that_are_not_named_are_kept(zoo: Open) -> None:
    recipe = {
        "merge_method": "passthrough",
        "modules": {"text_decoder": {"models": [{"model": "A"}]}},
        "host_model": "V",
    }
    plan = make_plan(safegraft.Recipe.load(recipe), zoo, registry())
    assert who(plan, "lm_head.weight") == [("A", "lm_head.weight")]
    assert task(plan, "blocks.0.proj.weight").note == "the recipe names no module that it is part of"
    assert any("multi_modal_projector, vision_tower of the host V" in warning for warning in plan.warnings)


# -- parts and configs --------------------------------------------------------------------------------


def architectures() -> list[dict[str, Any]]:
    """mergekit's tables, read as data: the package itself warns when it is imported."""
    spec = importlib.util.find_spec("mergekit")
    assert spec is not None
    assert spec.origin is not None
    found = [json.loads(file.read_text()) for file in (Path(spec.origin).parent / "_data/architectures").glob("*.json")]
    parts = [part["architecture"] for one in found for name, part in one.get("modules", {}).items() if "text" in name]
    return [*(one for one in found if "pre_weights" in one), *parts]


def test_ends_are_those_of_mergekits_tables() -> None:
    """A lone norm called embedding_norm is listed by mergekit as it is by us: before the layers."""
    tables = architectures()
    assert len(tables) > 40
    wrong = {weight["name"] for one in tables for weight in one["pre_weights"] if comes_after_layers(weight["name"])}
    wrong |= {one["name"] for table in tables for one in table["post_weights"] if not comes_after_layers(one["name"])}
    assert wrong == set()


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("language_model.model.layers.1.mlp.up_proj.weight", "text_decoder"),
        ("language_model.lm_head.weight", "text_decoder"),
        ("language_model.model.norm.weight", "text_decoder"),
        ("vision_tower.blocks.0.proj.weight", "vision_tower"),
        ("model.vision_tower.blocks.0.proj.weight", "vision_tower"),
        ("visual.merger.mlp.0.weight", "multi_modal_projector"),
        ("model.visual.blocks.3.attn.qkv.weight", "vision_tower"),
        ("model.audio_tower.layers.0.fc1.weight", "audio_tower"),
        ("image_newline", "image_newline"),
    ],
)
def test_the_part_that_a_tensor_belongs_to(zoo: Open, name: str, part: str) -> None:
    assert Parts(zoo("V")).of(name) == part


def test_the_config_follows_the_layers(headers: Callable[..., Checkpoint]) -> None:
    text = {
        "num_hidden_layers": 4,
        "layer_types": ["a", "b", "c", "d"],
        "cross_attention_layers": [1, 3],
        "rope_parameters": {"factors": [1, 2, 3, 4]},
        "first_k_dense_replace": 1,
    }
    host = headers("host", {}, {"num_hidden_layers": 4, "text_config": text, "vision_config": {"depth": 4}})
    config, warnings = relayered_config(host, {"text_decoder": [3, 0, 1], "vision_tower": [0, 1, 2, 3, 3]})
    assert config["num_hidden_layers"] == 3
    assert config["text_config"] == {
        **text,
        "num_hidden_layers": 3,
        "layer_types": ["d", "a", "b"],
        "cross_attention_layers": [0, 2],
    }
    assert config["vision_config"] == {"depth": 5}
    assert len(warnings) == 1
    assert "first_k_dense_replace" in warnings[0]
    assert host.config["num_hidden_layers"] == 4


def test_a_number_of_layers_that_the_config_leaves_out_is_written(headers: Callable[..., Checkpoint]) -> None:
    config, _ = relayered_config(
        headers("host", {}, {"text_config": {"model_type": "llama"}}), {"text_decoder": [0, 0]}
    )
    assert config["text_config"] == {"model_type": "llama", "num_hidden_layers": 2}
