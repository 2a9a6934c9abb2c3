"""Asks a model, has its answers judged, and scores them. What was asked before, it does not ask again.

Knows the contracts of respondents and judges; no model, no file format.
"""

import platform
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib.metadata import version
from itertools import combinations
from pathlib import Path
from typing import Any, cast

from safegraft.errors import UsageError
from safegraft_trainers.evaluate.agreement import Agreement, agreement
from safegraft_trainers.evaluate.cache import answers_shelf, verdict_key, verdicts_shelf
from safegraft_trainers.evaluate.example import Example, Scoring, Suite
from safegraft_trainers.evaluate.grouped import grouped_scores
from safegraft_trainers.evaluate.judges.judge import Judge, Verdict
from safegraft_trainers.evaluate.respondents import Respondent
from safegraft_trainers.evaluate.respondents.batching import batches
from safegraft_trainers.evaluate.results import Answer, Evaluation, JudgeInfo, SuiteInfo
from safegraft_trainers.evaluate.scoring import JUDGED, Mark, mark, mark_likelihoods

Progress = Callable[[int, int, str], None]  # done, in all, what of
Reply = str | tuple[float, float]  # an answer, or the log probabilities of a LIKELIHOOD example's two texts

JUDGED_AT_A_TIME = 64
PACKAGES = ("safegraft", "torch", "transformers", "tokenizers", "numpy", "huggingface_hub")


def evaluate(
    respondent: Respondent,
    suites: Sequence[Suite],
    judges: Sequence[Judge],
    *,
    cache: Path | None = None,
    progress: Progress | None = None,
    seed: int = 0,
) -> Evaluation:
    """Ask a model all suites.

    cache: a folder of answers and verdicts of earlier runs, and of this one: a run that was killed goes on where it
    was. progress: called after every batch. seed: of the intervals.

    Raises UsageError when suites or judges do not fit together, and what the respondent and the judges raise.
    """
    check(suites, judges)
    asked = [(suite, example) for suite in suites for example in suite.examples]
    examples = [example for _, example in asked]
    show = progress or _silent
    skipped = [_why_not(respondent, one) for one in examples]
    replies = _replies(respondent, examples, skipped, cache, show)
    verdicts = {judge.name: _verdicts(judge, examples, replies, cache, show) for judge in judges}
    evaluation = Evaluation(
        model=respondent.name,
        digest=respondent.digest,
        settings=dict(respondent.settings),
        seed=seed,
        suites=[SuiteInfo(suite.name, suite.digest, len(suite.examples), suite.reference) for suite in suites],
        judges=[JudgeInfo(judge.name, tuple(sorted(judge.scorings)), judge.digest) for judge in judges],
        answers=[
            _answer(suite, example, skipped[index], replies.get(index), _of(verdicts, index))
            for index, (suite, example) in enumerate(asked)
        ],
        agreements=_agreements(judges, examples, verdicts),
        versions={"python": platform.python_version(), **{name: version(name) for name in PACKAGES}},
    )
    return evaluation.with_measured(grouped_scores(suites, evaluation))


def _silent(done: int, total: int, what: str) -> None:
    pass


def check(suites: Sequence[Suite], judges: Sequence[Judge]) -> None:
    """Raises UsageError, with all that does not fit together. `evaluate` does it, too; this is before a model loads."""
    faults = [f"two suites are called {name!r}" for name in _repeated(suite.name for suite in suites)]
    faults += [f"the judge {name!r} is named twice" for name in _repeated(judge.name for judge in judges)]
    for suite in suites:
        if not suite.examples:
            faults.append(f"the suite {suite.name!r} has no examples")
        twice = _repeated(example.id for example in suite.examples)
        faults += [f"the suite {suite.name!r} has two examples {one!r}" for one in twice[:10]]
    needed = {example.scoring for suite in suites for example in suite.examples} & JUDGED
    unjudged = needed - {scoring for judge in judges for scoring in judge.scorings}
    faults += [f'nobody judges {scoring} examples: add a judge that does, such as "patterns"' for scoring in unjudged]
    if faults:
        raise UsageError("; ".join(faults))


def _repeated(names: Iterable[str]) -> list[str]:
    return [name for name, count in Counter(names).items() if count > 1]


def _why_not(respondent: Respondent, example: Example) -> str:
    """Why a model cannot be asked an example; "" when it can. It must never be scored as if it had been."""
    if example.image is not None and not respondent.sees_images:
        return "the model sees no images"
    if example.scoring == Scoring.LIKELIHOOD and not respondent.tells_likelihoods:
        return "an endpoint does not tell how likely a given text is"
    if example.scoring == Scoring.LIKELIHOOD and example.image is not None:
        return "likelihoods of texts beside an image are not measured"
    return ""


# -- asking -----------------------------------------------------------------------------------------


