"""Parameters for one tensor: precedence, filters and gradients as in mergekit; every wrong name and value told."""

import textwrap
import warnings
from enum import Enum
from types import SimpleNamespace
from typing import Any, ClassVar, Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import AliasChoices, BaseModel, ConfigDict, Field, field_validator, model_validator

from safegraft.engine.parameters import describe, parameter_set
from safegraft.engine.settings import Resolved, check_names, check_values, idle_settings, resolve, unmatched
from safegraft.errors import PluginError, RecipeError
from safegraft.methods import Granularity, MergeMethod, Requirements
from safegraft.recipe import Recipe, parse_recipe, read_recipe


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)


class Shared(Strict):
    scale: float = Field(1.0, alias="lambda", gt=0)
    normalize: bool = False
    steps: int = 3
    mode: str = "plain"


class PerInput(Strict):
    weight: float
    density: float = Field(1.0, ge=0, le=1)
    name: str = "x"


class Method(MergeMethod):
    name = "method"
    summary = "For tests."
    reference = "https://example.org"
    requires: ClassVar[Requirements] = Requirements(base="optional")
    granularity = Granularity.ELEMENT
    Parameters = Shared
    InputParameters = PerInput

    def merge(self, inputs, base, context):
        raise NotImplementedError


class OtherShared(Strict):
    t: float = Field(ge=0, le=1)
    steps: int = Field(100, ge=50)

    @field_validator("steps")
    @classmethod
    def even(cls, value: int) -> int:
        if value % 2:
            raise ValueError("steps must be even")
        return value


class Other(Method):
    name = "other"
    requires: ClassVar[Requirements] = Requirements(base="ignored")
    Parameters = OtherShared
    InputParameters = Strict


METHODS: dict[str, MergeMethod] = {"method": Method(), "other": Other()}
MLP = "model.layers.3.mlp.up_proj.weight"


def recipe_of(text: str) -> Recipe:
    return parse_recipe(textwrap.dedent(text), "r")


def resolved(recipe: Recipe, tensor: str = MLP, override: int | None = None, t: float = 0.0, **more: Any) -> Resolved:
    chosen = None if override is None else recipe.overrides[override]
    method = METHODS[(chosen.method if chosen else None) or recipe.merge_method]
    inputs = more.get("inputs") or [(entry.model, tensor) for entry in recipe.models]
    return resolve(recipe, method, chosen, tensor, inputs, t)


def weights(found: Resolved) -> list[float]:
    return [one.weight for one in found.inputs]  # pyright: ignore[reportAttributeAccessIssue]


class TestPrecedence:
    TEXT = """\
        models:
          - model: A
            parameters: {weight: 0.1}
          - model: B
        merge_method: method
        parameters: {weight: 0.2, lambda: 2}
        overrides:
          - {tensors: a, parameters: {weight: 0.3, lambda: 3}}
          - {tensors: b, models: [{model: B}, {model: A, parameters: {weight: 0.4}}]}
          - {tensors: c, parameters: {weight: 0.5}, models: [{model: A, parameters: {weight: 0.6}}]}
          - {tensors: d, parameters: {weight: {filter: attn, value: 9}}, models: [{model: B, parameters: {weight: 8}}]}
        """

    @pytest.mark.parametrize(
        ("override", "expected", "scale"),
        [
            (None, [0.1, 0.2], 2),
            (0, [0.3, 0.3], 3),
            (1, [0.4, 0.2], 2),
            (2, [0.6, 0.5], 2),
            (3, [0.1, 8], 2),
        ],
    )
    def test_the_nearest_scope_wins(self, override: int | None, expected: list[float], scale: float) -> None:
        found = resolved(recipe_of(self.TEXT), override=override)
        assert weights(found) == expected
        assert found.parameters == Shared(scale=scale)

    def test_defaults_come_last(self) -> None:
        found = resolved(recipe_of("models: [{model: A, parameters: {weight: 1}}]\nmerge_method: method"))
        assert found == Resolved(Shared(), (PerInput(weight=1),))

    def test_an_input_that_is_not_listed_takes_the_recipe_s_own(self) -> None:
        recipe = recipe_of(
            "models: [{model: A, parameters: {weight: 1}}]\nbase_model: B\n"
            "merge_method: method\nparameters: {weight: 2}"
        )
        assert weights(resolved(recipe, inputs=[("A", "x"), ("B", "x")])) == [1, 2]

    def test_another_method_s_parameters_are_left_alone(self) -> None:
        recipe = recipe_of("""\
            models: [{model: A, parameters: {weight: 1}}]
            merge_method: method
            parameters: {t: 0.5, lambda: 2, steps: 60}
            overrides: [{tensors: a, method: other}]
            """)
        assert resolved(recipe, override=0) == Resolved(OtherShared(t=0.5, steps=60), (Strict(),))
        assert resolved(recipe) == Resolved(Shared(scale=2, steps=60), (PerInput(weight=1),))


