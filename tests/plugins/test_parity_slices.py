"""`slices` and `modules` through mergekit 0.1.5 and through safegraft: the same layers, settings and bits.

One process runs all recipes through mergekit. The models are tiny Llamas of five, five and seven layers.
"""

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

import safegraft

# {0}, {1} have five layers, {2} has seven.
RECIPES = {
    "frankenmerge": """
        merge_method: passthrough
        slices:
          - sources: [{model: "{0}", layer_range: [0, 3]}]
          - sources: [{model: "{1}", layer_range: [1, 5]}]
          - sources: [{model: "{0}", layer_range: [2, 5]}]
        """,
    "deeper-model": """
        merge_method: passthrough
        base_model: "{0}"
        slices:
          - sources: [{model: "{2}", layer_range: [4, 7]}]
          - sources: [{model: "{0}", layer_range: [0, 2]}]
        """,
    "zeroed-copies": """
        merge_method: passthrough
        slices:
          - sources: [{model: "{0}", layer_range: [0, 4]}]
          - sources:
              - model: "{0}"
                layer_range: [2, 4]
                parameters:
                  scale:
                    - {filter: layers.2.self_attn.o_proj, value: 0.0}
                    - {filter: down_proj, value: [0.5, -2.0]}
                    - {value: 1.0}
          - sources: [{model: "{0}", layer_range: [4, 5]}]
        """,
    "gradients": """
        merge_method: linear
        slices:
          - sources:
              - {model: "{0}", layer_range: [0, 3], parameters: {weight: [0.1, 0.9]}}
              - {model: "{1}", layer_range: [2, 5], parameters: {weight: [{filter: mlp, value: [1, 0, 0.25]}]}}
            parameters: {weight: 0.4}
          - sources:
              - {model: "{1}", layer_range: [0, 1], parameters: {weight: [0.3, 0.8]}}
              - {model: "{2}", layer_range: [6, 7]}
          - sources:
              - {model: "{2}", layer_range: [1, 3]}
              - {model: "{0}", layer_range: [3, 5], parameters: {weight: 0.75}}
            parameters: {normalize: false}
        parameters: {weight: [0.6, 0.2]}
        """,
    "filters-mean-the-sources-own-layers": """
        merge_method: linear
        slices:
          - sources:
              - model: "{0}"
                layer_range: [3, 5]
                parameters: {weight: [{filter: layers.3., value: 0.9}, {value: 0.2}]}
              - model: "{1}"
                layer_range: [0, 2]
                parameters: {weight: [{filter: layers.1., value: 0.9}, {value: 0.2}]}
        """,
    "slice-base": """
        merge_method: task_arithmetic
        base_model: "{0}"
        slices:
          - sources:
              - {model: "{0}", layer_range: [0, 3]}
              - {model: "{1}", layer_range: [0, 3], parameters: {weight: 0.5}}
          - base_model: "{1}"
            parameters: {weight: 0.25, lambda: 0.5}
            sources:
              - {model: "{2}", layer_range: [3, 5]}
              - {model: "{1}", layer_range: [3, 5]}
        """,
    "module-of-models": """
        merge_method: linear
        modules:
          default:
            models:
              - {model: "{0}", parameters: {weight: 0.3}}
              - model: "{1}"
            parameters: {weight: [0.2, 0.8]}
        parameters: {weight: 5, normalize: false}
        """,
    "module-of-slices": """
        merge_method: linear
        modules:
          default:
            slices:
              - sources:
                  - {model: "{0}", layer_range: [0, 2]}
                  - {model: "{1}", layer_range: [1, 3]}
              - sources: [{model: "{1}", layer_range: [2, 5]}]
                parameters: {weight: 2.5}
            parameters: {weight: 0.5, normalize: false}
        """,
    "slerp": """
        merge_method: slerp
        base_model: "{0}"
        slices:
          - sources:
              - {model: "{0}", layer_range: [0, 5]}
              - {model: "{1}", layer_range: [0, 5]}
        parameters:
          t:
            - {filter: self_attn, value: [0, 0.5, 0.3, 0.7, 1]}
            - {filter: mlp, value: [1, 0.5, 0.7, 0.3, 0]}
            - value: 0.5
        """,
    "slerp-by-slice": """
        merge_method: slerp
        base_model: "{1}"
        slices:
          - sources:
              - {model: "{0}", layer_range: [0, 2]}
              - {model: "{1}", layer_range: [1, 3]}
            parameters: {t: [0.2, 0.9]}
          - sources:
              - {model: "{1}", layer_range: [2, 5]}
              - {model: "{2}", layer_range: [4, 7]}
            parameters: {t: 0.6}
        """,
}

