"""Reading a recipe: what is accepted, what is refused, and where each problem is said to be."""

import math
import textwrap
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from safegraft.errors import RecipeError
from safegraft.recipe import Condition, ModelEntry, Override, Recipe, parse_recipe, read_recipe

MINIMAL = "merge_method: linear\nmodels:\n  - model: A\n"


def problems(text: str, **options) -> list[str]:
    with pytest.raises(RecipeError) as caught:
        parse_recipe(textwrap.dedent(text), "r.yml", **options)
    return [str(problem) for problem in caught.value.problems]


def with_line(line: str) -> str:
    return MINIMAL + line + "\n"


class TestEverything:
    TEXT = """\
        models:
          - model: org/aligned
            parameters:
              weight: 0.3
              density: [1, 0.5, 1e-1]
            tensor_map:
              model.: language_model.model.
              lm_head.: null
          - model: {model: {path: ./lvlm, revision: null}, lora: null}
            parameters:
              weight:
                - filter: mlp
                  value: [0, 1]
                - value: 0.7
              mode: {filter: "*", value: fast}
        merge_method: ties
        base_model: org/base
        host_model: ./lvlm
        parameters: {normalize: yes}
        dtype: torch.bfloat16
        out_dtype: float32
        embeddings: host
        seed: 9223372036854775807
        on_nan: host
        overrides:
          - tensors: "*.layers.0.*"
            method: slerp
            parameters: {t: .5}
            models:
              - model: org/base
                parameters: {weight: 1}
              - model: ./lvlm
        """

    def test_every_key_is_read(self) -> None:
        assert parse_recipe(textwrap.dedent(self.TEXT)) == Recipe(
            models=(
                ModelEntry(
                    "org/aligned",
                    {"weight": 0.3, "density": (1, 0.5, 0.1)},
                    {"model.": "language_model.model.", "lm_head.": None},
                    ("models", 0),
                ),
                ModelEntry(
                    "./lvlm",
                    {
                        "weight": (Condition((0, 1), "mlp"), Condition(0.7, None)),
                        "mode": (Condition("fast", "*"),),
                    },
                    {},
                    ("models", 1),
                ),
            ),
            merge_method="ties",
            base_model="org/base",
            host_model="./lvlm",
            parameters={"normalize": True},
            dtype="bfloat16",
            out_dtype="float32",
            embeddings="host",
            seed=2**63 - 1,
            on_nan="host",
            overrides=(
                Override(
                    "*.layers.0.*",
                    "slerp",
                    {"t": 0.5},
                    {"org/base": {"weight": 1}, "./lvlm": {}},
                    ("overrides", 0),
                ),
            ),
        )

    def test_defaults(self) -> None:
        recipe = parse_recipe(MINIMAL)
        assert recipe == Recipe((ModelEntry("A", {}, {}, ("models", 0)),), "linear")
        assert (recipe.embeddings, recipe.seed, recipe.on_nan, recipe.overrides) == ("merge", 0, "error", ())

    @pytest.mark.parametrize("key", ["parameters", "base_model", "host_model", "dtype", "seed", "overrides", "slices"])
    def test_a_key_without_a_value_is_as_good_as_none(self, key: str) -> None:
        assert parse_recipe(with_line(f"{key}:")) == parse_recipe(MINIMAL)

    def test_anchors_and_merge_keys(self) -> None:
        text = """\
            models:
              - model: A
                parameters: &shared {weight: 0.5, density: 0.2}
              - model: B
                parameters:
                  <<: *shared
                  density: 1.0
              - {model: C, parameters: *shared}
              - model: D
                parameters: {<<: [{weight: 7}, *shared]}
            merge_method: linear
            """
        entries = parse_recipe(textwrap.dedent(text)).models
        assert [dict(entry.parameters) for entry in entries] == [
            {"weight": 0.5, "density": 0.2},
            {"weight": 0.5, "density": 1.0},
            {"weight": 0.5, "density": 0.2},
            {"weight": 7, "density": 0.2},
        ]


