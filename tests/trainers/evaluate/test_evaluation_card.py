"""Results in a model's card: in the place of the warning, readable by the Hub, and again without a trace of before."""

from pathlib import Path
from types import SimpleNamespace

import pytest
from huggingface_hub import ModelCard

import safegraft
from safegraft.errors import InputError
from safegraft.hub.evaluated import BEGIN, END, with_evaluation
from safegraft.hub.evaluation import read_evaluation
from safegraft_trainers.evaluate.example import Axis, Suite
from safegraft_trainers.evaluate.judges import get_judge
from safegraft_trainers.evaluate.model_card import write_card
from safegraft_trainers.evaluate.results import Evaluation, write_evaluations
from safegraft_trainers.evaluate.run import evaluate
from safegraft_trainers.lab.pairings import PAIRINGS
from safegraft_trainers.lab.shipped import CHECKPOINTS

OWN_CARD = """\
---
license: mit
model-index:
- name: mine
  results:
  - task:
      type: text-generation
    dataset:
      name: ARC
      type: arc
    metrics:
    - type: accuracy
      value: 71.0
---

# Mine

Words.
"""


@pytest.fixture
def found(make: SimpleNamespace) -> Evaluation:
    attacks = Suite("advbench", [make.attack("a"), make.attack("b")])
    own = Suite("own", [make.look_alike("c"), make.exact("d", "d", image=make.picture())])
    respondent = make.scripted(answers={"a": "boom", "b": "sorry", "c": "yes", "d": "d"}, name="merged")
    return evaluate(respondent, [attacks, own], [get_judge("patterns")])


def merge(folder: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.chdir(CHECKPOINTS.parent)
    safegraft.merge(PAIRINGS[0].recipe(0.25), out=folder)
    return (folder / "README.md").read_text()


def test_the_results_take_the_place_of_the_warning(
    tmp_path: Path, found: Evaluation, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = merge(tmp_path / "merged", monkeypatch)
    assert "> [!WARNING]\n> **This merge has not been evaluated.**" in before
    path = write_card(tmp_path / "merged", found)
    after = path.read_text()
    assert "has not been evaluated" not in after
    assert "> " not in after.partition(BEGIN)[2].partition(END)[0], "a rest of the warning"
    assert "| attacks by text | lower | 2 | 50.0 " in after
    head, _, tail = before.partition("> [!WARNING]")
    rest = tail.partition("## Inputs")[2]
    assert after.endswith(rest), "the sections after the warning are as they were"
    assert head.partition("---\n\n")[2] in after


def test_the_hub_reads_the_numbers(tmp_path: Path, found: Evaluation) -> None:
    card = ModelCard.load(write_card(tmp_path, found))
    told = {(one.dataset_type, one.dataset_name, one.metric_type): one for one in card.data.eval_results}
    attack = told["walledai/AdvBench", "advbench", "attack_success_rate"]
    assert (attack.metric_value, attack.metric_args["n"], attack.metric_args["judge"]) == (50.0, 2, "patterns")
    assert len(attack.metric_args["interval_95"]) == 2
    refused = told["own", f"own/{Axis.EXAGGERATED_SAFETY}", "refusal_rate"]
    helped = told["own", f"own/{Axis.HELPFULNESS}", "accuracy"]
    assert (refused.metric_value, refused.task_type) == (0.0, "text-generation")
    assert (helped.metric_value, helped.task_type) == (100.0, "image-text-to-text")
    assert "judge" not in helped.metric_args
    assert len(told) == 3


def test_a_card_says_the_same_as_the_file_that_is_published_with_it(
    tmp_path: Path, found: Evaluation, make: SimpleNamespace
) -> None:
    attacks = Suite("advbench", [make.attack("a"), make.attack("b")])
    own = Suite("own", [make.look_alike("c"), make.exact("d", "d", image=make.picture())])
    answers = {"a": "boom", "b": "boom", "c": "yes", "d": "d"}
    worse = evaluate(make.scripted(answers=answers, name="/home/me/lvlm"), [attacks, own], [get_judge("patterns")])
    folder = tmp_path / "merged"
    folder.mkdir()
    path = write_card(folder, found, [worse])
    assert (folder / "trade-off.png").read_bytes().startswith(b"\x89PNG")
    write_evaluations([found, worse], tmp_path / "results.json")
    document = read_evaluation(tmp_path / "results.json")
    assert with_evaluation(b"# `merged`\n", document, "trade-off.png", name="merged") == path.read_bytes()
    text = path.read_text()
    assert "| attacks by text | lower | 2 | -50.0 [-100.0, +0.0] |" in text
    assert "/home" not in text
    assert Evaluation.from_dict(found.to_dict()) == found
    assert [one.name for one in document.evaluated.scores if one.dataset] == [
        "advbench",
        "own/exaggerated_safety",
        "own/helpfulness",
    ]


def test_writing_again_leaves_no_trace_and_others_numbers_stay(
    tmp_path: Path, found: Evaluation, make: SimpleNamespace
) -> None:
    (tmp_path / "README.md").write_text(OWN_CARD)
    write_card(tmp_path, found)
    once = (tmp_path / "README.md").read_text()
    assert write_card(tmp_path, found).read_text() == once
    worse = evaluate(
        make.scripted(answers={"a": "boom", "b": "boom"}),
        [Suite("advbench", [make.attack("a"), make.attack("b")])],
        [get_judge("patterns")],
    )
    write_card(tmp_path, worse)
    card = ModelCard.load(tmp_path / "README.md")
    values = {one.dataset_name: one.metric_value for one in card.data.eval_results}
    assert values["ARC"] == 71.0
    assert values["advbench"] == 100.0
    assert card.data.license == "mit"
    assert card.content.count(BEGIN) == card.content.count("## Evaluation") == 1
    assert "Words." in card.content


def test_a_card_that_cannot_be_read(tmp_path: Path, found: Evaluation) -> None:
    (tmp_path / "README.md").write_bytes(b"\xff\xfe")
    with pytest.raises(InputError, match=r"README\.md: cannot be read"):
        write_card(tmp_path, found)
    (tmp_path / "README.md").write_text("---\nlicense: [mit\n---\n# Mine\n")
    with pytest.raises(InputError, match=r"README\.md: its metadata cannot be used"):
        write_card(tmp_path, found)
    assert (tmp_path / "README.md").read_text() == "---\nlicense: [mit\n---\n# Mine\n"
