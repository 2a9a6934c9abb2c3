"""Which token stands in which row of the embedding, from the tokenizer files.

One spelling for all formats, that of tokenizer.json: byte-level tokens in GPT-2's printable
alphabet, sentencepiece's pieces as they are. So that vocabularies of different formats can be laid
over each other. Loads no tokenizer and runs none.
"""

import base64
import binascii
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from safegraft.checkpoint.findings import shown
from safegraft.checkpoint.strict_json import as_list, as_object, is_natural, parse_json, parse_object
from safegraft.errors import CheckpointError, Problem

_ROW = re.compile(r"[0-9]{1,9}")
_ADVICE = "Load the tokenizer with transformers and `save_pretrained` it, which writes tokenizer.json"


def read_tokens(sidecars: Mapping[str, bytes], name: str) -> dict[str, int] | None:
    """Token string -> row, from the first of tokenizer.json, tokenizer.model, vocab.json, vocab.txt and tekken.json.

    None when none of these is there. `name` is the checkpoint's, for messages. Raises CheckpointError when the
    file is broken, or when a token has two rows or a row two tokens.
    """
    for file, read in _READERS:
        if file in sidecars:
            return read(sidecars, name)
    return None


def _tokenizer_json(sidecars: Mapping[str, bytes], name: str) -> dict[str, int]:
    where = f"{name}/tokenizer.json"
    parsed = as_object(parse_json(sidecars["tokenizer.json"], where)) or {}
    vocab = (as_object(parsed.get("model")) or {}).get("vocab")
    pieces = as_list(vocab)
    if pieces is not None:  # Unigram: [[piece, score], ...]
        vocab = _numbered((_piece(item, where) for item in pieces), where)
    rows = _checked(vocab, where)
    added = as_list(parsed.get("added_tokens") or [])
    if added is None:
        raise _broken(where, "its added_tokens must be a list")
    for item in added:
        _add(rows, _field(item, "content", where), _field(item, "id", where), where)
    # Tokens that only tokenizer_config.json knows are appended when transformers loads the tokenizer.
    for token, row in _added_tokens(sidecars, name).items():
        _add(rows, token, row, f"{name}/tokenizer_config.json or added_tokens.json")
    return _one_token_a_row(rows, where)


def _piece(item: Any, where: str) -> Any:
    pair = as_list(item)
    if not pair:
        raise _broken(where, f"its vocab holds {shown(str(item))} where [piece, score] belongs")
    return pair[0]


def _sentencepiece(sidecars: Mapping[str, bytes], name: str) -> dict[str, int]:
    import sentencepiece

    where = f"{name}/tokenizer.model"
    model = sentencepiece.SentencePieceProcessor()
    try:
        model.LoadFromSerializedProto(sidecars["tokenizer.model"])
    except RuntimeError as error:
        raise _broken(where, f"is not a sentencepiece model. {_ADVICE}") from error
    pieces: list[str] = model.id_to_piece(list(range(model.get_piece_size())))
    return _with_added_tokens(_numbered(pieces, where), sidecars, name)


def _vocab_json(sidecars: Mapping[str, bytes], name: str) -> dict[str, int]:
    where = f"{name}/vocab.json"
    rows = _checked(parse_json(sidecars["vocab.json"], where), where)
    return _with_added_tokens(_one_token_a_row(rows, where), sidecars, name)


def _vocab_txt(sidecars: Mapping[str, bytes], name: str) -> dict[str, int]:
    where = f"{name}/vocab.txt"
    try:
        lines = sidecars["vocab.txt"].decode("utf-8").replace("\r\n", "\n").split("\n")
    except UnicodeDecodeError as error:
        raise _broken(where, f"is not valid UTF-8: {error}") from error
    if not lines[-1]:
        lines.pop()
    return _with_added_tokens(_numbered(lines, where), sidecars, name)


def _tekken(sidecars: Mapping[str, bytes], name: str) -> dict[str, int]:
    """Mistral's format: special tokens first, then byte strings in order of their rank."""
    where = f"{name}/tekken.json"
    parsed = as_object(parse_json(sidecars["tekken.json"], where)) or {}
    config = as_object(parsed.get("config")) or {}
    special = as_list(parsed.get("special_tokens"))
    entries = as_list(parsed.get("vocab"))
    if special is None or entries is None:
        raise _broken(where, f"has no vocab, or is of a version that does not name its special tokens. {_ADVICE}")
    reserved, size = config.get("default_num_special_tokens", len(special)), config.get("default_vocab_size")
    if not is_natural(reserved) or (size is not None and not is_natural(size)):
        raise _broken(where, "default_num_special_tokens and default_vocab_size must be integers from 0 up")
    rows = _checked({_field(item, "token_str", where): _field(item, "rank", where) for item in special}, where)
    if len(rows) != len(special) or any(row >= reserved for row in rows.values()):
        raise _broken(where, f"its special tokens do not fit the {reserved:,} rows reserved for them")
    used = entries if size is None else entries[: max(size - reserved, 0)]
    spelled = _numbered((_byte_level(_field(item, "token_bytes", where), where) for item in used), where)
    for token, row in spelled.items():
        _add(rows, token, reserved + row, where)
    return _one_token_a_row(rows, where)