class TestSources:
    def test_path_text_and_mapping_give_the_same_recipe(self, tmp_path: Path) -> None:
        path = tmp_path / "my.yml"
        path.write_text(MINIMAL)
        mapping = {"merge_method": "linear", "models": [{"model": "A"}]}
        one_line = "{merge_method: linear, models: [{model: A}]}"
        expected = parse_recipe(MINIMAL)
        for source in (path, str(path), MINIMAL, one_line, mapping):
            assert Recipe.load(source) == expected
        assert read_recipe(path).name == "my.yml"
        assert read_recipe(path).text == MINIMAL
        assert read_recipe(path, "mine").where("models", 0) == "mine:3: models[0]"

    def test_a_mapping_takes_tuples_paths_and_subclasses(self) -> None:
        class Name(str):
            pass

        recipe = read_recipe(
            {
                Name("merge_method"): Name("linear"),
                "models": ({"model": Path("A"), "parameters": {"weight": (0, 1)}},),
                "seed": True + 1,
            }
        )
        assert recipe.models[0] == ModelEntry("A", {"weight": (0, 1)}, {}, ("models", 0))
        assert read_recipe(recipe.text) == recipe

    def test_a_mapping_has_no_lines(self) -> None:
        with pytest.raises(RecipeError, match=r"^recipe: models\[0\]\.modl: unknown key; did you mean 'model'\?"):
            read_recipe({"merge_method": "linear", "models": [{"modl": "A"}, {"model": "B"}]})

    @pytest.mark.parametrize(
        ("mapping", "message"),
        [
            ({1: 2}, "a key must be text, not '1'"),
            ({"models": {1, 2}}, "models: expected text, a number, a list or a mapping, got set"),
            ({"models": b"x"}, "got bytes"),
            ({"merge_method": "a\ud800"}, r"merge_method: holds the character '\ud800'"),
        ],
    )
    def test_what_no_yaml_can_say_is_refused(self, mapping: dict, message: str) -> None:
        with pytest.raises(RecipeError) as caught:
            read_recipe(mapping)
        assert message in str(caught.value)

    def test_a_mapping_inside_itself_is_refused(self) -> None:
        mapping: dict = {}
        mapping["models"] = [mapping]
        with pytest.raises(RecipeError, match="nested more than 16 deep"):
            read_recipe(mapping)

    @pytest.mark.parametrize("source", ["no/such/file.yml", Path("no/such/file.yml"), "a\0b", "x" * 5000, "."])
    def test_a_file_that_cannot_be_read(self, source: str | Path) -> None:
        with pytest.raises(RecipeError, match="cannot be read"):
            read_recipe(source)

    def test_parse_never_takes_text_for_a_path(self, tmp_path: Path) -> None:
        path = tmp_path / "secret.yml"
        path.write_text(MINIMAL)
        with pytest.raises(RecipeError, match="expected a mapping of keys to values"):
            parse_recipe(str(path))

    def test_a_file_that_is_no_text(self, tmp_path: Path) -> None:
        path = tmp_path / "r.yml"
        path.write_bytes(b"models:\n  - \xff\n")
        with pytest.raises(RecipeError, match=r"^r\.yml:2: not UTF-8"):
            read_recipe(path)

    def test_a_byte_order_mark_and_windows_line_ends_do_no_harm(self, tmp_path: Path) -> None:
        path = tmp_path / "r.yml"
        path.write_bytes(b"\xef\xbb\xbf" + MINIMAL.replace("\n", "\r\n").encode())
        assert read_recipe(path) == parse_recipe(MINIMAL)


