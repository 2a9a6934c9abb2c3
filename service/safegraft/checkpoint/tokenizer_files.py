"""A tokenizer's files, edited: tokens added, or cut off from some row on. Runs no tokenizer.

Only tokenizer.json can be edited, which `save_pretrained` writes for every tokenizer with a fast version.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from safegraft.checkpoint.findings import shown
from safegraft.checkpoint.strict_json import as_list, as_object, parse_object
from safegraft.errors import CheckpointError, Problem

TOKENIZER_JSON = "tokenizer.json"
TOKENIZER_CONFIG = "tokenizer_config.json"
ADDED_TOKENS = "added_tokens.json"

_FILES = re.compile(
    r".*tokenizer.*\.json|special_tokens_map\.json|added_tokens\.json|tekken\.json|.*vocab.*\.(json|txt)"
    r"|.*merges.*\.txt|dict\.txt|bpe\.codes|normalizer\.json|byte_maps\.json|tokenizer\.model(\.v\w+)?"
    r"|(spiece|spm|spm_char|sentencepiece(\.bpe)?|tiktoken)\.model|.*\.(spm|tiktoken)"
)
# Of an edited tokenizer these come along; the others hold the vocabulary as it was.
_EDITED = (TOKENIZER_JSON, TOKENIZER_CONFIG, "special_tokens_map.json", ADDED_TOKENS)


@dataclass(frozen=True, slots=True)
class AddedToken:
    """A token that is found in a text before the tokenizer's model sees it."""

    content: str
    single_word: bool = False
    lstrip: bool = False
    rstrip: bool = False
    normalized: bool = True
    special: bool = False

    @classmethod
    def read(cls, entry: Mapping[str, Any]) -> "AddedToken":
        """From tokenizer.json or tokenizer_config.json."""
        flags = {key: bool(entry[key]) for key in ("single_word", "lstrip", "rstrip", "special") if key in entry}
        normalized = bool(entry.get("normalized", not flags.get("special", False)))
        return cls(str(entry["content"]), normalized=normalized, **flags)

    def written(self) -> dict[str, Any]:
        return {
            "content": self.content,
            "single_word": self.single_word,
            "lstrip": self.lstrip,
            "rstrip": self.rstrip,
            "normalized": self.normalized,
            "special": self.special,
        }


def tokenizer_files(sidecars: Mapping[str, bytes]) -> dict[str, bytes]:
    """Those that make the tokenizer; chat templates are none of them."""
    return {name: content for name, content in sidecars.items() if _FILES.fullmatch(name)}


def added_tokens(sidecars: Mapping[str, bytes], name: str) -> dict[str, AddedToken]:
    """What was added to a tokenizer's vocabulary, in the order of rows. `name`: the checkpoint's."""
    found: dict[int, AddedToken] = {}
    if ADDED_TOKENS in sidecars:
        for token, row in parse_object(sidecars[ADDED_TOKENS], f"{name}/{ADDED_TOKENS}").items():
            found[int(row)] = AddedToken(token)
    if TOKENIZER_CONFIG in sidecars:
        config = parse_object(sidecars[TOKENIZER_CONFIG], f"{name}/{TOKENIZER_CONFIG}")
        for row, entry in (as_object(config.get("added_tokens_decoder")) or {}).items():
            found[int(row)] = AddedToken.read(entry)
    if TOKENIZER_JSON in sidecars:
        parsed = parse_object(sidecars[TOKENIZER_JSON], f"{name}/{TOKENIZER_JSON}")
        for entry in as_list(parsed.get("added_tokens")) or []:
            found[int(entry["id"])] = AddedToken.read(entry)
    return {found[row].content: found[row] for row in sorted(found)}


