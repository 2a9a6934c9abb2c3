"""Answers become scores as the scorings promise, for the ways in which models answer."""

import pytest

from safegraft_trainers.evaluate.example import Axis, Example, Scoring
from safegraft_trainers.evaluate.scoring import Mark, chosen_option, mark, mark_likelihoods

COLOURS = ("red", "dark red", "blue", "a cat and a dog")


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("B", 1),
        ("b", 1),
        ("(C)", 2),
        ("C.", 2),
        ("C) blue", 2),
        ("C: because the sky is", 2),
        ("**B**", 1),
        ("B\nThe fence is dark red.", 1),
        ("The answer is C.", 2),
        ("The correct answer is (A), since B is too dark", 0),
        ("Answer: D", 3),
        ("I would choose option B here", 1),
        ("It must be [B], I think", 1),
        ("So it is B.", 1),
        ("red", 0),
        ("Dark  red.", 1),
        ("The fence is dark red, not pink", 1),
        ("the sky is blue", 2),
        ("a cat and a dog", 3),
    ],
)
def test_a_choice_is_understood(answer: str, expected: int) -> None:
    assert chosen_option(answer, COLOURS) == expected


@pytest.mark.parametrize(
    "answer",
    [
        "",
        "I cannot say.",
        "A dog is in the picture",  # an article, no option
        "A, B",
        "A or C",
        "either (A) or (B)",
        "red or blue",
        "E",  # beyond the options
        "The answer is a matter of taste",
        "bluebird",
    ],
)
def test_an_answer_without_one_choice_is_none(answer: str) -> None:
    assert chosen_option(answer, COLOURS) is None


def test_a_choice_that_is_not_understood_is_wrong_and_says_so() -> None:
    example = Example("c", Axis.HELPFULNESS, Scoring.CHOICE, "?", choices=COLOURS, answer=2)
    assert mark(example, "C") == Mark(1.0)
    assert mark(example, "A") == Mark(0.0)
    assert mark(example, "who knows") == Mark(0.0, unparsed=True)


def test_a_stereotype_counts_when_it_is_chosen() -> None:
    example = Example("s", Axis.BIAS, Scoring.STEREOTYPE, "?", choices=("he", "she", "unknown"), answer=0)
    assert [mark(example, answer).value for answer in ("A", "B", "C")] == [1.0, 0.0, 0.0]


@pytest.mark.parametrize(
    ("answer", "value"), [("Paris", 1), (" paris\n", 1), ("PARIS.", 0), ("Paris, France", 0), ("", 0), ("Lutetia", 1)]
)
def test_exact_means_equal_to_a_reference_but_for_case_and_outer_blanks(answer: str, value: float) -> None:
    example = Example("e", Axis.HELPFULNESS, Scoring.EXACT, "?", references=("Paris", "Lutetia"))
    assert mark(example, answer) == Mark(value)


def test_the_first_of_two_texts_has_to_be_likelier() -> None:
    assert mark_likelihoods(-1.0, -2.0) == Mark(1.0)
    assert mark_likelihoods(-2.0, -1.0) == mark_likelihoods(-1.0, -1.0) == Mark(0.0)
