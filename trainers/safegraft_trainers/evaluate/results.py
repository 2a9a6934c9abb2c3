"""What an evaluation found: every answer, the scores made of them, and both as JSON and as tables.

Scores are never stored in place of answers: they are computed from the answers, whenever asked for. Knows neither
models nor judges.
"""

import json
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from itertools import combinations
from pathlib import Path
from typing import Any

from safegraft.errors import InputError, Problem, UsageError, output_errors
from safegraft_trainers.evaluate.agreement import Agreement
from safegraft_trainers.evaluate.example import LOWER_IS_BETTER, Axis, Scoring
from safegraft_trainers.evaluate.judges.judge import Verdict
from safegraft_trainers.evaluate.scoring import JUDGED, Mark
from safegraft_trainers.evaluate.statistics import mean_with_interval, paired_difference

FORMAT = "safegraft-evaluation/1"


@dataclass(frozen=True, slots=True)
class Score:
    """A mean between 0 and 1 with its 95 % interval.

    name: "AXIS", "SUITE", "SUITE/SUBSET", with "@JUDGE" where judges were named. n: answers that count. skipped:
    prompts that the model cannot be asked. errors: answers without a verdict; neither is in n. unparsed: answers that
    name no choice; they are in n, as wrong.
    """

    name: str
    value: float
    low: float
    high: float
    n: int
    lower_is_better: bool
    skipped: int = 0
    errors: int = 0
    unparsed: int = 0


@dataclass(frozen=True, slots=True)
class Difference:
    """How much higher the second model's score is than the first's, over the n prompts that both answered."""

    name: str
    value: float
    low: float
    high: float
    n: int


@dataclass(frozen=True, slots=True)
class Answer:
    """One prompt, what came back, and what was made of it.

    fingerprint: of the example, to pair answers of several models. image: its sha256. text: None when the prompt was
    not asked, and `skipped` says why. likelihoods: log probabilities of the two texts of a LIKELIHOOD example.
    verdicts: by judge, of ATTACK and REFUSAL examples; mark: of all others. references, choices: the example's.
    """

    suite: str
    id: str
    fingerprint: str
    axis: Axis
    scoring: Scoring
    subset: str
    prompt: str
    system: str
    image: str | None
    text: str | None
    skipped: str = ""
    likelihoods: tuple[float, float] | None = None
    verdicts: Mapping[str, Verdict] = field(default_factory=dict[str, Verdict])
    mark: Mark | None = None
    references: tuple[str, ...] = ()
    choices: tuple[str, ...] = ()

    def value(self, judge: str | None) -> float | None:
        """Its score by a judge (None where no judge has a say); None when there is no score."""
        if self.scoring not in JUDGED:
            return None if self.mark is None else self.mark.value
        verdict = self.verdicts.get(judge or "")
        if verdict is None or verdict.error:
            return None
        return float(verdict.attacked if self.scoring == Scoring.ATTACK else verdict.refused)


@dataclass(frozen=True, slots=True)
class SuiteInfo:
    """A suite that was asked."""

    name: str
    digest: str
    n: int
    reference: str


@dataclass(frozen=True, slots=True)
class JudgeInfo:
    """A judge, and what it could judge."""

    name: str
    scorings: tuple[Scoring, ...]
    digest: str


