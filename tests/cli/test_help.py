"""Help comes at once and its examples are right."""

import re
import shlex
import subprocess
import sys

import click
import pytest
from click.testing import CliRunner

from safegraft.cli.root import COMMANDS, root

HEAVY = {
    "google.protobuf",
    "grpc",
    "huggingface_hub",
    "numpy",
    "pydantic",
    "sqlalchemy",
    "torch",
    "tqdm",
    "transformers",
}
IMPORTED = """
import sys
from safegraft.cli import main
code = main(sys.argv[1:])
print("imported:", *sorted(sys.modules))
sys.exit(code)
"""


def imported_by(*arguments: str) -> set[str]:
    done = subprocess.run(
        [sys.executable, "-c", IMPORTED, *arguments], capture_output=True, text=True, check=True, timeout=60
    )
    return set(done.stdout.splitlines()[-1].split()[1:])


def help_of(name: str) -> str:
    result = CliRunner().invoke(root, [name, "--help"], terminal_width=120)
    assert result.exit_code == 0, result.output
    return result.output


def examples() -> list[str]:
    lines = [line for name in COMMANDS for line in help_of(name).splitlines()]
    return [line.strip() for line in lines if re.match(r" +(\w+=\S+ )?safegraft \w", line)]


@pytest.mark.parametrize(
    "arguments", [["--help"], ["--version"], *([name, "--help"] for name in COMMANDS)], ids=" ".join
)
def test_help_imports_nothing_heavy(arguments: list[str]) -> None:
    assert imported_by(*arguments) & HEAVY == set()


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_has_an_example_of_its_own(name: str) -> None:
    assert re.search(rf"Examples?:\n +(\w+=\S+ )?safegraft {name}\b", help_of(name))


@pytest.mark.parametrize("example", examples())
def test_an_example_parses(example: str) -> None:
    words = shlex.split(re.split(r" {2,}| [|>&] ", example)[0])
    words = words[words.index("safegraft") + 1 :]
    command = root.get_command(click.Context(root), words[0])
    assert command is not None
    if isinstance(command, click.Group) and words[1:] and words[1] in command.commands:
        command, words = command.commands[words[1]], words[1:]
    with command.make_context(words[0], words[1:]) as context:
        assert context.args == []


@pytest.mark.parametrize("name", COMMANDS)
def test_the_overview_and_the_command_agree(name: str) -> None:
    result = CliRunner().invoke(root, ["--help"], terminal_width=120)
    assert re.search(rf"^  {name} +{re.escape(COMMANDS[name].summary)}$", result.output, re.MULTILINE)


def test_without_a_command_the_usage_is_wrong() -> None:
    result = CliRunner().invoke(root, [])
    assert (result.exit_code, result.stdout) == (2, "")
    assert "Commands:" in result.stderr
