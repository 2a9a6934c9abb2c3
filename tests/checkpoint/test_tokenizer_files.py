"""Tokenizers edited as files: what the tokenizers library then makes of them."""

import json
from collections.abc import Mapping
from typing import Any

import pytest
from tokenizers import AddedToken as LibraryToken
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from safegraft.checkpoint.tokenizer_files import AddedToken, TokenizerEditor, added_tokens, tokenizer_files
from safegraft.checkpoint.vocabulary import read_tokens
from safegraft.errors import CheckpointError

CONFIG = "tokenizer_config.json"


def bpe() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=280, initial_alphabet=alphabet, min_frequency=1, show_progress=False)
    tokenizer.train_from_iterator(["the cat sat on the mat that the rat ate"], trainer)
    tokenizer.add_special_tokens(["<s>", "</s>"])
    return tokenizer


def files_of(tokenizer: Tokenizer, **more: Any) -> dict[str, bytes]:
    return {"tokenizer.json": tokenizer.to_str().encode(), **{name: json.dumps(x).encode() for name, x in more.items()}}


def editor_of(files: Mapping[str, bytes]) -> TokenizerEditor:
    return TokenizerEditor(files, read_tokens(files, "m") or {}, "m")


def loaded(files: Mapping[str, bytes]) -> Tokenizer:
    return Tokenizer.from_str(files["tokenizer.json"].decode())


def test_tokens_are_numbered_as_the_library_numbers_them() -> None:
    editor, library = editor_of(files_of(bpe())), bpe()
    for content, special in [("new", False), ("<x>", True), ("the", False), ("<s>", False), ("", False), ("new", True)]:
        editor.add(AddedToken(content, normalized=not special, special=special))
        library.add_tokens([LibraryToken(content, normalized=not special, special=special)] if content else [])
    found = loaded(editor.files())
    assert editor.tokens == found.get_vocab() == library.get_vocab()
    text = "<s>a new<x>the renewed"
    assert found.encode(text).tokens == library.encode(text).tokens
    assert json.loads(found.to_str()) | {"added_tokens": 0} == json.loads(library.to_str()) | {"added_tokens": 0}


def test_an_unedited_tokenizer_keeps_its_bytes() -> None:
    files = files_of(bpe(), **{CONFIG: {"a": 1}}) | {"merges.txt": b"x y"}
    editor = editor_of(files)
    editor.add(AddedToken("<s>"))
    editor.cut(10_000)
    assert editor.files() == files


def test_rows_that_are_cut_leave_no_merge_that_makes_or_needs_them() -> None:
    vocab = bpe().get_vocab()
    editor = editor_of(files_of(bpe()))
    editor.cut(262)
    found = loaded(editor.files())
    assert found.get_vocab() == editor.tokens == {token: row for token, row in vocab.items() if row < 262}
    assert found.decode(found.encode("the cat sat").ids) == "the cat sat"


def test_tokenizer_config_and_added_tokens_follow() -> None:
    tokenizer = bpe()
    size = tokenizer.get_vocab_size()
    decoder = {
        str(size - 2): {"content": "<s>", "special": True},
        str(size): {"content": "<only here>", "lstrip": True},
    }
    files = files_of(
        tokenizer, **{CONFIG: {"added_tokens_decoder": decoder}, "added_tokens.json": {"<only here>": size}}
    )
    editor = editor_of(files | {"vocab.json": b"{}", "merges.txt": b""})
    editor.add(AddedToken("<x>", special=True, normalized=False))
    edited = editor.files()
    assert edited.keys() == {"tokenizer.json", CONFIG, "added_tokens.json"}  # the others hold the old vocabulary
    assert json.loads(edited["added_tokens.json"])["<x>"] == size + 1
    config = json.loads(edited[CONFIG])["added_tokens_decoder"]
    assert config[str(size + 1)]["content"] == "<x>"
    assert config[str(size)] == AddedToken("<only here>", lstrip=True).written()
    assert loaded(edited).get_vocab() == read_tokens(edited, "m") == editor.tokens


def test_added_tokens_of_every_format() -> None:
    files = files_of(bpe(), **{CONFIG: {"added_tokens_decoder": {"300": {"content": "<c>", "rstrip": True}}}})
    found = added_tokens({**files, "added_tokens.json": b'{"<a>": 301}'}, "m")
    assert list(found) == ["<s>", "</s>", "<c>", "<a>"]
    assert (found["<s>"].special, found["<s>"].normalized, found["<c>"].rstrip) == (True, False, True)


@pytest.mark.parametrize("change", ["add", "cut"])
def test_only_tokenizer_json_can_be_edited(change: str) -> None:
    editor = TokenizerEditor({"tokenizer.model": b""}, {"a": 0, "b": 1}, "m")
    with pytest.raises(CheckpointError, match=r"m/tokenizer.json: is not there, and no other format can be edited"):
        editor.add(AddedToken("x")) if change == "add" else editor.cut(1)
    assert TokenizerEditor({"tokenizer.model": b""}, {"a": 0}, "m").files() == {"tokenizer.model": b""}


@pytest.mark.parametrize(
    "model", [models.WordLevel({"a": 0, "b": 1}, "a"), models.Unigram([("a", 0.0), ("b", -1.0)], 0)]
)
def test_only_bpe_can_be_cut(model: Any) -> None:
    editor = editor_of(files_of(Tokenizer(model)))
    with pytest.raises(CheckpointError, match="only from BPE can they be taken out"):
        editor.cut(1)


def test_a_vocabulary_with_gaps_takes_no_more_tokens() -> None:
    editor = editor_of(files_of(Tokenizer(models.WordLevel({"a": 0, "b": 2}, "a"))))
    with pytest.raises(CheckpointError, match="has rows without a token below 2"):
        editor.add(AddedToken("x"))


def test_which_files_are_the_tokenizers() -> None:
    names = ["tokenizer.json", CONFIG, "special_tokens_map.json", "vocab.json", "merges.txt", "tokenizer.model"]
    others = ["config.json", "chat_template.jinja", "processor_config.json", "preprocessor_config.json", "LICENSE"]
    assert list(tokenizer_files(dict.fromkeys([*names, *others], b""))) == names
