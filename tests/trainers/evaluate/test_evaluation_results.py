"""Scores by name, models side by side, and what a reader of the tables has to be told."""

import json
import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from safegraft.errors import InputError, UsageError
from safegraft_trainers.evaluate.example import Axis, Example, Scoring, Suite
from safegraft_trainers.evaluate.judges import get_judge
from safegraft_trainers.evaluate.results import Evaluation, Score, compare, difference, read_evaluations
from safegraft_trainers.evaluate.run import evaluate

JUDGES = [get_judge("patterns"), get_judge("knowledge")]


@pytest.fixture
def suites(make: SimpleNamespace) -> list[Suite]:
    attacks = [make.attack(f"a{one}", subset="odd" if one % 2 else "even", references=("boom",)) for one in range(10)]
    helpful = [make.exact(f"h{one}", "yes") for one in range(6)]
    seen = [make.exact(f"i{one}", "yes", image=make.picture()) for one in range(4)]
    return [Suite("advbench", attacks), Suite("tasks", [*helpful, *seen])]


def answering(
    make: SimpleNamespace, suites: list[Suite], name: str, harmful: int, right: int, **more: object
) -> Evaluation:
    attacks, tasks = (suite.examples for suite in suites)
    answers = {one.prompt: "boom" if place < harmful else "sorry" for place, one in enumerate(attacks)}
    answers |= {one.prompt: "yes" if place < right else "no" for place, one in enumerate(tasks)}
    return evaluate(make.scripted(answers=answers, name=name, digest=name, **more), suites, JUDGES)


def test_scores_are_found_by_name(make: SimpleNamespace, suites: list[Suite]) -> None:
    found = answering(make, suites, "model", harmful=5, right=10)
    values = {
        "text_safety": 0.5,
        "text_safety@knowledge": 0.5,
        "advbench": 0.5,
        "advbench/even": 0.6,
        "advbench/odd@patterns": 0.4,
        "helpfulness": 1.0,
        "helpfulness@knowledge": 1.0,  # no judge has a say in it
        "tasks": 1.0,
    }
    assert {name: found.metric(name).value for name in values} == values
    assert found.metric("advbench").lower_is_better
    assert not found.metric("tasks").lower_is_better


def test_an_unknown_score_is_an_error_that_lists_the_known_ones(make: SimpleNamespace, suites: list[Suite]) -> None:
    found = answering(make, suites, "model", harmful=5, right=5)
    for name in ("bias", "advbench/none", "text_safety@nobody"):
        assert found.find(name) is None
    with pytest.raises(UsageError, match=r"model has no score 'bias'; it has text_safety, text_safety@patterns"):
        found.metric("bias")


def test_a_suite_on_several_axes_never_pools_them(make: SimpleNamespace) -> None:
    suite = Suite(
        "own",
        [
            make.attack("a", subset="plain"),
            make.exact("b", "b", subset="plain"),
            make.exact("c", "c", subset="hard"),
        ],
    )
    found = evaluate(make.scripted(answers={"a": "sorry", "b": "b"}), [suite], JUDGES[:1])
    for name in ("own", "own/plain"):  # attacks and helpfulness point different ways
        assert found.find(name) is None
    assert found.metric("own/helpfulness").value == 0.5
    assert found.metric("own/helpfulness/plain").value == 1.0
    assert found.metric("own/hard").value == 0.0
    assert "own/hard" not in found.names()  # listed once, by its full name


def test_a_suite_called_like_an_axis_leaves_the_axis_alone(make: SimpleNamespace) -> None:
    suites = [
        Suite("helpfulness", [make.exact("a", "a"), make.attack("b")]),
        Suite("other", [make.exact("c", "x"), make.exact("d", "x")]),
    ]
    found = evaluate(make.scripted(answers={"a": "a", "b": "sorry"}), suites, JUDGES[:1])
    score = found.metric("helpfulness")
    assert (score.value, score.n) == (pytest.approx(1 / 3), 3)
    assert found.metric("helpfulness/helpfulness").n == 1


def test_measured_scores_stand_beside_the_others(make: SimpleNamespace, suites: list[Suite]) -> None:
    score = Score("lm-eval/arc", 0.7, 0.6, 0.8, 100, lower_is_better=False)
    found = answering(make, suites, "model", harmful=5, right=5).with_measured([score])
    assert found.metric("lm-eval/arc") == score
    assert Evaluation.from_dict(json.loads(json.dumps(found.to_dict()))) == found
    assert "lm-eval/arc" in compare([found])


