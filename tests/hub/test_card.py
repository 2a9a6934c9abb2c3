"""The model card: what it says, that the Hub can read it, and that no name gets out of its place."""

import ast
import re
from pathlib import Path
from typing import Any, ClassVar

import pytest
import yaml
from huggingface_hub import ModelCard
from hypothesis import example, given, settings
from hypothesis import strategies as st

import safegraft
from safegraft.checkpoint.dtypes import DType
from safegraft.checkpoint.types import Checkpoint, Identity
from safegraft.engine.task import Contribution, Cost, Plan, PlannedFile, TensorTask
from safegraft.hub.card import cell, code, fence, render_card
from safegraft.methods import Granularity, MergeMethod, Requirements
from safegraft.recipe import parse_recipe, read_recipe
from safegraft.testing import tiny_llm

DIGEST = "0123456789abcdef" * 4


class Linear(MergeMethod):
    name = "linear"
    summary = "Weighted mean\n of the models."
    reference = "https://arxiv.org/abs/2203.05482"
    requires: ClassVar[Requirements] = Requirements()
    granularity = Granularity.ELEMENT

    def merge(self, inputs, base, context):
        raise NotImplementedError


class Odd(Linear):
    name = "odd"
    reference = "javascript:alert(1)) <b>"


HUB_NAME = "org/aligned@" + "5" * 40


class Headers(Checkpoint):
    """A checkpoint of which only name, identity and config are asked."""

    def __init__(self, name: str, config: dict[str, Any] | None = None) -> None:
        self.name = name
        self.identity = Identity(name, "sampled-sha256", DIGEST)
        self.config = config or {}
        self.tensors = {}
        self.sidecars = {}

    def read_into(self, tensor, start, buffer) -> None:
        raise NotImplementedError

    def tokens(self) -> None:
        raise NotImplementedError

    def modified_ns(self) -> int:
        return 0

    def verify_unchanged(self) -> None:
        raise NotImplementedError


def task(name: str, action: str = "merge", note: str = "", method: str | None = "linear") -> TensorTask:
    inputs = (Contribution("lvlm", name),)
    return TensorTask(name, DType.BF16, (2, 2), action, inputs, method=method if action == "merge" else None, note=note)


def plan_of(
    llm: str = "org/aligned", lvlm: str = "/home/me/models/lvlm", names: dict[str, str] | None = None, **more: Any
):
    recipe = {
        "models": [
            {
                "model": llm,
                "parameters": {"weight": 0.3, "density": [{"filter": "mlp|x", "value": [0, 1]}, {"value": 1}]},
            },
            {"model": lvlm, "parameters": {"weight": 0.7}},
        ],
        "merge_method": "linear",
        "host_model": lvlm,
        "overrides": [{"tensors": "*.norm.*", "method": "odd"}],
    }
    files = ["model.safetensors", "config.json", "LICENSE.txt", "preprocessor_config.json", "tokenizer.json"]
    facts: dict[str, Any] = {
        "recipe": read_recipe(recipe),
        "digest": DIGEST[::-1],
        "host_model": lvlm,
        "names": names or {llm: "aligned", lvlm: "lvlm"},
        "checkpoints": {llm: Headers(HUB_NAME), lvlm: Headers("lvlm", {"vision_config": {}})},
        "methods": {"linear": Linear(), "odd": Odd()},
        "versions": {"torch": "2.13.0", "safegraft": "0.1.0"},
        "tensors": (
            task("a"),
            task("b"),
            task("c", note="28 of 32 rows are shared; the rest are the host's"),
            task("n", method="odd"),
            task("v", "copy", "only the host has it"),
            task("w", "copy", "only the host has it"),
        ),
        "files": tuple(PlannedFile(name, 1, "sidecar") for name in files),
        "warnings": (f"{lvlm} is the host model of {llm}", "`` ```` <script>"),
        "cost": Cost(0, 0, 0, 0, 0.0),
        "total_size": 0,
    }
    return Plan(**{**facts, **more})


def card_of(**more: Any) -> str:
    return render_card(plan_of(**more)).decode()


def section(card: str, title: str) -> str:
    return re.search(rf"^## {title}\n\n(.*?)(?=^## |\Z)", card, re.DOTALL | re.MULTILINE).group(1)


