"""Reads `tokenizer:`, `tokenizer_source:` and `chat_template:`, mergekit's ways to say which vocabulary the result has.

Whether models have the tokens that are named is the planner's business.
"""

from collections.abc import Callable
from typing import Any

from safegraft.recipe.document import brief
from safegraft.recipe.model import At, TokenEmbedding, TokenizerChoice
from safegraft.recipe.values import Values, closest, shown

SOURCES = ("union", "base")  # anything else is a model
TEMPLATES = ("alpaca", "chatml", "exaone", "llama3", "mistral")
AUTO = "auto"
MAX_MULTIPLE = 1 << 20
MAX_TOKEN_ID = 1 << 31
_LONGEST_NAME = 20  # a template of less is none; mergekit draws the same line

Reference = Callable[[At, Any], str | None]


def read_tokenizer(values: Values, reference: Reference, short: Any, full: Any) -> TokenizerChoice | None:
    """`tokenizer_source: short` or `tokenizer: full`; None when the recipe has neither."""
    if short is not None and full is not None:
        values.findings.add(("tokenizer_source",), "stands beside `tokenizer`; give its `source` there")
    if full is not None:
        return _tokenizer(values, reference, ("tokenizer",), full)
    if short is None:
        return None
    return TokenizerChoice(_source(reference, ("tokenizer_source",), short), (), None, ("tokenizer_source",))


def read_chat_template(values: Values, value: Any) -> str | None:
    """`auto`, the name of a known template, or a Jinja template."""
    at: At = ("chat_template",)
    if value is None:
        return None
    if not isinstance(value, str):
        values.findings.add(at, f"expected text, got {shown(value)}")
    elif value not in (AUTO, *TEMPLATES) and ("{" not in value or len(value) < _LONGEST_NAME):
        meant = closest(value, (AUTO, *TEMPLATES))
        hint = f"; did you mean {meant!r}?" if meant else ""
        names = ", ".join((AUTO, *TEMPLATES))
        values.findings.add(at, f"{brief(value)} is neither a Jinja template nor one of {names}{hint}")
    else:
        return value
    return None


def _tokenizer(values: Values, reference: Reference, at: At, value: Any) -> TokenizerChoice:
    item = values.mapping(at, value, ("source", "tokens", "pad_to_multiple_of"))
    tokens = values.mapping((*at, "tokens"), item.get("tokens"), known=None)
    multiple = item.get("pad_to_multiple_of")
    return TokenizerChoice(
        source=_source(reference, (*at, "source"), item.get("source")),
        tokens=tuple(
            _token(values, reference, (*at, "tokens", token), token, tokens[token]) for token in sorted(tokens)
        ),
        pad_to_multiple_of=None
        if multiple is None
        else values.whole((*at, "pad_to_multiple_of"), multiple, 1, 1, MAX_MULTIPLE),
        at=at,
    )


def _source(reference: Reference, at: At, value: Any) -> str:
    return value if value in SOURCES else reference(at, value) or "union"


def _token(values: Values, reference: Reference, at: At, token: str, value: Any) -> TokenEmbedding:
    item = values.mapping(at, {} if value is None else value, ("source", "force"))
    if not token:
        values.findings.add(at, "is empty: name a token")
    force = item.get("force")
    if force is not None and not isinstance(force, bool):
        values.findings.add((*at, "force"), f"expected true or false, got {shown(force)}")
    source = item.get("source")
    if force is True and source is None:
        values.findings.add(at, "`force` goes with a `source`, which gives the row")
    return _embedding(values, reference, (*at, "source"), source, TokenEmbedding(token, at, force=force is True))


def _embedding(values: Values, reference: Reference, at: At, source: Any, entry: TokenEmbedding) -> TokenEmbedding:
    """`source`: nothing, a model, {kind: zero} or {kind: model_token, model, token or token_id}."""
    if not isinstance(source, dict) or "kind" not in source:
        return entry if source is None else entry.of(model=reference(at, source))
    item = values.mapping(at, source, ("kind", "model", "token", "token_id"))
    kind = values.choice((*at, "kind"), item.get("kind"), ("zero", "model_token"))
    named = [key for key in ("token", "token_id") if item.get(key) is not None]
    if kind == "zero":
        for key in ("model", *named):
            if item.get(key) is not None:
                values.findings.add((*at, key), "means nothing with `kind: zero`")
        return entry.of(zero=True)
    if kind is None:
        return entry
    if item.get("model") is None:
        values.missing(at, "model", "`model` is missing: give the model whose row it is")
    if len(named) != 1:
        values.findings.add(at, "give either `token` or `token_id`: whose row it is")
    row = item.get("token_id")
    return entry.of(
        model=reference((*at, "model"), item.get("model")),
        other=values.text((*at, "token"), item.get("token")),
        row=None if row is None else values.whole((*at, "token_id"), row, 0, 0, MAX_TOKEN_ID),
    )
