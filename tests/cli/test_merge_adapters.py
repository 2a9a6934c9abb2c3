"""`safegraft merge` of adapters alone, and of a model with an adapter."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from safegraft.testing import tiny_llm

Cli = Callable[..., Any]  # the fixture `cli` of conftest.py
RECIPE = """\
models:
  - model: one
    parameters: {weight: 0.5}
  - model: two
    parameters: {weight: 0.5}
merge_method: linear
"""


@pytest.fixture
def adapters(workplace: Path, write_lora: Any) -> Path:
    tiny_llm(workplace / "base", seed=1)
    for seed, name in enumerate(("one", "two")):
        write_lora(workplace / name, workplace / "base", seed=seed)
    (workplace / "adapters.yml").write_text(RECIPE)
    return workplace


def test_adapters_alone_give_an_adapter(cli: Cli, adapters: Path) -> None:
    done = cli("merge", "adapters.yml", "--out", "both")
    assert done.returncode == 0, done.stderr
    assert {path.name for path in (adapters / "both").iterdir()} == {
        "adapter_config.json", "adapter_model.safetensors", "safegraft.json",
    }  # fmt: skip
    assert "warning" not in done.stderr
    (adapters / "use.yml").write_text("models: [{model: base+both}]\nmerge_method: passthrough\n")
    assert cli("merge", "use.yml", "--out", "merged").returncode == 0


@pytest.mark.parametrize("run", [1, 2])
def test_what_a_lower_rank_loses_is_said_every_time(cli: Cli, adapters: Path, run: int) -> None:
    for _ in range(run):
        done = cli("merge", "adapters.yml", "--out", "both", "--rank", "1", "--json")
    (warning,) = json.loads(done.stdout)["warnings"]
    assert "8 of 8 modules need a higher rank" in warning
    assert f"warning: {warning}" in done.stderr


def test_a_rank_is_for_adapters(cli: Cli, adapters: Path) -> None:
    done = cli("merge", "recipe.yml", "--out", "m", "--rank", "1")
    assert (done.returncode, "models are all adapters" in done.stderr) == (2, True)
    done = cli("merge", "adapters.yml", "--out", "m", "--rank", "1", "--server", "127.0.0.1:1")
    assert (done.returncode, "--rank is for adapters" in done.stderr) == (2, True)


def test_a_plan_of_adapters_says_what_they_are(cli: Cli, adapters: Path) -> None:
    done = cli("plan", "adapters.yml")
    assert done.returncode == 3
    assert "one: is a PEFT adapter, not a model" in done.stderr


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--server", "127.0.0.1:1", "--upload"], "adapters are merged on your own machine"),
        (["--max-shard-size", "5GB"], "--max-shard-size is for models"),
    ],
)
def test_what_means_nothing_for_adapters_is_refused(cli: Cli, adapters: Path, options: list[str], message: str) -> None:
    done = cli("merge", "adapters.yml", "--out", "m", *options)
    assert (done.returncode, message in done.stderr) == (2, True), done.stderr
    assert not (adapters / "m").exists()


def test_what_an_adapter_seems_to_lack_is_a_warning(cli: Cli, adapters: Path) -> None:
    file = adapters / "one" / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "target_modules": ["q_proj", "up_proj", "x_proj"]}))
    (adapters / "use.yml").write_text("models: [{model: base+one}]\nmerge_method: passthrough\n")
    warnings = json.loads(cli("merge", "use.yml", "--out", "merged", "--json").stdout)["warnings"]
    assert "one: target_modules in its config names 'up_proj', 'x_proj', of which it has nothing" in warnings
    assert len(warnings) == 1
