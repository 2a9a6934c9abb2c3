"""The rewards of online safety tuning, by hand."""

from collections.abc import Sequence
from typing import Any

import pytest
from PIL import Image

from safegraft.errors import InputError, UsageError
from safegraft_trainers.evaluate.example import Axis, Example, Scoring
from safegraft_trainers.evaluate.judges import Verdict, get_judge
from safegraft_trainers.safety_rewards import check_judge, knowledge, safety_reward

BOTH = frozenset({Scoring.ATTACK, Scoring.REFUSAL})


class Scripted:
    """A judge that says what it is told to, and remembers what it was shown."""

    name, digest = "scripted", ""

    def __init__(self, *verdicts: Verdict, scorings: frozenset[Scoring] = BOTH) -> None:
        self.verdicts, self.scorings = list(verdicts), scorings
        self.seen: list[tuple[Example, str]] = []

    def judge(self, examples: Sequence[Example], answers: Sequence[str]) -> list[Verdict]:
        self.seen += zip(examples, answers, strict=True)
        return self.verdicts


def said(text: str, role: str = "user", image: bool = False) -> list[dict[str, Any]]:
    picture = [{"type": "image", "text": ""}] if image else []
    return [{"role": role, "content": [*picture, {"type": "text", "text": text}]}]


def test_right_is_refusing_harm_and_answering_the_rest() -> None:
    refused, answered, attacked = Verdict(False, True), Verdict(False, False), Verdict(True, False)
    refused_and_told = Verdict(True, True)
    table = [
        (True, refused, 2.0),
        (True, attacked, -2.0),
        (True, refused_and_told, -2.0),
        (True, answered, -2.0),  # neither harm nor a refusal: not what is wished
        (False, answered, 0.5),
        (False, refused, -0.5),
    ]
    reward = safety_reward(Scripted(*(verdict for _, verdict, _ in table)), harmful_weight=2.0, benign_weight=0.5)
    rows = {"prompts": [said("w")] * len(table), "completions": [said("v", "assistant")] * len(table)}
    assert reward(**rows, unsafe=[harmful for harmful, _, _ in table]) == [wanted for _, _, wanted in table]


def test_a_judge_that_sees_no_refusals_counts_harm_alone() -> None:
    judge = Scripted(Verdict(False, False), Verdict(True, False), scorings=frozenset({Scoring.ATTACK}))
    rows = {"prompts": [said("w")] * 2, "completions": [said("v", "assistant")] * 2}
    assert safety_reward(judge)(**rows, unsafe=[True, True]) == [1.0, -1.0]


def test_the_judge_is_shown_the_prompt_its_image_and_the_answer() -> None:
    judge = Scripted(Verdict(False, True), Verdict(False, False))
    red = Image.new("RGB", (3, 2), (255, 0, 0))
    system = {"role": "system", "content": "be good"}
    safety_reward(judge)(
        prompts=[[system, *said("make it", image=True)], said("bake it")],
        completions=[[{"role": "assistant", "content": "no"}], said("yes", "assistant")],
        unsafe=[True, False],
        images=[[red], []],
    )
    (harmful, refusal), (harmless, answer) = judge.seen
    assert (harmful.prompt, harmful.system, refusal) == ("make it", "be good", "no")
    assert (harmful.axis, harmful.scoring) == (Axis.MULTIMODAL_SAFETY, Scoring.ATTACK)
    assert harmful.image is not None
    assert harmful.image.open().getcolors() == [(6, (255, 0, 0))]
    assert (harmless.prompt, harmless.image, answer) == ("bake it", None, "yes")
    assert (harmless.axis, harmless.scoring) == (Axis.EXAGGERATED_SAFETY, Scoring.REFUSAL)


def test_no_verdict_is_no_reward_and_a_mute_judge_an_error() -> None:
    logged: dict[str, float] = {}
    rows = {"prompts": [said("w")] * 2, "completions": [said("v", "assistant")] * 2, "unsafe": [True, True]}
    judge = Scripted(Verdict(False, False, "timed out"), Verdict(False, True))
    assert safety_reward(judge)(**rows, log_metric=logged.__setitem__) == [None, 1.0]
    assert logged == {"unjudged": 0.5}
    with pytest.raises(InputError, match="judge scripted: no verdict on 2 answers: timed out"):
        safety_reward(Scripted(*[Verdict(False, False, "timed out")] * 2))(**rows)


def test_a_judge_must_have_verdicts_on_the_kinds_of_prompts_there_are() -> None:
    attacks = Scripted(scorings=frozenset({Scoring.ATTACK}))
    check_judge(attacks, [True, True])
    with pytest.raises(UsageError, match="no verdict on harmless prompts"):
        check_judge(attacks, [True, False])
    with pytest.raises(UsageError, match="no verdict on harmful prompts"):
        check_judge(Scripted(scorings=frozenset({Scoring.REFUSAL})), [True, False])


def test_the_pattern_judge_rewards_a_real_refusal() -> None:
    completions = [said("I'm sorry, but I can't help with that.", "assistant"), said("Mix the flour.", "assistant")]
    for unsafe, wanted in ((True, [1.0, -1.0]), (False, [-1.0, 1.0])):
        reward = safety_reward(get_judge("patterns"))
        assert reward(prompts=[said("w")] * 2, completions=completions, unsafe=[unsafe] * 2) == wanted


@pytest.mark.parametrize(
    ("answer", "reference", "reward"),
    [
        ("Paris", "paris", 1.0),
        ("I believe it is **Paris**, of course; what else?", "Paris", 1.0),
        ("PARIS.", "Paris", 1.0),
        ("It is a red, square thing", "red square", 1.0),
        ("a square red thing", "red square", 0.0),
        ("Parisian", "Paris", 0.0),
        ("", "Paris", 0.0),
        ("Paris", "", None),
        ("Paris", " .", None),
    ],
)
def test_knowledge_is_the_reference_in_the_answer_whatever_stands_around_it(
    answer: str, reference: str, reward: float | None
) -> None:
    told = {"completions": [said(answer, "assistant")], "reference": [reference]}
    assert knowledge(**told, unsafe=[False]) == [reward]
    assert knowledge(**told, unsafe=[True]) == [None]  # a harmful prompt has no right answer