# Runs in a process of its own: mergekit warns when it is imported, and here warnings are errors.
MERGEKIT = """
import json, sys
from pathlib import Path
import torch, yaml
from mergekit.config import MergeConfiguration
from mergekit.merge import MergeOptions, run_merge
from transformers import LlamaConfig, LlamaForCausalLM

root, jobs = Path(sys.argv[1]), json.loads(sys.argv[2])
for number, layers in enumerate((5, 5, 7)):
    torch.manual_seed(number)
    config = LlamaConfig(
        vocab_size=300, hidden_size=32, intermediate_size=48, num_hidden_layers=layers, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=64, tie_word_embeddings=False,
    )
    model = LlamaForCausalLM(config)
    for tensor in model.state_dict().values():
        tensor.add_(torch.randn_like(tensor), alpha=0.1)
    model.save_pretrained(root / str(number))
options = MergeOptions(copy_tokenizer=False, write_model_card=False, quiet=True)
for out, recipe in jobs.items():
    run_merge(MergeConfiguration.model_validate(yaml.safe_load(recipe)), out, options)
"""


@dataclass(frozen=True)
class Bench:
    root: Path

    def recipe(self, name: str) -> str:
        text = RECIPES[name]
        for number in range(3):
            text = text.replace(f"{{{number}}}", str(self.root / str(number)))
        return text

    def theirs(self, name: str) -> dict[str, torch.Tensor]:
        return load_file(self.root / name / "model.safetensors")

    def ours(self, name: str) -> Mapping[str, torch.Tensor]:
        with safegraft.open(yaml.safe_load(self.recipe(name)), threads=1) as merged:
            return dict(merged.tensors)


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    built = Bench(tmp_path_factory.mktemp("slices"))
    jobs = {str(built.root / name): built.recipe(name) for name in RECIPES}
    command = [sys.executable, "-W", "ignore", "-c", MERGEKIT, str(built.root), json.dumps(jobs)]
    run = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "HF_HUB_OFFLINE": "1"})
    assert run.returncode == 0, run.stderr[-4000:]
    return built


@pytest.mark.parametrize("name", [name for name in RECIPES if not name.startswith("slerp")])
def test_the_same_bits(bench: Bench, name: str) -> None:
    theirs, ours = bench.theirs(name), bench.ours(name)
    assert ours.keys() == theirs.keys()
    assert [tensor for tensor in ours if not torch.equal(ours[tensor], theirs[tensor])] == []


@pytest.mark.parametrize("name", ["slerp", "slerp-by-slice"])
def test_slerp_differs_by_mergekits_coefficients(bench: Bench, name: str) -> None:
    """It finds the angle in float32, we in double precision: see test_parity.py."""
    theirs, ours = bench.theirs(name), bench.ours(name)
    assert ours.keys() == theirs.keys()
    for tensor in ours:
        torch.testing.assert_close(ours[tensor], theirs[tensor], rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize("name", RECIPES)
def test_the_result_loads_and_writes_text(bench: Bench, name: str, tmp_path: Path) -> None:
    safegraft.merge(yaml.safe_load(bench.recipe(name)), out=tmp_path / "out", threads=1)
    config: dict[str, Any] = json.loads((tmp_path / "out" / "config.json").read_text())
    assert (
        config["num_hidden_layers"] == json.loads((bench.root / name / "config.json").read_text())["num_hidden_layers"]
    )
    model, info = AutoModelForCausalLM.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert {problem: keys for problem, keys in info.items() if keys} == {}
    written = model.generate(torch.tensor([[1, 5, 9]]), max_new_tokens=4, min_new_tokens=4, do_sample=False)
    assert written.shape == (1, 7)
