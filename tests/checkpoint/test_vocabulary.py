"""Vocabularies of every format, against the libraries that define the formats."""

import base64
import io
import json

import pytest

from safegraft.checkpoint.vocabulary import read_tokens
from safegraft.errors import CheckpointError

TEXTS = ["the quick brown fox jumps over the lazy dog", "pack my box with five dozen liquor jugs", "Ünïcödé 层 🦊"]


def dumped(value):
    return json.dumps(value).encode()


def trained(kind):
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    model, trainer = {
        "BPE": (models.BPE(), trainers.BpeTrainer),
        "Unigram": (models.Unigram(), trainers.UnigramTrainer),
        "WordLevel": (models.WordLevel(unk_token="<unk>"), trainers.WordLevelTrainer),
        "WordPiece": (models.WordPiece(unk_token="<unk>"), trainers.WordPieceTrainer),
    }[kind]
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel() if kind == "BPE" else pre_tokenizers.Whitespace()
    tokenizer.decoder = decoders.ByteLevel()
    options = {"unk_token": "<unk>"} if kind == "Unigram" else {}
    tokenizer.train_from_iterator(
        TEXTS, trainer(vocab_size=80, special_tokens=["<unk>", "<s>"], show_progress=False, **options)
    )
    tokenizer.add_special_tokens(["<image>"])
    tokenizer.add_tokens(["brand new"])
    return tokenizer


@pytest.mark.parametrize("kind", ["BPE", "Unigram", "WordLevel", "WordPiece"])
def test_tokenizer_json(kind):
    tokenizer = trained(kind)
    tokens = read_tokens({"tokenizer.json": tokenizer.to_str().encode()}, "tiny")
    assert tokens == tokenizer.get_vocab(with_added_tokens=True)
    assert len(tokens) > 20
    assert {"<s>", "<image>", "brand new"} <= tokens.keys()


@pytest.mark.parametrize("kind", ["BPE", "Unigram", "WordLevel"])
def test_what_transformers_saves(tmp_path, kind):
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    PreTrainedTokenizerFast(tokenizer_object=trained(kind), unk_token="<unk>", pad_token="<pad>").save_pretrained(
        tmp_path
    )
    tokens = read_tokens({file.name: file.read_bytes() for file in tmp_path.iterdir()}, "tiny")
    assert tokens == AutoTokenizer.from_pretrained(tmp_path).get_vocab()
    assert "<pad>" in tokens


def test_tokens_that_only_tokenizer_config_knows(tmp_path):
    from transformers import AutoTokenizer

    tokenizer = trained("BPE")
    row = tokenizer.get_vocab_size()
    decoder = {str(row): {"content": "<late>", "special": True}, "0": {"content": "<unk>", "special": True}}
    files = {
        "tokenizer.json": tokenizer.to_str().encode(),
        "tokenizer_config.json": dumped(
            {
                "added_tokens_decoder": decoder,
                "tokenizer_class": "PreTrainedTokenizerFast",
                "extra_special_tokens": ["<late>"],
            }
        ),
    }
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    tokens = read_tokens(files, "tiny")
    assert tokens["<late>"] == row
    assert tokens == AutoTokenizer.from_pretrained(tmp_path).get_vocab()


@pytest.fixture(scope="module")
def sentencepiece_model():
    import sentencepiece

    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXTS * 5),
        model_writer=model,
        vocab_size=60,
        model_type="bpe",
        hard_vocab_limit=False,
        minloglevel=2,
    )
    return model.getvalue()


def test_sentencepiece(sentencepiece_model):
    tokens = read_tokens({"tokenizer.model": sentencepiece_model}, "tiny")
    assert sorted(tokens.values()) == list(range(len(tokens)))
    assert [tokens[piece] for piece in ("<unk>", "<s>", "</s>")] == [0, 1, 2]
    assert "▁" in tokens


