"""Models that do not fit are refused when planning: no weight is read, and the message says what is missing where."""

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from safegraft.checkpoint.folder import FolderCheckpoint
from safegraft.checkpoint.types import TensorInfo
from safegraft.engine.plan import make_plan
from safegraft.errors import AlignmentError, RecipeError, SafegraftError
from safegraft.methods.registry import Registry
from safegraft.recipe import read_recipe


class Unreadable(FolderCheckpoint):
    """Once it is open (and its identity known), only headers, configs and tokenizers may be looked at."""

    opened = False

    def __init__(self, path: Path, name: str) -> None:
        super().__init__(path, name)
        self.opened = True

    def read_into(self, tensor: TensorInfo, start: int, buffer: memoryview) -> None:
        assert not self.opened, f"{tensor.name} was read"
        super().read_into(tensor, start, buffer)


Refuse = Callable[..., str]


@pytest.fixture
def refuse() -> Refuse:
    """Plan a linear merge, which must fail; gives the message with names in place of folders."""
    registry = Registry.discover()

    def run(*specimens: Any, error: type[SafegraftError] = AlignmentError, **keys: Any) -> str:
        models = [{"model": one.reference, "parameters": {"weight": 1.0}} for one in specimens]
        recipe = read_recipe({"merge_method": "linear", "models": models, **keys})
        with pytest.raises(error) as caught:
            make_plan(recipe, lambda reference: Unreadable(Path(reference), reference), registry)
        message = str(caught.value)
        for one, name in zip(specimens, ("LLM", "HOST"), strict=False):
            message = message.replace(one.reference, name)
        return message

    return run


@pytest.fixture
def llava(families: Mapping[str, Any]) -> Any:
    return families["llava"]


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"hidden_size": 72}, ["model.layers", "language_model.model.layers", "72", "64"]),
        ({"num_hidden_layers": 4}, ["4 layers", "3", "model.layers", "language_model.model.layers"]),
        ({"num_hidden_layers": 2}, ["2 layers", "3", "model.layers", "language_model.model.layers"]),
        ({"intermediate_size": 112}, ["language_model.model.layers", "mlp", "112", "96"]),
        (
            {"num_key_value_heads": 4},
            ["language_model.model.layers", "self_attn.k_proj.weight", "[64, 64]", "[32, 64]"],
        ),
        ({"attention_bias": True}, ["self_attn.k_proj.bias", "language_model.model.layers"]),
        ({"mlp_bias": True}, ["mlp.down_proj.bias", "language_model.model.layers"]),
    ],
    ids=str,
)
def test_the_wrong_llm(changes: dict[str, Any], told: list[str], zoo: Any, llava: Any, refuse: Refuse) -> None:
    message = refuse(zoo.llm(llava, **changes), zoo.host(llava))
    assert [part for part in [*told, "LLM", "HOST"] if part not in message] == [], message


@pytest.mark.parametrize("name", ["qwen2_vl", "gemma3", "mllama", "idefics3"])
@pytest.mark.parametrize(
    "changes", [{"hidden_size": 72}, {"intermediate_size": 112}, {"num_hidden_layers": 2}], ids=str
)
def test_the_wrong_llm_of_other_families(
    name: str, changes: dict[str, Any], zoo: Any, families: Any, refuse: Refuse
) -> None:
    family = families[name]
    message = refuse(zoo.llm(family, **changes), zoo.host(family))
    assert "model.layers" in message


def test_an_llm_of_another_architecture(zoo: Any, families: Any, refuse: Refuse) -> None:
    message = refuse(zoo.llm(families["blip-2"]), zoo.host(families["llava"]))
    assert "no counterpart" in message


def test_a_qwen_with_biases_into_a_llama_without(zoo: Any, families: Any, refuse: Refuse) -> None:
    message = refuse(zoo.llm(families["llava_onevision"]), zoo.host(families["llava"]))
    assert "self_attn.k_proj.bias" in message
    assert "language_model.model.layers" in message


def test_a_tensor_of_another_rank(zoo: Any, llava: Any, refuse: Refuse) -> None:
    family = dataclasses.replace(llava, name="llava_rank")
    llm, host = zoo.llm(family), zoo.host(family)
    file = llm.folder / "model.safetensors"
    tensors = load_file(file)
    tensors["model.layers.1.mlp.up_proj.weight"] = tensors["model.layers.1.mlp.up_proj.weight"][None].clone()
    save_file(tensors, file, {"format": "pt"})
    message = refuse(llm, host)
    assert "model.layers.1.mlp.up_proj.weight" in message


def test_a_weight_that_no_host_tensor_answers_to(zoo: Any, llava: Any, refuse: Refuse) -> None:
    family = dataclasses.replace(llava, name="llava_surplus")
    llm, host = zoo.llm(family), zoo.host(family)
    file = llm.folder / "model.safetensors"
    save_file({**load_file(file), "model.layers.2.mlp.extra.weight": torch.ones(3)}, file, {"format": "pt"})
    message = refuse(llm, host)
    assert "model.layers.2.mlp.extra.weight" in message


def test_an_untied_llm_into_a_tied_host(zoo: Any, families: Any, refuse: Refuse) -> None:
    family = families["gemma3"]
    message = refuse(zoo.llm(family, tie_word_embeddings=False), zoo.host(family))
    assert "lm_head.weight" in message
    assert "embeddings: host" in message


@pytest.mark.parametrize("has_tokenizer", ["neither", "llm", "host"])
def test_rows_that_nothing_pairs(has_tokenizer: str, zoo: Any, llava: Any, refuse: Refuse) -> None:
    family = dataclasses.replace(llava, name=f"llava_without_{has_tokenizer}")
    llm, host = zoo.llm(family), zoo.host(family)
    for name, one in (("llm", llm), ("host", host)):
        if has_tokenizer != name:
            (one.folder / "tokenizer.json").unlink()
    message = refuse(llm, host)
    assert "97 rows" in message
    assert "103" in message
    assert "tokenizer" in message


def test_all_problems_at_once(zoo: Any, llava: Any, families: Any, refuse: Refuse) -> None:
    host = zoo.host(llava)
    first, second = zoo.llm(llava, hidden_size=72), zoo.llm(families["llava_onevision"])
    message = refuse(first, host, second)
    assert "72" in message
    assert "k_proj.bias" in message
    assert second.reference in message


def test_two_hosts_of_different_families(zoo: Any, families: Any, refuse: Refuse) -> None:
    host, other = zoo.host(families["llava"]), zoo.host(families["gemma3"])
    assert refuse(other, host, host_model=host.reference)


@pytest.mark.parametrize("changes", [{"num_hidden_layers": 4}, {"hidden_size": 72}], ids=str)
def test_two_lvlms_over_different_llms(changes: dict[str, int], zoo: Any, llava: Any, refuse: Refuse) -> None:
    """Their vision towers would fit. That is no merge of the language models."""
    larger = dataclasses.replace(llava, name=f"llava_{changes}", config={"text_config": changes})
    host = zoo.host(llava)
    message = refuse(zoo.host(larger), host, host_model=host.reference)
    assert "language_model.model.layers" in message


def test_parameters_and_models_wrong_together(zoo: Any, llava: Any, refuse: Refuse) -> None:
    message = refuse(zoo.llm(llava, hidden_size=72), zoo.host(llava), error=RecipeError, parameters={"normalise": True})
    assert "normalise" in message
    assert "72" in message
