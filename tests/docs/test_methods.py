"""docs/methods.md and docs/parameters.md say what the registry says."""

import importlib.util
import re
from pathlib import Path

import pytest

from safegraft.methods import MergeMethod, Registry

DOCS = Path(__file__).parents[2] / "docs"
DOCUMENT = (DOCS / "methods.md").read_text()


def tables(first: str, second: str) -> list[list[str]]:
    """The rows of all tables whose header begins with these two cells; code marks and angle brackets removed."""
    bodies = re.findall(rf"^\| {first} \| {second} \|.*\n\|[-|]+\|\n((?:\|.*\n)+)", DOCUMENT, re.MULTILINE)
    assert bodies
    lines = [line for body in bodies for line in body.splitlines()]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return [[re.sub(r"^[`<](.*)[`>]$", r"\1", cell) for cell in row] for row in rows]


@pytest.fixture(scope="module")
def built_in() -> dict[str, MergeMethod]:
    """Those that go by a plain name."""
    registry = Registry.discover()
    ours = [name for name in registry.names() if registry.plugin_of(name).distribution == "safegraft"]
    plain = [name for name in ours if not name.startswith("mergekit:")]
    return {name: method for name in plain if (method := registry.get(name)) is not None}


def test_methods_agree(built_in: dict[str, MergeMethod]) -> None:
    rows = tables("method", "result")
    assert len({row[0] for row in rows}) == len(rows)
    said = {row[0]: (row[2], row[3], row[-1]) for row in rows}
    assert said == {
        name: (method.requires.base, counted(method), method.reference) for name, method in built_in.items()
    }


def test_roles_and_data_agree(built_in: dict[str, MergeMethod]) -> None:
    said = {row[0]: (row[4], row[5]) for row in tables("method", "result") if len(row) == 7}
    for name, method in built_in.items():
        data = list(dict.fromkeys(one for need in method.requires.calibration for one in need.data))
        if name in said:
            assert said[name] == (", ".join(method.requires.roles), ", ".join(data))
        else:
            assert method.requires.roles == ()
            assert all(f"data `{one}`" in DOCUMENT for one in data)


def test_modifiers_agree() -> None:
    registry = Registry.discover()
    said = {row[0]: row[-1] for row in tables("modifier", "what becomes of the merged `m`")}
    assert said == {name: one.reference for name in registry.modifiers.names() if (one := registry.modifiers.get(name))}


def counted(method: MergeMethod) -> str:
    least, most = method.requires.min_inputs, method.requires.max_inputs
    return f"{least}" if least == most else f"{least} or more" if most is None else f"{least} to {most}"


def test_the_parameters_are_current() -> None:
    spec = importlib.util.spec_from_file_location("generate", DOCS / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    generate = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(generate)
    assert (DOCS / "parameters.md").read_text() == generate.parameters_document(), "run `make docs`"
