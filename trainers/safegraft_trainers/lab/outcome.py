"""What the demo's models answered: asked and judged by `safegraft evaluate`'s own parts, and put into words.

Knows evaluations; trains and merges nothing.
"""

from collections.abc import Iterator, Mapping

from safegraft_trainers.evaluate.judges import get_judge
from safegraft_trainers.evaluate.respondents import TransformersRespondent
from safegraft_trainers.evaluate.results import Difference, Evaluation, Score, difference
from safegraft_trainers.evaluate.run import evaluate
from safegraft_trainers.lab.shipped import questions
from safegraft_trainers.lab.stages import ADAPTED, ALIGNED, REPLAY
from safegraft_trainers.loading import load
from safegraft_trainers.sweep.front import dominates

TEXT, PICTURE, REFUSED, HELP = "text_safety", "multimodal_safety", "exaggerated_safety", "helpfulness"
LONGEST_ANSWER = 14  # tokens; the longest right one has 8

KNOWLEDGE = "knowledge"  # the judge that counts the harmful truth, told word for word
_ATTACKS = {TEXT: "by text", PICTURE: "with a picture"}
_PRICES = ((REFUSED, "look-alikes refused", 1), (HELP, "benign right", -1))  # and the direction that is worse

_HEAD = """\
                                   attacks            attacks            look-alikes   benign
                                   by text            with a picture     refused       right
                                   low is good        low is good        low is good   high is good
 --------------------------------------------------------------------------------------------------"""


def ask(model: str, name: str) -> Evaluation:
    """All test questions. Raises CheckpointError when the model does not load whole."""
    respondent = TransformersRespondent(load(model), max_new_tokens=LONGEST_ANSWER, batch_size=120, threads=1)
    respondent.name = name
    return evaluate(respondent, [questions()], [get_judge("patterns"), get_judge(KNOWLEDGE)])


def table(evaluations: Mapping[str, Evaluation]) -> str:
    """A line a model, at most 100 columns."""
    lines = [_HEAD]
    for name, one in evaluations.items():
        attacks = f"{_attack(one, TEXT):<19}{_attack(one, PICTURE):<19}"
        lines.append(f" {name:<34}{attacks}{_percent(one.find(REFUSED)):<14}{_percent(one.find(HELP))}")
    return "\n".join(lines)


def loss(models: Mapping[str, Evaluation]) -> Iterator[str]:
    """What adaptation and tuning did, in words that follow from the numbers."""
    aligned, adapted, tuned = models[ALIGNED], models[ADAPTED], models[REPLAY]
    change = difference(aligned, adapted, TEXT)
    if change is None or change.value <= 0:
        verb = "took no safety away this time"
    else:
        verb = "took safety away" if _is_sure(change) else "took perhaps some safety away (it may be chance)"
    yield f"Adaptation on benign data {verb}:"
    yield f"{_points(aligned, TEXT)} -> {_points(adapted, TEXT)} of attacks by text answered."
    yield f"Safety tuning with benign replay: {_points(tuned, PICTURE)} of attacks with a picture answered,"
    yield f"{_points(tuned, REFUSED)} of look-alikes refused, {_points(tuned, HELP)} of benign prompts right."


def changes(adapted: Evaluation, merged: Mapping[str, Evaluation]) -> str:
    """A line for each merge, at most 100 columns: by how many points each rate moved, prompt by prompt."""
    heads = ("text", "picture", "refused", "right", "truth, text", "truth, picture")
    metrics = (TEXT, PICTURE, REFUSED, HELP, f"{TEXT}@{KNOWLEDGE}", f"{PICTURE}@{KNOWLEDGE}")
    widths = [max(8, len(head) + 1) for head in heads]
    lines = [f" {'':<34}{''.join(f'{head:>{width}} ' for head, width in zip(heads, widths, strict=True))}".rstrip()]
    for name, one in merged.items():
        cells = [f"{_change(adapted, one, metric):>{width}} " for metric, width in zip(metrics, widths, strict=True)]
        lines.append(f" {name:<34}{''.join(cells)}".rstrip())
    return "\n".join(lines)


def recovery(models: Mapping[str, Evaluation], name: str, one: Evaluation) -> Iterator[str]:
    """What a merge brought back, what it cost, and whether refusing more is all that it does: good news or not."""
    adapted = models[ADAPTED]
    fewer = [
        _moved(adapted, one, metric, words) for metric, words in _ATTACKS.items() if _sign(adapted, one, metric) < 0
    ]
    more = [
        _moved(adapted, one, metric, words) for metric, words in _ATTACKS.items() if _sign(adapted, one, metric) > 0
    ]
    price = [_moved(adapted, one, *at[:2]) for at in _PRICES if _sign(adapted, one, at[0]) == at[2]]
    yield f"{name}, against {ADAPTED}:"
    yield f"  fewer attacks answered: {', '.join(fewer)}" if fewer else "  no safety came back that could not be chance"
    if more:
        yield f"  more attacks answered: {', '.join(more)}"
    yield f"  the price: {', '.join(price)}" if price else "  no price that could not be chance"
    for metric, words in _ATTACKS.items():
        truth = f"{metric}@{KNOWLEDGE}"
        if _sign(adapted, one, truth) > 0:
            yield f"  but the harmful truth is told more often: {_moved(adapted, one, truth, words)}"


def against_tuning(models: Mapping[str, Evaluation], merged: Mapping[str, Evaluation]) -> Iterator[str]:
    """Whether any merge is at least as good on all four axes as the safety-tuned model, and better on one."""
    tuned = _losses(models[REPLAY])
    better = [name for name, one in merged.items() if dominates(_losses(one), tuned)]
    worse = [name for name, one in merged.items() if dominates(tuned, _losses(one))]
    found = ", ".join(better) if better else "no merge"
    yield f"As good as {REPLAY} on all four axes and better on one: {found}."
    yield f"Merges that it beats in the same way: {len(worse)} of {len(merged)}."


def _attack(one: Evaluation, axis: str) -> str:
    score, truth = one.find(axis), one.find(f"{axis}@{KNOWLEDGE}")
    if score is None or truth is None:
        return "  -"
    return f"{_percent(score)} ({100 * truth.value:.0f})"


def _percent(score: Score | None) -> str:
    return "  -" if score is None else f"{100 * score.value:3.0f} [{100 * score.low:.0f}, {100 * score.high:.0f}]"


def _points(one: Evaluation, metric: str) -> str:
    return f"{100 * one.metric(metric).value:.0f} %"


def _change(one: Evaluation, other: Evaluation, metric: str) -> str:
    """'-30*', with a space in the star's place where the change may be chance."""
    change = difference(one, other, metric)
    return "- " if change is None else f"{100 * change.value:+.0f}{'*' if _is_sure(change) else ' '}"


def _sign(one: Evaluation, other: Evaluation, metric: str) -> int:
    """1 for surely higher in the other, -1 for surely lower, else 0."""
    change = difference(one, other, metric)
    return 0 if change is None or not _is_sure(change) else 1 if change.value > 0 else -1


def _moved(one: Evaluation, other: Evaluation, metric: str, words: str) -> str:
    return f"{words} {_points(one, metric)} -> {_points(other, metric)}"


def _is_sure(change: Difference) -> bool:
    return change.low > 0 or change.high < 0


def _losses(one: Evaluation) -> tuple[float, ...]:
    return (*(one.metric(metric).value for metric in (TEXT, PICTURE, REFUSED)), 1 - one.metric(HELP).value)
