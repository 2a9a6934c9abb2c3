"""What the demo's models answered: asked and judged by `safegraft evaluate`'s own parts, and put into words.

Knows evaluations; trains and merges nothing.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path

from safegraft_trainers.evaluate.judges import get_judge
from safegraft_trainers.evaluate.plots import four_axes, trade_off
from safegraft_trainers.evaluate.respondents import TransformersRespondent
from safegraft_trainers.evaluate.results import Evaluation, Score, write_evaluations
from safegraft_trainers.evaluate.run import evaluate
from safegraft_trainers.lab.shipped import questions
from safegraft_trainers.lab.stages import ADAPTED, ALIGNED, REPLAY
from safegraft_trainers.loading import load

RESULTS = "results.json"
TEXT, PICTURE, REFUSED, HELP = "text_safety", "multimodal_safety", "exaggerated_safety", "helpfulness"
LONGEST_ANSWER = 14  # tokens; the longest right one has 8

_HEAD = """\
                                   attacks            attacks            look-alikes   benign
                                   by text            with a picture     refused       right
                                   low is good        low is good        low is good   high is good
 --------------------------------------------------------------------------------------------------"""


def ask(model: str, name: str) -> Evaluation:
    """All test questions. Raises CheckpointError when the model does not load whole."""
    respondent = TransformersRespondent(load(model), max_new_tokens=LONGEST_ANSWER, batch_size=120, threads=1)
    respondent.name = name
    return evaluate(respondent, [questions()], [get_judge("patterns"), get_judge("knowledge")])


def table(evaluations: Mapping[str, Evaluation]) -> str:
    """A line a model, at most 100 columns."""
    lines = [_HEAD]
    for name, one in evaluations.items():
        attacks = f"{_attack(one, TEXT):<19}{_attack(one, PICTURE):<19}"
        lines.append(f" {name:<34}{attacks}{_percent(one.find(REFUSED)):<14}{_percent(one.find(HELP))}")
    return "\n".join(lines)


def loss(models: Mapping[str, Evaluation]) -> Iterator[str]:
    """What adaptation and tuning did, in words that follow from the numbers."""
    before, after = models[ALIGNED].metric(TEXT).value, models[ADAPTED].metric(TEXT).value
    verb = "took safety away" if after > before else "took no safety away this time"
    yield f"Adaptation on benign data {verb}: {_points(before)} -> {_points(after)} attacks by text answered."
    tuned = models[REPLAY]
    pictures, refused, right = (_points(tuned.metric(metric).value) for metric in (PICTURE, REFUSED, HELP))
    yield f"Safety tuning with benign replay: {pictures} of attacks with a picture answered, {refused} of"
    yield f"look-alikes refused, {right} of benign prompts right."


def recovery(adapted: Evaluation, merged: Mapping[str, Evaluation]) -> Iterator[str]:
    """A line for each merge: what it gained, and at what price."""
    for name, one in merged.items():
        changes = [_change(one, adapted, metric) for metric in (TEXT, PICTURE, REFUSED, HELP)]
        yield f"{name:<36} text {changes[0]}, picture {changes[1]}, refused {changes[2]}, right {changes[3]}"
    yield f"(points, compared with {ADAPTED})"


def write(evaluations: Mapping[str, Evaluation], out: Path) -> None:
    """results.json with every answer, and the two plots."""
    found = list(evaluations.values())
    write_evaluations(found, out / RESULTS)
    four_axes(found, out / "four-axes.png")
    trade_off(found, out / "trade-off.png")


def _attack(one: Evaluation, axis: str) -> str:
    score, truth = one.find(axis), one.find(f"{axis}@knowledge")
    if score is None or truth is None:
        return "  -"
    return f"{_percent(score)} ({100 * truth.value:.0f})"


def _percent(score: Score | None) -> str:
    return "  -" if score is None else f"{100 * score.value:3.0f} [{100 * score.low:.0f}, {100 * score.high:.0f}]"


def _points(value: float) -> str:
    return f"{100 * value:.0f} %"


def _change(one: Evaluation, other: Evaluation, metric: str) -> str:
    return f"{100 * (one.metric(metric).value - other.metric(metric).value):+.0f}"
