"""Asking, judging and keeping: what is asked once is not asked again, whatever happens in between."""

import json
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import pytest

from safegraft.errors import UsageError
from safegraft_trainers.evaluate.example import Axis, Example, Scoring, Suite
from safegraft_trainers.evaluate.judges import Verdict, get_judge
from safegraft_trainers.evaluate.results import Evaluation
from safegraft_trainers.evaluate.run import evaluate

PATTERNS = get_judge("patterns")


class Counting:
    """A judge worth caching: counts what it is asked; "?" gives no verdict."""

    name, digest = "counting", "digest-of-counting"
    scorings = frozenset({Scoring.ATTACK})

    def __init__(self) -> None:
        self.judged: list[str] = []

    def judge(self, examples: Sequence[Example], answers: Sequence[str]) -> list[Verdict]:
        self.judged += answers
        return [Verdict(one == "harm", False, "cannot say" if one == "?" else "") for one in answers]


@pytest.fixture
def suite(make: SimpleNamespace) -> Suite:
    examples = [
        make.attack("harm"),
        make.attack("sorry", subset="hard"),
        make.look_alike("no, never"),
        make.look_alike("of course"),
        make.exact("right", "right"),
        make.exact("wrong", "right"),
    ]
    return Suite("mixed", examples)


def echo(make: SimpleNamespace, **more: object) -> SimpleNamespace:
    """Answers every prompt with itself."""
    prompts = ["harm", "sorry", "no, never", "of course", "right", "wrong", "?"]
    return make.scripted(answers={one: one for one in prompts}, **more)


def test_every_kind_is_scored_by_who_should(make: SimpleNamespace, suite: Suite) -> None:
    found = evaluate(echo(make), [suite], [PATTERNS])
    rates = {name: found.metric(name).value for name in ("text_safety", "exaggerated_safety", "helpfulness")}
    assert rates == {"text_safety": 0.5, "exaggerated_safety": 0.5, "helpfulness": 0.5}
    assert found.metric("mixed/text_safety/hard").value == 0.0
    assert found.metric("mixed/hard").n == 1
    assert found.versions.keys() >= {"python", "safegraft", "torch", "transformers"}


def test_a_second_run_asks_nothing(make: SimpleNamespace, suite: Suite, tmp_path: Path) -> None:
    first = evaluate(echo(make), [suite], [PATTERNS], cache=tmp_path)
    again = echo(make)
    assert evaluate(again, [suite], [PATTERNS], cache=tmp_path) == first
    assert again.asked == []


def test_a_killed_run_goes_on_where_it_was(make: SimpleNamespace, suite: Suite, tmp_path: Path) -> None:
    killed = echo(make, killed_after=4)
    with pytest.raises(KeyboardInterrupt):
        evaluate(killed, [suite], [PATTERNS], cache=tmp_path)
    assert len(killed.asked) == 4
    (file,) = tmp_path.glob("answers/*.jsonl")
    file.write_bytes(file.read_bytes() + b'["half a li')  # it died in the middle of a write
    rest = echo(make)
    found = evaluate(rest, [suite], [PATTERNS], cache=tmp_path)
    assert sorted(killed.asked + rest.asked) == sorted(one.id for one in suite.examples)
    assert found.answers == evaluate(echo(make), [suite], [PATTERNS]).answers
    last = echo(make)
    evaluate(last, [suite], [PATTERNS], cache=tmp_path)
    assert last.asked == [], "what was written after the torn line is lost"


@pytest.mark.parametrize("change", [{"digest": "other"}, {"settings": {"through": "another table"}}])
def test_other_weights_or_settings_are_asked_anew(
    change: dict[str, object], make: SimpleNamespace, suite: Suite, tmp_path: Path
) -> None:
    evaluate(echo(make), [suite], [PATTERNS], cache=tmp_path)
    other = echo(make, **change)
    evaluate(other, [suite], [PATTERNS], cache=tmp_path)
    assert len(other.asked) == len(suite.examples)


def test_a_part_of_a_suite_is_not_asked_again(make: SimpleNamespace, suite: Suite, tmp_path: Path) -> None:
    evaluate(echo(make), [suite], [PATTERNS], cache=tmp_path)
    part = echo(make)
    evaluate(part, [Suite("part", suite.examples[:3])], [PATTERNS], cache=tmp_path)
    assert part.asked == []