class TestFilters:
    TEXT = """\
        models:
          - model: A
            parameters:
              weight:
                - {filter: mlp, value: 1}
                - {filter: layers, value: 2}
                - {filter: norm, value: 3}
          - model: B
        merge_method: method
        parameters:
          weight: [{filter: up_proj, value: 4}, {value: 5}, {filter: norm, value: 6}]
          lambda: {filter: mlp, value: 7}
        """

    @pytest.mark.parametrize(
        ("tensor", "expected", "scale"),
        [
            (MLP, [1, 4], 7),
            ("model.layers.0.self_attn.q_proj.weight", [2, 5], 1),
            ("model.norm.weight", [3, 5], 1),
            ("lm_head.weight", [5, 5], 1),
            ("mlp", [1, 5], 7),
        ],
    )
    def test_the_first_match_wins_and_none_falls_through(
        self, tensor: str, expected: list[float], scale: float
    ) -> None:
        found = resolved(recipe_of(self.TEXT), tensor)
        assert weights(found) == expected
        assert found.parameters == Shared(scale=scale)

    def test_an_input_s_filters_look_at_its_own_name_and_at_the_host_s(self) -> None:
        recipe = recipe_of("""\
            models:
              - {model: A, parameters: {weight: [{filter: language_model, value: 1}, {value: 0}]}}
              - {model: B, parameters: {weight: [{filter: gpt, value: 2}, {value: 0}]}}
            merge_method: method
            parameters: {lambda: {filter: gpt, value: 5}}
            """)
        found = resolved(recipe, "language_model.x", inputs=[("A", "model.x"), ("B", "gpt.x")])
        assert weights(found) == [1, 2]
        assert found.parameters == Shared()  # a shared one looks at the host's alone

    @pytest.mark.parametrize("filter", ["'*'", "''", ""])
    def test_filters_that_match_everything(self, filter: str) -> None:
        recipe = recipe_of(
            f"models: [{{model: A}}]\nmerge_method: method\nparameters: {{weight: {{filter: {filter}, value: 3}}}}"
        )
        assert weights(resolved(recipe)) == [3]


class TestGradients:
    @pytest.mark.parametrize(
        ("gradient", "t", "expected"),
        [
            ("[0, 1]", 0.0, 0.0),
            ("[0, 1]", 0.25, 0.25),
            ("[0, 1]", 1.0, 1.0),
            ("[1, 0, 4]", 0.5, 0.0),
            ("[1, 0, 4]", 0.75, 2.0),
            ("[1, 0, 4]", 1.0, 4.0),
            ("[7]", 0.3, 7.0),
            ("[true, 0]", 0.5, 0.5),
            ("['0', 1e0]", 0.5, 0.5),
        ],
    )
    def test_numbers_are_interpolated(self, gradient: str, t: float, expected: float) -> None:
        recipe = recipe_of(f"models: [{{model: A}}]\nmerge_method: method\nparameters: {{weight: {gradient}}}")
        assert weights(resolved(recipe, t=t)) == [expected]

    @pytest.mark.parametrize(
        ("t", "name", "normalize"), [(0, "a", True), (0.49, "a", True), (0.5, "b", False), (1, "c", False)]
    )
    def test_anything_else_is_selected(self, t: float, name: str, normalize: bool) -> None:
        recipe = recipe_of(
            "models: [{model: A, parameters: {weight: 1}}]\nmerge_method: method\n"
            "parameters: {name: [a, b, c], normalize: [true, 0, false]}"
        )
        found = resolved(recipe, t=t)
        assert found == Resolved(Shared(normalize=normalize), (PerInput(weight=1, name=name),))

    def test_a_gradient_in_a_condition(self) -> None:
        recipe = recipe_of(
            "models: [{model: A}]\nmerge_method: method\n"
            "parameters: {weight: [{filter: mlp, value: [0, 2]}, {value: 9}]}"
        )
        assert [weights(resolved(recipe, name, t=0.5)) for name in (MLP, "norm")] == [[1.0], [9]]


