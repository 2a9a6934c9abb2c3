"""docs/methods.md says what the registry says."""

import json
import re
from pathlib import Path

import pytest

from safegraft.engine.parameters import describe
from safegraft.methods import MergeMethod, Registry

DOCUMENT = (Path(__file__).parents[2] / "docs/methods.md").read_text()


def table(first: str, second: str) -> list[list[str]]:
    """The rows of the table whose header begins with these two cells; code marks and angle brackets removed."""
    (body,) = re.findall(rf"^\| {first} \| {second} \|.*\n\|[-|]+\|\n((?:\|.*\n)+)", DOCUMENT, re.MULTILINE)
    rows = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in body.splitlines()]
    return [[re.sub(r"^[`<](.*)[`>]$", r"\1", cell) for cell in row] for row in rows]


@pytest.fixture(scope="module")
def built_in() -> dict[str, MergeMethod]:
    registry = Registry.discover()
    ours = [name for name in registry.names() if registry.plugin_of(name).distribution == "safegraft"]
    return {name: method for name in ours if (method := registry.get(name)) is not None}


def test_methods_agree(built_in: dict[str, MergeMethod]) -> None:
    said = {row[0]: row[2:] for row in table("method", "result")}
    assert said == {
        name: [method.requires.base, counted(method), method.reference] for name, method in built_in.items()
    }


def counted(method: MergeMethod) -> str:
    least, most = method.requires.min_inputs, method.requires.max_inputs
    return f"{least}" if least == most else f"{least} or more" if most is None else f"{least} to {most}"


def test_parameters_agree(built_in: dict[str, MergeMethod]) -> None:
    registered: list[list[str]] = []
    for name, method in built_in.items():
        for scope, kind in (("each model", method.InputParameters), ("all", method.Parameters)):
            schema = kind.model_json_schema()
            for parameter, details in schema.get("properties", {}).items():
                required = parameter in schema.get("required", [])
                default = "required" if required else json.dumps(details["default"])
                meaning = details["description"]
                registered.append([name, parameter, scope, str(describe(details, {})), default, meaning])
    assert sorted(table("method", "parameter")) == sorted(registered)
