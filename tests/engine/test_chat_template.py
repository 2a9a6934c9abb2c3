"""Chat templates: which one a result gets, where it is written, and what the named ones make of a conversation."""

import importlib.util
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerFast

import safegraft
from safegraft.engine.chat_template import KNOWN
from safegraft.recipe.tokenizer import TEMPLATES
from safegraft.testing import tiny_llm, tiny_lvlm

USER, ASSISTANT = {"role": "user", "content": "How are you? "}, {"role": "assistant", "content": "Well."}
SYSTEM = {"role": "system", "content": "Be brief."}
TALKS = [[USER], [USER, ASSISTANT, USER], [SYSTEM, USER], [SYSTEM, USER, ASSISTANT], [USER, ASSISTANT]]


def model(folder: Path, template: str | None = None, *, file: str = "chat_template.jinja", seed: int = 0) -> Path:
    tiny_llm(folder, seed=seed)
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "w1", "eos_token": "w2"}
    if file == "tokenizer_config.json" and template:
        config["chat_template"] = template
    elif template:
        (folder / file).write_text(template)
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


def merged(models: list[Path], out: Path, **more: Any) -> Path:
    entries = [{"model": str(one), "parameters": {"weight": 1}} for one in models]
    safegraft.merge({"merge_method": "linear", "models": entries, **more}, out=out, threads=1)
    return out


def test_the_names_are_those_that_recipes_know() -> None:
    assert tuple(KNOWN) == TEMPLATES


def test_the_hosts_comes_along(tmp_path: Path) -> None:
    out = merged(
        [model(tmp_path / "a", "{{ 'of a' }}"), model(tmp_path / "b", "{{ 'of b' }}", seed=1)], tmp_path / "out"
    )
    assert (out / "chat_template.jinja").read_text() == "{{ 'of a' }}"


def test_auto_takes_the_most_common_one_wherever_it_is_written(tmp_path: Path) -> None:
    models = [
        model(tmp_path / "a", "{{ 'of a' }}"),
        model(tmp_path / "b", "{{ 'of b' }}\n", seed=1),
        model(tmp_path / "c", "{{ 'of b' }}", file="tokenizer_config.json", seed=2),
        model(tmp_path / "d", seed=3),
    ]
    assert (
        merged(models, tmp_path / "out", chat_template="auto") / "chat_template.jinja"
    ).read_text() == "{{ 'of b' }}"
    first = merged(models[:2], tmp_path / "first", chat_template="auto")
    assert (first / "chat_template.jinja").read_text() == "{{ 'of a' }}"


def test_auto_without_any_is_told(tmp_path: Path) -> None:
    plan = safegraft.plan(
        {"merge_method": "passthrough", "models": [{"model": str(model(tmp_path / "a"))}], "chat_template": "auto"}
    )
    assert any("none of the models has a chat template" in warning for warning in plan.warnings)
    assert "chat_template.jinja" not in {file.name for file in plan.files}
    plan.close()


def test_it_is_read_back_and_no_other_is_left(tmp_path: Path) -> None:
    folder = model(tmp_path / "a", "{{ 'old' }}", file="tokenizer_config.json")
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates" / "tool_use.jinja").write_text("old")
    (folder / "chat_template.json").write_text('{"chat_template": "old"}')
    template = "{% for message in messages %}<{{ message.content }}>{% endfor %}"
    out = merged([folder], tmp_path / "out", chat_template=template)
    assert AutoTokenizer.from_pretrained(out).apply_chat_template([USER], tokenize=False) == "<How are you? >"
    assert json.loads((out / "tokenizer_config.json").read_text())["chat_template"] == template
    assert {file.name for file in out.iterdir() if "template" in file.name} == {"chat_template.jinja"}


def test_a_named_one_for_an_lvlm_is_told(tmp_path: Path) -> None:
    lvlm = tiny_lvlm(tmp_path / "lvlm")
    plan = safegraft.plan({"merge_method": "passthrough", "models": [{"model": str(lvlm)}], "chat_template": "chatml"})
    assert any("chatml has no place for images" in warning for warning in plan.warnings)
    plan.close()


def test_a_text_model_takes_the_template_of_its_tokenizer(tmp_path: Path) -> None:
    a, b = model(tmp_path / "a", "{{ 'of a' }}"), model(tmp_path / "b", "{{ 'of b' }}", seed=1)
    out = merged([a, b], tmp_path / "out", tokenizer_source=str(b))
    assert (out / "chat_template.jinja").read_text() == "{{ 'of b' }}"


# -- what the named ones say --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> PreTrainedTokenizerFast:
    return AutoTokenizer.from_pretrained(model(tmp_path_factory.mktemp("tokenizer") / "a"))


def said(tokenizer: PreTrainedTokenizerFast, template: str, talk: list[Mapping[str, str]], *, ask: bool) -> str:
    return tokenizer.apply_chat_template(talk, chat_template=template, tokenize=False, add_generation_prompt=ask)


@pytest.mark.parametrize("ask", [False, True])
@pytest.mark.parametrize("talk", TALKS)
@pytest.mark.parametrize("name", ["chatml", "exaone", "llama3", "mistral"])
def test_named_ones_say_what_mergekits_say(
    tokenizer: PreTrainedTokenizerFast, name: str, talk: list[Mapping[str, str]], ask: bool
) -> None:
    spec = importlib.util.find_spec("mergekit")
    assert spec is not None
    assert spec.origin is not None
    template = (Path(spec.origin).parent / f"_data/chat_templates/{name}.jinja").read_text()
    ours, theirs = (said(tokenizer, one, talk, ask=ask) for one in (KNOWN[name], template))
    if name in ("exaone", "llama3"):  # mergekit's put a line break and blanks after a message that the formats have not
        ours, theirs = "".join(ours.split()), "".join(theirs.split())
    assert ours == theirs


def test_llama3(tokenizer: PreTrainedTokenizerFast) -> None:
    """As Meta's model card for Llama 3 has it."""
    assert said(tokenizer, KNOWN["llama3"], [SYSTEM, USER], ask=True) == (
        "w1<|start_header_id|>system<|end_header_id|>\n\nBe brief.<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\nHow are you?<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n"
    )


def test_exaone(tokenizer: PreTrainedTokenizerFast) -> None:
    """As LG's model card for EXAONE 3 has it."""
    assert said(tokenizer, KNOWN["exaone"], [SYSTEM, USER, ASSISTANT], ask=True) == (
        "[|system|]Be brief.[|endofturn|]\n[|user|]How are you? \n[|assistant|]Well.[|endofturn|]\n[|assistant|]"
    )
    assert said(tokenizer, KNOWN["exaone"], [USER], ask=False) == "[|system|][|endofturn|]\n[|user|]How are you? \n"


def test_alpaca(tokenizer: PreTrainedTokenizerFast) -> None:
    found = said(tokenizer, KNOWN["alpaca"], [SYSTEM, USER, ASSISTANT, USER], ask=True)
    assert found == (
        "Be brief.\n\n### Instruction:\nHow are you?\n\n### Response:\nWell.\n\n"
        "### Instruction:\nHow are you?\n\n### Response:\n"
    )
    assert said(tokenizer, KNOWN["alpaca"], [USER, ASSISTANT], ask=False).endswith("### Response:\nWell.")


def test_mistral_takes_turns(tokenizer: PreTrainedTokenizerFast) -> None:
    with pytest.raises(Exception, match="expected a message of the assistant, got one of role user"):
        said(tokenizer, KNOWN["mistral"], [USER, USER], ask=False)
