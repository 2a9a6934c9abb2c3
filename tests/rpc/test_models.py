"""Recipes may name models under the roots, and nothing else."""

import json
import os
import pickle
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from safegraft.errors import CheckpointError, UsageError
from safegraft.rpc.models import ModelRoot, Models, uploads_in


@pytest.fixture
def house(tmp_path: Path, root: Path) -> Path:
    """A folder with two roots, and something outside of both."""
    for place in ("one", "two", "outside"):
        (tmp_path / place).mkdir()
        os.symlink(root / "llm", tmp_path / place / "linked-away")
    for place in ("one", "outside"):
        (tmp_path / place / "deep").mkdir()
        target = tmp_path / place / "deep" / "llm"
        target.mkdir()
        for file in (root / "llm").iterdir():
            (target / file.name).write_bytes(file.read_bytes())
    os.symlink(tmp_path / "one" / "deep" / "llm", tmp_path / "one" / "alias")
    os.symlink(tmp_path / "outside" / "deep", tmp_path / "one" / "out")
    return tmp_path


def test_a_single_root_may_be_left_out(house: Path):
    models = Models((ModelRoot.parse(f"{house / 'one'}"),))
    for reference in ("deep/llm", "one/deep/llm", "alias"):
        with_name = models.open(reference)
        assert with_name.name == reference
        with_name.close()


def test_with_two_roots_the_name_is_needed(house: Path):
    models = Models((ModelRoot.parse(f"{house / 'one'}=a"), ModelRoot.parse(f"{house / 'two'}=b")))
    models.open("a/deep/llm").close()
    with pytest.raises(CheckpointError, match="ROOT one of a, b"):
        models.open("deep/llm")


@pytest.mark.parametrize(
    "reference",
    [
        "{house}/one/deep/llm",
        "../outside/deep/llm",
        "deep/../../outside/deep/llm",
        "one/../../outside/deep/llm",
        "./deep/llm",
        "deep//llm",
        "deep/llm/",
        "",
        "~/models",
        "..",
        "deep\\llm",
        "out/llm",
        "linked-away",
        "missing",
        "deep/llm/model.safetensors",
        "meta-llama/Llama-3.1-8B",
        "a" * 5000,
        "a/" * 3000 + "b",
        "deep/llm\0",
    ],
)
def test_nothing_else_can_be_opened_and_the_error_names_the_root(house: Path, reference: str):
    models = Models((ModelRoot.parse(str(house / "one")),))
    reference = reference.format(house=house)
    with pytest.raises(CheckpointError, match="within the root 'one'") as caught:
        models.open(reference)
    assert not models.exists(reference)
    if not reference.startswith("/"):
        assert str(house) not in str(caught.value), "where the root lies is no client's business"


def test_an_adapter_is_opened_under_the_same_rules(house: Path):
    adapter = house / "one" / "lora"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 2, "lora_alpha": 4}))
    name = "base_model.model.model.layers.0.self_attn.q_proj"
    checkpoint = Models((ModelRoot.parse(str(house / "one")),)).open("deep/llm")
    rows, columns = checkpoint.tensors["model.layers.0.self_attn.q_proj.weight"].shape
    checkpoint.close()
    factors = {f"{name}.lora_A.weight": torch.ones(2, columns), f"{name}.lora_B.weight": torch.ones(rows, 2)}
    save_file(factors, adapter / "adapter_model.safetensors")
    shutil.copytree(adapter, house / "outside" / "lora")
    models = Models((ModelRoot.parse(str(house / "one")),))
    joined = models.open("deep/llm+lora")
    assert joined.name == "deep/llm+lora"
    assert joined.sources == ("deep/llm", "lora")
    joined.close()
    for reference in ("deep/llm+../outside/lora", "deep/llm+missing", "lora", "lora+deep/llm", "deep/llm+"):
        with pytest.raises(CheckpointError):
            models.open(reference)
    with pytest.raises(CheckpointError, match="names a revision, and a folder has none"):
        models.open("deep/llm+lora@main")
    (house / "one" / "deep/llm+lora").mkdir()
    with pytest.raises(CheckpointError, match=r"deep/llm\+lora"):  # the folder of that name, which is empty
        models.open("deep/llm+lora")


def test_uploads_are_found_in_references():
    assert uploads_in("one/llm") == []
    assert uploads_in("upload:ab") == ["ab"]
    assert uploads_in("upload:ab+upload:cd") == ["ab", "cd"]
    assert uploads_in("llm+upload:cd") == ["cd"]


def test_without_roots_the_error_says_what_to_do():
    with pytest.raises(CheckpointError, match="no model roots"):
        Models(()).open("llm")
    with pytest.raises(CheckpointError, match="takes no uploads"):
        Models(()).open("upload:" + "0" * 64)


@pytest.mark.parametrize("argument", ["", "=x", "/no/such/folder", "/=a/b", "/=", "/=-x", "/=upload:x"])
def test_bad_roots_are_usage_errors(argument: str):
    with pytest.raises(UsageError, match="--models"):
        ModelRoot.parse(argument)


def test_two_roots_need_two_names(house: Path):
    with pytest.raises(UsageError, match="two roots are called x"):
        Models((ModelRoot.parse(f"{house / 'one'}=x"), ModelRoot.parse(f"{house / 'two'}=x")))


def test_roots_travel_to_workers(house: Path):
    models = Models((ModelRoot.parse(str(house / "one")),))
    assert pickle.loads(pickle.dumps(models)) == models
