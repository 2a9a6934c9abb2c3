"""`safegraft extract-lora`: what it says, writes and refuses."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from safegraft.testing import tiny_llm

Cli = Callable[..., Any]  # the fixture `cli` of conftest.py


@pytest.fixture
def pair(workplace: Path) -> Path:
    """A base, and a model tuned in one weight and one norm."""
    tiny_llm(workplace / "base", seed=1)
    shutil.copytree(workplace / "base", workplace / "tuned")
    file = workplace / "tuned" / "model.safetensors"
    tensors = load_file(file)
    tensors["model.layers.0.self_attn.q_proj.weight"] += torch.outer(torch.arange(8.0), torch.ones(8))
    tensors["model.norm.weight"] += 1
    save_file(tensors, file, {"format": "pt"})
    return workplace


def test_it_says_what_it_kept_and_what_it_left(cli: Cli, pair: Path) -> None:
    done = cli("extract-lora", "tuned", "--base", "base", "--out", "lora", "--rank", "4")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        f"{pair / 'lora'}: an adapter for 1 module",
        "ranks 1 to 1; least energy kept 1.0000, in model.layers.0.self_attn.q_proj.weight",
        "not in the adapter: 1 tensor that differs (--save-modules)",
        "  model.norm.weight: it is not the weight of a linear layer",
    ]
    again = cli("extract-lora", "tuned", "--base", "base", "--out", "lora", "--rank", "4")
    assert again.stdout.splitlines()[0].endswith("as it was already")


def test_its_json(cli: Cli, pair: Path) -> None:
    done = cli(
        "extract-lora", "tuned", "--base", "base", "--out", "lora", "--energy", "0.99", "--save-modules", "--json"
    )
    document = json.loads(done.stdout)
    (module,) = document["modules"]
    assert (module["module"], module["rank"]) == ("model.layers.0.self_attn.q_proj", 1)
    assert document["saved"] == ["model.norm.weight"]
    assert document["left"] == {}
    assert {file["name"] for file in document["files"]} == {
        "adapter_config.json", "adapter_model.safetensors", "safegraft.json",
    }  # fmt: skip


def test_what_it_wrote_can_be_merged(cli: Cli, pair: Path) -> None:
    assert (
        cli("extract-lora", "tuned", "--base", "base", "--out", "lora", "--rank", "1", "--save-modules").returncode == 0
    )
    (pair / "back.yml").write_text("models: [{model: base+lora}]\nmerge_method: passthrough\n")
    done = cli("merge", "back.yml", "--out", "back")
    assert done.returncode == 0, done.stderr
    back, tuned = (load_file(pair / name / "model.safetensors") for name in ("back", "tuned"))
    for name, tensor in tuned.items():
        torch.testing.assert_close(back[name], tensor, rtol=1e-5, atol=1e-5)


def test_it_says_what_it_saved_whole(cli: Cli, pair: Path) -> None:
    done = cli("extract-lora", "tuned", "--base", "base", "--out", "lora", "--rank", "1", "--save-modules")
    assert done.stdout.splitlines()[-1] == "saved whole: 1 tensor"


def test_every_missing_model_is_told(cli: Cli, pair: Path) -> None:
    done = cli("extract-lora", "nothing", "--base", "nowhere", "--out", "lora", "--rank", "1")
    assert done.returncode == 3
    assert {"nothing: no such folder", "nowhere: no such folder"} <= {
        line.removeprefix("error: ").strip().partition(";")[0] for line in done.stderr.splitlines()
    }


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        ([], 2, "give either --rank N or --energy E"),
        (["--rank", "2", "--energy", "0.9"], 2, "give either --rank N or --energy E"),
        (["--rank", "0"], 2, "--rank"),
        (["--energy", "1.5"], 2, "--energy"),
        (["--rank", "2", "--targets", "nothing*"], 3, "differs from the base in no linear weight that was asked for"),
        (["--rank", "2", "--base", "lora"], 3, "no such folder"),
    ],
)
def test_what_it_refuses(cli: Cli, pair: Path, options: list[str], code: int, message: str) -> None:
    shutil.copytree(pair / "tuned", pair / "tuned-2")
    file = pair / "tuned-2" / "model.safetensors"
    tensors = load_file(file)
    tensors["model.norm.weight"] -= 1
    save_file(tensors, file, {"format": "pt"})
    done = cli("extract-lora", "tuned-2", "--base", "base", "--out", "out", *options)
    assert done.returncode == code
    assert message in done.stderr
    assert not (pair / "out").exists()


def test_help_imports_no_torch() -> None:
    code = (
        "import sys; from safegraft.cli import main; main(['extract-lora', '--help']);"
        "print('torch' in sys.modules, file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "safegraft extract-lora lvlm --base llm" in done.stdout
    assert done.stderr.strip() == "False"
