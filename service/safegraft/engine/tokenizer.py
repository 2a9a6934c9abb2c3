"""The result's tokenizer: one model's, or the union of all models', as files and as token -> row.

Reads and edits tokenizer files; which rows of the weights that means is `embeddings.py`'s business.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from safegraft.checkpoint.sidecars import dump_like
from safegraft.checkpoint.strict_json import parse_object
from safegraft.checkpoint.tokenizer_files import (
    TOKENIZER_CONFIG,
    AddedToken,
    TokenizerEditor,
    added_tokens,
    tokenizer_files,
)
from safegraft.checkpoint.types import Checkpoint
from safegraft.engine.anatomy import is_multimodal, text_config
from safegraft.errors import CheckpointError, InputError, Problem
from safegraft.recipe.model import Recipe, TokenizerChoice

CHAT_TEMPLATE = re.compile(r"[^/]*\.jinja|chat_template.*\.json|additional_chat_templates/.*")
# What an LVLM's processor reads from tokenizer_config.json.
_OF_PROCESSORS = re.compile(r"processor_class|extra_special_tokens|.*_token")


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """tokens: token -> row. rows: of the vocabulary tensors, padding included. files: the tokenizer's.

    model: whose tokenizer it is, or was before tokens were added.
    """

    tokens: Mapping[str, int]
    rows: int
    files: Mapping[str, bytes]
    model: str

    @property
    def token_rows(self) -> int:
        """Rows up to the last token."""
        return max(self.tokens.values(), default=-1) + 1


def vocabulary_size(config: Mapping[str, Any]) -> int | None:
    """How many rows a model uses, as its config says; a tokenizer may have tokens beyond them."""
    said = text_config(config).get("vocab_size", config.get("vocab_size"))
    return said if isinstance(said, int) else None


def used_tokens(checkpoint: Checkpoint) -> Mapping[str, int]:
    """A model's tokens, without those that have no row. Raises CheckpointError when it has no tokenizer."""
    tokens = checkpoint.tokens()
    if tokens is None:
        message = "has no tokenizer, and `tokenizer` pairs vocabularies by token; add the tokenizer files"
        raise CheckpointError(Problem(checkpoint.name, message))
    size = vocabulary_size(checkpoint.config)
    return tokens if size is None else {token: row for token, row in tokens.items() if row < size}


def build_vocabulary(
    recipe: Recipe, choice: TokenizerChoice, host_model: str, checkpoints: Mapping[str, Checkpoint]
) -> Vocabulary:
    """The vocabulary that the recipe asks for.

    "base" and "union" begin with the base model's tokenizer, or with the host's where there is no base model, cut
    where the model has no rows for it. A union then adds the other models' tokens: plain ones first, in the order of
    models and rows, then those that are found in the text before the tokenizer runs.

    Raises CheckpointError with every model whose tokenizer cannot be used.
    """
    model = choice.model or recipe.base_model or host_model
    editor = _editor(checkpoints[model])
    if choice.model is None:
        size = vocabulary_size(checkpoints[model].config)
        editor.cut(max(editor.tokens.values()) + 1 if size is None else size)
    if choice.source == "union":
        others = dict.fromkeys((model, host_model, *recipe.inputs(), *recipe.bases()))
        _unite(editor, [checkpoints[one] for one in others])
    for one in choice.tokens:
        if one.token not in editor.tokens:
            editor.add(AddedToken(one.token))
    rows = max(editor.tokens.values(), default=-1) + 1
    multiple = choice.pad_to_multiple_of or 1
    return Vocabulary(editor.tokens, -(-rows // multiple) * multiple, editor.files(), model)


def host_files(host: Checkpoint, vocabulary: Vocabulary, checkpoints: Mapping[str, Checkpoint]) -> dict[str, bytes]:
    """The host's sidecars with the vocabulary's tokenizer.

    An LVLM keeps its chat template and what its processor reads; an LLM takes the tokenizer's chat template.
    """
    source = checkpoints[vocabulary.model]
    old = tokenizer_files(host.sidecars)
    files = {name: content for name, content in host.sidecars.items() if name not in old}
    new = dict(vocabulary.files)
    if source is not host and TOKENIZER_CONFIG in new:
        if is_multimodal(host.config):
            new[TOKENIZER_CONFIG] = _for_processors(host, new[TOKENIZER_CONFIG], source.name)
        else:
            files = {name: content for name, content in files.items() if not CHAT_TEMPLATE.fullmatch(name)}
            new |= {name: content for name, content in source.sidecars.items() if CHAT_TEMPLATE.fullmatch(name)}
    return files | new


def _editor(checkpoint: Checkpoint) -> TokenizerEditor:
    tokens = checkpoint.tokens()
    if tokens is None:
        message = "has no tokenizer, and the result's is to be made from it; add the tokenizer files"
        raise CheckpointError(Problem(checkpoint.name, message))
    return TokenizerEditor(tokenizer_files(checkpoint.sidecars), tokens, checkpoint.name)


def _unite(editor: TokenizerEditor, checkpoints: Sequence[Checkpoint]) -> None:
    plain: dict[str, None] = {}
    added: dict[str, AddedToken] = {}
    problems: list[Problem] = []
    for checkpoint in checkpoints:
        try:
            tokens = used_tokens(checkpoint)
            own = added_tokens(checkpoint.sidecars, checkpoint.name)
        except InputError as error:
            problems += error.problems
            continue
        plain |= dict.fromkeys(token for token in sorted(tokens, key=tokens.__getitem__) if token not in own)
        for token, how in own.items():
            if token in tokens:
                added.setdefault(token, how)
    if problems:
        raise CheckpointError(problems)
    for token in plain:
        if token not in editor.tokens and token not in added:
            editor.add(AddedToken(token))
    for how in added.values():
        editor.add(how)


def _for_processors(host: Checkpoint, content: bytes, name: str) -> bytes:
    """tokenizer_config.json of another model, with what the host's processor needs of its own."""
    config = parse_object(content, f"{name}/{TOKENIZER_CONFIG}")
    own = parse_object(host.sidecars.get(TOKENIZER_CONFIG, b"{}"), f"{host.name}/{TOKENIZER_CONFIG}")
    for key, value in own.items():
        if key not in config and _OF_PROCESSORS.fullmatch(key):
            config[key] = value
    config.pop("chat_template", None)
    if "chat_template" in own:
        config["chat_template"] = own["chat_template"]
    return dump_like(config, content)
