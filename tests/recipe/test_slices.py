"""`slices` and `modules`: what is read, in which form it is kept, and what is refused."""

import textwrap

import pytest

from safegraft.errors import RecipeError
from safegraft.recipe import ModelEntry, Module, OutputSlice, SliceSource, canonical, parse_recipe, read_recipe

SLICES = """\
merge_method: slerp
base_model: A
slices:
  - sources:
      - {model: A, layer_range: [0, 8]}
      - {model: {model: {path: B}}, layer_range: [4, 12], parameters: {weight: [0, 1]}}
    base_model: B
    parameters: {t: 0.5}
  - sources: [{model: A, layer_range: [8, 9]}]
"""
MODULES = """\
merge_method: linear
modules:
  vision_tower:
    models: [{model: A, parameters: {weight: 2}}, {model: C, tensor_map: {x: y}}]
  text_decoder:
    slices:
      - sources: [{model: B, layer_range: [0, 4]}]
    parameters: {weight: 1}
"""


def problems(text: str) -> list[str]:
    with pytest.raises(RecipeError) as caught:
        parse_recipe(textwrap.dedent(text), "r.yml")
    return [str(problem) for problem in caught.value.problems]


def test_slices_are_read() -> None:
    recipe = parse_recipe(SLICES)
    at = ("slices", 0)
    sources = (
        SliceSource("A", 0, 8, {}, (*at, "sources", 0)),
        SliceSource("B", 4, 12, {"weight": (0, 1)}, (*at, "sources", 1)),
    )
    assert recipe.slices[0] == OutputSlice(sources, "B", {"t": 0.5}, at)
    assert [one.count for one in recipe.slices] == [8, 1]
    assert (recipe.models, recipe.inputs(), recipe.bases()) == ((), ("A", "B"), ("A", "B"))


def test_modules_are_read_in_the_order_of_their_names() -> None:
    recipe = parse_recipe(MODULES)
    source = SliceSource("B", 0, 4, {}, ("modules", "text_decoder", "slices", 0, "sources", 0))
    at = ("modules", "vision_tower", "models")
    assert recipe.modules == (
        Module(
            "text_decoder",
            (),
            (OutputSlice((source,), None, {}, ("modules", "text_decoder", "slices", 0)),),
            {"weight": 1},
            ("modules", "text_decoder"),
        ),
        Module(
            "vision_tower",
            (ModelEntry("A", {"weight": 2}, {}, (*at, 0)), ModelEntry("C", {}, {"x": "y"}, (*at, 1))),
            (),
            {},
            ("modules", "vision_tower"),
        ),
    )
    assert recipe.inputs() == ("A", "C", "B")


@pytest.mark.parametrize("text", [SLICES, MODULES])
def test_the_canonical_form_is_a_recipe_again(text: str) -> None:
    recipe = parse_recipe(text)
    form = canonical(recipe, {"A": "a", "B": "b", "C": "c"})
    assert canonical(read_recipe(form), {name: name for name in "abc"}) == form
    assert parse_recipe(recipe.text) == recipe


def test_what_asks_for_something_else_has_another_form() -> None:
    names = {name: name for name in "ABC"}
    changes = [("[0, 8]", "[1, 9]"), ("[4, 12]", "[3, 11]"), ("base_model: B", "base_model: A"), ("t: 0.5", "t: 0.6")]
    changes += [("[0, 1]", "[1, 0]"), ("[8, 9]", "[7, 8]")]
    forms = [canonical(parse_recipe(SLICES), names)]
    forms += [canonical(parse_recipe(SLICES.replace(old, new)), names) for old, new in changes]
    assert all(forms.count(form) == 1 for form in forms)


def test_overrides_may_name_sources_and_bases() -> None:
    text = SLICES + "overrides: [{tensors: '*', models: [{model: B, parameters: {t: 1}}]}]\n"
    assert list(parse_recipe(text).overrides[0].models) == ["B"]


HEAD = "merge_method: linear\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("slices: []", "slices: is empty: list slices, each with its `sources`"),
        ("slices: [{}]", "slices[0]: `sources` is missing or empty"),
        ("slices: [{sources: []}]", "slices[0]: `sources` is missing or empty"),
        ("slices: [1]", "slices[0]: expected a mapping of keys to values, got the number 1"),
        ("slices: [{source: []}]", "slices[0].source: unknown key; did you mean 'sources'?"),
        ("slices: [{sources: [{model: A}]}]", "slices[0].sources[0]: `layer_range` is missing"),
        ("slices: [{sources: [{layer_range: [0, 1]}]}]", "slices[0].sources[0]: `model` is missing"),
        ("slices: [{sources: [{model: A, layer_range: 4}]}]", "such as [0, 16], got the number 4"),
        ("slices: [{sources: [{model: A, layer_range: [4]}]}]", "such as [0, 16], got [4]"),
        ("slices: [{sources: [{model: A, layer_range: [0, 1, 2]}]}]", "such as [0, 16], got [0, 1, 2]"),
        ("slices: [{sources: [{model: A, layer_range: [-1, 2]}]}]", "such as [0, 16], got [-1, 2]"),
        ("slices: [{sources: [{model: A, layer_range: [0, 1.5]}]}]", "such as [0, 16], got [0, 1.5]"),
        ("slices: [{sources: [{model: A, layer_range: [0, 100001]}]}]", "got [0, 100001]"),
        ("slices: [{sources: [{model: A, layer_range: [5, 5]}]}]", "has no layers: [5, 5] begins at 5"),
        ("slices: [{sources: [{model: A, layer_range: [5, 3]}]}]", "has no layers"),
        (
            "slices: [{sources: [{model: A, layer_range: [0, 5]}, {model: B, layer_range: [0, 4]}]}]",
            "slices[0].sources[1].layer_range: has 4 layers, the slice's first source has 5",
        ),
        (
            "slices: [{sources: [{model: A, layer_range: [0, 5]}, {model: A, layer_range: [1, 6]}]}]",
            "slices[0].sources[1].model: 'A' is twice in this slice",
        ),
        (
            "slices: [{sources: [{model: A, layer_range: [0, 5]}], residual_weight: 0.5}]",
            "slices[0].residual_weight: not supported yet: mergekit reads it and does nothing with it; remove it",
        ),
        (
            "slices: [{sources: [{model: A, layer_range: [0, 5]}]}]\nmodels: [{model: A}]",
            "slices: stands beside `models`: a recipe has one of `models`, `slices` and `modules`",
        ),
        ("modules: {}", "modules: is empty: name the parts of the model"),
        ("modules: []", "modules: expected a mapping of keys to values, got a list"),
        ("modules: {a: b}", "modules.a: expected a mapping of keys to values, got 'b'"),
        ("modules: {a: }", "modules.a: a module has either `models` or `slices`"),
        ("modules: {a: {parameters: {}}}", "modules.a: a module has either `models` or `slices`"),
        (
            "modules: {a: {models: [{model: A}], slices: [{sources: [{model: A, layer_range: [0, 1]}]}]}}",
            "modules.a: a module has either `models` or `slices`; it has both",
        ),
        ("modules: {a: {models: []}}", "modules.a.models: is missing or empty"),
        ("modules: {a: {models: [{model: A}, {model: A}]}}", "modules.a.models[1].model: 'A' is listed twice"),
    ],
)
def test_one_wrong_thing(text: str, message: str) -> None:
    found = problems(HEAD + text)
    assert len(found) == 1, found
    assert message in found[0]
