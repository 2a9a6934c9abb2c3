"""`safegraft plan`: the JSON is what other programs rely on; the text is made from it."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from safegraft.cli.plan import describe, module_of

Cli = Callable[..., Any]  # the fixture `cli` of conftest.py


@pytest.fixture
def document(cli: Cli) -> dict[str, Any]:
    done = cli("plan", "recipe.yml", "--json")
    assert (done.returncode, done.stderr) == (0, "")
    return json.loads(done.stdout)


def test_the_document_has_the_promised_shape(document: dict[str, Any]) -> None:
    assert re.fullmatch("[0-9a-f]{64}", document["digest"])
    assert document["host_model"] == "adapted"
    assert {"digest", "host_model", "files", "tensors", "warnings", "cost"} <= document.keys()
    for file in document["files"]:
        assert file.keys() == {"name", "size_bytes"}
        assert (type(file["name"]), type(file["size_bytes"])) == (str, int)
    for tensor in document["tensors"]:
        assert {"name", "action", "method", "inputs"} <= tensor.keys()
        assert tensor["action"] in ("merge", "copy")
        assert (tensor["method"] == "linear") == (tensor["action"] == "merge")
        assert [source.keys() for source in tensor["inputs"]] == [{"model", "tensor"}] * len(tensor["inputs"])
    assert all(isinstance(warning, str) for warning in document["warnings"])
    assert document["cost"]["bytes_written"] > 0


def test_the_document_tells_merged_from_copied_by_name(document: dict[str, Any]) -> None:
    by_name = {tensor["name"]: tensor for tensor in document["tensors"]}
    merged = by_name["language_model.model.layers.1.mlp.up_proj.weight"]
    assert merged["inputs"] == [
        {"model": "aligned", "tensor": "model.layers.1.mlp.up_proj.weight"},
        {"model": "adapted", "tensor": "language_model.model.layers.1.mlp.up_proj.weight"},
    ]
    copied = by_name["multi_modal_projector.linear_1.bias"]
    assert (copied["action"], copied["inputs"][0]["model"]) == ("copy", "adapted")


def test_the_plan_is_what_the_merge_writes(cli: Cli, workplace: Path, document: dict[str, Any]) -> None:
    assert cli("merge", "recipe.yml", "--out", "merged").returncode == 0
    written = {path.name: path.stat().st_size for path in (workplace / "merged").iterdir()}
    assert written == {file["name"]: file["size_bytes"] for file in document["files"]}


@pytest.mark.parametrize("seed", ["1", "2"])
def test_the_hash_seed_changes_nothing(seed: str, workplace: Path, cli: Cli) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "safegraft", "plan", "recipe.yml", "--json"],
        cwd=workplace,
        env=os.environ | {"PYTHONHASHSEED": seed},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == cli("plan", "recipe.yml", "--json").stdout


def test_shard_size_splits_the_weights(cli: Cli) -> None:
    document = json.loads(cli("plan", "recipe.yml", "--json", "--max-shard-size", "4KB").stdout)
    names = [file["name"] for file in document["files"]]
    assert "model.safetensors.index.json" in names
    assert [name for name in names if name.endswith("-of-00002.safetensors")] == names[:2]


def test_the_text_counts_every_tensor_and_names_every_file(document: dict[str, Any]) -> None:
    text = "\n".join(describe(document))
    assert document["digest"] in text
    for file in document["files"]:
        assert f"\n{file['name']} " in text
    for warning in document["warnings"]:
        assert warning in text
    assert "20 of 24 rows" in text
    body = text.split("\n\n")[1].splitlines()[1:]
    assert sum(int(re.split(r" {2,}", line)[1]) for line in body) == len(document["tensors"])


def test_planning_imports_no_torch(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = (
        "import sys; from safegraft.cli import main; code = main(['plan', 'recipe.yml', '--json'])\n"
        "sys.exit(code or ' '.join({'torch', 'transformers', 'grpc'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=workplace, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr.strip()) == (1, "")


WORDS = st.lists(st.sampled_from(["model", "layers", "block1", "mlp", "weight"]), min_size=1, max_size=4)


@given(WORDS, WORDS)
def test_the_layers_of_a_stack_share_a_module(stack: list[str], inside: list[str]) -> None:
    modules = {module_of(".".join([*stack, layer, *inside])) for layer in ("0", "7", "31")}
    assert modules == {".".join([*stack, "*"])}


def test_the_module_of_a_tensor() -> None:
    assert module_of("model.layers.3.mlp.up_proj.weight") == "model.layers.*"
    assert module_of("lm_head.weight") == "lm_head"
    assert module_of("scale") == "scale"
