"""The canonical form: stable, without paths, and itself a recipe."""

import json

from hypothesis import given, settings
from hypothesis import strategies as st

from safegraft.recipe import canonical, parse_recipe, read_recipe

NAMES = {"A": "a", "B": "b", "C": "c"}


def form(text: str) -> str:
    return json.dumps(canonical(parse_recipe(text), NAMES))


def test_everything_is_there_with_its_default() -> None:
    recipe = parse_recipe("models: [{model: A}]\nmerge_method: linear")
    assert canonical(recipe, {"A": "org/a"}) == {
        "merge_method": "linear",
        "base_model": None,
        "host_model": None,
        "models": [{"model": "org/a", "parameters": {}, "tensor_map": {}}],
        "parameters": {},
        "dtype": None,
        "out_dtype": None,
        "embeddings": "merge",
        "seed": 0,
        "on_nan": "error",
        "overrides": [],
    }


def test_models_go_by_their_public_names() -> None:
    recipe = read_recipe(
        {
            "models": [{"model": "/home/me/a"}, {"model": "/home/me/b"}],
            "base_model": "/home/me/c",
            "host_model": "/home/me/b",
            "merge_method": "linear",
            "overrides": [{"tensors": "*", "models": [{"model": "/home/me/a", "parameters": {"weight": 1}}]}],
        }
    )
    found = canonical(recipe, {"/home/me/a": "a", "/home/me/b": "b", "/home/me/c": "c"})
    assert "/home" not in json.dumps(found)
    assert [found["base_model"], found["host_model"], found["overrides"][0]["models"][0]["model"]] == ["c", "b", "a"]


def test_what_asks_for_the_same_has_the_same_form() -> None:
    one = """
models:
  - {model: A, parameters: {weight: 1.0, density: 1e-1}, tensor_map: {x: y, a: b}}
merge_method: linear
parameters: {scale: {filter: "*", value: 2}}
dtype: torch.float32
"""
    other = """
dtype: float32
seed: 0
parameters:
  scale:
    - value: 2.0
      filter:
merge_method: linear
models:
  - parameters: {density: 0.1, weight: 1}
    tensor_map: {a: b, x: y}
    model: A
"""
    assert form(one) == form(other)


def test_what_asks_for_something_else_has_another_form() -> None:
    base = "models: [{model: A, parameters: {weight: X}}, {model: B}]\nmerge_method: linear\n"
    settings = ["1", "0.5", "[1]", "[1, 0.5]", "true", "x", "-0.0", "0", "{value: 1}", "{value: 1, filter: mlp}"]
    forms = [form(base.replace("X", setting)) for setting in settings]
    lines = ["seed: 1", "on_nan: host", "embeddings: host", "dtype: float16", "out_dtype: float16", "base_model: C"]
    lines += ["host_model: B", "parameters: {weight: 1}", "overrides: [{tensors: x, method: y}]"]
    forms += [form(base.replace("X", "1") + line) for line in lines]
    forms.append(form("models: [{model: B}, {model: A, parameters: {weight: 1}}]\nmerge_method: linear"))
    forms.append(
        form("models: [{model: A, parameters: {weight: 1}, tensor_map: {x: }}, {model: B}]\nmerge_method: linear")
    )
    assert len(set(forms)) == len(forms)


SCALARS = (
    st.booleans() | st.integers(-5, 5) | st.floats(-2, 2) | st.text(max_size=4, alphabet="ab e-5.") | st.just("1e-5")
)
POINTS = SCALARS | st.lists(SCALARS, min_size=1, max_size=3)
CONDITIONS = st.builds(
    lambda value, filter: {"value": value, "filter": filter}, POINTS, st.sampled_from([None, "*", "", "mlp"])
)
SETTINGS = POINTS | CONDITIONS | st.lists(CONDITIONS, min_size=1, max_size=3)
PARAMETERS = st.dictionaries(st.sampled_from(["weight", "density", "lambda", "1", "on"]), SETTINGS, max_size=2)
OVERRIDES = st.fixed_dictionaries(
    {"tensors": st.sampled_from(["*", "*.mlp.*"]), "method": st.just("slerp")},
    optional={"parameters": PARAMETERS, "models": PARAMETERS.map(lambda own: [{"model": "B", "parameters": own}])},
)
RECIPES = st.fixed_dictionaries(
    {
        "merge_method": st.sampled_from(["linear", "1e5", "null", "yes", "# x", "ä: b"]),
        "models": PARAMETERS.map(lambda own: [{"model": "A", "parameters": own}, {"model": "B"}]),
    },
    optional={
        "parameters": PARAMETERS,
        "base_model": st.sampled_from(["B", "C", None]),
        "seed": st.integers(0, 2**63 - 1),
        "dtype": st.sampled_from(["float32", None]),
        "on_nan": st.sampled_from(["host", "error"]),
        "overrides": st.lists(OVERRIDES, max_size=2),
    },
)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(RECIPES)
def test_text_and_form_of_any_recipe_say_the_same_as_the_recipe(mapping: dict) -> None:
    recipe = read_recipe(mapping)
    assert parse_recipe(recipe.text) == recipe
    found = canonical(recipe, NAMES)
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert canonical(read_recipe(found), {name: name for name in NAMES.values()}) == found
