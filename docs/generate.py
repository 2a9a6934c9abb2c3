"""Writes docs/parameters.md from the schemas of safegraft's own methods and modifiers: `make docs`."""

import json
from collections.abc import Iterator
from pathlib import Path

from pydantic import BaseModel

from safegraft.engine.parameters import describe
from safegraft.methods import Registry

HEAD = """# Parameters

Written by `make docs` from the schemas that recipes are checked against; `safegraft methods show NAME` prints the same.
[methods.md](methods.md) says what each method does, [recipe.md](recipe.md) how to give parameters. The methods
`mergekit:NAME` have mergekit's parameters.
"""


def main() -> None:
    Path(__file__).with_name("parameters.md").write_text(parameters_document())


def parameters_document() -> str:
    registry = Registry.discover()
    methods = [one for name in registry.methods.names() if (one := registry.methods.get(name)) is not None]
    own = [one for one in methods if registry.methods.plugin_of(one.name).distribution == "safegraft"]
    sections = [
        _section(one.name, {"each model": one.InputParameters, "all": one.Parameters})
        for one in own
        if not one.name.startswith("mergekit:")
    ]
    modifiers = [one for name in registry.modifiers.names() if (one := registry.modifiers.get(name)) is not None]
    sections += [_section(f"{one.name} (modifier)", {"all": one.Parameters}) for one in modifiers]
    return "\n".join([HEAD, *sections])


def _section(title: str, scopes: dict[str, type[BaseModel]]) -> str:
    rows = [row for scope, kind in scopes.items() for row in _rows(scope, kind)]
    if not rows:
        return f"## {title}\n\nNone.\n"
    head = ["| parameter | given for | value | default | meaning |", "|---|---|---|---|---|"]
    return "\n".join([f"## {title}", "", *head, *rows, ""])


def _rows(scope: str, kind: type[BaseModel]) -> Iterator[str]:
    schema = kind.model_json_schema()
    definitions = schema.get("$defs", {})
    for name, details in schema.get("properties", {}).items():
        default = "required" if name in schema.get("required", []) else f"`{json.dumps(details['default'])}`"
        value = describe(details, definitions) or "see the meaning"
        yield f"| `{name}` | {scope} | {value} | {default} | {details['description']} |"


if __name__ == "__main__":
    main()