def test_sentencepiece_pieces_are_spelled_as_in_tokenizer_json(sentencepiece_model, tmp_path):
    from transformers import LlamaTokenizer

    (tmp_path / "tokenizer.model").write_bytes(sentencepiece_model)
    LlamaTokenizer.from_pretrained(tmp_path).save_pretrained(tmp_path / "fast")
    fast = read_tokens({"tokenizer.json": (tmp_path / "fast/tokenizer.json").read_bytes()}, "tiny")
    assert fast == read_tokens({"tokenizer.model": sentencepiece_model}, "tiny")


def test_added_tokens_follow_or_rename(sentencepiece_model):
    """As in InternLM2: its sentencepiece model has placeholders that tokenizer_config.json gives names."""
    plain = read_tokens({"tokenizer.model": sentencepiece_model}, "tiny")
    count = len(plain)
    renamed = next(token for token, row in plain.items() if row == count - 1)
    decoder = {str(count - 1): {"content": "<|im_start|>"}, str(count): {"content": "<image>"}, "1": {"content": "<s>"}}
    files = {
        "tokenizer.model": sentencepiece_model,
        "tokenizer_config.json": dumped({"added_tokens_decoder": decoder}),
        "added_tokens.json": dumped({"ignored": 5}),  # transformers reads it only without added_tokens_decoder
    }
    tokens = read_tokens(files, "tiny")
    assert renamed not in tokens
    assert tokens == {**{t: r for t, r in plain.items() if t != renamed}, "<|im_start|>": count - 1, "<image>": count}


def test_added_tokens_json(sentencepiece_model):
    files = {"tokenizer.model": sentencepiece_model, "added_tokens.json": dumped({"<image>": 500})}
    assert read_tokens({**files, "tokenizer_config.json": b"{}"}, "tiny")["<image>"] == 500


def test_vocab_json():
    files = {"vocab.json": dumped({"a": 0, "b": 2}), "merges.txt": b"", "added_tokens.json": dumped({"<x>": 3})}
    assert read_tokens(files, "tiny") == {"a": 0, "b": 2, "<x>": 3}


@pytest.mark.parametrize(
    "content", ["[PAD]\n[UNK]\nä\u2028\n##b\n", "[PAD]\n[UNK]\nä\u2028\n##b", "[PAD]\r\n[UNK]\r\nä\u2028\r\n##b\r\n"]
)
def test_vocab_txt(content):
    assert read_tokens({"vocab.txt": content.encode()}, "tiny") == {"[PAD]": 0, "[UNK]": 1, "ä\u2028": 2, "##b": 3}


# ---- tekken


def tekken(vocab, special=("<unk>", "<s>"), **config):
    return {
        "config": {"pattern": "x", "num_vocab_tokens": 9, "default_num_special_tokens": 3, **config},
        "vocab": [
            {"rank": rank, "token_bytes": base64.b64encode(token).decode(), "token_str": None}
            for rank, token in enumerate(vocab)
        ],
        "special_tokens": [
            {"rank": rank, "token_str": token, "is_control": True} for rank, token in enumerate(special)
        ],
    }


def test_tekken_tokens_are_spelled_as_in_tokenizer_json(tmp_path):
    from tokenizers.pre_tokenizers import ByteLevel
    from transformers.integrations.mistral.tokenizer import MistralConverter

    vocab = [bytes([byte]) for byte in range(256)] + [b" the", "ä".encode(), "🦊".encode()[:3]]
    content = dumped(tekken(vocab, default_vocab_size=3 + 256 + 2))
    tokens = read_tokens({"tekken.json": content}, "tiny")
    assert tokens["Ġthe"] == 3 + 256
    assert sorted(tokens.values()) == [0, 1, *range(3, 3 + 258)]
    assert {token for token, row in tokens.items() if 3 <= row < 259} == set(ByteLevel.alphabet())
    (tmp_path / "tekken.json").write_bytes(content)
    theirs = dict(MistralConverter(str(tmp_path / "tekken.json"))._precomputed_vocab)
    assert theirs.pop("<SPECIAL_2>") == 2  # a filler without a meaning, which we leave unnamed
    assert tokens == theirs


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"special_tokens": None}, "does not name its special tokens"),
        ({"vocab": None}, "has no vocab"),
        ({"vocab": [{"rank": 0}]}, "no token_bytes"),
        ({"vocab": [7]}, "no token_bytes"),
        ({"vocab": [{"token_bytes": "?"}]}, "'?' is not base64"),
        ({"vocab": [{"token_bytes": "YQ=="}, {"token_bytes": "YQ=="}]}, "gives token 'a' row 1, after row 0"),
        ({"vocab": [{"token_bytes": base64.b64encode(b"<s>").decode()}]}, "gives token '<s>' row 3, after row 1"),
        ({"config": {"default_num_special_tokens": -1}}, "integers from 0 up"),
        ({"config": {"default_num_special_tokens": 1}}, "do not fit the 1 rows"),
        ({"special_tokens": [{"rank": 0, "token_str": "x"}, {"rank": 0, "token_str": "y"}]}, "both have row 0"),
        ({"special_tokens": [{"rank": 0, "token_str": "a"}, {"rank": 1, "token_str": "a"}]}, "do not fit"),
    ],
)
def test_broken_tekken(problems_of, change, message):
    content = dumped({**tekken([b"a"]), **change})
    (problem,) = problems_of(lambda: read_tokens({"tekken.json": content}, "tiny"))
    assert problem.startswith("tiny/tekken.json: ")
    assert message in problem


