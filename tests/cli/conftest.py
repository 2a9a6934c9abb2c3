"""The command line as other programs meet it: a process with arguments, two streams and an exit code."""

import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from safegraft.testing import tiny_llm, tiny_lvlm

Cli = Callable[..., subprocess.CompletedProcess[str]]

RECIPE = """\
models:
  - model: aligned
    parameters: {weight: 0.25}
  - model: adapted
    parameters: {weight: 0.75}
merge_method: linear
"""


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an LLM `aligned`, an LVLM `adapted` and `recipe.yml` that merges them. Read only."""
    folder = tmp_path_factory.mktemp("models")
    tiny_llm(folder / "aligned", seed=1)
    tiny_lvlm(folder / "adapted", seed=2)
    (folder / "recipe.yml").write_text(RECIPE)
    return folder


@pytest.fixture
def workplace(models: Path, tmp_path: Path) -> Path:
    """An empty folder to write to, in which the models and the recipe can be named as in `models`."""
    for entry in models.iterdir():
        (tmp_path / entry.name).symlink_to(entry)
    return tmp_path


def environment(**changes: str) -> dict[str, str]:
    """This process's environment without what would steer safegraft."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("SAFEGRAFT_")}
    return kept | changes


@pytest.fixture
def cli(workplace: Path) -> Cli:
    """Run a command in `workplace`. Whatever it is, it must not end in a traceback."""

    def run(*arguments: str | Path, env: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [sys.executable, "-m", "safegraft", *map(str, arguments)],
            capture_output=True,
            text=True,
            cwd=workplace,
            env=environment(**(env or {})),
            timeout=120,
            check=False,
        )
        assert "Traceback" not in done.stdout + done.stderr
        return done

    return run