class TestPlaces:
    def test_every_key_and_item_has_its_line(self) -> None:
        text = textwrap.dedent("""\
            # a comment
            models:
              - model: A
                parameters:
                  weight:
                    - filter: mlp
                      value:
                        [0.1,
                         0.2]
                    - value: 1

              - model: B
            merge_method: linear
            """)
        lines = parse_recipe(text).lines
        weight = ("models", 0, "parameters", "weight")
        assert dict(lines) == {
            (): 2,
            ("models",): 2,
            ("models", 0): 3,
            ("models", 0, "model"): 3,
            ("models", 0, "parameters"): 4,
            weight: 5,
            (*weight, 0): 6,
            (*weight, 0, "filter"): 6,
            (*weight, 0, "value"): 7,
            (*weight, 0, "value", 0): 8,
            (*weight, 0, "value", 1): 9,
            (*weight, 1): 10,
            (*weight, 1, "value"): 10,
            ("models", 1): 12,
            ("models", 1, "model"): 12,
            ("merge_method",): 13,
        }

    def test_where_falls_back_to_the_nearest_line(self) -> None:
        recipe = parse_recipe(MINIMAL, "r.yml")
        assert recipe.where() == "r.yml:1"
        assert recipe.where("models", 0, "parameters", "weight") == "r.yml:3: models[0].parameters.weight"
        assert Recipe((), "linear").where("seed") == "recipe: seed"

    def test_keys_that_are_no_words_are_quoted(self) -> None:
        recipe = Recipe((), "linear")
        assert recipe.path("models", 0, "tensor_map", "a.b") == "models[0].tensor_map['a.b']"
        assert recipe.path("x\n\x1b[31m") == r"['x\n\x1b[31m']"
        assert len(recipe.path("k" * 1000)) < 100

    def test_all_problems_at_once_in_the_order_of_their_lines(self) -> None:
        assert problems("""\
            models:
              - model: A
                parameters:
                  weight: [0.1, .nan]
                  density:
                    - filter: mlp
                      valeu: 1
              - modle: B
              - model: A
              - model: org/x@
            merge_method: linear
            merge_method: slerp
            dtype: bf16
            seed: -1
            sede: 4
            overrides:
              - tensors: "*"
              - method: x
                models: [{model: Z}]
            """) == [
            "r.yml:4: models[0].parameters.weight[1]: must be a finite number",
            "r.yml:7: models[0].parameters.density[0].valeu: unknown key; did you mean 'value'?",
            "r.yml:8: models[1].modle: unknown key; did you mean 'model'?",
            "r.yml:9: models[2].model: 'A' is listed twice, first on line 2",
            "r.yml:10: models[3].model: 'org/x@' lacks a revision after its `@`",
            "r.yml:12: merge_method: is given twice, first on line 11",
            "r.yml:13: dtype: expected bfloat16, float16, float32 or float64, got 'bf16'; did you mean 'bfloat16'?",
            "r.yml:14: seed: expected a whole number from 0 to 9223372036854775807, got the number -1",
            "r.yml:15: sede: unknown key; did you mean 'seed'?",
            "r.yml:17: overrides[0]: changes nothing: give a `method`, `parameters` or `models`",
            "r.yml:18: overrides[1]: `tensors` is missing: give a pattern for tensor names, such as '*.mlp.*'",
            "r.yml:19: overrides[1].models[0].model: 'Z' is not one of this recipe's models",
        ]

    def test_very_many_problems_are_counted(self) -> None:
        found = problems(MINIMAL + "".join(f"x{i}: 1\n" for i in range(300)))
        assert len(found) == 101
        assert found[-1] == "r.yml: and 200 more problems"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("seed: true", "seed: expected a whole number from 0 to 9223372036854775807, got true"),
        ("seed: 9223372036854775808", "seed: expected a whole number"),
        ("seed: 1.0", "seed: expected a whole number from 0 to 9223372036854775807, got the number 1.0"),
        ("seed: [1]", "got a list"),
        ("base_model: 3", "base_model: expected text, got the number 3; if it is meant as text, put it in quotes"),
        ("base_model: [x]", "base_model: expected text, got a list"),
        ("base_model: ''", "base_model: is empty"),
        ('base_model: "a\\nb"', r"base_model: holds the character '\n'"),
        ("embeddings: both", "embeddings: expected merge or host, got 'both'"),
        ("on_nan: hots", "on_nan: expected error or host, got 'hots'; did you mean 'host'?"),
        ("out_dtype: auto", "out_dtype: expected bfloat16, float16, float32 or float64, got 'auto'"),
        ("dtype: 16", "got the number 16"),
        ("parameters: [1]", "parameters: expected a mapping of keys to values, got a list"),
        ("parameters: {weight: }", "parameters.weight: expected a number, true, false or text, got nothing"),
        ("parameters: {weight: []}", "parameters.weight: the list is empty"),
        ("parameters: {weight: [[1]]}", "parameters.weight[0]: expected a number, true, false or text, got a list"),
        ("parameters: {weight: [1, {value: 2}]}", "parameters.weight: mixes plain values with `filter`/`value` items"),
        ("parameters: {weight: {filter: mlp}}", "parameters.weight: `value` is missing"),
        ("parameters: {weight: {filter: 3, value: 1}}", "parameters.weight.filter: expected text, got the number 3"),
        ("parameters: {weight: {value: {value: 1}}}", "parameters.weight.value: expected a number"),
        ("parameters: {weight: {value: []}}", "parameters.weight.value: the list is empty"),
        ("parameters: {weight: .inf}", "parameters.weight: must be a finite number"),
        ("parameters: {weight: nan}", "parameters.weight: must be a finite number"),
        ("parameters: {weight: -Infinity}", "parameters.weight: must be a finite number"),
        ("parameters: {weight: 1e999}", "parameters.weight: must be a finite number"),
        ("parameters: {weight: 9223372036854775808}", "parameters.weight: is too large a number"),
        ("parameters: {weight: 0x_}", "'0x_' is not a number that can be read"),
        (f"parameters: {{weight: {'9:' * 60}9}}", "is not a number that can be read"),
        ("parameters: {weight: !!float 1}", "YAML tags such as 'tag:yaml.org,2002:float' are not allowed"),
        ("parameters: !!python/object:os.system {}", "YAML tags such as 'tag:yaml.org,2002:python/object:os.system'"),
        ("base_model: !!python/name:os.system x", "YAML tags such as"),
        ("!!int seed: 3", "YAML tags such as"),
        ("[seed]: 3", "['?']: a key must be plain text, not a list or a mapping"),
        ("parameters: {<<: 3}", "parameters: `<<` takes a mapping, or a list of mappings"),
        ("parameters: {<<: {x: 1}, <<: {y: 2}}", "parameters: `<<` is given twice; give it a list of mappings"),
        ('"se\\0ed": 3', r"the key holds the character '\x00'"),
        ("overrides: {tensors: '*'}", "overrides: expected a list, got a mapping"),
        ("overrides: [3]", "overrides[0]: expected a mapping of keys to values, got the number 3"),
        ("overrides: [{tensors: '', method: x}]", "overrides[0].tensors: is empty"),
        ("overrides: [{tensors: x, models: [{model: A}, {model: A}]}]", "overrides[0].models[1].model: 'A' is listed"),
        ("base_model: {model: x, lora: y+z}", "base_model: 'x+y+z' names several adapters; one can be added"),
        ("base_model: {model: x, lora: {revision: v1}}", "base_model.lora: `path` is missing"),
        ("base_model: {model: {path: x@v2, revision: v1}}", "base_model.model.path: 'x@v2' is no folder"),
        ("base_model: {model: x, lora: {path: y+z}}", "base_model.lora.path: 'y+z' is no folder"),
        ("base_model: {model: x, override_architecture: Y}", "base_model.override_architecture: is not supported"),
        ("overrides: [{tensor: x, method: y}]", "overrides[0].tensor: unknown key; did you mean 'tensors'?"),
        ("base_model: {lora: }", "base_model: `model` is missing"),
        ("base_model: {model: {revision: }}", "base_model.model: `path` is missing"),
        ("base_model: {modle: x}", "base_model.modle: unknown key; did you mean 'model'?"),
        ("base_model: x+y+z", "base_model: 'x+y+z' names several adapters; one can be added"),
        ("base_model: x+", "base_model: 'x+' lacks a folder or a name"),
        ("host_model: x@", "host_model: 'x@' lacks a revision after its `@`"),
    ],
)
def test_one_wrong_line(line: str, message: str) -> None:
    found = problems(with_line(line))
    assert len(found) == 1
    assert message in found[0]
    assert found[0].startswith("r.yml:4")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "r.yml: is empty: a recipe names `models` and a `merge_method`"),
        ("# nothing\n", "r.yml: is empty"),
        ("[]", "r.yml:1: expected a mapping of keys to values, got a list"),
        ("merge_method: linear", "r.yml:1: `models` is missing or empty"),
        ("merge_method: linear\nmodels: []", "r.yml:2: models: is missing or empty: list"),
        ("merge_method: linear\nmodels: A", "r.yml:2: models: expected a list, got 'A'"),
        ("merge_method: linear\nmodels:\n- A", "r.yml:3: models[0]: write it as `model: A`"),
        ("merge_method: linear\nmodels:\n-", "r.yml:3: models[0]: expected a mapping of keys to values, got nothing"),
        ("merge_method: linear\nmodels:\n- model:", "r.yml:3: models[0]: `model` is missing"),
        ("models: [{model: A}]", "r.yml:1: `merge_method` is missing"),
        ("merge_method: linear\nslices: [1]", "r.yml:2: slices[0]: expected a mapping of keys to values"),
        ("a: [\n  1", "r.yml:2:4: not valid YAML: while parsing a flow sequence: expected ',' or ']'"),
        ("a: 1\n\tb: 2", "r.yml:2:1: not valid YAML"),
        ("a: *x", "r.yml:1:4: not valid YAML: found undefined alias"),
        ("a: 1\n---\nb: 2", "r.yml:2:1: not valid YAML: expected a single document"),
        ("a: 1\nb: x\x07", r"r.yml:2:5: the character '\x07' is not allowed in YAML"),
    ],
)
def test_one_wrong_document(text: str, message: str) -> None:
    found = problems(text)
    assert len(found) == 1
    assert found[0].startswith(message)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[" * 100_000, "nested more than 16 deep"),
        ("- " * 20_000, "nested more than 16 deep"),
        ("a: &a [*a]", "nested more than 16 deep"),
        ("a: &a {<<: *a}", "nested more than 16 deep"),
        ("a: &a\n  <<: [*a, *a]", "nested more than 16 deep"),
        ("- 1\n" * 60_000, "more than 50,000 values"),
        (
            "a: &a [1, 1, 1, 1, 1, 1, 1, 1, 1]\n"
            + "".join(f"{new}: &{new} [{', '.join(['*' + old] * 9)}]\n" for old, new in pairwise("abcdefghi")),
            "more than 50,000 values",
        ),
        ("a" * 1_000_001, "larger than 1,000,000 characters"),
    ],
    ids=["flow", "block", "recursive alias", "recursive merge", "recursive merges", "long", "laughs", "large"],
)
def test_hostile_documents_are_refused(text: str, message: str) -> None:
    found = problems(text)
    assert len(found) == 1
    assert message in found[0]