def resolve_problems(text: str, **options: Any) -> list[str]:
    with pytest.raises(RecipeError) as caught:
        resolved(recipe_of(text), **options)
    return [str(problem) for problem in caught.value.problems]


class TestResolveProblems:
    def test_all_of_a_tensor_at_once(self) -> None:
        assert resolve_problems(
            """\
            models:
              - model: A
                parameters: {weight: x}
              - model: B
                parameters:
                  density: [0.5, 2.5]
            merge_method: method
            parameters:
              lambda: 0
              steps: [1, 2]
            """,
            t=0.5,
        ) == [
            "r:9: parameters.lambda: 0 is not allowed: lambda must be a number, greater than 0",
            (
                "r:10: parameters.steps: 0.5 of the way through the layers, "
                "1.5 is not allowed: steps must be a whole number"
            ),
            "r:3: models[0].parameters.weight: 'x' is not allowed: weight must be a number",
            "r:4: models[1]: method needs `weight` for B: give it under models[1].parameters or parameters",
            "r:6: models[1].parameters.density[1]: 2.5 is not allowed: density must be a number from 0 to 1",
        ]

    def test_a_missing_value(self) -> None:
        text = "models: [{model: A}]\nmerge_method: method\noverrides: [{tensors: x, method: other}]"
        assert resolve_problems(text) == [
            "r:1: models[0]: method needs `weight` for A: give it under models[0].parameters or parameters"
        ]
        assert resolve_problems(text, override=0) == [
            "r:3: overrides[0]: other needs `t`: give it under overrides[0].parameters or parameters"
        ]

    def test_a_value_for_other_tensors_only(self) -> None:
        text = "merge_method: method\nmodels:\n- model: A\n  parameters:\n    weight: {filter: attn, value: 1}"
        assert resolve_problems(text) == [
            (
                "r:5: models[0].parameters.weight: method needs a value for every tensor, "
                f"and no filter matches {MLP}; end the list with a value without a filter"
            )
        ]

    def test_a_combination(self) -> None:
        class Ordered(Strict):
            low: float = 0
            high: float = 1

            @model_validator(mode="after")
            def ordered(self) -> "Ordered":
                if self.low > self.high:
                    raise ValueError("low must not be above high")
                return self

        class Ranged(Method):
            Parameters = Ordered
            InputParameters = Strict

        recipe = recipe_of("models: [{model: A}]\nmerge_method: method\nparameters: {low: 3}")
        with pytest.raises(RecipeError, match=r"^r:3: parameters: low must not be above high$"):
            resolve(recipe, Ranged(), None, MLP, [("A", MLP)], 0.0)
        assert check_values(recipe, {"method": Ranged()}, {}) == []


def methods_of(recipe: Recipe) -> dict[str, MergeMethod]:
    names = {recipe.merge_method, *(override.method for override in recipe.overrides if override.method)}
    return {name: METHODS[name] for name in sorted(names)}


class TestNames:
    def problems(self, text: str) -> list[str]:
        recipe = recipe_of(text)
        return [str(problem) for problem in check_names(recipe, methods_of(recipe), {})]

    def test_every_scope_is_checked(self) -> None:
        assert self.problems("""\
            models:
              - {model: A, parameters: {weight: 1, wieght: 1}}
              - {model: B, parameters: {qqq: 1}}
            merge_method: method
            parameters: {lamda: 1, scale: 1, t: 1}
            overrides:
              - tensors: x
                parameters: {t: 1}
                models: [{model: B}, {model: A, parameters: {densty: 1}}]
              - tensors: y
                method: other
                parameters: {lambda: 1, tt: 1}
                models: [{model: A, parameters: {weight: 1}}]
            """) == [
            "r:5: parameters.lamda: none of method, other has a parameter of this name; did you mean 'lambda'?",
            (
                "r:5: parameters.scale: none of method, other has a parameter of this name; "
                "there are lambda, normalize, steps, mode, weight, density, name, t"
            ),
            (
                "r:2: models[0].parameters.wieght: none of method, other has a parameter of this name; "
                "did you mean 'weight'?"
            ),
            (
                "r:3: models[1].parameters.qqq: none of method, other has a parameter of this name; "
                "there are weight, density, name, lambda, normalize, steps, mode, t"
            ),
            (
                "r:8: overrides[0].parameters.t: method has no parameter of this name; "
                "there are lambda, normalize, steps, mode, weight, density, name"
            ),
            (
                "r:9: overrides[0].models[1].parameters.densty: method has no parameter of this name; "
                "did you mean 'density'?"
            ),
            "r:12: overrides[1].parameters.lambda: other has no parameter of this name; there are t, steps",
            "r:12: overrides[1].parameters.tt: other has no parameter of this name; did you mean 't'?",
            "r:13: overrides[1].models[0].parameters.weight: other has no parameter of this name; there are t, steps",
        ]

    def test_a_method_without_parameters(self) -> None:
        class Bare(Method):
            Parameters = InputParameters = Strict

        recipe = recipe_of("models: [{model: A}]\nmerge_method: method\nparameters: {x: 1}")
        (problem,) = check_names(recipe, {"method": Bare()}, {})
        assert problem.message == "method has no parameter of this name; there are none"

    def test_names_of_either_kind_pass_everywhere(self) -> None:
        assert not self.problems("""\
            models: [{model: A, parameters: {weight: 1, lambda: 2}}]
            base_model: A
            merge_method: method
            parameters: {weight: 1, normalize: true}
            """)


