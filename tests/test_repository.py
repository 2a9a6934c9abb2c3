"""The repository agrees with itself: versions, packages, pins, commands that the documents name."""

import re
import subprocess
import tomllib
from importlib.metadata import entry_points, version
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import safegraft
from safegraft.cli.root import COMMANDS
from safegraft.methods import Registry

ROOT = Path(__file__).parent.parent
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())
PACKAGES = {Path(path) for path in PROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]}
DOCUMENTS = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]


def git(*arguments: str) -> list[str]:
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    command = ["git", "-C", ROOT, arguments[0], "-z", *arguments[1:]]
    answer = subprocess.run(command, capture_output=True, text=True, check=True)
    return [name for name in answer.stdout.split("\0") if name]


def committed_texts() -> list[tuple[str, str]]:
    """Name and content of every text file that is, or would be, committed."""
    names = git("ls-files", "--cached", "--others", "--exclude-standard")
    texts: list[tuple[str, str]] = []
    for name in names:
        path = ROOT / name
        content = path.read_bytes() if path.is_file() else b""
        if b"\0" not in content[:8192]:
            texts.append((name, content.decode("utf-8", "replace")))
    assert len(texts) > 50
    return texts


def test_one_version() -> None:
    stated = PROJECT["project"]["version"]
    releases = re.findall(r"^## \[(\d\S*)\]", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert {stated, safegraft.__version__, version("safegraft"), releases[0]} == {stated}


def test_a_source_root_holds_one_typed_package() -> None:
    for package in PACKAGES:
        found = {path.name for path in (ROOT / package.parent).iterdir() if not path.name.startswith((".", "__"))}
        assert found == {package.name}
        assert (ROOT / package / "py.typed").is_file()


def test_every_folder_of_a_package_is_a_package() -> None:
    """A folder without __init__.py imports in a checkout and is not in everybody's wheel."""
    modules = {path for package in PACKAGES for path in (ROOT / package).rglob("*.py")}
    assert {path.parent for path in modules if not (path.parent / "__init__.py").is_file()} == set()


def test_no_file_of_a_package_is_ignored_by_git() -> None:
    """The build leaves out what git ignores, without a word."""
    roots = [str(package) for package in PACKAGES]
    ignored = git("ls-files", "--ignored", "--cached", "--others", "--exclude-standard", "--", *roots)
    assert [name for name in ignored if "__pycache__" not in name] == []


def test_entry_points_are_those_of_the_project_and_all_load() -> None:
    declared = PROJECT["project"]["entry-points"]["safegraft"]
    installed = {
        entry.name: entry.value
        for entry in entry_points(group="safegraft")
        if entry.dist is not None and entry.dist.name == "safegraft"
    }
    assert installed == declared, "reinstall the project: its entry points have changed"
    ours = [plugin for plugin in Registry.discover().plugins if plugin.distribution == "safegraft"]
    assert {plugin.name: plugin.error for plugin in ours} == dict.fromkeys(declared)


def test_constraints_pin_what_the_project_asks_for() -> None:
    lines = (ROOT / "constraints.txt").read_text().split()
    pins = dict(line.split("==") for line in lines)  # a URL, a flag or an editable install would not split in two
    assert not [pin for pin in pins.values() if "+" in pin], "a local version is not on every index"
    versions = {canonicalize_name(name): pin for name, pin in pins.items()}
    asked = [*PROJECT["project"]["dependencies"], *PROJECT["project"]["optional-dependencies"]["dev"]]
    for requirement in map(Requirement, asked):
        assert requirement.specifier.contains(versions[canonicalize_name(requirement.name)]), str(requirement)


def test_import_rules_name_every_room() -> None:
    """A new room gets a place in the order before anything can import it."""
    contracts = {contract["id"]: contract for contract in PROJECT["tool"]["importlinter"]["contracts"]}
    ordered = {name.strip() for layer in contracts["rooms"]["layers"] for name in layer.split("|")}
    rooms = {f"safegraft.{path.parent.name}" for path in (ROOT / "service/safegraft").glob("*/__init__.py")}
    assert rooms - {"safegraft.v1"} == ordered - {"safegraft.api", "safegraft.errors", "safegraft.sources"}


def test_documents_name_commands_that_exist() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    companions = PROJECT["project"]["entry-points"]["safegraft.commands"]
    for path in DOCUMENTS:
        text = path.read_text()
        assert set(re.findall(r"(?:`|^ {4}|\$ )make ([a-z-]+)", text, re.MULTILINE)) <= targets, path.name
        commands = re.findall(r"(?:`|^ {4}|\$ )safegraft ([a-z]+(?:-[a-z]+)*)", text, re.MULTILINE)
        assert set(commands) <= {*COMMANDS, *companions}, path.name


def test_documents_link_to_files_that_exist() -> None:
    for path in DOCUMENTS:
        for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", path.read_text()):
            assert "://" in target or (path.parent / target).exists(), f"{path.name} links to {target}"


def test_nothing_committed_names_the_folder_it_lies_in() -> None:
    here = re.compile(re.escape(str(ROOT)) + r"(?![\w.-])")
    assert [name for name, text in committed_texts() if here.search(text)] == []


def test_what_ci_runs_is_executable() -> None:
    assert (ROOT / ".ci/run").stat().st_mode & 0o111