class TestReferences:
    @pytest.mark.parametrize("name", ["mine@home", "a+b", "a+b@c"])
    def test_a_folder_of_that_very_name_is_what_is_meant(self, name: str, tmp_path: Path) -> None:
        folder = tmp_path / name
        folder.mkdir()
        text = f"merge_method: linear\nmodels: [{{model: '{folder}'}}]"
        assert parse_recipe(text).models[0].model == str(folder)

    def test_who_knows_the_folders_is_asked(self) -> None:
        text = "merge_method: linear\nmodels: [{model: 'a+b+c'}]"
        assert parse_recipe(text, folder_exists={"a+b+c"}.__contains__).models[0].model == "a+b+c"
        assert len(problems(text, folder_exists=lambda name: False)) == 1

    def test_a_path_of_its_own_has_no_syntax(self) -> None:
        text = "merge_method: linear\nmodels: [{model: {model: {path: 'a+b@c'}}}]"
        assert parse_recipe(text, folder_exists={"a+b@c"}.__contains__).models[0].model == "a+b@c"
        assert len(problems(text, folder_exists=lambda name: False)) == 1

    @pytest.mark.parametrize(
        ("written", "reference"),
        [
            ("llm@v1+lora@v2", "llm@v1+lora@v2"),
            ("{model: llm, lora: lora}", "llm+lora"),
            ("{model: {path: llm, revision: v1}}", "llm@v1"),
            ("{model: llm@v1, lora: {path: lora}}", "llm@v1+lora"),
            ("{model: {path: llm}, lora: {path: org/lora, revision: v2}}", "llm+org/lora@v2"),
            ("{model: {path: llm, revision: v1}, lora: {path: lora, revision: v2}}", "llm@v1+lora@v2"),
        ],
    )
    def test_the_mapping_form_says_what_the_text_says(self, written: str, reference: str) -> None:
        text = f"merge_method: linear\nmodels: [{{model: {written}}}]"
        assert parse_recipe(text, folder_exists=lambda name: False).models[0].model == reference

    @pytest.mark.parametrize("written", ["1e5", "2024-01-01", "'12'", "!!str 12", "089"])
    def test_text_stays_text(self, written: str) -> None:
        expected = written.removeprefix("!!str ").strip("'")
        assert parse_recipe(f"merge_method: linear\nmodels: [{{model: {written}}}]").models[0].model == expected