class TestIdle:
    def warnings(self, text: str) -> list[str]:
        recipe = recipe_of(text)
        return idle_settings(recipe, methods_of(recipe), {})

    def test_a_shared_parameter_under_a_model(self) -> None:
        assert self.warnings("models: [{model: A, parameters: {weight: 1, lambda: 2}}]\nmerge_method: method") == [
            "r:1: models[0].parameters.lambda: has no effect here: it is shared by all models; move it to `parameters`"
        ]

    def test_an_input_s_parameter_under_the_base(self) -> None:
        text = "models: [{model: A, parameters: {weight: 1}}, {model: B}]\nbase_model: A\nmerge_method: method"
        assert self.warnings(text) == [
            (
                "r:1: models[0].parameters.weight: has no effect here: "
                "the base, or a model with a role, has none of its own"
            )
        ]
        assert self.warnings(text.replace("base_model: A", "base_model: B")) == []

    def test_the_base_is_an_input_where_the_method_takes_it_for_one(self) -> None:
        class AnyInput(Method):
            requires: ClassVar[Requirements] = Requirements(base="ignored")

        recipe = recipe_of("models: [{model: A, parameters: {weight: 1}}]\nbase_model: A\nmerge_method: method")
        assert idle_settings(recipe, {"method": AnyInput()}, {}) == []


class TestValues:
    def problems(self, text: str) -> list[str]:
        recipe = recipe_of(text)
        return [str(problem) for problem in check_values(recipe, methods_of(recipe), {})]

    def test_every_scalar_point_and_condition_is_checked_wherever_it_stands(self) -> None:
        assert self.problems("""\
            models:
              - model: A
                parameters:
                  density:
                    - filter: nothing
                      value: 1.7
                    - value: [0, -1,
                              2]
              - model: B
                parameters:
                  density: {filter: x, value: big}
            merge_method: method
            parameters:
              lambda: [0, 1]
              normalize: maybe
              steps: [1, 2.5]
              mode: 3
            overrides:
              - tensors: x
                method: other
                parameters: {t: 1.01, steps: 51}
                models: [{model: A, parameters: {weight: x}}]
            """) == [
            "r:14: parameters.lambda[0]: 0 is not allowed: lambda must be a number, greater than 0",
            "r:15: parameters.normalize: 'maybe' is not allowed: normalize must be true or false",
            "r:16: parameters.steps[1]: 2.5 is not allowed: steps must be a whole number",
            "r:17: parameters.mode: 3 is not allowed: mode must be text",
            "r:6: models[0].parameters.density[0].value: 1.7 is not allowed: density must be a number from 0 to 1",
            "r:7: models[0].parameters.density[1].value[1]: -1 is not allowed: density must be a number from 0 to 1",
            "r:8: models[0].parameters.density[1].value[2]: 2 is not allowed: density must be a number from 0 to 1",
            "r:11: models[1].parameters.density.value: 'big' is not allowed: density must be a number from 0 to 1",
            "r:21: overrides[0].parameters.t: 1.01 is not allowed: t must be a number from 0 to 1",
            "r:21: overrides[0].parameters.steps: 51 is not allowed: steps must be even",
        ]

    def test_the_path_of_a_condition_is_the_one_that_was_written(self) -> None:
        text = "models: [{model: A}]\nmerge_method: method\nparameters: {density: CONDITION}"
        where = "r:3: parameters.density"
        words = "2 is not allowed: density must be a number from 0 to 1"
        assert self.problems(text.replace("CONDITION", "{value: 2}")) == [f"{where}.value: {words}"]
        assert self.problems(text.replace("CONDITION", "[{value: 2}]")) == [f"{where}[0].value: {words}"]

    def test_a_value_that_one_of_several_methods_can_take_passes(self) -> None:
        text = """\
            models: [{model: A, parameters: {weight: 1}}]
            merge_method: method
            parameters: {steps: 3, t: 0}
            overrides: [{tensors: x, method: other, parameters: {steps: 60}}]
            """
        assert self.problems(text) == []
        assert resolved(recipe_of(text), override=0).parameters == OtherShared(t=0, steps=60)


