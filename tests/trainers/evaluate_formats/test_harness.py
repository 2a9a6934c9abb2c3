"""lm-evaluation-harness over a model in memory: a task of our own, with nothing from the network."""

# torch and transformers are typed in part.
# pyright: reportUnknownMemberType=false

import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from safegraft.errors import InputError
from safegraft_trainers.evaluate import harness
from safegraft_trainers.loading import Loaded, load

WORDS = ["<s>", "</s>", "<unk>", "sky", "grass", "is", "blue", "green", "red", "the"]
QUESTIONS = [
    {"text": "the sky is", "options": ["blue", "green"], "right": 0},
    {"text": "the grass is", "options": ["blue", "green"], "right": 1},
    {"text": "the sky is", "options": ["red", "blue"], "right": 1},
    {"text": "the grass is", "options": ["red", "green"], "right": 1},
]
TASK = """
task: tiny_colours
dataset_path: json
dataset_kwargs:
  data_files: {{test: "{data}"}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{text}}}}"
doc_to_choice: "{{{{options}}}}"
doc_to_target: right
metric_list:
  - metric: acc
    aggregation: mean
    higher_is_better: true
metadata:
  version: 1
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Loaded:
    import torch
    import transformers
    from tokenizers import Tokenizer, models, pre_tokenizers

    folder = tmp_path_factory.mktemp("tiny-llama")
    inner = Tokenizer(models.WordLevel({word: index for index, word in enumerate(WORDS)}, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    kind: Any = transformers.PreTrainedTokenizerFast
    kind(tokenizer_object=inner, bos_token="<s>", eos_token="</s>", unk_token="<unk>").save_pretrained(folder)
    torch.manual_seed(0)
    shape: Any = transformers.LlamaConfig(
        vocab_size=len(WORDS),
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=32,
        bos_token_id=0,
        eos_token_id=1,
    )
    transformers.LlamaForCausalLM(shape).save_pretrained(folder)
    return load(str(folder))


@pytest.fixture
def tasks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    data = tmp_path / "colours.jsonl"
    data.write_text("\n".join(json.dumps(one) for one in QUESTIONS))
    folder = tmp_path / "tasks"
    folder.mkdir()
    (folder / "tiny_colours.yaml").write_text(TASK.format(data=data))
    return folder


def accuracy_by_hand(model: Loaded, questions: list[dict[str, Any]]) -> float:
    """Which of two next words the model finds likelier, without the harness."""
    import torch

    right = 0
    for one in questions:
        ids = torch.tensor([model.tokenizer.encode(one["text"], add_special_tokens=False)])
        with torch.no_grad():
            logits = model.model(ids).logits[0, -1]
        scores = [logits[WORDS.index(option)].item() for option in one["options"]]
        right += scores.index(max(scores)) == one["right"]
    return right / len(questions)


def test_a_local_task_gives_the_accuracy_that_the_models_own_logits_give(model: Loaded, tasks: Path) -> None:
    (score,) = harness.run(model, ["tiny_colours"], include=[tasks])
    share = accuracy_by_hand(model, QUESTIONS)
    slack = 1.959964 * math.sqrt(share * (1 - share) / (len(QUESTIONS) - 1))  # the harness's sample standard error
    assert (score.name, score.n, score.lower_is_better) == ("harness/tiny_colours/acc", 4, False)
    assert score.value == pytest.approx(share)
    assert (score.low, score.high) == pytest.approx((share - slack, share + slack))

    (score,) = harness.run(model, ["tiny_colours"], 2, include=[tasks])
    assert (score.value, score.n) == (pytest.approx(accuracy_by_hand(model, QUESTIONS[:2])), 2)


def test_an_lvlm_answers_with_its_language_part(model: Loaded, tasks: Path) -> None:
    import torch
    import transformers

    seen: Any = transformers.CLIPVisionConfig(
        hidden_size=16, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2, image_size=4, patch_size=2
    )
    shape = transformers.LlavaConfig(vision_config=seen, text_config=model.model.config, image_token_index=2)
    lvlm: Any = transformers.LlavaForConditionalGeneration(shape).eval()
    lvlm.model.language_model.load_state_dict(model.model.model.state_dict())
    lvlm.lm_head.load_state_dict(model.model.lm_head.state_dict())
    assert lvlm.dtype == torch.float32
    loaded = Loaded("lvlm", "d", lvlm, SimpleNamespace(tokenizer=model.tokenizer), multimodal=True)
    assert harness.run(loaded, ["tiny_colours"], include=[tasks]) == harness.run(
        model, ["tiny_colours"], include=[tasks]
    )


def test_what_cannot_be_asked_is_said_in_words(model: Loaded, tasks: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="at least one task"):
        harness.run(model, [], include=[tasks])
    with pytest.raises(InputError, match="no such folder"):
        harness.run(model, ["tiny_colours"], include=[tasks / "nowhere"])
    (tasks.parent / "colours.jsonl").unlink()
    with pytest.raises(InputError, match=r"tiny_colours: the harness could not run them: .*colours\.jsonl"):
        harness.run(model, ["tiny_colours"], include=[tasks])

    def nothing(_: str) -> None: ...

    monkeypatch.setattr("importlib.util.find_spec", nothing)
    with pytest.raises(InputError, match=r"safegraft\[harness\]"):
        harness.run(model, ["tiny_colours"])


@pytest.mark.slow  # reads the harness's own thousands of tasks
def test_all_unknown_tasks_are_named_with_the_likeliest_ones_meant(model: Loaded, tasks: Path) -> None:
    with pytest.raises(InputError) as raised:
        harness.run(model, ["tiny_color", "hellaswag", "no such thing at all"], include=[tasks])
    first, second = raised.value.problems
    assert (first.where, "did you mean tiny_colours" in first.message) == ("tiny_color", True)
    assert second.where == "no such thing at all"