@pytest.mark.parametrize(
    ("written", "value"),
    [
        ("1e-5", 1e-5),
        ("'1e-5'", 1e-5),
        ("-.5", -0.5),
        ("1.", 1.0),
        ("+2E3", 2000.0),
        ("1e-400", 0.0),
        ("0.1", 0.1),
        ("7", 7),
        ("-9223372036854775807", -(2**63) + 1),
        ("-0.0", -0.0),
        ("true", True),
        ("off", False),
        ("0x10", 16),
        ("1_000", 1000),
        ("fast", "fast"),
        ("''", ""),
        ("1e", "1e"),
        ("1-2", "1-2"),
        ("information", "information"),
    ],
)
def test_scalars_of_parameters(written: str, value: object) -> None:
    read = parse_recipe(with_line(f"parameters: {{x: {written}}}")).parameters["x"]
    assert read == value
    assert type(read) is type(value)
    if isinstance(value, float):
        assert math.copysign(1, read) == math.copysign(1, value)


KEYS = st.sampled_from(["models", "merge_method", "parameters", "overrides", "seed", "model", "value", "filter", "x"])

# Any text, and text made of the pieces that recipes are made of, which gets further.
PIECES = [
    "models",
    ":",
    " ",
    "\n",
    "  ",
    "- ",
    "model: A",
    "merge_method: linear",
    "{",
    "}",
    "[",
    "]",
    ",",
    "&a ",
    "*a",
]
PIECES += ["parameters:", "weight: ", "1e-5", ".nan", "<<: ", "!!python/x ", "filter: ", "value: ", "'", '"', "\\", "|"]
PIECES += ["overrides:", "tensors: x", "\t", "#", "? ", "---", "\0", "seed: ", "0x_", "base_model: a+b", "null", "\x85"]


@settings(max_examples=400, deadline=None, derandomize=True)
@given(st.text() | st.lists(st.sampled_from(PIECES)).map("".join) | st.lists(st.sampled_from(PIECES)).map("\n".join))
def test_any_text_is_a_recipe_or_a_recipe_error(text: str) -> None:
    try:
        recipe = parse_recipe(text)
    except RecipeError as error:
        str(error).encode()
    else:
        assert parse_recipe(recipe.text) == recipe


LEAVES = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.binary(max_size=5)
VALUES = st.recursive(
    LEAVES,
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(KEYS | st.integers(), inner, max_size=3),
    max_leaves=6,
)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(st.dictionaries(KEYS, VALUES, max_size=5))
def test_any_mapping_is_a_recipe_or_a_recipe_error(mapping: dict) -> None:
    try:
        recipe = read_recipe(mapping)
    except RecipeError as error:
        str(error).encode()
    else:
        assert parse_recipe(recipe.text) == recipe
