"""Layers of an LLM between those of an LVLM: the result has the layers asked for, loads and runs."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForMultimodalLM

# Five layers from models of three: the LVLM's first two, the LLM's last two, the LVLM's last.
PLACES = [("host", 0), ("host", 1), ("llm", 1), ("llm", 2), ("host", 2)]
LAYER = re.compile(r"(.*\blayers)\.(\d+)\.(.*)")


def source(specimen: Any, first: int, stop: int, **parameters: Any) -> dict[str, Any]:
    return {"model": specimen.reference, "layer_range": [first, stop], "parameters": parameters}


def tensors_of(folder: Path) -> dict[str, torch.Tensor]:
    return {name: tensor for file in folder.glob("*.safetensors") for name, tensor in load_file(file).items()}


def layers_of(tensors: Mapping[str, torch.Tensor], word: str) -> dict[int, dict[str, torch.Tensor]]:
    """The layers under the prefix that holds `word`, by number and suffix; read from names alone."""
    layers: dict[int, dict[str, torch.Tensor]] = {}
    for name, tensor in tensors.items():
        found = LAYER.fullmatch(name)
        if found and re.search(word, found[1]) and "vis" not in found[1]:
            layers.setdefault(int(found[2]), {})[found[3]] = tensor
    return layers


def frankenmerge(host: Any, llm: Any) -> dict[str, Any]:
    slices = [[source(host, 0, 2)], [source(llm, 1, 3)], [source(host, 2, 3)]]
    return {"merge_method": "passthrough", "slices": [{"sources": sources} for sources in slices]}


@pytest.mark.parametrize("name", ["llava", "qwen2_vl", "gemma3", "internvl", "idefics3"])
def test_an_llm_in_the_middle_of_an_lvlm(name: str, zoo: Any, families: Any, merge: Any, tmp_path: Path) -> None:
    family = families[name]
    host, llm = zoo.host(family), zoo.llm(family)
    merge(frankenmerge(host, llm), tmp_path / "out")

    ours, theirs = tensors_of(tmp_path / "out"), {"host": tensors_of(host.folder), "llm": tensors_of(llm.folder)}
    found = layers_of(ours, "model")
    by_model = {model: layers_of(tensors, "model") for model, tensors in theirs.items()}
    assert sorted(found) == [0, 1, 2, 3, 4]
    for number, (model, layer) in enumerate(PLACES):
        expected = by_model[model][layer]
        assert found[number].keys() == expected.keys()
        assert all(torch.equal(found[number][suffix], expected[suffix]) for suffix in expected), number
    outside = {name for name in theirs["host"] if not LAYER.fullmatch(name) or "vis" in name}
    assert outside == {name for name in ours if not LAYER.fullmatch(name) or "vis" in name}
    assert all(torch.equal(ours[name], theirs["host"][name]) for name in outside)

    model, info = AutoModelForMultimodalLM.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert {problem: keys for problem, keys in info.items() if keys} == {}
    assert torch.isfinite(zoo.logits(family, model)).all()


def test_kinds_of_layers_follow_their_layers(zoo: Any, families: Any, merge: Any, tmp_path: Path) -> None:
    host, llm = zoo.host(families["gemma3"]), zoo.llm(families["gemma3"])
    kinds = json.loads((host.folder / "config.json").read_text())["text_config"]["layer_types"]
    merge(frankenmerge(host, llm), tmp_path / "out")
    text = json.loads((tmp_path / "out" / "config.json").read_text())["text_config"]
    assert text["num_hidden_layers"] == 5
    assert text["layer_types"] == [kinds[layer] for _, layer in PLACES]


def test_cross_attention_layers_keep_their_place(zoo: Any, families: Any, merge: Any, tmp_path: Path) -> None:
    """Mllama's config names the layers that look at the image; each of ours is one if the host's was."""
    family = families["mllama"]
    host = zoo.host(family)
    text = json.loads((host.folder / "config.json").read_text())["text_config"]
    crossing, count = text["cross_attention_layers"], text["num_hidden_layers"]
    order = [*range(count), *range(1, count)]
    slices = [{"sources": [source(host, 0, count)]}, {"sources": [source(host, 1, count)]}]
    merge({"merge_method": "passthrough", "slices": slices}, tmp_path / "out")

    changed = json.loads((tmp_path / "out" / "config.json").read_text())["text_config"]
    assert changed["num_hidden_layers"] == len(order)
    assert changed["cross_attention_layers"] == [number for number, layer in enumerate(order) if layer in crossing]
    _, info = AutoModelForMultimodalLM.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert {problem: keys for problem, keys in info.items() if keys} == {}


@pytest.mark.parametrize("name", ["llava", "qwen2_5_vl"])
def test_modules_of_two_lvlms_and_an_llm(name: str, zoo: Any, families: Any, merge: Any, tmp_path: Path) -> None:
    """The vision tower is mixed, the decoder's layers are put together, the projector is not named and stays."""
    family = families[name]
    host, other, llm = zoo.host(family), zoo.host(family, seed=2), zoo.llm(family)
    recipe = {
        "merge_method": "linear",
        "host_model": host.reference,
        "parameters": {"weight": 1},
        "modules": {
            "vision_tower": {"models": [{"model": host.reference}, {"model": other.reference}]},
            "text_decoder": {"slices": [{"sources": [source(llm, 0, 3), source(host, 0, 3, weight=0)]}]},
        },
    }
    merge(recipe, tmp_path / "out")
    ours, first, second = (tensors_of(folder) for folder in (tmp_path / "out", host.folder, other.folder))
    decoder, expected = layers_of(ours, "model"), layers_of(tensors_of(llm.folder), "model")
    assert all(torch.equal(decoder[n][suffix], tensor) for n in expected for suffix, tensor in expected[n].items())
    projector = {name for name in ours if "projector" in name or "merger" in name}
    tower = {name for name in ours if "vis" in name} - projector
    assert projector
    assert tower
    assert all(torch.equal(ours[name], first[name]) for name in projector)
    assert all(torch.equal(ours[name], zoo.average(first[name], second[name])) for name in tower)