def block(card: str, title: str, number: int = 0) -> str:
    return re.findall(r"^(`{3,})\w+\n(.*?)\n\1$", section(card, title), re.DOTALL | re.MULTILINE)[number][1]


def test_the_hub_can_read_its_metadata() -> None:
    data = ModelCard(card_of()).data.to_dict()
    assert data == {
        "base_model": ["org/aligned"],
        "base_model_relation": "merge",
        "library_name": "transformers",
        "pipeline_tag": "image-text-to-text",
        "tags": ["merge", "safegraft", "safety", "linear", "odd"],
    }


@pytest.mark.parametrize(
    "name", ["/abs/path", "org/name", "org/name@main", "a/b/c@" + "5" * 40, "a b/c@" + "5" * 40, HUB_NAME + "\n"]
)
def test_only_models_of_the_hub_are_claimed_as_base_models(name: str) -> None:
    plan = plan_of()
    plan.checkpoints["org/aligned"] = Headers(name)
    assert "base_model" not in yaml.safe_load(render_card(plan).decode().split("---\n")[1])


def test_no_path_and_the_same_bytes_every_time() -> None:
    assert "/home" not in card_of()
    assert card_of() == card_of()


def test_inputs_with_roles_parameters_and_identities() -> None:
    rows = [line for line in section(card_of(), "Inputs").splitlines() if line.startswith("| `")]
    assert rows == [
        (
            '| `aligned` | input | `density: [{"filter": "mlp\\|x", "value": [0, 1]}, {"filter": null, "value": 1}], '
            "weight: 0.3` | sampled-sha256 `0123456789ab` |"
        ),
        "| `lvlm` | input, host | `weight: 0.7` | sampled-sha256 `0123456789ab` |",
    ]


def test_a_base_of_its_own_has_its_role() -> None:
    text = "models: [{model: a}]\nbase_model: b\nmerge_method: linear"
    checkpoints = {"a": Headers("a"), "b": Headers("b")}
    card = card_of(
        recipe=parse_recipe(text), host_model="a", names={"a": "a", "b": "b"}, checkpoints=checkpoints, warnings=()
    )
    assert "| `a` | input, host |  |" in card
    assert "| `b` | base |  |" in card


def test_a_model_with_a_role_and_a_modifier(tmp_path: Path) -> None:
    for seed, name in enumerate(("tuned", "aligned")):
        tiny_llm(tmp_path / name, seed=seed)
    models = [{"model": str(tmp_path / "tuned")}, {"model": str(tmp_path / "aligned"), "role": "aligned"}]
    base = {
        "base_model": str(tmp_path / "tuned"),
        "modifiers": [{"name": "lines", "parameters": {"alpha": 1, "beta": 0}}],
    }
    for recipe, role, modified in (
        ({"merge_method": "pre_post", "models": models}, "`aligned`", False),
        ({"merge_method": "linear", "models": [{**models[0], "parameters": {"weight": 1}}], **base}, "", True),
    ):
        with safegraft.open(recipe) as merged:
            card = merged.files["README.md"].read().decode()
        assert ("| `aligned` | `aligned` |" in section(card, "Inputs")) is bool(role)
        assert ("- then `lines`: Scales the merged update" in section(card, "Method")) is modified


def test_methods_with_their_references() -> None:
    assert section(card_of(), "Method").splitlines()[:2] == [
        "- `linear` for 3 tensors: Weighted mean of the models ([reference](https://arxiv.org/abs/2203.05482))",
        "- `odd` for 1 tensor: Weighted mean of the models (`javascript:alert(1)) <b>`)",
    ]


def test_the_recipe_is_one_with_public_names() -> None:
    recipe = read_recipe(block(card_of(), "Recipe") + "\n")
    assert [entry.model for entry in recipe.models] == ["aligned", "lvlm"]
    assert recipe.host_model == "lvlm"
    assert recipe.models[0].parameters == plan_of().recipe.models[0].parameters
    assert recipe.overrides[0].method == "odd"


def test_tensors_and_warnings_by_public_names() -> None:
    card = card_of()
    assert block(card, "Tensors").splitlines() == [
        "4 tensors merged",
        "  of these 1: 28 of 32 rows are shared; the rest are the host's",
        "2 tensors copied from the host",
        "  of these 2: only the host has it",
    ]
    assert block(card, "Tensors", 1).splitlines() == ["lvlm is the host model of aligned", "`` ```` <script>"]
    assert "Warnings" not in card_of(warnings=())


