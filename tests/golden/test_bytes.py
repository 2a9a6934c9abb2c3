"""The bytes of merges, once and for all: a change here changes what every user's plan digest promises.

If it is meant, raise ARITHMETIC in safegraft/engine/identity.py and renew the digests:
python tests/golden/test_bytes.py
"""

import json
import sys
import tempfile
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
import torch

import safegraft
from safegraft.testing import llama_config, words, write_checkpoint

DIGESTS = Path(__file__).with_name("digests.json")
DTYPES = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}
RECIPES: dict[str, dict[str, Any]] = {
    "linear": {"weights": [0.25, 0.5], "parameters": {}},
    "linear-unnormalised": {"weights": [0.25, -0.5], "parameters": {"normalize": False}, "method": "linear"},
    "slerp": {"base": True, "parameters": {"t": [0.25, 0.75]}},
    "task_arithmetic": {"weights": [None, 0.75], "base": True, "parameters": {"lambda": 0.5}},
}


def checkpoint(folder: Path, salt: int, dtype: torch.dtype) -> Path:
    """Weights from integers alone, so that no random generator is part of the promise."""

    def weights(*shape: int) -> torch.Tensor:
        count = torch.Size(shape).numel()
        numbers = (torch.arange(count) * (2654435761 + 2 * salt) + salt) % 4093
        return ((numbers.to(torch.float32) - 2046) / 1024).view(shape).to(dtype)

    tensors = {"model.embed_tokens.weight": weights(11, 6), "model.norm.weight": weights(6)}
    for layer in range(3):
        tensors[f"model.layers.{layer}.mlp.up_proj.weight"] = weights(9, 6)
        tensors[f"model.layers.{layer}.self_attn.q_proj.weight"] = weights(6, 6)
    return write_checkpoint(folder, tensors, llama_config(vocab=11, layers=3), tokens=words(11))


def digest(name: str, dtype: str, root: Path) -> str:
    one, two = (checkpoint(root / f"{dtype}-{salt}", salt, DTYPES[dtype]) for salt in (3, 17))
    asked = RECIPES[name]
    weights = asked.get("weights", [None, None])
    models = [
        {"model": str(model), **({} if weight is None else {"parameters": {"weight": weight}})}
        for model, weight in zip((one, two), weights, strict=True)
    ]
    recipe = {"models": models, "merge_method": asked.get("method", name), "parameters": asked["parameters"]}
    if asked.get("base"):
        recipe["base_model"] = str(one)
    with safegraft.open(recipe) as merged:
        return sha256(merged.files["model.safetensors"].read()).hexdigest()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", RECIPES)
def test_bytes_are_as_ever(name: str, dtype: str, tmp_path: Path) -> None:
    assert digest(name, dtype, tmp_path) == json.loads(DIGESTS.read_text())[f"{name}/{dtype}"]


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as root:
        found = {f"{name}/{dtype}": digest(name, dtype, Path(root)) for name in RECIPES for dtype in DTYPES}
    DIGESTS.write_text(json.dumps(found, indent=2) + "\n")
    sys.stdout.write(DIGESTS.read_text())
