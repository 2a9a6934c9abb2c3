"""An evaluation as data: what results.json of `safegraft evaluate` holds of scores, checked before it is used.

Reads no answers and computes no score. Whether it is of the model that is published, it says as far as digests tell.
"""

import json
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, model_validator
from pydantic_core import ErrorDetails

from safegraft.checkpoint.folder import FolderCheckpoint
from safegraft.errors import InputError, Problem

RESULTS = "results.json"
FORMAT = "safegraft-evaluation/1"
PLAN, FULL, SAMPLED = "plan", "sha256", "sampled-sha256"  # what digests a model can have; see `known_digests`
MAX_BYTES = 1 << 30  # of results.json, which holds every answer beside the scores
_HERE = "transformers"  # how a model was asked whose weights, and so digest, were known
_MOST_PROBLEMS = 10
MOST_SCORES = 2_000  # of a model; a card of more would be of use to nobody
_OLD = (
    "was written by an older version; run `safegraft evaluate` again: answers are kept, so that nothing is asked twice"
)

AxisName = Literal["text_safety", "multimodal_safety", "exaggerated_safety", "helpfulness", "bias"]
Count = Annotated[int, Field(ge=0)]
Rate = Annotated[float, Field(ge=0, le=1)]
Text = Annotated[str, Field(min_length=1)]


class _Checked(BaseModel):
    model_config = ConfigDict(strict=True, frozen=True, extra="ignore", allow_inf_nan=False)


class MeasuredScore(_Checked):
    """A score with its 95 % interval, in whatever unit it has."""

    name: Text
    value: float
    low: float
    high: float
    n: Count
    lower_is_better: bool

    @model_validator(mode="after")
    def _within_its_interval(self) -> "MeasuredScore":
        # The mean of a sample and the quantiles of its bootstrap are rounded apart.
        if not self.low - 1e-9 <= self.value <= self.high + 1e-9:
            raise ValueError("the value does not lie within its interval")
        return self


class AxisScore(MeasuredScore):
    """A rate over answers. dataset: set where it stands for a whole suite on one axis: the suite's data set.

    judge: who found it, None where nobody had to. images: whether any prompt has one. skipped: prompts that the model
    cannot be asked; errors: answers without a verdict; unparsed: answers that name no choice, which count as wrong.
    """

    value: Rate
    low: Rate
    high: Rate
    axis: AxisName
    dataset: Text | None
    judge: Text | None
    images: bool
    skipped: Count = 0
    errors: Count = 0
    unparsed: Count = 0


class SuiteFacts(_Checked):
    """A suite that was asked."""

    name: Text
    digest: Text
    n: Count


class JudgeFacts(_Checked):
    """A judge, by the name that scores call it."""

    name: Text


class Evaluated(_Checked):
    """What was found of one model."""

    model: Text
    digest: Text
    settings: dict[str, str | int | float | bool | None]
    versions: dict[str, str]
    suites: list[SuiteFacts]
    judges: list[JudgeFacts]
    scores: Annotated[list[AxisScore], Field(max_length=MOST_SCORES)]
    measured: Annotated[list[MeasuredScore], Field(max_length=MOST_SCORES)]
    skipped: dict[str, Count]

    @model_validator(mode="after")
    def _holds_something(self) -> "Evaluated":
        if not self.scores and not self.measured:
            raise ValueError("no prompt could be asked and judged: there is no score")
        return self

    @property
    def prompts(self) -> int:
        return sum(suite.n for suite in self.suites)

    @cached_property
    def _by_name(self) -> dict[str, AxisScore]:
        return {score.name: score for score in reversed(self.scores)}

    def find(self, name: str) -> AxisScore | None:
        return self._by_name.get(name)


class Difference(_Checked):
    """How much higher model number `second` scores on an axis than number `first`, prompt by prompt."""

    first: Count
    second: Count
    name: AxisName
    value: float
    low: float
    high: float
    n: Count


class _File(_Checked):
    format: Literal["safegraft-evaluation/1"]
    evaluations: Annotated[list[Evaluated], Field(min_length=1)]
    differences: list[Difference] = []

    @model_validator(mode="after")
    def _names_models_that_are_there(self) -> "_File":
        if any(max(one.first, one.second) >= len(self.evaluations) for one in self.differences):
            raise ValueError("a difference is of a model that is not there")
        return self


