"""The model card: what it says, that the Hub can read it, and that no name gets out of its place."""

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
from safegraft.checkpoint.licence import Licence
from safegraft.checkpoint.types import Checkpoint, Identity
from safegraft.engine.layout import weight_files
from safegraft.engine.task import Contribution, Cost, Plan, PlannedFile, TensorTask
from safegraft.hub.card import render_card
from safegraft.hub.markdown import cell, code, fence
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
    """A checkpoint of which only name, identity, licence and config are asked."""

    def __init__(self, name: str, config: dict[str, Any] | None = None, licence: Licence | None = None) -> None:
        self.name = name
        self.licence = licence
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


TENSORS = (
    task("language.layers.0.a"),
    task("language.layers.1.a"),
    task("language.embed", note="28 of 32 rows are shared; the rest are /home/me/models/lvlm's"),
    task("language.norm", method="odd"),
    task("vision_tower.layers.0.a", "copy", "only the host has it"),
    task("vision_tower.layers.1.a", "copy", "only the host has it"),
    task("vision_tower.b", "copy"),
    task("mm_projector.c", "copy", "only the host has it"),
)


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
    files = ["config.json", "LICENSE.txt", "preprocessor_config.json", "tokenizer.json"]
    facts: dict[str, Any] = {
        "recipe": read_recipe(recipe),
        "digest": DIGEST[::-1],
        "host_model": lvlm,
        "names": names or {llm: HUB_NAME, lvlm: "lvlm"},
        "checkpoints": {
            llm: Headers(HUB_NAME, licence=Licence("apache-2.0")),
            lvlm: Headers("lvlm", {"vision_config": {}}, Licence("apache-2.0")),
        },
        "methods": {"linear": Linear(), "odd": Odd()},
        "versions": {"torch": "2.13.0", "safegraft": "0.1.0"},
        "tensors": TENSORS,
        "files": (*weight_files(TENSORS, 10**9), *(PlannedFile(name, 1, "sidecar") for name in files)),
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
        "license": "apache-2.0",
        "pipeline_tag": "image-text-to-text",
        "tags": ["merge", "safegraft", "safety", "linear", "odd"],
    }


def test_it_says_that_mergekit_computed_it_only_when_it_did() -> None:
    class OfMergekit(Linear):
        packages = ("mergekit",)

    methods = {"linear": OfMergekit(), "odd": Odd()}
    assert ModelCard(card_of(methods=methods)).data.tags == [
        "merge",
        "safegraft",
        "safety",
        "mergekit",
        "linear",
        "odd",
    ]


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


def test_inputs_with_links_roles_parameters_licences_and_identities() -> None:
    commit = "5" * 40
    rows = [line for line in section(card_of(), "Inputs").splitlines() if line.startswith(("| `", "| ["))]
    assert rows == [
        (
            f"| [`org/aligned`](https://huggingface.co/org/aligned) at [`{commit[:12]}`]"
            f"(https://huggingface.co/org/aligned/tree/{commit}) | input | "
            '`density: [{"filter": "mlp\\|x", "value": [0, 1]}, {"filter": null, "value": 1}], weight: 0.3` '
            "| `apache-2.0` | sampled-sha256 `0123456789ab` |"
        ),
        "| `lvlm` | input, host | `weight: 0.7` | `apache-2.0` | sampled-sha256 `0123456789ab` |",
    ]


def test_an_adapter_has_a_link_and_a_licence_of_its_own() -> None:
    class WithAdapter(Headers):
        @property
        def sources(self) -> tuple[str, ...]:
            return (HUB_NAME, "/home/me/adapters/tuned")

    plan = plan_of(names={"org/aligned": f"{HUB_NAME}+tuned", "/home/me/models/lvlm": "lvlm"})
    plan.checkpoints["org/aligned"] = WithAdapter("aligned", licence=Licence("mit"))
    card = render_card(plan).decode()
    row = next(line for line in section(card, "Inputs").splitlines() if "tuned" in line)
    assert row.startswith("| [`org/aligned`](https://huggingface.co/org/aligned) at ")
    assert " with `tuned` | input | " in row
    assert "| `mit` and not declared |" in row
    assert "`tuned` declares no licence" in section(card, "Licence")
    assert "/home" not in card


def test_two_commits_of_one_model_are_told_apart() -> None:
    other = "org/aligned@" + "6" * 40
    plan = plan_of(names={"org/aligned": HUB_NAME, "/home/me/models/lvlm": other})
    for model, name in plan.names.items():
        plan.checkpoints[model] = Headers(name)
    assert f"# Merge of `{HUB_NAME}` and `{other}`" in render_card(plan).decode()
    assert "# Merge of `org/aligned` and `lvlm`" in card_of()


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
        "- `odd` for 1 tensor: Weighted mean of the models (reference: `javascript:alert(1)) <b>`)",
    ]


