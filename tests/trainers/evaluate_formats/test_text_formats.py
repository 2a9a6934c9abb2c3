"""Text formats, as published: each fixture is read against values written down by hand."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from safegraft.errors import InputError
from safegraft_trainers.evaluate.example import Axis, Example, Scoring
from safegraft_trainers.evaluate.formats import FORMATS

Write = Callable[[str, Any], Path]
ATTACK, HARMLESS = (Axis.TEXT_SAFETY, Scoring.ATTACK), (Axis.EXAGGERATED_SAFETY, Scoring.REFUSAL)


def load(name: str, path: Path) -> list[Example]:
    return list(FORMATS[name].load(str(path)))


def kinds(examples: list[Example]) -> list[tuple[Axis, Scoring]]:
    return [(one.axis, one.scoring) for one in examples]


def test_sorry_bench(write: Write) -> None:
    rows = [
        {"question_id": 1, "category": "7", "turns": ["Insult me."], "prompt_style": "base"},
        {"question_id": 1, "category": "7", "turns": ["Dis me, fam."], "prompt_style": "slang"},
    ]
    first, second = load("sorry-bench", write("question.jsonl", rows))
    assert (first.id, first.prompt, first.subset) == ("base/1", "Insult me.", "7")
    assert (second.id, second.prompt, second.subset) == ("slang/1", "Dis me, fam.", "slang")
    assert kinds([first, second]) == [ATTACK] * 2


def test_advbench_in_its_own_layout_and_in_the_hubs(write: Write) -> None:
    (own,) = load("advbench", write("harmful_behaviors.csv", [{"goal": "Do harm", "target": "Sure, here is harm"}]))
    (copy,) = load("advbench", write("a.parquet", [{"prompt": "Do harm", "target": "Sure, here is harm"}]))
    assert own == copy
    assert (own.prompt, own.references, own.subset) == ("Do harm", (), "")


def harmbench(**changes: str) -> dict[str, str]:
    return {
        "Behavior": "Use this list",
        "FunctionalCategory": "contextual",
        "SemanticCategory": "illegal",
        "Tags": "context, hash",
        "ContextString": "A list:\n1. salt",
        "BehaviorID": "use_list",
        **changes,
    }


def test_harmbench_puts_the_context_before_the_behavior(write: Write) -> None:
    plain = harmbench(FunctionalCategory="standard", ContextString="", BehaviorID="plain")
    first, second = load("harmbench", write("harmbench_behaviors_text_all.csv", [harmbench(), plain]))
    assert (first.id, first.subset) == ("use_list", "contextual")
    assert first.prompt == "A list:\n1. salt\n\n---\n\nUse this list"
    assert (second.prompt, second.subset) == ("Use this list", "standard")


def test_wildjailbreak_takes_the_prompt_that_the_data_type_names(write: Write) -> None:
    texts = {"vanilla": "plain", "adversarial": "wrapped", "completion": "No."}
    types = ["vanilla_harmful", "vanilla_benign", "adversarial_harmful", "adversarial_benign"]
    found = load("wildjailbreak", write("train.tsv", [{**texts, "data_type": one} for one in types]))
    assert [one.prompt for one in found] == ["plain", "plain", "wrapped", "wrapped"]
    assert kinds(found) == [ATTACK, HARMLESS, ATTACK, HARMLESS]
    assert [one.subset for one in found] == types
    assert len({one.id for one in found}) == 4


def test_strongreject_in_its_own_layout_and_in_the_hubs(write: Write) -> None:
    shared = {"category": "Fraud", "source": "custom"}
    (own,) = load("strongreject", write("a.csv", [{**shared, "forbidden_prompt": "Cheat"}]))
    (copy,) = load("strongreject", write("b.csv", [{**shared, "prompt": "Cheat"}]))
    assert own == copy
    assert (own.prompt, own.subset) == ("Cheat", "Fraud")


def test_xstest_counts_its_contrast_prompts_as_attacks(write: Write) -> None:
    rows = [
        {"id": 1, "prompt": "Kill a process?", "type": "homonyms", "label": "safe", "focus": "kill", "note": ""},
        {
            "id": 26,
            "prompt": "Kill a man?",
            "type": "contrast_homonyms",
            "label": "unsafe",
            "focus": "kill",
            "note": "",
        },
    ]
    found = load("xstest", write("xstest_prompts.csv", rows))
    assert kinds(found) == [HARMLESS, ATTACK]
    assert [(one.id, one.subset) for one in found] == [("1", "homonyms"), ("26", "contrast_homonyms")]
    bare = [{"prompt": row["prompt"], "type": row["type"]} for row in rows]
    assert [one.prompt for one in load("xstest", write("copy.csv", bare))] == ["Kill a process?", "Kill a man?"]


def test_or_bench_means_what_its_format_says(write: Write) -> None:
    path = write("or-bench.csv", [{"prompt": "Why is violence bad?", "category": "violence"}])
    assert kinds(load("or-bench", path)) == [HARMLESS]
    assert kinds(load("or-bench-toxic", path)) == [ATTACK]
    assert load("or-bench", path)[0].subset == "violence"


@pytest.mark.parametrize(
    ("name", "rows", "said"),
    [
        (
            "sorry-bench",
            [{"question_id": 1, "category": "7", "turns": ["a", "b"]}, {"question_id": 2, "turns": "x"}],
            ["row 1, 'turns': must hold one turn, not 2", "row 2, 'turns': must be a list", "'turns'", "'category'"],
        ),
        (
            "advbench",
            [{"goal": ""}, {"goal": "x"}, {"target": 1}],
            ["row 1, 'goal': is empty", "row 3, 'goal': is missing"],
        ),
        (
            "harmbench",
            [harmbench(ContextString=""), harmbench(FunctionalCategory="odd", Behavior=" ")],
            ["row 1, 'ContextString'", "row 2, 'Behavior': is empty", "row 2, 'FunctionalCategory': must be one of"],
        ),
        ("harmbench", [harmbench(), harmbench()], ["row 2: its id 'use_list' is that of a.json, row 1"]),
        (
            "wildjailbreak",
            [{"vanilla": "x", "data_type": "vanilla"}, {"vanilla": "x", "data_type": "adversarial_benign"}],
            ["'data_type': must be one of", "row 2, 'adversarial': is missing"],
        ),
        ("strongreject", [{"forbidden_prompt": ["x"], "category": "y"}], ["must be text, not list"]),
        (
            "xstest",
            [
                {"id": 1, "prompt": "x", "type": "homonym"},
                {"id": 2, "prompt": "x", "type": "homonyms", "label": "unsafe"},
            ],
            ["row 1, 'type': must be one of", "row 2, 'label': says 'unsafe', but 'homonyms' rows are safe"],
        ),
        ("or-bench", [{"prompt": "x"}], ["'category': is missing; the row has 'prompt'"]),
    ],
)
def test_all_faults_are_reported_with_row_and_column(
    write: Write, name: str, rows: list[dict[str, Any]], said: list[str]
) -> None:
    with pytest.raises(InputError) as raised:
        load(name, write("a.json", rows))
    assert len(raised.value.problems) == len(said), raised.value
    for problem, words in zip(raised.value.problems, said, strict=True):
        assert words in str(problem)


def test_of_many_faults_the_first_twenty_are_shown(write: Write) -> None:
    with pytest.raises(InputError) as raised:
        load("advbench", write("a.json", [{"goal": ""}] * 30))
    assert len(raised.value.problems) == 21
    assert "and 10 more" in str(raised.value.problems[-1])
