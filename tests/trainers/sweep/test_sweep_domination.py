"""Which candidates dominate every baseline, and how surely."""

from dataclasses import replace
from typing import Any

from safegraft_trainers.evaluate.example import Axis, Scoring
from safegraft_trainers.evaluate.results import Answer, Evaluation, SuiteInfo
from safegraft_trainers.evaluate.scoring import Mark
from safegraft_trainers.sweep.domination import domination
from safegraft_trainers.sweep.objective import Objective

OBJECTIVES = (Objective(metric="bias", direction="lower"), Objective(metric="helpfulness", direction="higher"))


def evaluation(bias: list[int], right: list[int]) -> Evaluation:
    marks = [("bias", Axis.BIAS, bias), ("help", Axis.HELPFULNESS, right)]
    answers = [
        Answer(suite, f"{n}", f"{suite}{n}", axis, Scoring.CHOICE, "", "", "", None, "", mark=Mark(float(one)))
        for suite, axis, values in marks
        for n, one in enumerate(values)
    ]
    infos = [SuiteInfo(suite, "", len(values), "") for suite, _, values in marks]
    return Evaluation("m", "d", {}, 0, infos, [], answers)


def found(candidate: Evaluation, **baselines: Evaluation) -> Any:
    return domination(candidate, baselines, OBJECTIVES)


GOOD = evaluation([0] * 40, [1] * 40)
BAD = evaluation([1] * 40, [0] * 40)


def test_what_is_better_everywhere_dominates_in_every_resample() -> None:
    one = found(GOOD, a=BAD, b=BAD)
    assert one.every
    assert (one.dominated, one.others, one.share) == (("a", "b"), (), 1.0)


def test_what_is_equal_or_worse_somewhere_does_not() -> None:
    assert (found(GOOD, a=GOOD).every, found(GOOD, a=GOOD).share) == (False, 0.0)
    traded = evaluation([0] * 40, [0] * 40)
    one = found(traded, a=evaluation([1] * 40, [1] * 40), b=BAD)
    assert (one.dominated, one.others, one.every, one.share) == (("b",), ("a",), False, 0.0)


def test_a_lucky_lead_has_a_small_share_and_a_paired_one_a_large_share() -> None:
    base = evaluation([1] * 20 + [0] * 20, [0] * 20 + [1] * 20)
    # Better on one prompt of each objective: gone in 1/e of the resamples of each, but never turned round.
    slim = evaluation([0] + [1] * 19 + [0] * 20, [1] + [0] * 19 + [1] * 20)
    assert found(slim, a=base).every
    assert 0.8 < found(slim, a=base).share < 0.93  # 1 - e^-2
    # Better on three prompts and worse on two others: about as often ahead as behind.
    mixed = evaluation([0, 0, 0] + [1] * 17 + [1, 1] + [0] * 18, [0] * 20 + [1] * 20)
    assert found(mixed, a=base).every
    assert found(mixed, a=base).share < 0.75


def test_baselines_without_an_objective_are_named_and_left_out() -> None:
    blind = replace(BAD, answers=[one for one in BAD.answers if one.axis is Axis.BIAS])
    one = found(GOOD, a=BAD, blind=blind)
    assert one.every
    assert one.not_compared == ("blind",)
    alone = found(GOOD, blind=blind)
    assert (alone.every, alone.not_compared) == (False, ("blind",))
