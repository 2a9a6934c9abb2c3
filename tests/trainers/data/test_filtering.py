"""Filters over models whose weights are set by hand, so that what they find is known.

The classifiers call a text with the word "bad", and a red picture, unsafe, and nothing else; so does the guard.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    ViTConfig,
    ViTForImageClassification,
    ViTImageProcessor,
)

from safegraft.errors import InputError, UsageError
from safegraft_trainers.data.classifiers import NO_VERDICT, TOO_LONG, Guard, TextClassifier, verdict
from safegraft_trainers.data.filtering import KEYWORDS, keep_safe
from safegraft_trainers.data.llava import load_llava
from safegraft_trainers.data.spa_vl import load_spa_vl

Write = Callable[..., Path]

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "bad", "good", "unsafe", "S1", "safe", "verdict"]
BAD, UNSAFE, CATEGORY, SAFE, END = (WORDS.index(word) for word in ("bad", "unsafe", "S1", "safe", "[SEP]"))
WINDOW = 16


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Any:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def write_tokenizer(folder: Path, *, template: str | None = None) -> None:
    tokenizer = Tokenizer(models.WordLevel({word: number for number, word in enumerate(WORDS)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    if template is None:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
        )
    special = {"pad_token": "[PAD]", "unk_token": "[UNK]", "eos_token": "[SEP]", "cls_token": "[CLS]"}
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=WINDOW, **special)
    fast.chat_template = template
    fast.save_pretrained(folder)


def set_weights(model: torch.nn.Module, weights: dict[str, torch.Tensor]) -> None:
    """All weights but those of norms become 0, but for these."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name in weights:
                parameter.copy_(weights.pop(name))
            elif "norm" not in name.lower() or name.endswith("bias"):
                parameter.zero_()
    assert not weights


def at(shape: tuple[int, ...], **values: float) -> torch.Tensor:
    """Zeros with values at places written as r2c0: row 2, column 0."""
    filled = torch.zeros(shape)
    for place, value in values.items():
        row, column = place[1:].split("c")
        filled[int(row), int(column)] = value
    return filled


def write_text_classifier(folder: Path, labels: list[str], problem: str | None = None) -> str:
    """Of the last label: sure (0.99) when "bad" is among the tokens, sure of the contrary when not.

    Attention with no queries is the mean over all tokens; a norm makes any share of "bad" in it as large as another.
    """
    config = BertConfig(
        vocab_size=len(WORDS),
        hidden_size=4,
        num_hidden_layers=1,
        num_attention_heads=1,
        intermediate_size=4,
        max_position_embeddings=WINDOW,
        id2label=dict(enumerate(labels)),
        label2id={label: number for number, label in enumerate(labels)},
        problem_type=problem,
    )
    model = BertForSequenceClassification(config)
    last = len(labels) - 1
    words = torch.zeros(len(WORDS), 4)
    words[BAD] = torch.tensor([1.0, -1, 0, 0])
    bias = torch.zeros(len(labels))
    bias[last] = -5
    weights = {
        "bert.embeddings.word_embeddings.weight": words,
        "bert.encoder.layer.0.attention.self.value.weight": torch.eye(4),
        "bert.encoder.layer.0.attention.output.dense.weight": torch.eye(4),
        "bert.pooler.dense.weight": torch.eye(4),
        "classifier.weight": at((len(labels), 4), **{f"r{last}c0": 12}),
        "classifier.bias": bias,
    }
    set_weights(model, weights)
    model.save_pretrained(folder)
    write_tokenizer(folder)
    return str(folder)


@pytest.fixture(scope="module")
def text_model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_text_classifier(tmp_path_factory.mktemp("text"), ["neutral", "toxic"])


