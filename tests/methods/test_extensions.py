"""What plugins may bring beside methods: tensor maps, checkpoint sources, publishers."""

import json
import sys
import types
from collections.abc import Iterator, Mapping
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import safegraft
from safegraft.checkpoint.folder import FolderCheckpoint
from safegraft.checkpoint.types import Checkpoint
from safegraft.engine.plan import make_plan
from safegraft.errors import AlignmentError, CheckpointError, OutputError, PluginError, Problem, UsageError
from safegraft.local import open_model
from safegraft.methods import CheckpointSource, Publisher, Registry, TensorMap
from safegraft.recipe import Recipe
from safegraft.sources import publish, with_sources
from safegraft.testing import llama_config, llama_tensors, tiny_llm, words, write_checkpoint

KINDS = {"tensor_maps": TensorMap, "checkpoint_sources": CheckpointSource, "publishers": Publisher}


@pytest.fixture
def registry(request: pytest.FixtureRequest) -> Iterator[Any]:
    """Make a registry of plugins: each a mapping of hooks to classes."""
    made: list[str] = []

    def discover(*plugins: Mapping[str, list[type]]) -> Registry:
        entries: list[EntryPoint] = []
        for number, hooks in enumerate(plugins):
            name = f"extension_plugin_{number}"
            module = types.ModuleType(name)
            for hook, classes in hooks.items():
                function = safegraft.hookimpl(lambda classes=classes: classes, specname=hook)
                setattr(module, hook, function)
            sys.modules[name] = module
            made.append(name)
            entries.append(EntryPoint(name, name, "safegraft"))
        return Registry.discover(entries)

    yield discover
    for name in made:
        del sys.modules[name]


def named(parent: type, name: str = "zoo", **members: Any) -> type:
    """A class of one kind."""
    return type("Extension", (parent,), {"name": name, "summary": "An extension.", **members})


BODIES = {"tensor_maps": "prefixes", "checkpoint_sources": "open", "publishers": "publish"}


@pytest.mark.parametrize("hook", KINDS)
def test_each_kind_is_found_and_shown(registry: Any, hook: str) -> None:
    found = registry({hook: [named(KINDS[hook], **{BODIES[hook]: lambda *_: None})]})
    (plugin,) = found.plugins
    assert plugin.error is None
    assert getattr(plugin, hook) == ("zoo",)


@pytest.mark.parametrize("hook", KINDS)
@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({}, "Extension does not implement {}()"),
        ({"name": ""}, "Extension.name must be a str, not ''"),
        ({"summary": None}, "Extension.summary must be a str, not None"),
    ],
)
def test_an_incomplete_one_is_reported(registry: Any, hook: str, wrong: dict[str, Any], said: str) -> None:
    body = {} if not wrong else {BODIES[hook]: lambda *_: None}
    (plugin,) = registry(
        {
            hook: [named(KINDS[hook], **body, **wrong)]
            if "name" not in wrong
            else [named(KINDS[hook], wrong["name"], **body)]
        }
    ).plugins
    assert said.format(BODIES[hook]) in (plugin.error or "")


def test_a_name_is_taken_once_and_kinds_do_not_collide(registry: Any) -> None:
    source = named(CheckpointSource, open=lambda *_: None)
    publisher = named(Publisher, publish=lambda *_: "")
    found = registry({"checkpoint_sources": [source], "publishers": [publisher]}, {"checkpoint_sources": [source]})
    first, second = found.plugins
    assert first.error is None
    assert "checkpoint source 'zoo' is already registered by extension_plugin_0" in (second.error or "")


# -- tensor maps --------------------------------------------------------------------------------


@pytest.fixture
def strangers(tmp_path: Path) -> tuple[Path, Path]:
    """A Llama, and one whose layers alignment cannot find under the names they have."""
    tensors = llama_tensors(vocab=20, seed=1)
    renamed = {
        name.replace("model.layers.", "blocks.deep.").replace(".weight", "_w.weight"): one
        for name, one in tensors.items()
    }
    config = {**llama_config(vocab=20), "model_type": "stranger"}
    return tiny_llm(tmp_path / "host", seed=2), write_checkpoint(tmp_path / "odd", renamed, config, tokens=words(20))


def prefixes(self: TensorMap, host: Mapping[str, Any], model: Mapping[str, Any]) -> Mapping[str, str | None] | None:
    if (host["model_type"], model["model_type"]) != ("llama", "stranger"):
        return None
    layers = {
        f"blocks.deep.{layer}.{part}_w.": f"model.layers.{layer}.{part}."
        for layer in range(2)
        for part in (
            "self_attn.q_proj",
            "self_attn.k_proj",
            "self_attn.v_proj",
            "self_attn.o_proj",
            "mlp.gate_proj",
            "mlp.up_proj",
            "mlp.down_proj",
            "input_layernorm",
            "post_attention_layernorm",
        )
    }
    return {
        **layers,
        "model.embed_tokens_w.": "model.embed_tokens.",
        "model.norm_w.": "model.norm.",
        "lm_head_w.": "lm_head.",
    }


def linear(*models: Path) -> Recipe:
    entries = [{"model": str(model), "parameters": {"weight": 1}} for model in models]
    return Recipe.load({"merge_method": "linear", "models": entries})


