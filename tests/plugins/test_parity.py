"""The same recipe through mergekit 0.1.5 and through safegraft, tensor by tensor.

One process runs all recipes through mergekit (importing it takes as long as all merges). The models are tiny
Llamas that are related as fine-tuned models are, with zeros of both signs at the same places.
"""

import functools
import json
import math
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

import safegraft
from safegraft.engine.task import TensorTask

DTYPES = ("float32", "bfloat16")
ROUNDING = {"float32": 2**-24, "bfloat16": 2**-8}  # the largest relative error of one rounding

# {0}, {1}, {2} are the models, {wide} is {1} in float32. Each recipe runs in both dtypes.
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
    "linear-late": """
        merge_method: linear
        dtype: bfloat16
        out_dtype: float32
        models:
          - {model: "{0}", parameters: {weight: 0.3}}
          - {model: "{1}", parameters: {weight: 0.7}}
        """,
    "linear-mixed": """
        merge_method: linear
        models:
          - {model: "{0}", parameters: {weight: 0.3}}
          - {model: "{wide}", parameters: {weight: 0.7}}
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
    """One recipe's two results, with the tasks that say how ours came about."""

    theirs: Mapping[str, torch.Tensor]
    ours: Mapping[str, torch.Tensor]
    tasks: Mapping[str, TensorTask]

    def tensors(self) -> Iterator[tuple[str, torch.Tensor, torch.Tensor]]:
        """Name, theirs, ours."""
        assert self.ours.keys() == self.theirs.keys()
        return ((name, self.theirs[name], self.ours[name]) for name in self.ours)

    def sources(self, name: str) -> tuple[list[torch.Tensor], torch.Tensor]:
        """The inputs and the base of one tensor, in double precision."""
        found = [load_model(one.model)[one.tensor].double() for one in self.tasks[name].contributions]
        return found[:-1], found[-1]


@functools.cache
def load_model(folder: str) -> dict[str, torch.Tensor]:
    return load_file(Path(folder) / "model.safetensors")


@dataclass(frozen=True)
class Bench:
    root: Path

    def recipe(self, name: str, dtype: str) -> str:
        text = RECIPES[name].replace("{wide}", str(self.root / "float32-1"))
        for number in range(3):
            text = text.replace(f"{{{number}}}", str(self.root / f"{dtype}-{number}"))
        return text

    def run(self, name: str, dtype: str) -> Pair:
        with safegraft.open(yaml.safe_load(self.recipe(name, dtype)), threads=1) as merged:
            ours = dict(merged.tensors)
            tasks = {task.name: task for task in merged.plan.tensors}
        return Pair(load_file(self.root / f"{name}-{dtype}" / "model.safetensors"), ours, tasks)


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    built = Bench(tmp_path_factory.mktemp("parity"))
    jobs = {str(built.root / f"{name}-{dtype}"): built.recipe(name, dtype) for name in RECIPES for dtype in DTYPES}
    command = [sys.executable, "-W", "ignore", "-c", MERGEKIT, str(built.root), json.dumps(jobs)]
    run = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "HF_HUB_OFFLINE": "1"})
    assert run.returncode == 0, run.stderr[-4000:]
    yield built
    load_model.cache_clear()


def same_bits(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Equal in dtype, shape and every bit: -0 is not 0."""
    return one.dtype == other.dtype and torch.equal(one.view(torch.uint8), other.view(torch.uint8))


SAME = [
    (name, dtype)
    for name in RECIPES
    for dtype in DTYPES
    if (name.startswith(("linear", "passthrough")) and name not in ("linear-late", "linear-mixed"))
    or (name.startswith("task_arithmetic") and dtype == "float32")
]


@pytest.mark.parametrize(("name", "dtype"), SAME)
def test_the_same_bits(bench: Bench, name: str, dtype: str) -> None:
    assert [tensor for tensor, theirs, ours in bench.run(name, dtype).tensors() if not same_bits(theirs, ours)] == []


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_wider_out_dtype_is_not_rounded_on_the_way(bench: Bench, dtype: str) -> None:
    """mergekit rounds to `dtype` before it casts to `out_dtype`; we cast once."""
    for name, theirs, ours in bench.run("linear-late", dtype).tensors():
        assert ours.dtype == theirs.dtype == torch.float32
        assert torch.equal(ours.bfloat16().float(), theirs), name


@pytest.mark.parametrize("dtype", DTYPES)
def test_inputs_of_two_dtypes_give_the_hosts(bench: Bench, dtype: str) -> None:
    """mergekit gives the wider of the inputs' dtypes; we keep the host model's, with the same values in it."""
    for name, theirs, ours in bench.run("linear-mixed", dtype).tensors():
        assert theirs.dtype == torch.float32
        assert str(ours.dtype) == f"torch.{dtype}"
        assert same_bits(theirs.to(ours.dtype), ours), name


@pytest.mark.parametrize("name", ["task_arithmetic", "task_arithmetic-lambda"])
def test_task_arithmetic_in_bfloat16_differs_by_mergekits_roundings(bench: Bench, name: str) -> None:
    """mergekit rounds differences, weights, products, their sum, the sum of the weights, the quotient and lambda's
    product to bfloat16; we round the result alone."""
    pair = bench.run(name, "bfloat16")
    rounding = ROUNDING["bfloat16"]
    for tensor, theirs, ours in pair.tensors():
        task = pair.tasks[tensor]
        inputs, base = pair.sources(tensor)
        weights = [one.parameters.weight for one in task.inputs]
        factor = task.parameters.scale / (sum(weights) if task.parameters.normalize else 1)
        deltas = [factor * weight * (one - base) for weight, one in zip(weights, inputs, strict=True)]
        exact, moved = base + sum(deltas), sum(delta.abs() for delta in deltas)
        our_error, their_error = (ours.double() - exact).abs(), (theirs.double() - exact).abs()
        assert bool((our_error <= rounding * exact.abs() + 1e-6 * moved).all()), tensor
        assert bool((their_error <= rounding * (exact.abs() + 8 * moved)).all()), tensor
        assert float(our_error.mean()) <= float(their_error.mean()), tensor


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ["slerp", "slerp-by-layer"])
def test_slerp_differs_by_mergekits_coefficients(bench: Bench, name: str, dtype: str) -> None:
    """mergekit finds the angle in float32, which leaves its coefficients wrong in the last bits; ours come from
    double precision. Both then multiply and add in float32: errors are relative to the two terms of the sum."""
    pair = bench.run(name, dtype)
    different = total = 0
    for tensor, theirs, ours in pair.tensors():
        ((other,), base) = pair.sources(tensor)
        t = pair.tasks[tensor].parameters.t
        angle = math.acos(float((base / base.norm() * other / other.norm()).sum()))
        first, second = (math.sin(share * angle) / math.sin(angle) for share in (1 - t, t))
        exact, terms = first * base + second * other, (first * base).abs() + (second * other).abs()
        rounding = ROUNDING[dtype] * exact.abs()
        our_error, their_error = (ours.double() - exact).abs(), (theirs.double() - exact).abs()
        assert bool((our_error <= rounding + 3 * ROUNDING["float32"] * terms).all()), tensor
        assert bool((their_error <= rounding + 12 * ROUNDING["float32"] * terms).all()), tensor
        different += int((ours != theirs).sum())
        total += ours.numel()
    if dtype == "bfloat16":  # in float32 most values differ, in their last bits
        assert different / total < 1e-4