class TestUnmatched:
    TEXT = """\
        models:
          - model: A
            parameters:
              weight:
                - {filter: mlp, value: 1}
                - {filter: mpl, value: 1}
                - {filter: '*', value: 1}
          - {model: B, parameters: {weight: {filter: gpt, value: 1}}}
        merge_method: method
        parameters: {lambda: {filter: zzz, value: 1}}
        overrides:
          - {tensors: '*.mlp.*', parameters: {weight: {filter: yyy, value: 1}}}
          - {tensors: '*.mpl.*', models: [{model: A, parameters: {mode: {filter: xxx, value: 1}}}]}
        """

    def test_filters_and_patterns_that_fit_nothing(self) -> None:
        assert unmatched(recipe_of(self.TEXT), ["model.layers.0.mlp.up.weight"], ["gpt.0.mlp.up.weight"]) == [
            "r:13: overrides[1].tensors: '*.mpl.*' matches no tensor that is merged",
            "r:10: parameters.lambda.filter: 'zzz' is part of no name of a tensor that is merged",
            "r:6: models[0].parameters.weight[1].filter: 'mpl' is part of no name of a tensor that is merged",
            "r:12: overrides[0].parameters.weight.filter: 'yyy' is part of no name of a tensor that is merged",
            "r:13: overrides[1].models[0].parameters.mode.filter: 'xxx' is part of no name of a tensor that is merged",
        ]

    def test_without_filters_nothing_is_said(self) -> None:
        assert unmatched(recipe_of("models: [{model: A}]\nmerge_method: method"), [], []) == []


@pytest.mark.parametrize(
    ("annotation", "field", "expected"),
    [
        (float, {}, "a number"),
        (float, {"ge": 0}, "a number, at least 0"),
        (float, {"gt": 0, "lt": 1}, "a number, greater than 0 and less than 1"),
        (float, {"ge": -0.5, "le": 1e-6}, "a number from -0.5 to 1e-06"),
        (float | None, {"ge": 0, "le": 1}, "a number from 0 to 1"),
        (int | str, {}, "a whole number or text"),
        (int, {"multiple_of": 8}, "a whole number, a multiple of 8"),
        (bool, {}, "true or false"),
        (Literal["a", "b"], {}, "one of 'a', 'b'"),
        (Literal["a"], {}, "'a'"),
        (Enum("Kind", {"X": "x", "Y": "y"}), {}, "one of 'x', 'y'"),
        (list[int], {}, None),
        (int | list[int], {}, None),
    ],
)
def test_what_a_schema_allows_in_words(annotation: Any, field: dict[str, Any], expected: str | None) -> None:
    model = type("Model", (Strict,), {"__annotations__": {"x": annotation}, "x": Field(**field)})
    schema = model.model_json_schema()
    assert describe(schema["properties"]["x"], schema.get("$defs", {})) == expected


def test_a_value_no_schema_can_describe_is_refused_in_pydantic_s_words() -> None:
    class Listed(Strict):
        layers: list[int]

    assert parameter_set(Listed).fault("layers", 3) == "3 is not allowed: Input should be a valid list"


def test_an_alias_that_no_recipe_can_write_is_the_plugin_s_fault() -> None:
    class Choices(Strict):
        x: float = Field(validation_alias=AliasChoices("a", "b"))

    with pytest.raises(PluginError, match="parameter x: an alias must be plain text"):
        parameter_set(Choices)


# -- the same as mergekit -----------------------------------------------------------------------


