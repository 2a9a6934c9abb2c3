"""`tokenizer`, `tokenizer_source` and `chat_template`: what is read, in which form it is kept, what is refused."""

import pytest

from safegraft.errors import RecipeError
from safegraft.recipe import Recipe, TokenEmbedding, TokenizerChoice, canonical, parse_recipe, read_recipe

HEAD = "merge_method: linear\nmodels:\n  - model: A\n"
NAMES = {name: name.lower() for name in "ABC"}
FULL = """\
tokenizer:
  source: B
  pad_to_multiple_of: 64
  tokens:
    <b>: {source: A}
    <a>: {source: {kind: model_token, model: {model: {path: A}}, token: x}, force: true}
    <c>: {source: {kind: model_token, model: A, token_id: 0}}
    <d>: {source: {kind: zero}}
    <e>:
"""


def read(text: str) -> Recipe:
    return parse_recipe(HEAD + text, "r.yml")


def problems(text: str) -> list[str]:
    with pytest.raises(RecipeError) as caught:
        read(text)
    return [str(problem) for problem in caught.value.problems]


def test_everything_is_read() -> None:
    def at(token: str) -> tuple[str, ...]:
        return "tokenizer", "tokens", token

    assert read(FULL).tokenizer == TokenizerChoice(
        "B",
        (
            TokenEmbedding("<a>", at("<a>"), model="A", other="x", force=True),
            TokenEmbedding("<b>", at("<b>"), model="A"),
            TokenEmbedding("<c>", at("<c>"), model="A", row=0),
            TokenEmbedding("<d>", at("<d>"), zero=True),
            TokenEmbedding("<e>", at("<e>")),
        ),
        64,
        ("tokenizer",),
    )


@pytest.mark.parametrize(
    ("text", "source", "model"),
    [
        ("tokenizer_source: union", "union", None),
        ("tokenizer_source: base", "base", None),
        ("tokenizer_source: B", "B", "B"),
        ("tokenizer_source: {model: {path: union}}", "union", None),
        ("tokenizer: {}", "union", None),
        ("tokenizer: {source: base}", "base", None),
    ],
)
def test_sources(text: str, source: str, model: str | None) -> None:
    choice = read(text).tokenizer
    assert choice is not None
    assert (choice.source, choice.model, choice.tokens, choice.pad_to_multiple_of) == (source, model, (), None)


def test_the_canonical_form_is_a_recipe_again() -> None:
    recipe = read(FULL + "chat_template: chatml")
    form = canonical(recipe, NAMES)
    assert form["chat_template"] == "chatml"
    assert form["tokenizer"]["source"] == "b"
    assert canonical(read_recipe(form), {name: name for name in "abc"}) == form
    assert parse_recipe(recipe.text) == recipe
    assert canonical(read("tokenizer_source: union"), NAMES) == canonical(read("tokenizer: {source: union}"), NAMES)


def test_what_asks_for_something_else_has_another_form() -> None:
    changes = [("source: B", "source: base"), ("64", "32"), ("source: A}\n", "source: C}\n"), ("token: x", "token: y")]
    changes += [("force: true", "force: false"), ("token_id: 0", "token_id: 1"), ("    <e>:\n", "")]
    forms = [canonical(read(FULL), NAMES), *(canonical(read(FULL.replace(*change)), NAMES) for change in changes)]
    assert all(forms.count(form) == 1 for form in forms)


def test_recipes_without_a_tokenizer_have_no_such_key() -> None:
    assert not {"tokenizer", "chat_template", "slices", "modules"} & canonical(read(""), NAMES).keys()


@pytest.mark.parametrize("template", ["auto", "chatml", "{% for message in messages %}{{ message }}\n{% endfor %}"])
def test_chat_templates(template: str) -> None:
    assert (
        read_recipe({"merge_method": "x", "models": [{"model": "A"}], "chat_template": template}).chat_template
        == template
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("tokenizer: union", "tokenizer: expected a mapping of keys to values, got 'union'"),
        ("tokenizer_source: [A]", "tokenizer_source: expected text, got a list"),
        ("tokenizer_source: A\ntokenizer: {}", "tokenizer_source: stands beside `tokenizer`; give its `source` there"),
        ("tokenizer: {sources: A}", "tokenizer.sources: unknown key; did you mean 'source'?"),
        ("tokenizer: {pad_to_multiple_of: 0}", "pad_to_multiple_of: expected a whole number from 1 to 1048576"),
        ("tokenizer: {tokens: [x]}", "tokenizer.tokens: expected a mapping"),
        ("tokenizer: {tokens: {'': {source: A}}}", "is empty: name a token"),
        ("tokenizer: {tokens: {x: A}}", "tokenizer.tokens.x: expected a mapping of keys to values, got 'A'"),
        ("tokenizer: {tokens: {x: {force: 1}}}", "force: expected true or false, got the number 1"),
        ("tokenizer: {tokens: {x: {force: true}}}", "tokenizer.tokens.x: `force` goes with a `source`"),
        ("tokenizer: {tokens: {x: {source: {kind: one}}}}", "source.kind: expected zero or model_token, got 'one'"),
        ("tokenizer: {tokens: {x: {source: {kind: zero, model: A}}}}", "source.model: means nothing with `kind: zero`"),
        ("tokenizer: {tokens: {x: {source: {kind: model_token, token: y}}}}", "source: `model` is missing"),
        ("tokenizer: {tokens: {x: {source: {kind: model_token, model: A}}}}", "give either `token` or `token_id`"),
        (
            "tokenizer: {tokens: {x: {source: {kind: model_token, model: A, token: y, token_id: 1}}}}",
            "give either `token` or `token_id`",
        ),
        (
            "tokenizer: {tokens: {x: {source: {kind: model_token, model: A, token_id: -1}}}}",
            "token_id: expected a whole number from 0",
        ),
        ("tokenizer: {}\nembeddings: host", "embeddings: keeps the host's vocabulary, and `tokenizer` gives"),
        ("chat_template: chatlm", "is neither a Jinja template nor one of auto, alpaca, chatml"),
        ("chat_template: chatlm", "did you mean 'chatml'?"),
        ("chat_template: '{{ x }}'", "'{{ x }}' is neither a Jinja template nor"),
        ("chat_template: 3", "chat_template: expected text, got the number 3"),
    ],
)
def test_one_wrong_thing(text: str, message: str) -> None:
    found = problems(text)
    assert len(found) == 1, found
    assert message in found[0]
