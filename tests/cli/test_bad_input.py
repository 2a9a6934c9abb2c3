"""What can be wrong with a command's words and with what they name: each has its exit code and its place."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Cli = Callable[..., Any]  # the fixture `cli` of conftest.py

RECIPES = {
    "not YAML": ("models: [", "not valid YAML"),
    "empty": ("", "recipe"),
    "not a mapping": ("- a\n- b\n", "mapping"),
    "binary": ("\x00\x01", "not allowed in YAML"),
    "unknown key": ("models: [{model: aligned}]\nmerge_method: linear\nmerge_metod: x\n", "merge_metod"),
    "unknown method": ("models: [{model: aligned}]\nmerge_method: lineer\n", "linear"),
    "misspelt parameter": ("models: [{model: aligned, parameters: {wieght: 1}}]\nmerge_method: linear\n", "weight"),
    "missing parameter": ("models: [{model: aligned}]\nmerge_method: linear\n", "weight"),
    "weights sum to zero": (
        "models: [{model: aligned}, {model: adapted}]\nmerge_method: linear\nparameters: {weight: 0}\n",
        "zero",
    ),
    "Python object": ("models: !!python/object/apply:os.system ['true']\nmerge_method: linear\n", "tag"),
    "nested without end": ("[" * 5000, "nested"),
}


@pytest.mark.parametrize("case", RECIPES)
@pytest.mark.parametrize("command", [["plan"], ["merge", "--out", "merged"]], ids=["plan", "merge"])
def test_a_wrong_recipe_is_2_and_says_where(case: str, command: list[str], cli: Cli, workplace: Path) -> None:
    text, says = RECIPES[case]
    (workplace / "wrong.yml").write_text(text)
    done = cli(*command, "wrong.yml")
    assert done.returncode == 2, done.stderr
    assert "wrong.yml" in done.stderr
    assert says in done.stderr
    assert done.stdout == ""
    assert not (workplace / "merged").exists()


USAGES = {
    "no such command": (["marge"], "No such command"),
    "no recipe": (["plan"], "RECIPE.yml"),
    "no such recipe": (["plan", "absent.yml"], "absent.yml"),
    "a recipe that is a folder": (["plan", "aligned"], "aligned"),
    "no --out": (["merge", "recipe.yml"], "--out"),
    "no threads": (["merge", "recipe.yml", "--out", "m", "--threads", "0"], "--threads"),
    "size without meaning": (["merge", "recipe.yml", "--out", "m", "--max-shard-size", "5 parsecs"], "5 parsecs"),
    "size of nothing": (["plan", "recipe.yml", "--max-shard-size", "0"], "less than one byte"),
    "--upload to nowhere": (["merge", "recipe.yml", "--out", "m", "--upload"], "--server"),
    "--token-file for nobody": (["merge", "recipe.yml", "--out", "m", "--token-file", "recipe.yml"], "--server"),
    "no --data": (["serve"], "--data"),
    "no such models": (["serve", "--data", "d", "--models", "absent"], "absent"),
    "no such token file": (["ls", "--token-file", "absent"], "absent"),
    "a key without its certificate": (["serve", "--data", "d", "--tls-key", "recipe.yml"], "certificate"),
    "public without a token": (["serve", "--data", "d", "--listen", "0.0.0.0:0"], "--insecure"),
    "no address": (["health", "--server", "nowhere"], "HOST:PORT"),
}


@pytest.mark.parametrize("case", USAGES)
def test_wrong_usage_is_2_and_names_the_word(case: str, cli: Cli) -> None:
    arguments, says = USAGES[case]
    done = cli(*arguments)
    assert done.returncode == 2, done.stderr
    assert says in done.stderr
    assert done.stdout == ""


def damage_header(model: Path) -> None:
    (model / "model.safetensors").write_bytes(b"\xff" * 64)


def truncate(model: Path) -> None:
    weights = model / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])


def empty(model: Path) -> None:
    (model / "model.safetensors").write_bytes(b"")


def pickle(model: Path) -> None:
    (model / "model.safetensors").rename(model / "pytorch_model.bin")


def no_config(model: Path) -> None:
    (model / "config.json").unlink()


def config_is_no_json(model: Path) -> None:
    (model / "config.json").write_text("{")


def other_sizes(model: Path) -> None:
    config = json.loads((model / "config.json").read_text())
    shutil.rmtree(model)
    from safegraft.testing import tiny_llm

    tiny_llm(model, hidden=2 * config["hidden_size"])


def nothing_left(model: Path) -> None:
    shutil.rmtree(model)


def a_file(model: Path) -> None:
    shutil.rmtree(model)
    model.write_text("not a folder")


@pytest.mark.parametrize(
    "harm",
    [damage_header, truncate, empty, pickle, no_config, config_is_no_json, other_sizes, nothing_left, a_file],
    ids=lambda harm: harm.__name__,
)
def test_an_unusable_input_is_3_and_names_the_model(
    harm: Callable[[Path], None], cli: Cli, models: Path, workplace: Path
) -> None:
    (workplace / "aligned").unlink()
    shutil.copytree(models / "aligned", workplace / "aligned")
    harm(workplace / "aligned")
    done = cli("merge", "recipe.yml", "--out", "merged")
    assert done.returncode == 3, done.stderr
    assert "aligned" in done.stderr
    assert not (workplace / "merged").exists()


def test_not_a_number_is_3_and_names_tensor_and_model(cli: Cli, workplace: Path) -> None:
    import torch

    from safegraft.testing import llama_config, llama_tensors, words, write_checkpoint

    tensors = llama_tensors(vocab=20, seed=1)
    tensors["model.layers.1.mlp.up_proj.weight"][3, 3] = torch.nan
    (workplace / "aligned").unlink()
    write_checkpoint(workplace / "aligned", tensors, llama_config(vocab=20), tokens=words(20))
    done = cli("merge", "recipe.yml", "--out", "merged")
    assert done.returncode == 3
    assert "aligned" in done.stderr
    assert "layers.1.mlp.up_proj.weight" in done.stderr
    assert not (workplace / "merged").exists()


def test_an_output_that_cannot_be_made_is_1(cli: Cli, workplace: Path) -> None:
    done = cli("merge", "recipe.yml", "--out", "recipe.yml/merged")
    assert done.returncode == 1
    assert "recipe.yml" in done.stderr


@pytest.mark.parametrize(
    "command", [["health"], ["ls"], ["watch", "x"], ["cancel", "x"], ["rm", "x"], ["plan", "recipe.yml"]]
)
def test_a_server_that_is_not_there_is_4(command: list[str], cli: Cli) -> None:
    done = cli(*command, "--server", "127.0.0.1:1")
    assert done.returncode == 4, done.stderr
    assert "127.0.0.1:1" in done.stderr
    assert done.stdout == ""