def test_a_name_inside_another_word_is_left_alone() -> None:
    names = {"a": "A1", "./b": "B1"}
    text = "models: [{model: a}, {model: ./b}]\nmerge_method: linear"
    card = card_of(
        recipe=parse_recipe(text),
        host_model="a",
        names=names,
        checkpoints={"a": Headers("A1"), "./b": Headers("B1")},
        warnings=("a: a tensor of ./b, ./b/config.json, x/a, data, a-b",),
    )
    assert block(card, "Tensors", 1) == "A1: A1 tensor of B1, B1/config.json, x/a, data, a-b"


@pytest.mark.parametrize(
    ("config", "files", "names"),
    [
        ({"vision_config": {}}, ["processor_config.json"], ["AutoModelForImageTextToText", "AutoProcessor"]),
        ({"vision_config": {}}, ["tokenizer.json"], ["AutoModelForImageTextToText", "AutoTokenizer"]),
        ({}, ["tokenizer_config.json", "preprocessor_config.json"], ["AutoModelForCausalLM", "AutoTokenizer"]),
        ({}, [], ["AutoModelForCausalLM"]),
    ],
)
def test_the_snippet_fits_the_model(config: dict[str, Any], files: list[str], names: list[str]) -> None:
    plan = plan_of(files=tuple(PlannedFile(name, 1, "sidecar") for name in files))
    plan.host.config = config
    card = render_card(plan).decode()
    first, *others = ast.parse(block(card, "Use")).body
    assert isinstance(first, ast.ImportFrom)
    assert [alias.name for alias in first.names] == names
    assert len(others) == 1 + len(names)
    assert ("pipeline_tag: text-generation" in card) == (not config)


def test_how_to_make_it_again() -> None:
    text = section(card_of(), "Reproduce")
    assert "`safegraft 0.1.0, torch 2.13.0`" in text
    assert f"```text\n{DIGEST[::-1]}\n```" in text


def test_it_says_what_it_does_not_know() -> None:
    card = card_of()
    assert "**This merge has not been evaluated.**" in card
    assert "Not declared" in section(card, "Licence")
    assert "`LICENSE.txt`" in section(card, "Licence")
    assert "terms come along" not in card_of(files=())


# Nothing a stranger named ends the code span or block it stands in. CommonMark: a span ends at the first
# run of backticks as long as the opening one, a fenced block at a line of at least as many.

NASTY = st.text(alphabet="`|~<>[]()#!*_\\\n\r\u202e\u2028 ab-'\":&", max_size=30)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(NASTY)
def test_a_code_span_holds_any_text(text: str) -> None:
    span = code(text)
    ticks = re.match("`+", span).group()
    inner = span[len(ticks) : -len(ticks)]
    assert span.endswith(ticks)
    assert ticks not in re.findall("`+", inner)
    assert span.isprintable()
    assert "|" not in cell(text).replace("\\|", "")
    shown = inner[1:-1] if inner.startswith(" `") or inner.endswith("` ") else inner
    expected = "".join(one if one.isprintable() else "\ufffd" for one in text).strip()
    assert shown == (expected or " ")


@settings(max_examples=300, deadline=None, derandomize=True)
@given(NASTY)
@example("a\n````\nb")
@example("   ```")
def test_a_code_block_holds_any_text(text: str) -> None:
    first, *lines, last = fence(text).split("\n")
    assert first == last + "text"
    assert len(last) >= 3
    assert not any(re.fullmatch(f"{last}`*\\s*", line.lstrip()) for line in lines)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(NASTY.filter(lambda name: not re.search("[\n\r]", name) and name.strip()))
def test_no_name_gets_out_of_its_place(name: str) -> None:
    def render(public: str) -> str:
        return card_of(names={"org/aligned": public, "/home/me/models/lvlm": "lvlm"})

    def shape(card: str) -> list[str]:
        """The card without what stands in code."""
        card = re.sub(r"^(`{3,})(\w+)\n.*?\n\1$", r"BLOCK \2", card, flags=re.DOTALL | re.MULTILINE)
        card = re.sub(r"(?<!`)(`+)(?!`).*?(?<!`)\1(?!`)", "CODE", card)
        return card.splitlines()

    assert shape(render(name)) == shape(render("plain"))
