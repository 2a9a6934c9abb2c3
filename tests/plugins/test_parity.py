"""The same recipe through mergekit 0.1.5 and through safegraft, tensor by tensor.

One process runs all recipes through mergekit (importing it takes as long as all merges). The models are tiny
Llamas that are related as fine-tuned models are, with zeros of both signs at the same places.
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

import safegraft

Ulps = Callable[[torch.Tensor, torch.Tensor], int]
Tensors = Mapping[str, torch.Tensor]

DTYPES = ("float32", "bfloat16")
ROUNDING = 2**-8  # bfloat16: the largest relative error of one rounding

# {0}, {1}, {2} are the models. Each recipe runs in both dtypes.
RECIPES = {
    "linear": """
        merge_method: linear
        models:
          - {model: "{0}", parameters: {weight: 0.3}}
          - {model: "{1}", parameters: {weight: 0.5}}
          - {model: "{2}", parameters: {weight: 0.45}}
        """,
    "linear-sum": """
        merge_method: linear
        models:
          - {model: "{0}", parameters: {weight: 1.7}}
          - {model: "{1}", parameters: {weight: -0.9}}
          - {model: "{2}", parameters: {weight: 0.2}}
        parameters: {normalize: false}
        """,
    "linear-negative": """
        merge_method: linear
        models:
          - {model: "{0}", parameters: {weight: -0.4}}
          - {model: "{1}", parameters: {weight: 1.1}}
        """,
    "linear-one": """
        merge_method: linear
        models:
          - {model: "{0}", parameters: {weight: 0.7}}
        """,
    "linear-by-layer": """
        merge_method: linear
        models:
          - model: "{0}"
            parameters:
              weight:
                - {filter: self_attn, value: [0.1, 0.9, 0.35]}
                - {filter: mlp.up, value: 0.25}
                - value: [0.8, 0.2]
          - {model: "{1}", parameters: {weight: [0.3, 1, -0.2, 0.6]}}
        parameters:
          weight: 0.5
        """,
    "linear-base": """
        merge_method: linear
        base_model: "{2}"
        models:
          - {model: "{0}", parameters: {weight: 0.3}}
          - {model: "{1}", parameters: {weight: 0.5}}
        parameters: {weight: 0.9}
        """,
    "linear-dtype": """
        merge_method: linear
        dtype: bfloat16
        models:
          - {model: "{0}", parameters: {weight: 0.3}}
          - {model: "{1}", parameters: {weight: 0.7}}
        """,
    "linear-wider": """
        merge_method: linear
        dtype: float32
        out_dtype: bfloat16
        models:
          - {model: "{0}", parameters: {weight: 0.3}}
          - {model: "{1}", parameters: {weight: 0.7}}
        """,
    "linear-double": """
        merge_method: linear
        dtype: float64
        models:
          - {model: "{0}", parameters: {weight: 0.3}}
          - {model: "{1}", parameters: {weight: 0.7}}
        """,
    "linear-half": """
        merge_method: linear
        dtype: float16
        models:
          - {model: "{0}", parameters: {weight: 0.3}}
          - {model: "{1}", parameters: {weight: 0.7}}
        """,
    "slerp": """
        merge_method: slerp
        base_model: "{0}"
        models:
          - model: "{0}"
          - model: "{1}"
        parameters: {t: 0.35}
        """,
    "slerp-by-layer": """
        merge_method: slerp
        base_model: "{2}"
        models:
          - model: "{0}"
          - model: "{2}"
        parameters:
          t:
            - {filter: self_attn, value: [0, 0.5, 0.3, 0.7, 1]}
            - {filter: mlp, value: [1, 0.5, 0.7, 0.3, 0]}
            - value: 0.5
        """,
    "task_arithmetic": """
        merge_method: task_arithmetic
        base_model: "{0}"
        models:
          - {model: "{1}", parameters: {weight: 0.6}}
          - {model: "{2}", parameters: {weight: -0.35}}
        """,
    "task_arithmetic-lambda": """
        merge_method: task_arithmetic
        base_model: "{0}"
        models:
          - model: "{0}"
          - {model: "{1}", parameters: {weight: [0.2, 0.9]}}
          - {model: "{2}", parameters: {weight: 0.35}}
        parameters: {lambda: 0.7, normalize: true}
        """,
    "passthrough": """
        merge_method: passthrough
        models:
          - model: "{1}"
        """,
    "passthrough-scale": """
        merge_method: passthrough
        models:
          - model: "{1}"
            parameters:
              scale:
                - {filter: o_proj, value: 0.0}
                - {filter: down_proj, value: [0.37, -1.2]}
                - value: 1.25
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
config = LlamaConfig(
    vocab_size=2200, hidden_size=64, intermediate_size=96, num_hidden_layers=5, num_attention_heads=4,
    num_key_value_heads=2, max_position_embeddings=64, tie_word_embeddings=False,
)
torch.manual_seed(7)
origin = {name: torch.randn_like(tensor) for name, tensor in LlamaForCausalLM(config).state_dict().items()}
for number, distance in enumerate((0.05, 0.3, 1.5)):
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            tensor.copy_(0.02 * (origin[name] + distance * torch.randn_like(tensor))).flatten()[3:9:2] = 0.0
            tensor.flatten()[4:10:2] = -0.0
    for dtype in ("float32", "bfloat16"):
        model.to(getattr(torch, dtype)).save_pretrained(root / f"{dtype}-{number}")
options = MergeOptions(copy_tokenizer=False, write_model_card=False, quiet=True)
for out, recipe in jobs.items():
    run_merge(MergeConfiguration.model_validate(yaml.safe_load(recipe)), out, options)
"""


@dataclass(frozen=True)
class Pair:
    """One recipe's two results, and what went in."""

    recipe: dict[str, Any]
    theirs: Tensors
    ours: Tensors
    models: tuple[Tensors, ...]


@dataclass(frozen=True)
class Bench:
    root: Path

    def recipe(self, name: str, dtype: str) -> str:
        text = RECIPES[name]
        for number in range(3):
            text = text.replace(f"{{{number}}}", str(self.root / f"{dtype}-{number}"))
        return text

    def run(self, name: str, dtype: str) -> Pair:
        recipe = yaml.safe_load(self.recipe(name, dtype))
        with safegraft.open(recipe, threads=1) as merged:
            ours = dict(merged.tensors)
        models = tuple(load_file(self.root / f"{dtype}-{number}" / "model.safetensors") for number in range(3))
        return Pair(recipe, load_file(self.root / f"{name}-{dtype}" / "model.safetensors"), ours, models)


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    built = Bench(tmp_path_factory.mktemp("parity"))
    jobs = {str(built.root / f"{name}-{dtype}"): built.recipe(name, dtype) for name in RECIPES for dtype in DTYPES}
    command = [sys.executable, "-W", "ignore", "-c", MERGEKIT, str(built.root), json.dumps(jobs)]
    run = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "HF_HUB_OFFLINE": "1"})
    assert run.returncode == 0, run.stderr[-4000:]
    return built


def same_bits(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Equal in dtype, shape and every bit: -0 is not 0."""
    return one.dtype == other.dtype and torch.equal(
        one.contiguous().view(torch.uint8), other.contiguous().view(torch.uint8)
    )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", [name for name in RECIPES if name.startswith(("linear", "passthrough"))])
def test_the_same_bits(bench: Bench, name: str, dtype: str) -> None:
    pair = bench.run(name, dtype)
    assert pair.ours.keys() == pair.theirs.keys()
    assert [tensor for tensor in pair.ours if not same_bits(pair.ours[tensor], pair.theirs[tensor])] == []