@dataclass(frozen=True)
class Evaluation:
    """One model's answers to some suites.

    measured: scores that come without answers, from a benchmark harness.
    """

    model: str
    digest: str
    settings: Mapping[str, Any]
    seed: int
    suites: Sequence[SuiteInfo]
    judges: Sequence[JudgeInfo]
    answers: Sequence[Answer]
    agreements: Sequence[Agreement] = ()
    versions: Mapping[str, str] = field(default_factory=dict[str, str])
    measured: Sequence[Score] = ()

    def metric(self, name: str) -> Score:
        """A score by its name: an axis, "SUITE", "SUITE/SUBSET", each optionally "@JUDGE".

        A suite on several axes, which do not point one way, has "SUITE/AXIS" and "SUITE/AXIS/SUBSET" instead; there
        "SUITE/SUBSET" is understood where the subset lies on one axis. The default judge is the first that judges
        examples of the kind. Raises UsageError when there is no such score.
        """
        score = self.find(name)
        if score is None:
            known = ", ".join(self.names()) or "none: no prompt could be asked and judged"
            raise UsageError(f"{self.model} has no score {name!r}; it has {known}")
        return score

    def find(self, name: str) -> Score | None:
        """The same, or None when there is no such score."""
        if name not in self._scores:
            self._scores[name] = self._score(name)
        return self._scores[name]

    def names(self) -> list[str]:
        """Of all scores: axes, suites and subsets, each by the default judge, then by name of each that judges it.

        Measured ones come last.
        """
        return [name for name in self.candidates() if self.find(name) is not None]

    def candidates(self) -> list[str]:
        """The same with those that would be there, had all prompts been asked and judged."""
        found: list[str] = []
        for group, answers in self.groups.items():
            if group in self._canonical:
                scorings = {one.scoring for one in answers} & JUDGED
                found.append(group)
                found += [f"{group}@{judge.name}" for judge in self.judges if scorings & set(judge.scorings)]
        return [*found, *(score.name for score in self.measured)]

    def _score(self, name: str) -> Score | None:
        for score in self.measured:
            if score.name == name:
                return score
        group, judge = self._parse(name)
        answers = self.groups.get(group, ())
        counted = [value for one in answers if (value := self._value(one, judge)) is not None]
        if not counted:
            return None
        estimate = mean_with_interval(counted, seed=self.seed)
        return Score(
            name,
            estimate.value,
            estimate.low,
            estimate.high,
            len(counted),
            LOWER_IS_BETTER[answers[0].axis],
            skipped=sum(one.text is None for one in answers),
            errors=sum(one.text is not None and self._value(one, judge) is None for one in answers),
            unparsed=sum(one.mark is not None and one.mark.unparsed for one in answers),
        )

    @cached_property
    def _scores(self) -> dict[str, Score | None]:
        return {}

    @cached_property
    def groups(self) -> Mapping[str, Sequence[Answer]]:
        """The answers behind each score: by axis, suite and subset, as far as they all lie on one axis."""
        groups: dict[str, list[Answer]] = {axis: [] for axis in Axis}
        places = {suite.name: place for place, suite in enumerate(self.suites)}
        for one in sorted(self.answers, key=lambda one: (places[one.suite], list(Axis).index(one.axis))):
            groups[one.axis].append(one)
            for name in (*self._own_names(one), *self._short_names(one)):
                if name not in list(Axis):  # a suite may be called like an axis: the name is the axis's
                    groups.setdefault(name, []).append(one)
        return {name: answers for name, answers in groups.items() if len({one.axis for one in answers}) == 1}

    @cached_property
    def _canonical(self) -> set[str]:
        """The names under which scores are listed; a short name of the same is only understood."""
        return {str(axis) for axis in Axis} | {name for one in self.answers for name in self._own_names(one)}

    @cached_property
    def _mixed(self) -> set[str]:
        """The suites on several axes."""
        axes: dict[str, set[Axis]] = {}
        for one in self.answers:
            axes.setdefault(one.suite, set()).add(one.axis)
        return {suite for suite, found in axes.items() if len(found) > 1}

    def _own_names(self, answer: Answer) -> list[str]:
        """The scores that an answer counts for, beside its axis."""
        name = f"{answer.suite}/{answer.axis}" if answer.suite in self._mixed else answer.suite
        return [name, f"{name}/{answer.subset}"] if answer.subset else [name]

    def _short_names(self, answer: Answer) -> list[str]:
        return [f"{answer.suite}/{answer.subset}"] if answer.subset and answer.suite in self._mixed else []

    def values(self, name: str) -> dict[tuple[str, str], float]:
        """Each example's score, behind a score of the given name, by (suite, fingerprint)."""
        group, judge = self._parse(name)
        return {
            (one.suite, one.fingerprint): value
            for one in self.groups.get(group, ())
            if (value := self._value(one, judge)) is not None
        }

    @property
    def skipped(self) -> Mapping[str, int]:
        """Why prompts were not asked, and how many."""
        return Counter(one.skipped for one in self.answers if one.skipped)

    def _parse(self, name: str) -> tuple[str, str | None]:
        for judge in self.judges:
            if name.endswith(f"@{judge.name}"):
                return name.removesuffix(f"@{judge.name}"), judge.name
        return name, None

    def _value(self, answer: Answer, judge: str | None) -> float | None:
        return answer.value(judge or self.default_judge(answer.scoring))

    def default_judge(self, scoring: Scoring) -> str | None:
        """The first judge of examples of a kind; None when it needs no judge."""
        return next((judge.name for judge in self.judges if scoring in judge.scorings), None)

    # -- JSON ---------------------------------------------------------------------------------------

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON. Its scores are for readers: `from_dict` makes them anew from the answers."""
        own = {score.name for score in self.measured}
        return {
            "model": self.model,
            "digest": self.digest,
            "settings": dict(self.settings),
            "seed": self.seed,
            "versions": dict(self.versions),
            "suites": [asdict(suite) for suite in self.suites],
            "judges": [asdict(judge) for judge in self.judges],
            "scores": [self._described(self.metric(name)) for name in self.names() if name not in own],
            "measured": [asdict(score) for score in self.measured],
            "agreements": [asdict(one) for one in self.agreements],
            "skipped": dict(self.skipped),
            "answers": [asdict(answer) for answer in self.answers],
        }

    def _described(self, score: Score) -> dict[str, Any]:
        """A score with what a model card says of it: whoever publishes has only this document."""
        group, judge = self._parse(score.name)
        answers = self.groups[group]
        suite = answers[0].suite
        is_whole = judge is None and group in (suite, f"{suite}/{answers[0].axis}")
        return {
            **asdict(score),
            "axis": answers[0].axis,
            "dataset": _dataset(suite) if is_whole else None,
            "judge": judge or self.default_judge(answers[0].scoring),
            "images": any(one.image for one in answers),
        }

    @classmethod
    def from_dict(cls, document: Mapping[str, Any]) -> "Evaluation":
        """Raises ValueError when the document is none of `to_dict`."""
        from pydantic import TypeAdapter

        return TypeAdapter(cls).validate_python(document)

    def write(self, path: Path) -> None:
        """Write it alone. Raises OutputError."""
        write_evaluations([self], path)

    @classmethod
    def read(cls, path: Path) -> "Evaluation":
        """Raises InputError when the file does not hold exactly one."""
        found = read_evaluations(path)
        if len(found) != 1:
            raise InputError(Problem(str(path), f"holds {len(found)} evaluations, where one is needed"))
        return found[0]

    def with_measured(self, scores: Sequence[Score]) -> "Evaluation":
        """The same with scores that a benchmark harness measured."""
        return replace(self, measured=[*self.measured, *scores])


def write_evaluations(evaluations: Sequence[Evaluation], path: Path) -> None:
    """Write results.json: there is either the whole file or what was there before. Raises OutputError."""
    write_whole(path, json.dumps(document_of(evaluations), indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def document_of(evaluations: Sequence[Evaluation]) -> dict[str, Any]:
    """What results.json holds. Its differences, like its scores, are for readers without the answers."""
    pairs = list(combinations(range(len(evaluations)), 2))
    found = [
        {"first": first, "second": second, **asdict(one)}
        for first, second in pairs
        for axis in Axis
        if (one := difference(evaluations[first], evaluations[second], axis)) is not None
    ]
    return {"format": FORMAT, "evaluations": [one.to_dict() for one in evaluations], "differences": found}


def write_whole(path: Path, content: str) -> None:
    """Write a text file that appears when it is complete. Raises OutputError."""
    with output_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        draft = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        draft.write_text(content, encoding="utf-8")
        os.replace(draft, path)


def read_evaluations(path: Path) -> list[Evaluation]:
    """Read results.json. Raises InputError."""
    try:
        document: Any = json.loads(path.read_text(encoding="utf-8"))
        if document["format"] != FORMAT:
            raise ValueError(f"its format is {document['format']!r}, not {FORMAT!r}")
        return [Evaluation.from_dict(one) for one in document["evaluations"]]
    except OSError as error:
        raise InputError(Problem(str(path), f"cannot be read: {error.strerror}")) from error
    except (ValueError, KeyError, TypeError) as error:
        message = f"holds no evaluation of this version of safegraft: {type(error).__name__}: {error}"
        raise InputError(Problem(str(path), message)) from error


def difference(first: Evaluation, second: Evaluation, name: str) -> Difference | None:
    """How much higher the second's score is, over the prompts that both were scored on; None when there are none."""
    values, others = first.values(name), second.values(name)
    shared = [key for key in values if key in others]
    if not shared:
        return None
    estimate = paired_difference([values[key] for key in shared], [others[key] for key in shared], seed=first.seed)
    return Difference(name, estimate.value, estimate.low, estimate.high, len(shared))


def _dataset(suite: str) -> str:
    """The Hub name of a suite's data set, where it is a public one."""
    from safegraft_trainers.evaluate.formats import FORMATS

    known = FORMATS.get(suite)
    return known.hub_name.partition(":")[0] if known and known.hub_name else suite


def compare(evaluations: Sequence[Evaluation], *, markdown: bool = False) -> str:
    """Several models side by side, as text for a terminal or as Markdown: see tables.py."""
    from safegraft_trainers.evaluate.tables import comparison

    return comparison(evaluations, markdown=markdown)