def test_a_tensor_map_helps_a_pair_that_alignment_does_not_find(registry: Any, strangers: tuple[Path, Path]) -> None:
    found = Registry.discover()
    with pytest.raises(AlignmentError):
        make_plan(linear(*strangers), open_model, found)
    found.tensor_maps = registry({"tensor_maps": [named(TensorMap, prefixes=prefixes)]}).tensor_maps
    plan = make_plan(linear(*strangers), open_model, found)
    assert all(task.action == "merge" and len(task.inputs) == 2 for task in plan.tensors)
    assert any("mapped by the plugin's tensor map zoo" in warning for warning in plan.warnings)
    plan.close()


def test_a_tensor_map_that_fails_is_named(registry: Any, strangers: tuple[Path, Path]) -> None:
    found = Registry.discover()
    failing = named(TensorMap, prefixes=lambda *_: 1 / 0)
    found.tensor_maps = registry({"tensor_maps": [failing]}).tensor_maps
    with pytest.raises(PluginError, match=r"tensor map zoo failed on .*: ZeroDivisionError"):
        make_plan(linear(*strangers), open_model, found)


# -- sources ------------------------------------------------------------------------------------


@pytest.fixture
def zoo(registry: Any, tmp_path: Path) -> Registry:
    """A registry with safegraft's methods and a source for the models under a folder."""

    def open_(self: CheckpointSource, reference: str) -> Checkpoint:
        if reference == "bug":
            raise KeyError(reference)
        if not (tmp_path / reference).is_dir():
            raise CheckpointError(Problem(f"zoo:{reference}", "the zoo has no such model"))
        return FolderCheckpoint(tmp_path / reference, f"zoo:{reference}")

    found = Registry.discover()
    found.sources = registry({"checkpoint_sources": [named(CheckpointSource, open=open_)]}).sources
    return found


def test_a_recipe_reads_from_a_source(zoo: Registry, tmp_path: Path) -> None:
    tiny_llm(tmp_path / "one", seed=1)
    recipe = Recipe.load({"merge_method": "passthrough", "models": [{"model": "zoo:one"}]})
    plan = make_plan(recipe, with_sources(open_model, zoo), zoo)
    assert plan.host.name == "zoo:one"
    plan.close()


@pytest.mark.parametrize(
    ("reference", "kind", "said"),
    [
        ("zoo:none", CheckpointError, "zoo:none: the zoo has no such model"),
        ("zoo:bug", PluginError, "source zoo failed on zoo:bug: KeyError: 'bug'"),
        ("other:one", CheckpointError, "no such folder"),
    ],
)
def test_what_a_source_cannot_open(zoo: Registry, reference: str, kind: type[Exception], said: str) -> None:
    with pytest.raises(kind, match=said):
        with_sources(open_model, zoo)(reference)


def test_a_server_uses_only_the_sources_it_was_told(zoo: Registry, tmp_path: Path) -> None:
    tiny_llm(tmp_path / "one", seed=1)
    assert with_sources(open_model, zoo, ["zoo"])("zoo:one").name == "zoo:one"
    with pytest.raises(CheckpointError, match="no such folder"):
        with_sources(open_model, zoo, [])("zoo:one")


# -- publishers ---------------------------------------------------------------------------------


@pytest.fixture
def press(registry: Any) -> Registry:
    def publish(self: Publisher, folder: Path, destination: str) -> str:
        if destination == "full":
            raise OutputError("the zoo is full")
        if destination == "bug":
            raise KeyError(destination)
        digest = json.loads((folder / "safegraft.json").read_text())["plan_digest"]
        return f"https://zoo.example/{destination}?digest={digest[:8]}"

    return registry({"publishers": [named(Publisher, publish=publish)]})


def test_a_result_is_published(press: Registry, tmp_path: Path) -> None:
    model = tiny_llm(tmp_path / "one", seed=1)
    done = safegraft.merge({"merge_method": "passthrough", "models": [{"model": str(model)}]}, out=tmp_path / "out")
    assert publish(tmp_path / "out", "zoo:team/x", press) == f"https://zoo.example/team/x?digest={done.digest[:8]}"
    assert torch.equal(
        load_file(tmp_path / "out/model.safetensors")["lm_head.weight"],
        load_file(model / "model.safetensors")["lm_head.weight"],
    )


@pytest.mark.parametrize(
    ("destination", "kind", "said"),
    [
        ("zoo:full", OutputError, "the zoo is full"),
        ("zoo:bug", PluginError, "publisher zoo failed on zoo:bug: KeyError"),
        ("zo:x", UsageError, "names no publisher that is installed; did you mean 'zoo'"),
        ("team/x", UsageError, "Write NAME:DESTINATION"),
    ],
)
def test_what_cannot_be_published(
    press: Registry, tmp_path: Path, destination: str, kind: type[Exception], said: str
) -> None:
    (tmp_path / "safegraft.json").write_text('{"plan_digest": "0"}')
    with pytest.raises(kind, match=said):
        publish(tmp_path, destination, press)


def test_only_results_are_published(press: Registry, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="holds no merge of safegraft"):
        publish(tmp_path, "zoo:x", press)