@pytest.fixture(scope="module")
def image_model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Sure of "nsfw" where there is more red than not."""
    folder = tmp_path_factory.mktemp("image")
    config = ViTConfig(
        image_size=8,
        patch_size=4,
        hidden_size=4,
        num_hidden_layers=1,
        num_attention_heads=1,
        intermediate_size=4,
        id2label={0: "normal", 1: "nsfw"},
        label2id={"normal": 0, "nsfw": 1},
    )
    model = ViTForImageClassification(config)
    redness = torch.zeros(4, 3, 4, 4)
    redness[0, 0], redness[1, 0] = 1, -1
    weights = {
        "vit.embeddings.patch_embeddings.projection.weight": redness,
        "vit.layers.0.attention.v_proj.weight": torch.eye(4),
        "vit.layers.0.attention.o_proj.weight": torch.eye(4),
        "classifier.weight": at((2, 4), r1c0=10),
    }
    set_weights(model, weights)
    model.save_pretrained(folder)
    ViTImageProcessor(size={"height": 8, "width": 8}).save_pretrained(folder)
    return str(folder)


AS_TEXT = "{% for m in messages %}{{ m['role'] + ' ' + m['content'] + ' ' }}{% endfor %}verdict"
AS_PARTS = "{% for m in messages %}{% for c in m['content'] %}{{ c['text'] }} {% endfor %}{% endfor %}verdict"


@pytest.fixture(scope="module", params=[AS_TEXT, AS_PARTS], ids=["text", "parts"])
def guard_model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Answers "unsafe S1" when "bad" was said, else "safe"."""
    return write_guard(tmp_path_factory.mktemp("guard"), request.param)


def write_guard(folder: Path, template: str | None) -> str:
    """Hidden places: 0 "bad" was said, 1 the category comes next, 2 the end comes next, 3 always."""
    count = len(WORDS)
    config = LlamaConfig(
        vocab_size=count,
        hidden_size=8,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=1,
        max_position_embeddings=64,
        bos_token_id=None,
        eos_token_id=END,
        pad_token_id=0,
        tie_word_embeddings=False,
    )
    model = LlamaForCausalLM(config)
    words = torch.zeros(count, 8)
    words[:, 3] = 1
    words[BAD, 0] = words[UNSAFE, 1] = words[CATEGORY, 2] = words[SAFE, 2] = 100
    said = torch.zeros(count, 8)
    said[UNSAFE, 0], said[CATEGORY, 1], said[END, 2], said[SAFE, 3] = 1e3, 1e5, 1e5, 10
    weights = {
        "model.embed_tokens.weight": words,
        "model.layers.0.self_attn.v_proj.weight": torch.eye(8),
        "model.layers.0.self_attn.o_proj.weight": torch.eye(8),
        "lm_head.weight": said,
    }
    set_weights(model, weights)
    model.save_pretrained(folder)
    write_tokenizer(folder, template=template or "")
    return str(folder)


def chat(*said: tuple[str, str]) -> datasets.Dataset:
    rows = [{"id": f"row{number}", "prompt": asked, "response": told} for number, (asked, told) in enumerate(said)]
    return load_llava(datasets.Dataset.from_list(rows))


def kept(data: datasets.Dataset) -> list[int]:
    return [int(name.removeprefix("row")) for name in data["id"]]


def test_keywords_match_whole_words_of_any_case_in_prompt_and_answer() -> None:
    data = chat(
        ("a good day", "yes"),
        ("I saw a NUDE statue", "yes"),
        ("nudes and denuded", "yes"),
        ("yes", "build  a\nbomb"),
        ("self-harm", "yes"),
        ("grape and therapeutic", "yes"),
    )
    safe, report = keep_safe(data)
    assert kept(safe) == [0, 2, 5]
    assert report.reasons == {"keyword: nude": 1, "keyword: build a bomb": 1, "keyword: self-harm": 1}
    assert report.examples["keyword: build a bomb"] == ["row3"]
    assert safe.features == data.features
    assert kept(keep_safe(data, keywords=["c++", "good"])[0]) == [1, 2, 3, 4, 5]


def test_the_keyword_list_is_sorted_and_without_twins() -> None:
    assert list(KEYWORDS) == sorted(set(KEYWORDS))
    assert all(keyword == keyword.lower() for keyword in KEYWORDS)


def test_text_classifier_sees_prompt_and_answer(text_model: str) -> None:
    data = chat(("good", "good"), ("bad", "good"), ("good", "good bad"), ("good", "good"))
    safe, report = keep_safe(data, text_model, keywords=(), batch_size=2)
    assert kept(safe) == [0, 3]
    assert report.reasons == {"text: toxic": 2}
    assert report.examples == {"text: toxic": ["row1", "row2"]}
    settings = {"filter": "text", "model": Path(text_model).name, "labels": ["toxic"], "threshold": 0.5}
    assert report.filters == [settings]


