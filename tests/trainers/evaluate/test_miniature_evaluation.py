"""evaluate() finds on the shipped checkpoints exactly the rates that their own probes count."""

import io

import pytest

from safegraft_trainers.evaluate.example import Axis, Example, Picture, Scoring, Suite
from safegraft_trainers.evaluate.judges import get_judge
from safegraft_trainers.evaluate.judges.patterns import PatternJudge, RefusalList
from safegraft_trainers.evaluate.respondents import TransformersRespondent
from safegraft_trainers.evaluate.run import evaluate
from safegraft_trainers.lab.probes import CHECKPOINTS, LONGEST_ANSWER, Probe, Respondent, ask, load_probes
from safegraft_trainers.loading import load

SCORINGS = {
    Axis.TEXT_SAFETY: Scoring.ATTACK,
    Axis.MULTIMODAL_SAFETY: Scoring.ATTACK,
    Axis.EXAGGERATED_SAFETY: Scoring.REFUSAL,
    Axis.HELPFULNESS: Scoring.EXACT,
}


def example(place: int, probe: Probe) -> Example:
    image = None
    if probe.image is not None:
        written = io.BytesIO()
        probe.image.save(written, "PNG")
        image = Picture(written.getvalue(), f"probe {place}")
    axis = Axis(probe.axis)
    return Example(f"p{place}", axis, SCORINGS[axis], probe.prompt, image, probe.set, references=(probe.reference,))


@pytest.fixture(scope="module")
def suite() -> Suite:
    return Suite("probes", [example(place, probe) for place, probe in enumerate(load_probes())])


@pytest.mark.parametrize("name", ["aligned-llm", "adapted-lvlm", "safety-sft-lvlm", "safety-sft-replay-lvlm"])
def test_the_same_rates_as_the_probes_own_count(name: str, suite: Suite) -> None:
    sorry = PatternJudge(RefusalList("miniature", "", ("sorry",), at_start=True, any_case=False))
    respondent = TransformersRespondent(
        load(str(CHECKPOINTS / name), dtype="float32"), max_new_tokens=LONGEST_ANSWER, batch_size=150
    )
    found = evaluate(respondent, [suite], [sorry, get_judge("knowledge")])
    counted = ask(Respondent.load(CHECKPOINTS / name))
    rates = {
        "text_safety": counted.text_safety.keyword,
        "text_safety@knowledge": counted.text_safety.knowledge,
        "exaggerated_safety": counted.exaggerated_safety.refused,
        "probes/text_lookalike": counted.exaggerated_safety.text,
        "helpfulness": counted.helpfulness.exact,
        "probes/helpfulness/text": counted.helpfulness.text,
        "probes/vqa": counted.helpfulness.vqa,
        "probes/helpfulness/rendered_word": counted.helpfulness.rendered_word,
        "probes/lookalike_with_image": counted.exaggerated_safety.with_image,
    }
    if counted.multimodal_safety is not None:
        rates |= {
            "multimodal_safety": counted.multimodal_safety.keyword,
            "multimodal_safety@knowledge": counted.multimodal_safety.knowledge,
            "probes/multimodal_safety/rendered_word": counted.multimodal_safety.rendered_word.keyword,
        }
    for score, rate in rates.items():
        measured = found.find(score)
        assert (measured and (measured.value, measured.n)) == (rate and (rate.value, rate.n)), score


def test_the_intervals_are_about_those_of_wilson(suite: Suite) -> None:
    respondent = TransformersRespondent(load(str(CHECKPOINTS / "aligned-llm"), dtype="float32"), max_new_tokens=24)
    score = evaluate(respondent, [suite], [get_judge("patterns")]).metric("text_safety")
    low, high = ask(Respondent.load(CHECKPOINTS / "aligned-llm")).text_safety.keyword.interval
    assert (score.low, score.high) == pytest.approx((low, high), abs=0.04)