def test_the_recipe_is_one_with_public_names() -> None:
    recipe = read_recipe(block(card_of(), "Recipe") + "\n")
    assert [entry.model for entry in recipe.models] == [HUB_NAME, "lvlm"]
    assert recipe.host_model == "lvlm"
    assert recipe.models[0].parameters == plan_of().recipe.models[0].parameters
    assert recipe.overrides[0].method == "odd"


def test_parts_of_the_model_and_what_stands_out_in_them() -> None:
    text = section(card_of(), "Tensors")
    head, _, *rows = [line for line in text.splitlines() if line.startswith("|")]
    assert head == "| part of the model | what was done | tensors | parameters |"
    assert rows == [
        "| projector | copied from the host: `only the host has it` | 1 | 4 |",
        "| vision tower | copied from the host: `only the host has it` | 2 | 8 |",
        "| vision tower | copied from the host | 1 | 4 |",
        "| other | merged by `linear` | 2 | 8 |",
        "| other | merged by `linear`: `28 of 32 rows are shared; the rest are lvlm's` | 1 | 4 |",
        "| other | merged by `odd` | 1 | 4 |",
    ]
    folded = re.search(r"<details>\n<summary>.*</summary>\n\n(.*?)\n\n</details>", text, re.DOTALL).group(1)
    assert folded.split("\n\n")[:2] == ["vision tower, copied from the host", "- `vision_tower.b`"]
    assert "- `language.norm`" in folded


def test_the_parts_of_a_real_lvlm(models) -> None:
    with safegraft.open(models.linear()) as merged:
        text = section(merged.files["README.md"].read().decode(), "Tensors")
    rows = {line.split(" | ")[0].removeprefix("| "): line for line in text.splitlines() if line.startswith("| ")}
    assert rows["token embeddings"].endswith("rows are shared; the rest are the host's` | 1 | 192 |")
    assert rows["language layers"] == "| language layers | merged by `linear` | 18 | 1.31 K |"
    assert rows["language, outside its layers"] == "| language, outside its layers | merged by `linear` | 1 | 8 |"
    assert "| output head | merged by" in rows["output head"]
    assert rows["projector"] == "| projector | copied from the host: `only the host has it` | 2 | 56 |"
    assert rows["vision tower"] == "| vision tower | copied from the host: `only the host has it` | 3 | 78 |"


def test_warnings_by_public_names() -> None:
    card = card_of()
    assert block(card, "Tensors").splitlines() == [f"lvlm is the host model of {HUB_NAME}", "`` ```` <script>"]
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
    assert block(card, "Tensors") == "A1: A1 tensor of B1, B1/config.json, x/a, data, a-b"


def test_how_to_make_it_again() -> None:
    text = section(card_of(), "Reproduce")
    assert "`safegraft 0.1.0, torch 2.13.0`" in text
    assert f"```text\n{DIGEST[::-1]}\n```" in text
    assert "as `recipe.yml`, beside `lvlm`, a folder that is not on the Hub, and run" in text
    assert block(card_of(), "Reproduce") == "safegraft merge recipe.yml --out merged"


def test_another_size_of_files_is_part_of_the_command() -> None:
    card = card_of(files=tuple(weight_files(TENSORS, 20)))
    command = block(card, "Reproduce")
    assert command == "safegraft merge recipe.yml --out merged --max-shard-size 16"
    assert weight_files(TENSORS, 16) == weight_files(TENSORS, 20)


def test_it_says_what_it_does_not_know() -> None:
    plan = plan_of()
    plan.checkpoints["org/aligned"] = Headers(HUB_NAME)
    card = render_card(plan).decode()
    assert "**This merge has not been evaluated.**" in card
    assert "No licence is declared" in section(card, "Licence")
    assert "> `org/aligned` declares no licence" in section(card, "Licence")
    assert "`LICENSE.txt`" in section(card, "Licence")
    assert "license" not in ModelCard(card).data.to_dict()
    assert "terms come along" not in card_of(files=())


def test_one_licence_is_the_merges_too() -> None:
    text = section(card_of(), "Licence")
    assert "All inputs declare `apache-2.0`, and so does this merge." in text
    assert "[!WARNING]" not in text


def test_licences_that_quarrel_are_a_warning_and_nothing_is_declared() -> None:
    plan = plan_of()
    plan.checkpoints["org/aligned"] = Headers(HUB_NAME, licence=Licence("other", "Any|`Name", "javascript:x"))
    card = render_card(plan).decode()
    assert "license" not in ModelCard(card).data.to_dict()
    assert "> What ``Any|`Name`` asks of merges is not known here" in section(card, "Licence")
    row = next(line for line in section(card, "Inputs").splitlines() if "org/aligned" in line)
    assert "``Any\\|`Name``: `javascript:x`" in row


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
    expected = "".join(one if one.isprintable() else "\ufffd" for one in text).replace("<!--", "<! --").strip()
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
