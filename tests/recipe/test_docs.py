"""docs/recipe.md: every example is a recipe, and every key is there."""

import re
from dataclasses import fields
from pathlib import Path

import pytest

from safegraft.recipe import Recipe, parse_recipe
from safegraft.recipe.document import MAX_CHARACTERS, MAX_DEPTH, MAX_NODES

TEXT = (Path(__file__).parents[2] / "docs" / "recipe.md").read_text()
EXAMPLES = re.findall(r"^```yaml\n(.*?)^```", TEXT, re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize("example", EXAMPLES, ids=range(len(EXAMPLES)))
def test_every_example_is_a_recipe(example: str) -> None:
    assert parse_recipe(example).inputs()


def test_every_key_is_there() -> None:
    keys = {field.name for field in fields(Recipe)} - {"text", "name", "lines"}
    assert keys <= set(re.findall(r"^\| `(\w+)`", TEXT, re.MULTILINE))


def test_the_bounds_are_those_of_the_code() -> None:
    assert f"{MAX_CHARACTERS:,} characters, {MAX_NODES:,} values and {MAX_DEPTH} levels" in TEXT