def _replies(
    respondent: Respondent, examples: Sequence[Example], skipped: Sequence[str], cache: Path | None, show: Progress
) -> dict[int, Reply]:
    """What the model says to each example that it can be asked, by the example's index."""
    shelf = answers_shelf(cache, respondent.digest, respondent.settings) if cache else None
    known = {key: _reply(value) for key, value in shelf.read().items()} if shelf else {}
    keys = {index: one.fingerprint() for index, one in enumerate(examples) if not skipped[index]}
    done = 0
    for scorings in (set(Scoring) - {Scoring.LIKELIHOOD}, {Scoring.LIKELIHOOD}):
        chosen = [index for index in keys if examples[index].scoring in scorings]
        for batch in batches([examples[index] for index in chosen], respondent.batch_size):
            fresh = {
                keys[chosen[place]]: examples[chosen[place]] for place in batch if keys[chosen[place]] not in known
            }
            if fresh:
                found = dict(zip(fresh, _ask(respondent, list(fresh.values())), strict=True))
                if shelf:
                    shelf.append(found)
                known |= found
            done += len(batch)
            show(done, len(keys), f"asking {respondent.name}")
    return {index: known[key] for index, key in keys.items()}


def _ask(respondent: Respondent, examples: Sequence[Example]) -> Sequence[Reply]:
    if examples[0].scoring != Scoring.LIKELIHOOD:
        return respondent.answer(examples)
    told = respondent.likelihoods([(one.prompt, text) for one in examples for text in one.choices])
    return list(zip(told[::2], told[1::2], strict=True))


def _reply(kept: Any) -> Reply:
    return kept if isinstance(kept, str) else (kept[0], kept[1])


# -- judging ----------------------------------------------------------------------------------------


def _verdicts(
    judge: Judge, examples: Sequence[Example], replies: Mapping[int, Reply], cache: Path | None, show: Progress
) -> dict[int, Verdict]:
    """A judge's verdicts on all answers that are its to judge, by the example's index."""
    mine = {index: cast(str, reply) for index, reply in replies.items() if examples[index].scoring in judge.scorings}
    digest = judge.digest if cache and mine else ""
    shelf = verdicts_shelf(cache, digest) if cache and digest else None
    kept = shelf.read() if shelf else {}
    keys = {index: verdict_key(examples[index].fingerprint(), answer) for index, answer in mine.items()}
    verdicts = {index: Verdict(*kept[key]) for index, key in keys.items() if key in kept}
    left = [index for index in mine if index not in verdicts]
    for start in range(0, len(left), JUDGED_AT_A_TIME):
        part = left[start : start + JUDGED_AT_A_TIME]
        found = judge.judge([examples[index] for index in part], [mine[index] for index in part])
        verdicts |= dict(zip(part, found, strict=True))
        if shelf:
            # An error may be a mood of the judge: the next run asks it again.
            shelf.append({keys[one]: _kept(verdicts[one]) for one in part if not verdicts[one].error})
            show(len(verdicts), len(mine), f"{judge.name} judges")
    return verdicts


def _kept(verdict: Verdict) -> list[bool]:
    return [verdict.attacked, verdict.refused]


def _agreements(
    judges: Sequence[Judge], examples: Sequence[Example], verdicts: Mapping[str, Mapping[int, Verdict]]
) -> list[Agreement]:
    """Of each two judges, on each question that both answered."""
    found: list[Agreement] = []
    for first, second in combinations(judges, 2):
        for scoring, question in ((Scoring.ATTACK, "attacked"), (Scoring.REFUSAL, "refused")):
            pairs = [
                (verdict, other)
                for index, verdict in verdicts[first.name].items()
                if examples[index].scoring == scoring
                and (other := verdicts[second.name].get(index)) is not None
                and not (verdict.error or other.error)
            ]
            if pairs:
                ones, others = zip(*((_said(one, scoring), _said(other, scoring)) for one, other in pairs), strict=True)
                found.append(agreement((first.name, second.name), question, ones, others))
    return found


def _said(verdict: Verdict, scoring: Scoring) -> bool:
    return verdict.attacked if scoring == Scoring.ATTACK else verdict.refused


def _of(verdicts: Mapping[str, Mapping[int, Verdict]], index: int) -> dict[str, Verdict]:
    return {name: found[index] for name, found in verdicts.items() if index in found}


# -- the result -------------------------------------------------------------------------------------


def _answer(
    suite: Suite, example: Example, skipped: str, reply: Reply | None, verdicts: Mapping[str, Verdict]
) -> Answer:
    likelihoods = reply if isinstance(reply, tuple) else None
    text = example.choices[likelihoods[0] <= likelihoods[1]] if likelihoods else cast("str | None", reply)
    return Answer(
        suite=suite.name,
        id=example.id,
        fingerprint=example.fingerprint(),
        axis=example.axis,
        scoring=example.scoring,
        subset=example.subset,
        prompt=example.prompt,
        system=example.system,
        image=example.image.sha256 if example.image else None,
        text=text,
        skipped=skipped,
        likelihoods=likelihoods,
        verdicts=verdicts,
        mark=_mark(example, reply),
        references=example.references,
        choices=example.choices,
    )


def _mark(example: Example, reply: Reply | None) -> Mark | None:
    if reply is None or example.scoring in JUDGED:
        return None
    return mark_likelihoods(*reply) if isinstance(reply, tuple) else mark(example, reply)
