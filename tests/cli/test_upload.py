"""`renamed`: models get other names, and nothing else of the recipe's text changes."""

from dataclasses import replace
from typing import Any

import pytest

from safegraft.cli.upload import Uploads, renamed
from safegraft.errors import CheckpointError, Problem
from safegraft.recipe import Recipe, parse_recipe

NAMES = {"aligned": "upload:" + "a" * 64, "my models/adapted": "upload:" + "b" * 64}

STYLES = {
    "block": """
# aligned stays in comments
models:
  - model: aligned      # and after: aligned
    parameters: {weight: 0.25}
  - model: my models/adapted
    parameters:
      weight:
        - filter: aligned
          value: 1
        - value: 0.5
merge_method: linear
host_model: "my models/adapted"
""",
    "flow": "{models: [{model: aligned}, {model: 'my models/adapted'}], base_model: aligned, merge_method: slerp}\n",
    "anchors": """
models:
  - model: &one aligned
  - model: &two "my models/adapted"
base_model: *one
host_model: *two
merge_method: slerp
""",
    "long form": """
models:
  - model: {model: {path: aligned}}
  - model:
      model:
        path: my models/adapted
merge_method: linear
""",
    "block scalars": """
models:
  - model: |-
      aligned
  - model: >-
      my models/adapted
merge_method: linear
""",
    "overrides": """
models:
  - model: aligned
  - model: my models/adapted
merge_method: linear
overrides:
  - tensors: "aligned.*"
    models:
      - {model: aligned, parameters: {weight: 1}}
      - model: my models/adapted
        parameters: {weight: 0}
""",
    "tags": """
models:
  - model: !!str aligned
  - model: !!str "my models/adapted"
merge_method: linear
""",
}


def read(text: str) -> Recipe:
    return parse_recipe(text, "recipe.yml", folder_exists=lambda _: True)


def with_names(recipe: Recipe) -> Recipe:
    """The recipe with other names put in by hand."""

    def new(name: str | None) -> Any:
        return NAMES.get(name or "", name)

    return replace(
        recipe,
        models=tuple(replace(entry, model=new(entry.model)) for entry in recipe.models),
        base_model=new(recipe.base_model),
        host_model=new(recipe.host_model),
        overrides=tuple(
            replace(one, models={new(name): settings for name, settings in one.models.items()})
            for one in recipe.overrides
        ),
        text="",
        lines={},
    )


@pytest.mark.parametrize("style", STYLES)
def test_the_recipe_is_the_same_under_other_names(style: str) -> None:
    before = read(STYLES[style])
    after = read(renamed(STYLES[style], NAMES))
    assert replace(after, text="", lines={}) == with_names(before)
    assert {entry.model for entry in after.models} == set(NAMES.values())


@pytest.mark.parametrize("style", STYLES)
def test_every_key_keeps_its_line(style: str) -> None:
    before, after = read(STYLES[style]), read(renamed(STYLES[style], NAMES))
    assert after.lines == before.lines


def test_models_of_slices_modules_and_tokenizers_are_renamed() -> None:
    text = """
modules:
  default:
    slices:
      - base_model: aligned
        sources:
          - {model: aligned, layer_range: [0, 1]}
          - {model: my models/adapted, layer_range: [0, 1]}
merge_method: linear
tokenizer:
  source: aligned
  tokens:
    aligned: {source: my models/adapted}
    <x>: {source: {kind: model_token, model: aligned, token: aligned}}
"""
    recipe = read(renamed(text, NAMES))
    aligned, adapted = NAMES.values()
    assert (recipe.inputs(), recipe.bases()) == ((aligned, adapted), (aligned,))
    assert recipe.tokenizer is not None
    assert recipe.tokenizer.source == aligned
    said = {one.token: (one.model, one.other) for one in recipe.tokenizer.tokens}
    assert said == {"aligned": (adapted, None), "<x>": (aligned, "aligned")}
    assert read(renamed("tokenizer_source: aligned\n" + STYLES["block"], NAMES)).tokenizer.source == aligned  # type: ignore[union-attr]


def test_other_names_stay() -> None:
    text = STYLES["block"]
    assert renamed(text, {"align": "x", "linear": "y", "filter": "z"}) == text


def test_errors_come_back_under_the_names_that_went_out() -> None:
    uploads = Uploads(NAMES)
    there = NAMES["aligned"]
    with pytest.raises(CheckpointError) as caught, uploads.named_as_here():
        raise CheckpointError([Problem(there, f"{there}/model.safetensors is damaged")])
    assert caught.value.problems == (Problem("aligned", "aligned/model.safetensors is damaged"),)
    assert uploads.named([f"{there}: few rows"]) == ("aligned: few rows",)