@dataclass(frozen=True)
class EvaluationDocument:
    """One model's evaluation beside those of the models that it was compared with.

    models: all of them. subject: the place among them of the one that this is about.
    """

    models: Sequence[Evaluated]
    differences: Sequence[Difference] = ()
    subject: int = 0

    @property
    def evaluated(self) -> Evaluated:
        return self.models[self.subject]

    @property
    def digest(self) -> str:
        """Of the model that was asked: of its weights and tokenizer, or of the plan that it was merged by."""
        return self.evaluated.digest

    def is_of(self, known: Mapping[str, str]) -> bool | None:
        """Whether the model that was asked has these digests (see `known_digests`); None: it cannot be told.

        A model that was asked at an endpoint has no digest. Without all of the digests that a model can have, another
        digest may still be its own.
        """
        if self.evaluated.settings.get("through") != _HERE:
            return None
        if self.digest in known.values():
            return True
        return False if {PLAN, FULL, SAMPLED} <= known.keys() else None

    def about(self, known: Mapping[str, str], others: Collection[str] = ()) -> "EvaluationDocument":
        """The same about the model with these digests, where it is one of those that were asked; else about the first
        that has none of the digests of `others`. Raises InputError when there is none."""
        for place in range(len(self.models)):
            if replace(self, subject=place).is_of(known):
                return replace(self, subject=place)
        left = [place for place, model in enumerate(self.models) if model.digest not in others]
        if not left:
            message = "is of what was merged, not of the merge; evaluate the model that is published"
            raise InputError(Problem(f"the evaluation of {_plain(self.evaluated.model)}", message))
        return replace(self, subject=left[0])

    def doubt(self, known: Mapping[str, str]) -> str | None:
        """What speaks against its being of the model with these digests, in words; None: nothing.

        Raises InputError when it is of another model.
        """
        verdict = self.is_of(known)
        if verdict:
            return None
        if verdict is None:
            return (
                f"whether the evaluation of {_plain(self.evaluated.model)} is of this model cannot be told from its "
                "digest: make sure that it is"
            )
        message = "is of another model, or of this one before its files changed; evaluate the model that is published"
        raise InputError(Problem(f"the evaluation of {_plain(self.evaluated.model)}", message))

    def to_bytes(self) -> bytes:
        """As a results.json without answers, the subject first: what a server needs."""
        order = [self.subject, *(place for place in range(len(self.models)) if place != self.subject)]
        moved = {place: at for at, place in enumerate(order)}
        differences = [
            one.model_copy(update={"first": moved[one.first], "second": moved[one.second]}) for one in self.differences
        ]
        document = {
            "format": FORMAT,
            "evaluations": [self.models[place].model_dump(mode="json") for place in order],
            "differences": [one.model_dump(mode="json") for one in differences],
        }
        return json.dumps(document, ensure_ascii=False, allow_nan=False).encode()


def read_evaluation(source: Path | bytes) -> EvaluationDocument:
    """Read results.json, about the first model in it. Raises InputError with everything that is wrong with it."""
    where = "the evaluation" if isinstance(source, bytes) else source.name
    content = source if isinstance(source, bytes) else _content(source, where)
    try:
        file = TypeAdapter(_File).validate_json(content)
    except ValidationError as error:
        raise InputError(_problems(error.errors(include_url=False), where)) from error
    return EvaluationDocument(tuple(file.evaluations), tuple(file.differences))


def read_document(document: Mapping[str, Any]) -> EvaluationDocument:
    """The same from plain data. Raises InputError."""
    return read_evaluation(json.dumps(document).encode())


def known_digests(folder: Path, plan_digest: str, sha256s: Mapping[str, str]) -> Mapping[str, str]:
    """Every digest that an evaluation of a merged folder can have: by its plan, and by its files, in full or sampled.

    sha256s: of its weight files, as safegraft.json has them. Raises CheckpointError.
    """
    digests = {PLAN: plan_digest}
    for given in (None, sha256s):
        checkpoint = FolderCheckpoint(folder, folder.name, digests=given)
        digests[checkpoint.identity.scheme] = checkpoint.identity.digest
        checkpoint.close()
    digests.setdefault(SAMPLED, digests[FULL])  # a small folder is never sampled
    return digests


def _content(path: Path, where: str) -> bytes:
    try:
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise InputError(Problem(where, f"cannot be read: {error.strerror}")) from error
    if len(content) > MAX_BYTES:
        raise InputError(Problem(where, f"has more than {MAX_BYTES:,} bytes; it is no evaluation"))
    return content


def _problems(errors: Sequence[ErrorDetails], where: str) -> list[Problem]:
    if any(one["type"] == "json_invalid" for one in errors):
        return [Problem(where, "is not valid JSON")]
    if any(one["type"] == "missing" and one["loc"][-1] in ("axis", "dataset", "judge", "images") for one in errors):
        return [Problem(where, _OLD)]
    return [Problem(where, f"{_place(one)}{one['msg'][:1].lower()}{one['msg'][1:]}") for one in errors[:_MOST_PROBLEMS]]


def _place(error: ErrorDetails) -> str:
    place = ".".join(map(str, error["loc"]))
    return f"{_plain(place)}: " if place else ""


def _plain(text: str) -> str:
    """A stranger's word for a message: printable, and no path."""
    return re.sub(r"[^ -~]", "?", text.rstrip("/").rpartition("/")[2])[:80]
