"""Models that judge: sequence classifiers by their labels, guards by what they write."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from safegraft.errors import CheckpointError, UsageError
from safegraft_trainers.evaluate.example import Scoring
from safegraft_trainers.evaluate.judges import Verdict, get_judge
from safegraft_trainers.evaluate.respondents import TransformersRespondent
from safegraft_trainers.lab.shipped import CHECKPOINTS

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "mix", "it", "with", "water", "sorry", "no", "please", "how", "?"]
ANSWERS = [
    "mix it",
    "sorry no",
    "mix it with water please how",
    "no",
    "with with with water",
    "sorry",
    "how ?",
    "it it",
]
MAX_LENGTH = 16


def classifier(folder: Path, labels: Mapping[int, str]) -> Path:
    """A BERT of two layers whose random weights give both labels to ANSWERS."""
    torch.manual_seed(4)
    config = transformers.BertConfig(
        vocab_size=len(WORDS),
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=MAX_LENGTH,
        num_labels=len(labels),
        id2label=dict(labels),
        label2id={label: index for index, label in labels.items()},
        initializer_range=0.8,
    )
    transformers.BertForSequenceClassification(config).save_pretrained(folder)
    tokenizer = Tokenizer(models.WordLevel({word: index for index, word in enumerate(WORDS)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        model_max_length=MAX_LENGTH,
    ).save_pretrained(folder)
    return folder


def by_hand(folder: Path, texts: Sequence[Sequence[str]]) -> list[int]:
    """One text, or pair, at a time: no padding."""
    tokenizer: Any = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.BertForSequenceClassification.from_pretrained(folder).eval()
    with torch.inference_mode():
        return [int(model(**tokenizer(*one, return_tensors="pt")).logits.argmax()) for one in texts]


def test_a_classifiers_labels_are_verdicts(tmp_path: Path, make: SimpleNamespace) -> None:
    folder = classifier(tmp_path / "judge", {0: "safe", 1: "Unsafe"})
    judge = get_judge(f"classifier:{folder}", batch_size=3)
    assert judge.scorings == {Scoring.ATTACK}
    found = judge.judge([make.attack(f"how {one} ?") for one in range(len(ANSWERS))], ANSWERS)
    expected = by_hand(folder, [[one] for one in ANSWERS])
    assert set(expected) == {0, 1}
    assert [one.attacked for one in found] == [label == 1 for label in expected]
    assert not any(one.refused or one.error for one in found)


def test_a_classifier_may_read_the_request_too(tmp_path: Path, make: SimpleNamespace) -> None:
    folder = classifier(tmp_path / "judge", {0: "NORMAL", 1: "REJECTION"})
    judge = get_judge(f"classifier:{folder}?input=pair")
    assert judge.scorings == {Scoring.REFUSAL}
    requests = ["please mix water", "how ?", "water", "it", "mix", "no", "please", "with"]
    found = judge.judge([make.look_alike(str(place), prompt=one) for place, one in enumerate(requests)], ANSWERS)
    assert [one.refused for one in found] == [
        one == 1 for one in by_hand(folder, list(zip(requests, ANSWERS, strict=True)))
    ]
    assert not any(one.attacked for one in found)


def test_labels_without_meaning_are_given_one(tmp_path: Path) -> None:
    folder = classifier(tmp_path / "judge", {0: "LABEL_0", 1: "LABEL_1"})
    with pytest.raises(UsageError, match=r"none of its labels \(LABEL_0, LABEL_1\) is known to mean harm"):
        get_judge(f"classifier:{folder}")
    with pytest.raises(UsageError, match="none of its labels"):
        get_judge(f"classifier:{folder}?attack=LABEL_9")
    named = get_judge(f"classifier:{folder}?attack=LABEL_1&refusal=LABEL_0")
    assert named.scorings == {Scoring.ATTACK, Scoring.REFUSAL}
    assert named.digest != get_judge(f"classifier:{folder}?attack=LABEL_0").digest


def test_an_answer_longer_than_the_classifier_is_cut(tmp_path: Path, make: SimpleNamespace) -> None:
    folder = classifier(tmp_path / "judge", {0: "safe", 1: "unsafe"})
    (found,) = get_judge(f"classifier:{folder}").judge([make.attack("a")], ["mix it with water " * 50])
    assert not found.error


@pytest.mark.parametrize("query", ["?colour=red", "?input=both"])
def test_unknown_options_of_a_classifier(query: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="options are guard=, attack=, refusal="):
        get_judge(f"classifier:{tmp_path}{query}")


def test_a_model_that_is_not_here() -> None:
    with pytest.raises(CheckpointError, match="the Hugging Face cache does not hold it"):
        get_judge("classifier:org/guard")


def test_a_language_model_says_which_guard_it_is() -> None:
    with pytest.raises(UsageError, match=r"say which guard it is.*\?guard=NAME \(wildguard, llama-guard\)"):
        get_judge(f"classifier:{CHECKPOINTS / 'aligned-llm'}")


def guarded(
    name: str, replies: Sequence[str], monkeypatch: pytest.MonkeyPatch, make: SimpleNamespace
) -> tuple[list[Verdict], list[tuple[str, bool]]]:
    """Verdicts of a stand-in for a guard that writes `replies`, and what it was given to read."""
    given: list[tuple[str, bool]] = []

    def continue_texts(self: TransformersRespondent, texts: Sequence[str], *, special_tokens: bool) -> list[str]:
        given.extend((text, special_tokens) for text in texts)
        return list(replies)

    monkeypatch.setattr(TransformersRespondent, "continue_texts", continue_texts)
    judge = get_judge(f"classifier:{CHECKPOINTS / 'aligned-llm'}?guard={name}")
    return judge.judge(
        [make.attack(f"request {one}") for one in range(len(replies))], [f"answer {one}" for one in range(len(replies))]
    ), given


def test_wildguard_is_asked_in_its_own_words(monkeypatch: pytest.MonkeyPatch, make: SimpleNamespace) -> None:
    replies = ["Harmful request: yes\nResponse refusal: no\nHarmful response: yes", "blah"]
    verdicts, given = guarded("wildguard", replies, monkeypatch, make)
    assert verdicts[0] == Verdict(attacked=True, refused=False)
    assert verdicts[1].error
    text, special_tokens = given[0]
    assert special_tokens, "the tokenizer begins the text"
    assert "\nHuman user:\nrequest 0\n\nAI assistant:\nanswer 0\n\n---\n\nAnswers: [/INST]\n<|assistant|>\n" in text


def test_llama_guard_is_asked_through_its_template(monkeypatch: pytest.MonkeyPatch, make: SimpleNamespace) -> None:
    verdicts, given = guarded("llama-guard", ["unsafe\nS1", "safe"], monkeypatch, make)
    assert verdicts == [Verdict(True, False), Verdict(False, False)]
    text, special_tokens = given[1]
    assert not special_tokens
    assert "<user> request 1 <assistant> answer 1 </s> <assistant>" in " ".join(text.split())


def test_a_template_that_drops_the_answer_would_judge_nothing(
    monkeypatch: pytest.MonkeyPatch, make: SimpleNamespace
) -> None:
    from safegraft_trainers import loading

    loaded = loading.load(str(CHECKPOINTS / "aligned-llm"))
    loaded.front.chat_template = "{% for m in messages if m['role'] == 'user' %}{{ m['content'] }}{% endfor %}"
    monkeypatch.setattr(loading, "load", lambda reference, **_: loaded)
    judge = get_judge(f"classifier:{CHECKPOINTS / 'aligned-llm'}?guard=llama-guard")
    with pytest.raises(CheckpointError, match="drops the request or the answer"):
        judge.judge([make.attack("request")], ["answer"])


def test_a_guard_really_writes(make: SimpleNamespace) -> None:
    """A model that is no guard writes no verdict: that is an error for each answer, and a pass for none."""
    judge = get_judge(f"classifier:{CHECKPOINTS / 'aligned-llm'}?guard=wildguard", batch_size=2)
    found = judge.judge([make.attack(str(one)) for one in range(3)], ["a", "b", "c"])
    assert all("is none of WildGuard's" in one.error for one in found)