def _field(item: Any, field: str, where: str) -> Any:
    entry = as_object(item)
    if entry is None or field not in entry:
        raise _broken(where, f"an entry has no {field}: {shown(str(item))}")
    return entry[field]


def _byte_level(encoded: Any, where: str) -> str:
    try:
        content = base64.b64decode(str(encoded), validate=True)
    except (binascii.Error, ValueError) as error:
        raise _broken(where, f"{shown(str(encoded))} is not base64") from error
    return "".join(_ALPHABET[byte] for byte in content)


def _byte_alphabet() -> list[str]:
    """GPT-2's: bytes that print stand for themselves, the others for characters from 256 up."""
    plain = {*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)}
    others = iter(range(256, 512))
    return [chr(byte if byte in plain else next(others)) for byte in range(256)]


_ALPHABET = _byte_alphabet()


def _added_tokens(sidecars: Mapping[str, bytes], name: str) -> dict[str, int]:
    """Tokens added to a vocabulary: tokenizer_config.json's when it lists them, else added_tokens.json's."""
    if "tokenizer_config.json" in sidecars:
        where = f"{name}/tokenizer_config.json"
        decoder = parse_object(sidecars["tokenizer_config.json"], where).get("added_tokens_decoder")
        if decoder is not None:
            return _decoder(decoder, where)
    if "added_tokens.json" in sidecars:
        where = f"{name}/added_tokens.json"
        return _one_token_a_row(_checked(parse_json(sidecars["added_tokens.json"], where), where), where)
    return {}


def _decoder(value: Any, where: str) -> dict[str, int]:
    """{"32000": {"content": "<image>", ...}, ...}"""
    rows: dict[str, int] = {}
    decoder = as_object(value)
    if decoder is None:
        raise _broken(where, "its added_tokens_decoder must be an object from rows to tokens")
    for row, token in decoder.items():
        if not _ROW.fullmatch(row):
            raise _broken(where, f"its added_tokens_decoder has the row {shown(row)}")
        _add(rows, _field(token, "content", where), int(row), where)
    return _one_token_a_row(rows, where)


def _with_added_tokens(rows: dict[str, int], sidecars: Mapping[str, bytes], name: str) -> dict[str, int]:
    """Outside tokenizer.json, an added token that takes a used row renames it, as it does in transformers."""
    added = _added_tokens(sidecars, name)
    renamed = set(added.values())
    kept = {token: row for token, row in rows.items() if row not in renamed or added.get(token) == row}
    for token, row in added.items():
        _add(kept, token, row, f"{name}/tokenizer_config.json or added_tokens.json")
    return kept


def _numbered(tokens: Iterable[Any], where: str) -> dict[str, int]:
    """Tokens in the order of their rows."""
    rows: dict[str, int] = {}
    for row, token in enumerate(tokens):
        _add(rows, token, row, where)
    return rows


def _checked(vocab: Any, where: str) -> dict[str, int]:
    """A token -> row mapping from JSON."""
    rows = as_object(vocab)
    if rows is None:
        raise _broken(where, f"holds no vocabulary from tokens to rows. {_ADVICE}")
    for token, row in rows.items():
        if not is_natural(row):
            raise _broken(where, f"the row of token {shown(token)} is {shown(str(row))}, not an integer from 0 up")
    return dict(rows)


def _add(rows: dict[str, int], token: Any, row: Any, where: str) -> None:
    if not isinstance(token, str) or not is_natural(row):
        raise _broken(where, f"token {shown(str(token))} with row {shown(str(row))} is none")
    if rows.setdefault(token, row) != row:
        raise _broken(where, f"gives token {shown(token)} row {row:,}, after row {rows[token]:,}")


def _one_token_a_row(rows: dict[str, int], where: str) -> dict[str, int]:
    if len(set(rows.values())) == len(rows):
        return rows
    tokens: dict[int, str] = {}
    for token, row in rows.items():
        if row in tokens:
            raise _broken(where, f"tokens {shown(tokens[row])} and {shown(token)} both have row {row:,}")
        tokens[row] = token
    return rows


def _broken(where: str, message: str) -> CheckpointError:
    return CheckpointError(Problem(where, message))


_READERS: tuple[tuple[str, Callable[[Mapping[str, bytes], str], dict[str, int]]], ...] = (
    ("tokenizer.json", _tokenizer_json),
    ("tokenizer.model", _sentencepiece),
    ("vocab.json", _vocab_json),
    ("vocab.txt", _vocab_txt),
    ("tekken.json", _tekken),
)