# ---- which file counts, and broken ones


def test_no_tokenizer():
    assert read_tokens({"config.json": b"{}", "tokenizer_config.json": b"{}", "merges.txt": b""}, "tiny") is None


def test_first_of_several_formats_counts(sentencepiece_model):
    files = {
        "tokenizer.json": dumped({"model": {"vocab": {"json": 0}}}),
        "tokenizer.model": sentencepiece_model,
        "vocab.json": dumped({"vocab": 0}),
        "vocab.txt": b"txt\n",
        "tekken.json": dumped(tekken([b"a"])),
    }
    for first, token in zip(list(files), ["json", "▁", "vocab", "txt", "a"], strict=True):
        assert token in read_tokens(files, "tiny")
        del files[first]


ADDED = {"added_tokens": [{"id": 1, "content": "b"}]}
BROKEN = [
    ("tokenizer.json", b"{", "not valid JSON"),
    ("tokenizer.json", b"\xff", "not valid JSON"),
    ("tokenizer.json", b"[]", "no vocabulary from tokens to rows"),
    ("tokenizer.json", b"{}", "no vocabulary from tokens to rows"),
    ("tokenizer.json", dumped({"model": {"vocab": 3}}), "no vocabulary from tokens to rows"),
    ("tokenizer.json", dumped({"model": {"vocab": {"a": -1}}}), "the row of token 'a' is '-1'"),
    ("tokenizer.json", dumped({"model": {"vocab": {"a": 1.0}}}), "the row of token 'a' is '1.0'"),
    ("tokenizer.json", dumped({"model": {"vocab": {"a": True}}}), "the row of token 'a' is 'True'"),
    ("tokenizer.json", dumped({"model": {"vocab": {"a": 1, "c": 1}}}), "tokens 'a' and 'c' both have row 1"),
    ("tokenizer.json", b'{"model":{"vocab":{"a":1,"a":2}}}', "'a' stands twice"),
    ("tokenizer.json", dumped({"model": {"vocab": {"a": 1}}, **ADDED}), "tokens 'a' and 'b' both have row 1"),
    ("tokenizer.json", dumped({"model": {"vocab": {"b": 0}}, **ADDED}), "gives token 'b' row 1, after row 0"),
    ("tokenizer.json", dumped({"model": {"vocab": {}}, "added_tokens": [{"id": 1}]}), "an entry has no content"),
    ("tokenizer.json", dumped({"model": {"vocab": {}}, "added_tokens": {"a": 1}}), "its added_tokens must be a list"),
    ("tokenizer.json", dumped({"model": {"vocab": {}}, "added_tokens": ["x"]}), "an entry has no content"),
    ("tokenizer.json", dumped({"model": {"vocab": [["a", 0.0], ["a", 0.0]]}}), "gives token 'a' row 1, after row 0"),
    ("tokenizer.json", dumped({"model": {"vocab": ["a"]}}), "where [piece, score] belongs"),
    ("tokenizer.json", dumped({"model": {"vocab": [[]]}}), "where [piece, score] belongs"),
    ("tokenizer.json", dumped({"model": {"vocab": [[1, 0.0]]}}), "token '1' with row '0'"),
    ("tokenizer.model", b"", "not a sentencepiece model"),
    ("tokenizer.model", b"IQ== 0\nIg== 1\n", "not a sentencepiece model"),
    ("vocab.json", b"nonsense", "not valid JSON"),
    ("vocab.json", dumped(["a"]), "no vocabulary from tokens to rows"),
    ("vocab.json", dumped({"a": 0, "b": 0}), "both have row 0"),
    ("vocab.txt", b"a\n\xff\n", "not valid UTF-8"),
    ("vocab.txt", b"a\nb\na\n", "gives token 'a' row 2, after row 0"),
]