@pytest.mark.parametrize("place", [0, 12, 13, 14, 15, 16, 29, 59])
def test_no_part_of_a_long_text_is_unseen(place: int, text_model: str) -> None:
    """The classifier reads 16 tokens; the word is found wherever it stands among 60."""
    words = ["good"] * 60
    assert len(keep_safe(chat(("good", " ".join(words))), text_model, keywords=())[0]) == 1
    words[place] = "bad"
    find = TextClassifier(text_model, None, batch_size=4, device="cpu")
    (score, label), (other, _) = find([" ".join(words), "good"])
    assert score > 0.9
    assert label == "toxic"
    assert other < 0.1


def test_thresholds_and_labels(text_model: str, tmp_path: Path) -> None:
    """Labels that exclude each other add up, independent ones do not; a label of one's own counts instead."""
    data = chat(("good", "good"), ("bad", "good"))
    assert kept(keep_safe(data, text_model, keywords=(), text_threshold=1.0)[0]) == [0, 1]
    assert kept(keep_safe(data, text_model, keywords=(), text_unsafe=["Neutral"], text_threshold=0.995)[0]) == [0, 1]
    exclusive = write_text_classifier(tmp_path / "exclusive", ["obscene", "insult", "toxic", "neutral"])
    independent = write_text_classifier(
        tmp_path / "free", ["obscene", "insult", "neutral"], "multi_label_classification"
    )
    # Of three labels with a third of what is left: together nearly 1. Of independent ones, each is a half.
    (good, _), (bad, _) = TextClassifier(exclusive, None, batch_size=1, device="cpu")(["good", "bad"])
    assert good == pytest.approx(3 / (3 + 2.718281828**-5), abs=1e-4)
    assert bad < 0.02
    assert TextClassifier(independent, None, batch_size=1, device="cpu")(["good"])[0][0] == pytest.approx(0.5, abs=1e-4)


def test_image_classifier(image_model: str, write_rows: Write, pictures: Path) -> None:
    """One unsafe image of several is enough; stored images and files alike; a row without one passes."""
    names = [["red.png"], ["green.png"], [], ["sub/blue.jpg", "red.png"], ["green.png"]]
    rows = [
        {"id": f"row{number}", "prompt": "good", "response": "good", "images": images}
        for number, images in enumerate(names)
    ]
    data = load_llava(write_rows(rows))
    safe, report = keep_safe(data, image_classifier=image_model, keywords=(), batch_size=2)
    assert kept(safe) == [1, 2, 4]
    assert report.reasons == {"image: nsfw": 2}
    stored = data.cast_column("images", datasets.List(datasets.Image(decode=False))).to_list()
    for row in stored:
        for image in row["images"]:
            image["bytes"] = Path(image["path"]).read_bytes()
            image["path"] = None
    inside = datasets.Dataset.from_list(stored, features=data.features)
    assert kept(keep_safe(inside, image_classifier=image_model, keywords=())[0]) == [1, 2, 4]