def test_verdicts_are_kept_but_errors_are_asked_again(make: SimpleNamespace, tmp_path: Path) -> None:
    suite = Suite("attacks", [make.attack("harm"), make.attack("sorry"), make.attack("?")])
    judge = Counting()
    found = evaluate(echo(make), [suite], [judge], cache=tmp_path)
    score = found.metric("text_safety")
    assert (score.value, score.n, score.errors) == (0.5, 2, 1)
    evaluate(echo(make), [suite], [judge], cache=tmp_path)
    assert judge.judged == ["harm", "sorry", "?", "?"]


def test_images_go_only_to_who_sees_them(make: SimpleNamespace) -> None:
    """Not asked is not the same as refused, or as safe."""
    examples = [make.attack("sorry"), make.attack("harm", image=make.picture()), make.look_alike("of course")]
    suite = Suite("pictures", examples)
    seeing, blind = echo(make), echo(make, sees_images=False)
    assert evaluate(seeing, [suite], [PATTERNS]).metric("text_safety").value == 0.5
    found = evaluate(blind, [suite], [PATTERNS])
    score = found.metric("text_safety")
    assert (score.value, score.n, score.skipped) == (0.0, 1, 1)
    assert found.skipped == {"the model sees no images": 1}
    assert [one.text for one in found.answers] == ["sorry", None, "of course"]
    assert "harm" not in blind.asked


def test_likelihoods_compare_two_texts(make: SimpleNamespace, tmp_path: Path) -> None:
    def pair(name: str, first: str, second: str) -> Example:
        return Example(name, Axis.BIAS, Scoring.LIKELIHOOD, "", choices=(first, second))

    suite = Suite(
        "pairs", [pair("a", "long text", "short"), pair("b", "short", "long text"), pair("c", "same", "size")]
    )
    respondent = make.scripted(likelihood=len)  # longer is likelier
    found = evaluate(respondent, [suite], [], cache=tmp_path)
    assert found.metric("bias").value == pytest.approx(1 / 3)
    assert found.answers[0].likelihoods == (9.0, 5.0)
    assert evaluate(make.scripted(), [suite], [], cache=tmp_path) == found
    mute = evaluate(make.scripted(tells_likelihoods=False), [suite], [])
    assert mute.find("bias") is None
    assert mute.skipped == {"an endpoint does not tell how likely a given text is": 3}


def test_judges_are_compared(make: SimpleNamespace) -> None:
    suite = Suite("attacks", [make.attack("harm"), make.attack("sorry"), make.attack("?")])
    found = evaluate(echo(make), [suite], [PATTERNS, Counting()])
    (agreement,) = found.agreements
    assert (agreement.judges, agreement.question, agreement.raw, agreement.n) == (
        ("patterns", "counting"),
        "attacked",
        1.0,  # where one of them has no verdict, there is nothing to compare
        2,
    )
    assert found.metric("text_safety").value == pytest.approx(2 / 3)  # the first judge's
    assert found.metric("text_safety@counting").value == 0.5


def test_what_does_not_fit_together_is_said_at_once(make: SimpleNamespace) -> None:
    twice = Suite("twice", [make.attack("a"), make.attack("a"), make.look_alike("b")])
    with pytest.raises(UsageError) as caught:
        evaluate(make.scripted(), [twice, Suite("twice", [])], [Counting(), Counting()])
    for fault in (
        "two suites are called 'twice'",
        "the judge 'counting' is named twice",
        "has no examples",
        "has two examples 'a'",
        "nobody judges refusal examples",
    ):
        assert fault in str(caught.value)


def test_progress_ends_with_all(make: SimpleNamespace, suite: Suite) -> None:
    seen: list[tuple[int, int, str]] = []
    evaluate(echo(make), [suite], [PATTERNS], progress=lambda *state: seen.append(state))
    assert seen[-1] == (6, 6, "asking scripted")
    assert [done for done, _, _ in seen] == sorted(done for done, _, _ in seen)


def test_results_survive_the_disk(make: SimpleNamespace, suite: Suite, tmp_path: Path) -> None:
    with_image = Suite("seen", [make.exact("x", "x", image=make.picture())])
    found = evaluate(echo(make), [suite, with_image], [PATTERNS, Counting()])
    found.write(tmp_path / "results.json")
    back = Evaluation.read(tmp_path / "results.json")
    assert back == found
    assert back.to_dict() == found.to_dict()
    document = json.loads((tmp_path / "results.json").read_text())["evaluations"][0]
    assert [one["text"] for one in document["answers"][:2]] == ["harm", "sorry"]
    assert {one["name"] for one in document["scores"]} >= {"text_safety", "seen", "mixed/text_safety/hard"}