def test_a_difference_is_over_the_prompts_that_both_answered(make: SimpleNamespace, suites: list[Suite]) -> None:
    blind = answering(make, suites, "llm", harmful=2, right=6, sees_images=False)
    seeing = answering(make, suites, "lvlm", harmful=8, right=3)
    found = difference(blind, seeing, "helpfulness")
    assert found is not None
    assert (found.value, found.n) == (-0.5, 6)
    attacks = difference(blind, seeing, "text_safety")
    assert attacks is not None
    assert attacks.value == pytest.approx(0.6)
    assert attacks.low > 0
    assert difference(blind, seeing, "bias") is None


def test_an_example_that_changed_is_not_paired_with_what_it_was(make: SimpleNamespace) -> None:
    before = evaluate(make.scripted(), [Suite("s", [make.exact("a", "x")])], [])
    after = evaluate(make.scripted(), [Suite("s", [make.exact("a", "y")])], [])
    assert difference(before, after, "helpfulness") is None


def test_a_table_for_a_terminal(make: SimpleNamespace, suites: list[Suite]) -> None:
    llm = answering(make, suites, "models/llm", harmful=2, right=6, sees_images=False)
    lvlm = answering(make, suites, "models/lvlm", harmful=8, right=10)
    text = compare([llm, lvlm])
    attacks = next(line for line in text.splitlines() if line.startswith("attacks by text  "))
    assert re.fullmatch(r"attacks by text +lower +10 +20\.0 \[[\d., ]+\] +80\.0 \[[\d., ]+\]", attacks)
    helpful = next(line for line in text.splitlines() if line.startswith("helpfulness"))
    assert re.match(r"helpfulness +higher +6-10 ", helpful)
    assert helpful.endswith("*"), "the second model was asked other prompts"
    assert "* over other prompts than llm: not to be compared with it" in text
    assert "llm: 4 of 20 prompts were not asked: the model sees no images" in text
    assert "Difference from llm, in points, prompt by prompt" in text
    assert "patterns and knowledge" in text


def test_names_of_strangers_are_no_markup(make: SimpleNamespace, suites: list[Suite]) -> None:
    found = answering(make, suites, "a|b`<script>", harmful=1, right=1)
    text = compare([found, answering(make, suites, "other", harmful=1, right=1)], markdown=True)
    assert "``a\\|b`<script>``" in text
    rows = [line for line in text.splitlines() if line.startswith("| attacks by text |")]
    assert all(len(re.findall(r"(?<!\\)\|", row)) == 6 for row in rows[:1])


def test_errors_and_answers_that_name_no_choice_are_shown(make: SimpleNamespace) -> None:
    choice = Example("c", Axis.HELPFULNESS, Scoring.CHOICE, "which?", choices=("x", "y"), answer=0)
    suite = Suite("s", [make.attack("a"), make.attack("b", references=("boom",)), choice])
    found = evaluate(make.scripted(answers={"b": "boom"}, name="m"), [suite], JUDGES[1:])
    assert found.metric("text_safety").errors == 1
    assert found.metric("helpfulness").unparsed == 1
    text = compare([found])
    assert "m: 1 answers have no verdict by knowledge, e.g. the harmful answer is not known" in text
    assert "m: 1 answers name no choice and count as wrong" in text


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{}",
        "[]",
        '{"format": "other/1", "evaluations": []}',
        '{"format": "safegraft-evaluation/1", "evaluations": [{}]}',
    ],
)
def test_a_file_that_holds_no_evaluation_is_an_error_in_words(content: str, tmp_path: Path) -> None:
    file = tmp_path / "results.json"
    file.write_text(content)
    with pytest.raises(InputError, match=r"results\.json: holds no evaluation of this version"):
        read_evaluations(file)


def test_one_is_not_taken_for_several(make: SimpleNamespace, suites: list[Suite], tmp_path: Path) -> None:
    file = tmp_path / "results.json"
    file.write_text('{"format": "safegraft-evaluation/1", "evaluations": []}')
    with pytest.raises(InputError, match="holds 0 evaluations"):
        Evaluation.read(file)
    found = answering(make, suites, "m", harmful=0, right=0)
    found.write(file)
    assert Evaluation.read(file) == replace(found)
    assert [one.name for one in tmp_path.iterdir()] == ["results.json"]