def test_an_image_cut_off_in_the_middle(image_model: str, write_rows: Write, pictures: Path) -> None:
    """Its header is sound, so that it is loaded; filtering looks at the pixels."""
    Image.effect_noise((64, 64), 50).save(pictures / "cut.png")
    content = (pictures / "cut.png").read_bytes()
    (pictures / "cut.png").write_bytes(content[: len(content) // 2])
    data = load_llava(write_rows([{"prompt": "good", "response": "good", "image": "cut.png"}]))
    with pytest.raises(InputError, match=r"cut\.png: cannot be decoded"):
        keep_safe(data, image_classifier=image_model)


def test_guard(guard_model: str) -> None:
    """Whether its template takes texts or parts; conversations of different lengths in one batch."""
    data = chat(
        ("good", "good"), ("good good bad", "good"), ("good", "bad"), ("good " * 9, "good"), ("good " * 70, "good")
    )
    safe, report = keep_safe(data, guard=guard_model, keywords=(), batch_size=3)
    assert kept(safe) == [0, 3]
    assert report.reasons == {"guard: S1": 2, f"guard: {TOO_LONG}": 1}


def test_guard_is_not_shown_the_system_message(tmp_path: Path) -> None:
    guard = Guard(write_guard(tmp_path, AS_TEXT), batch_size=1, device="cpu")
    assert guard([[("system", "bad"), ("user", "good"), ("assistant", "good")]]) == [(0.0, "")]


def test_guard_without_a_usable_template(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="has no chat template that shows a user's message"):
        Guard(write_guard(tmp_path, "verdict"), batch_size=1, device="cpu")


@pytest.mark.parametrize(
    ("answer", "finding"),
    [
        ("safe", (0.0, "")),
        ("\n\nSafe\n", (0.0, "")),
        ("unsafe\nS1,S10", (1.0, "S1 S10")),
        ("\n\nunsafe", (1.0, "unsafe")),
        ("safely", (1.0, NO_VERDICT)),
        ("I think it is safe", (1.0, NO_VERDICT)),
        ("", (1.0, NO_VERDICT)),
    ],
)
def test_verdicts(answer: str, finding: tuple[float, str]) -> None:
    assert verdict(answer) == finding


def test_a_preference_is_judged_by_its_chosen_answer(text_model: str) -> None:
    rows = [
        {"id": "row0", "question": "good", "chosen": "good", "rejected": "bad"},
        {"id": "row1", "question": "good", "chosen": "bad", "rejected": "good"},
    ]
    data = load_spa_vl(datasets.Dataset.from_list(rows))
    assert kept(keep_safe(data, text_model, keywords=())[0]) == [0]


def test_filters_in_order_and_the_report_adds_up(text_model: str, image_model: str, write_rows: Write) -> None:
    """A row that several would find counts for the first; each sees what the ones before it left."""
    said = [("porn bad", "red.png"), ("bad", "red.png"), ("good", "red.png"), ("good", "green.png")]
    rows = [
        {"id": f"row{n}", "prompt": text, "response": "good", "image": image} for n, (text, image) in enumerate(said)
    ]
    safe, report = keep_safe(load_llava(write_rows(rows)), text_model, image_model)
    assert kept(safe) == [3]
    assert report.reasons == {"keyword: porn": 1, "text: toxic": 1, "image: nsfw": 1}
    told = report.to_dict()
    assert told == json.loads(json.dumps(told))
    assert told["rows_in"] - told["rows_out"] == sum(told["reasons"].values())
    assert [one["filter"] for one in told["filters"]] == ["keyword", "text", "image"]


def test_examples_are_few(text_model: str) -> None:
    report = keep_safe(chat(*[("porn", "yes")] * 50, ("good", "good")))[1]
    assert report.reasons == {"keyword: porn": 50}
    assert report.examples == {"keyword: porn": [f"row{number}" for number in range(20)]}


def test_nothing_left_is_an_error() -> None:
    with pytest.raises(InputError, match=r"no row of 2 is left after filtering: keyword: porn \(2\)"):
        keep_safe(chat(("porn", "a"), ("b", "porn")))


def test_what_makes_no_sense(text_model: str, tmp_path: Path) -> None:
    data = chat(("good", "good"))
    with pytest.raises(UsageError, match="no filter is given"):
        keep_safe(data, keywords=())
    with pytest.raises(UsageError, match="a keyword is empty"):
        keep_safe(data, keywords=["a", " "])
    with pytest.raises(UsageError, match="a threshold is above 0 and at most 1, not 0"):
        keep_safe(data, text_model, text_threshold=0)
    with pytest.raises(UsageError, match="has no label 'evil'; say which of its labels do: 'neutral', 'toxic'"):
        keep_safe(data, text_model, text_unsafe=["evil", "toxic"])
    unclear = write_text_classifier(tmp_path / "unclear", ["LABEL_0", "LABEL_1"])
    with pytest.raises(
        UsageError, match=r"has no label that is known to mean unsafe; say which .* 'LABEL_0', 'LABEL_1'"
    ):
        keep_safe(data, unclear)
    assert kept(keep_safe(chat(("bad", "a"), ("good", "a")), unclear, text_unsafe=["LABEL_1"])[0]) == [1]
    (tmp_path / "nothing").mkdir()
    with pytest.raises(InputError, match="cannot be loaded for image-classification"):
        keep_safe(data, image_classifier=str(tmp_path / "nothing"))