@pytest.fixture(scope="module")
def mergekit() -> SimpleNamespace:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # mergekit's own, at import
        from mergekit.common import ModelReference
        from mergekit.config import ConfigReader, InputSliceDefinition, MergeConfiguration, OutputSliceDefinition
        from mergekit.merge_methods.base import (
            BasePolicy,
            InputContract,
            MergeMethodSpec,
            ParameterScope,
            ParameterSpec,
        )
        from mergekit.parameter_resolver import resolve_parameters

    def spec(name: str, kind: type, scope: ParameterScope, **default: Any) -> ParameterSpec:
        return ParameterSpec(name=name, value_type=kind, scope=scope, **default)

    shared, each = ParameterScope.SHARED, ParameterScope.NON_BASE
    method = MergeMethodSpec(
        "method",
        (
            spec("lambda", float, shared, default=1.0),
            spec("normalize", bool, shared, default=False),
            spec("steps", int, shared, default=3),
            spec("mode", str, shared, default="plain"),
            spec("weight", float, each),
            spec("density", float, each, default=1.0),
            spec("name", str, each, default="x"),
        ),
        InputContract(base=BasePolicy.OPTIONAL),
    )

    def run(mapping: dict[str, Any], tensor: str, t: float) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        """What mergekit resolves for the models beside the base."""
        config = MergeConfiguration.model_validate(mapping)
        assert config.models is not None
        sources = [
            InputSliceDefinition(model=m.model, layer_range=(0, 1), parameters=m.parameters) for m in config.models
        ]
        reader = ConfigReader(config=config, t=t, slice_out=OutputSliceDefinition(sources=sources))
        base = ModelReference.parse("base")
        inputs = {m.model: tensor for m in config.models}
        parameters, per_input = resolve_parameters(
            method, tensor_name=tensor, inputs=inputs, sources=reader.parameter_sources, base_model=base, t=t
        )
        return parameters, [found for model, found in per_input.items() if model != base]

    return SimpleNamespace(run=run)


NUMBERS = st.floats(-2, 2) | st.integers(-3, 3) | st.sampled_from(["1e-5", "0.5", "-.25", "25e-1"])
ANYTHING = st.booleans() | NUMBERS | st.sampled_from(["fast", "true", "no", ""])
WORDS = st.sampled_from(["fast", "slow", "true"]) | st.booleans()  # text that looks like a number is one, to us


def setting(scalar: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    points = scalar | st.lists(scalar, min_size=1, max_size=4)
    filters = st.sampled_from([None, "*", "mlp", "attn", "layers.1", "norm", ""])
    condition = st.fixed_dictionaries({"value": points}, optional={"filter": filters})
    return points | condition | st.lists(condition, min_size=1, max_size=3)


def parameters_of(names: dict[str, st.SearchStrategy[Any]]) -> st.SearchStrategy[dict[str, Any]]:
    return st.fixed_dictionaries({}, optional={name: setting(scalar) for name, scalar in names.items()})


PLAIN = {"weight": NUMBERS, "density": st.floats(0, 1), "lambda": st.floats(0.1, 3)}
ROUGH = {"weight": ANYTHING, "normalize": ANYTHING, "steps": ANYTHING, "mode": WORDS, "name": WORDS}


@settings(max_examples=400, deadline=None, derandomize=True)
@given(
    parameters=st.tuples(*[parameters_of(PLAIN)] * 3) | st.tuples(*[parameters_of(ROUGH)] * 3),
    tensor=st.sampled_from([MLP, "model.layers.1.self_attn.q_proj.weight", "model.norm.weight", "lm_head.weight"]),
    t=st.floats(0, 1) | st.sampled_from([0.0, 1 / 3, 0.5, 1.0]),
)
def test_settings_resolve_as_in_mergekit(
    mergekit: SimpleNamespace, parameters: tuple[dict[str, Any], ...], tensor: str, t: float
) -> None:
    everyone, first, second = parameters
    mapping = {
        "models": [
            {"model": "A", "parameters": first},
            {"model": "base", "parameters": second},
            {"model": "B", "parameters": second},
        ],
        "base_model": "base",
        "merge_method": "method",
        "parameters": everyone,
    }
    try:
        expected = mergekit.run(mapping, tensor, t)
    except (RuntimeError, ValueError):
        with pytest.raises(RecipeError):
            resolved(read_recipe(mapping), tensor, t=t, inputs=[("A", tensor), ("B", tensor)])
        return
    found = resolved(read_recipe(mapping), tensor, t=t, inputs=[("A", tensor), ("B", tensor)])
    shared, each = found.parameters.model_dump(by_alias=True), [one.model_dump() for one in found.inputs]
    assert (shared, each) == expected
    assert [type(value) for value in shared.values()] == [type(value) for value in expected[0].values()]
