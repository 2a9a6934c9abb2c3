"""docs/plugins.md: its sample package, installed as a stranger would install it; and the contract it prints."""

import ast
import inspect
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from safetensors.torch import load_file

from safegraft.methods import contract
from safegraft.testing import tiny_llm

DOCUMENT = (Path(__file__).parents[2] / "docs/plugins.md").read_text()
FILES = dict(re.findall(r"^\*\*`([^`]+)`\*\*\n\n```\w+\n(.*?)^```$", DOCUMENT, re.MULTILINE | re.DOTALL))


@dataclass(frozen=True)
class Sample:
    """The sample package: its source, and a folder in which it is installed."""

    source: Path
    installed: Path

    def python(self, *arguments: str, check: bool = True, **environment: str) -> subprocess.CompletedProcess[str]:
        """Run Python with the installed package on its path, in a folder where the source is not."""
        return subprocess.run(
            [sys.executable, *arguments],
            cwd=self.installed,
            env={**os.environ, "PYTHONPATH": str(self.installed), **environment},
            capture_output=True,
            text=True,
            check=check,
        )

    def changed(self, folder: Path, old: str, new: str) -> "Sample":
        """A copy whose module has another text in one place."""
        shutil.copytree(self.installed, folder)
        module = folder / "safegraft_norm_mean.py"
        assert module.read_text().count(old) == 1
        module.write_text(module.read_text().replace(old, new))
        return Sample(self.source, folder)

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        """Start Python likewise, with both streams in one pipe."""
        return subprocess.Popen(
            [sys.executable, *arguments],
            cwd=self.installed,
            env={**os.environ, "PYTHONPATH": str(self.installed)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def safegraft(self, *arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
        return self.python("-m", "safegraft", *arguments, **options)


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> Sample:
    source, installed = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("installed")
    for name, text in FILES.items():
        (source / name).write_text(text)
    offline = ("--no-index", "--no-deps", "--no-build-isolation", "--disable-pip-version-check")
    subprocess.run(
        [sys.executable, "-m", "pip", "install", "--quiet", *offline, "--target", str(installed), str(source)],
        check=True,
    )
    return Sample(source, installed)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    root = tmp_path_factory.mktemp("models")
    return tiny_llm(root / "one", seed=1), tiny_llm(root / "two", seed=2)


@pytest.fixture
def recipe(tmp_path: Path, models: tuple[Path, Path]) -> Path:
    written = tmp_path / "recipe.yml"
    one, two = models
    entries = [
        {"model": str(one), "parameters": {"weight": 3}},
        {"model": str(two), "parameters": {"weight": 1}},
    ]
    written.write_text(
        yaml.safe_dump({"merge_method": "norm_mean", "models": entries, "parameters": {"stretch": [0, 1]}})
    )
    return written


def test_the_sample_is_complete() -> None:
    assert list(FILES) == ["pyproject.toml", "safegraft_norm_mean.py", "test_norm_mean.py"]


def test_it_passes_its_own_tests(sample: Sample) -> None:
    shutil.copy(sample.source / "test_norm_mean.py", sample.installed)
    run = sample.python("-m", "pytest", "-q", "-p", "no:cacheprovider", "-W", "error", "test_norm_mean.py", check=False)
    assert run.returncode == 0, run.stdout
    assert "3 passed" in run.stdout


def test_the_command_line_lists_it(sample: Sample) -> None:
    described = {one["name"]: one for one in json.loads(sample.safegraft("methods", "--json").stdout)}
    found = described["norm_mean"]
    assert found["parameters"]["properties"]["stretch"]["maximum"] == 1
    assert found["input_parameters"]["properties"]["weight"]["default"] == 1.0
    assert "linear" in described
    (plugin,) = [one for one in json.loads(sample.safegraft("plugins", "--json").stdout) if one["name"] == "norm_mean"]
    assert plugin == {
        "name": "norm_mean",
        "module": "safegraft_norm_mean",
        "distribution": "safegraft-norm-mean",
        "version": "1.0.0",
        "methods": ["norm_mean"],
        "error": None,
        "modifiers": [],
        "tensor_maps": [],
        "checkpoint_sources": [],
        "publishers": [],
    }


def test_it_merges(sample: Sample, recipe: Path, models: tuple[Path, Path], tmp_path: Path) -> None:
    sample.safegraft("merge", str(recipe), "--out", str(tmp_path / "out"))
    check_result(tmp_path / "out", models)


def check_result(out: Path, models: tuple[Path, Path]) -> None:
    """Weights 3 : 1; the first layer is the plain mean, the last one has the full length."""
    merged = load_file(out / "model.safetensors")
    one, two = (load_file(model / "model.safetensors") for model in models)
    first, last = "model.layers.0.mlp.up_proj.weight", "model.layers.1.mlp.up_proj.weight"
    assert merged[first].allclose((3 * one[first] + two[first]) / 4)
    length = ((3 * one[last].norm() ** 2 + two[last].norm() ** 2) / 4) ** 0.5
    assert merged[last].norm().isclose(length)
    assert "safegraft-norm-mean" in json.loads((out / "safegraft.json").read_text())["versions"]


@pytest.mark.slow
def test_a_running_server_merges_with_it(
    sample: Sample, recipe: Path, models: tuple[Path, Path], tmp_path: Path
) -> None:
    root = models[0].parent
    recipe.write_text(recipe.read_text().replace(str(root), "models"))
    command = ["serve", "--listen", "127.0.0.1:0", "--data", str(tmp_path / "data"), "--models", f"{root}=models"]
    with sample.start("-m", "safegraft", *command) as server:
        assert server.stdout is not None
        try:
            (address,) = re.findall(r"127\.0\.0\.1:\d+", server.stdout.readline())
            sample.safegraft("merge", str(recipe), "--server", address, "--out", str(tmp_path / "out"))
        finally:
            server.terminate()
            rest, _ = server.communicate(timeout=60)
    assert server.returncode == 0, rest
    check_result(tmp_path / "out", models)


def test_a_wrong_parameter_is_found_when_planning(sample: Sample, recipe: Path) -> None:
    recipe.write_text(recipe.read_text().replace("- 1\n", "- 1.5\n"))
    run = sample.safegraft("plan", str(recipe), check=False)
    assert run.returncode == 2
    assert "stretch must be a number from 0 to 1" in run.stderr


def test_broken_it_is_reported_and_strict_mode_fails(sample: Sample, tmp_path: Path) -> None:
    broken = sample.changed(tmp_path / "broken", "    summary =", "    remark =")
    (printed,) = re.findall(r"^    (norm_mean +safegraft-norm-mean .*)$", DOCUMENT, re.MULTILINE)
    assert printed.split() in [line.split() for line in broken.safegraft("plugins").stdout.splitlines()]
    strict = broken.safegraft("methods", check=False, SAFEGRAFT_STRICT_PLUGINS="1")
    assert strict.returncode == 1
    assert "plugin norm_mean: NormMean lacks summary" in strict.stderr


@pytest.mark.parametrize(
    "line", ["return mean(inputs).mul_(context.state)", "mean_square = square_of_mean = 0.0"], ids=["merge", "prepare"]
)
def test_an_exception_names_the_method_and_the_tensor(sample: Sample, recipe: Path, tmp_path: Path, line: str) -> None:
    failing = sample.changed(tmp_path / "failing", line, "raise ArithmeticError('not today')")
    run = failing.safegraft("merge", str(recipe), "--out", str(tmp_path / "out"), check=False)
    assert run.returncode == 1
    assert re.search(r"method norm_mean failed on \S+\.weight: ArithmeticError: not today", run.stderr)
    assert not (tmp_path / "out").exists()


def test_the_kits_message_is_the_one_in_the_document(sample: Sample) -> None:
    code = (
        "from safegraft.testing import check_method; from safegraft_norm_mean import NormMean; "
        "NormMean.merge = lambda self, inputs, base, context: inputs[0].tensor - inputs[0].tensor.mean(); "
        "check_method(NormMean)"
    )
    said = " ".join(sample.python("-c", code, check=False).stderr.split())
    (printed,) = re.findall(r"^    (AssertionError: .*\n    .*)\n", DOCUMENT, re.MULTILINE)
    assert " ".join(printed.split()) in said


# -- the contract as printed --------------------------------------------------------------------


def outline(source: str) -> dict[str, list[str]]:
    """Class -> its fields, members and methods with their arguments, in order."""
    return {
        node.name: [one for item in node.body if (one := described(item))]
        for node in ast.parse(source).body
        if isinstance(node, ast.ClassDef)
    }


def described(item: ast.stmt) -> str | None:
    if isinstance(item, ast.AnnAssign):
        return f"{ast.unparse(item.target)} = {ast.unparse(item.value)}" if item.value else ast.unparse(item.target)
    if isinstance(item, ast.Assign):
        return ast.unparse(item)
    if isinstance(item, ast.FunctionDef):
        return f"{item.name}({', '.join(argument.arg for argument in item.args.args)})"
    return None


def test_the_printed_contract_is_the_contract() -> None:
    (printed,) = re.findall(r"^## The contract\n.*?^```python\n(.*?)^```$", DOCUMENT, re.MULTILINE | re.DOTALL)
    real = outline(inspect.getsource(contract))
    del real["NoParameters"]
    assert outline(printed) == real
    others = {"Plugin", "Registry", "hookimpl", "TensorMap", "CheckpointSource", "Publisher", "NoParameters"}
    machine_code = {"Compiled", "DeclinedError", "StoredCut", "StoredView"}
    assert set(real) | others | machine_code == set(names_of("safegraft.methods"))


def names_of(module: str) -> Mapping[str, Any]:
    names: list[str] = vars(sys.modules[module])["__all__"]
    return dict.fromkeys(names)