@pytest.mark.parametrize(("file", "content", "message"), BROKEN)
def test_broken_files(problems_of, file, content, message):
    (problem,) = problems_of(lambda: read_tokens({file: content}, "tiny"))
    assert problem.startswith(f"tiny/{file}: ")
    assert message in problem
    assert problem.isprintable()


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"tokenizer_config.json": b"{"}, "not valid JSON"),
        ({"tokenizer_config.json": b"[]"}, "must hold a JSON object"),
        ({"tokenizer_config.json": dumped({"added_tokens_decoder": ["a"]})}, "must be an object from rows to tokens"),
        ({"tokenizer_config.json": dumped({"added_tokens_decoder": {"x": {"content": "a"}}})}, "has the row 'x'"),
        ({"tokenizer_config.json": dumped({"added_tokens_decoder": {"-1": {"content": "a"}}})}, "has the row '-1'"),
        ({"tokenizer_config.json": dumped({"added_tokens_decoder": {"٣": {"content": "a"}}})}, "has the row"),
        ({"tokenizer_config.json": dumped({"added_tokens_decoder": {"9" * 5000: {"content": "a"}}})}, "has the row"),
        ({"tokenizer_config.json": dumped({"added_tokens_decoder": {"7": "a"}})}, "no content"),
        ({"tokenizer_config.json": dumped({"added_tokens_decoder": {"7": {"content": None}}})}, "token 'None'"),
        (
            {"tokenizer_config.json": dumped({"added_tokens_decoder": {"7": {"content": "a"}}})},
            "'a' row 7, after row 0",
        ),
        ({"added_tokens.json": dumped({"x": 7, "y": 7})}, "both have row 7"),
        ({"added_tokens.json": dumped({"a": 7})}, "gives token 'a' row 7, after row 0"),
    ],
)
@pytest.mark.parametrize("vocabulary", ["tokenizer.json", "vocab.json"])
def test_broken_added_tokens(problems_of, files, message, vocabulary):
    base = {"tokenizer.json": dumped({"model": {"vocab": {"a": 0}}}), "vocab.json": dumped({"a": 0})}[vocabulary]
    (problem,) = problems_of(lambda: read_tokens({vocabulary: base, **files}, "tiny"))
    assert message in problem


def test_tokenizer_json_and_config_that_contradict_each_other(problems_of):
    files = {
        "tokenizer.json": dumped({"model": {"vocab": {"a": 0, "b": 1}}}),
        "tokenizer_config.json": dumped({"added_tokens_decoder": {"1": {"content": "other"}}}),
    }
    (problem,) = problems_of(lambda: read_tokens(files, "tiny"))
    assert "tokens 'b' and 'other' both have row 1" in problem


def test_through_a_checkpoint(folders):
    folder = folders.single(**{"vocab.txt": b"a\nb\n"})
    checkpoint = folders.open(folder)
    assert checkpoint.tokens() == {"a": 0, "b": 1}
    assert checkpoint.tokens() is checkpoint.tokens()
    (folder / "vocab.txt").write_bytes(b"a\na\n")
    broken = folders.open(folder)  # a broken tokenizer matters only to those who ask for tokens
    with pytest.raises(CheckpointError, match="gives token 'a' row 1, after row 0"):
        broken.tokens()