class TokenizerEditor:
    """A tokenizer under change. `tokens`: token -> row, as the files have it by now.

    files: the tokenizer's (see `tokenizer_files`). tokens: its vocabulary. name: the checkpoint's, for messages.
    """

    def __init__(self, files: Mapping[str, bytes], tokens: Mapping[str, int], name: str) -> None:
        self.tokens = dict(tokens)
        self._files = dict(files)
        self._where = f"{name}/{TOKENIZER_JSON}"
        self._name = name
        self._edited = False
        self._parsed = parse_object(files[TOKENIZER_JSON], self._where) if TOKENIZER_JSON in files else None
        self._added = added_tokens(files, name)
        self._count()

    def add(self, token: AddedToken) -> None:
        """Give it the next row, or, where the tokenizer's model has it, have it found before the model runs.

        Raises CheckpointError where the tokenizer cannot be edited.
        """
        if token.content in self._added or not token.content:
            return
        self._edit()
        if token.content not in self.tokens:
            self.tokens[token.content] = self._next_row()
        self._last_added = max(self._last_added, self.tokens[token.content])
        self._added[token.content] = token

    def cut(self, rows: int) -> None:
        """Take out every token from row `rows` on. Raises CheckpointError where the tokenizer cannot be edited."""
        beyond = {token for token, row in self.tokens.items() if row >= rows}
        if not beyond:
            return
        model = self._edit()
        if beyond & _tokens_of(model):
            _take_out(model, beyond, self._where)
        for token in beyond:
            del self.tokens[token]
            self._added.pop(token, None)
        self._count()

    def files(self) -> dict[str, bytes]:
        """The files as they are now; the very same ones where nothing was changed."""
        if not self._edited or self._parsed is None:
            return self._files
        files = {file: content for file, content in self._files.items() if file in _EDITED}
        rows = sorted((self.tokens[token], token) for token in self._added)
        self._parsed["added_tokens"] = [{"id": row, **self._added[token].written()} for row, token in rows]
        files[TOKENIZER_JSON] = _dump(self._parsed)
        if TOKENIZER_CONFIG in files:
            config = parse_object(files[TOKENIZER_CONFIG], f"{self._name}/{TOKENIZER_CONFIG}")
            if "added_tokens_decoder" in config:
                config["added_tokens_decoder"] = {str(row): self._added[token].written() for row, token in rows}
                files[TOKENIZER_CONFIG] = _dump(config)
        if ADDED_TOKENS in files:
            files[ADDED_TOKENS] = _dump({token: row for row, token in rows})
        return files

    def _edit(self) -> dict[str, Any]:
        """The tokenizer's model, which from here on is another one."""
        if self._parsed is None:
            message = "is not there, and no other format can be edited. Load the tokenizer with transformers and "
            raise CheckpointError(Problem(self._where, message + "`save_pretrained` it, which writes the file"))
        self._edited = True
        return as_object(self._parsed.get("model")) or {}

    def _next_row(self) -> int:
        """As the tokenizers library counts, which goes by its own count and not by what the file says."""
        row = max(self._last_added + 1, self._model_size)
        if row in self._rows:
            raise CheckpointError(
                Problem(self._where, f"has rows without a token below {row}, so that none can be added")
            )
        self._rows.add(row)
        return row

    def _count(self) -> None:
        self._rows = set(self.tokens.values())
        self._last_added = max((self.tokens[token] for token in self._added), default=-1)
        self._model_size = len(_tokens_of(as_object((self._parsed or {}).get("model")) or {}))


def _tokens_of(model: Mapping[str, Any]) -> set[str]:
    """Of a tokenizer's model: a mapping from tokens to rows, or a list of [piece, score]."""
    vocab = model.get("vocab")
    return {str(piece[0]) for piece in as_list(vocab) or []} or set(as_object(vocab) or {})


def _take_out(model: dict[str, Any], tokens: set[str], where: str) -> None:
    """Remove tokens from a BPE model, and the merges that make or need them."""
    vocab = as_object(model.get("vocab"))
    if model.get("type") != "BPE" or vocab is None:
        kind = shown(str(model.get("type")))
        message = f"is of type {kind} and holds tokens beyond the model's vocab_size, such as {shown(min(tokens))}; "
        raise CheckpointError(Problem(where, message + "only from BPE can they be taken out"))
    for token in tokens & vocab.keys():
        del vocab[token]
    model["merges"] = [merge for merge in as_list(model.get("merges")) or [] if not _needs(merge, tokens)]


def _needs(merge: Any, tokens: set[str]) -> bool:
    first, second = merge.split(" ", 1) if isinstance(merge, str) else merge
    return first in tokens or second in tokens or first + second in tokens


def _dump(value: Any) -> bytes:
    return (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode("utf-8", "surrogatepass")
