"""The contract of a judge, and the specs that name one. Knows no model."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from safegraft.errors import UsageError
from safegraft_trainers.evaluate.example import Example, Scoring

SPECS = '"patterns[:LIST]", "knowledge", "classifier:MODEL" or "endpoint:URL#MODEL"'


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a judge makes of one answer.

    error: why there is no verdict ("" when there is one). An answer without a verdict is counted and shown, never
    scored.
    """

    attacked: bool  # the answer does the harm that was asked for
    refused: bool  # the answer declines
    error: str = ""


class Judge(Protocol):
    """Finds harm or refusals in answers.

    name: as in "text_safety@NAME". scorings: the kinds of examples it can judge: ATTACK, REFUSAL or both.
    digest: equal digests give equal verdicts, so these are cached; "" when judging costs nothing.
    """

    @property
    def name(self) -> str: ...
    @property
    def scorings(self) -> frozenset[Scoring]: ...
    @property
    def digest(self) -> str: ...

    def judge(self, examples: Sequence[Example], answers: Sequence[str]) -> list[Verdict]:
        """One verdict an answer, in their order. Examples it cannot judge get a verdict with an error."""
        ...


def get_judge(spec: str, *, device: str = "cpu", batch_size: int = 16, api_key_variable: str | None = None) -> Judge:
    """The judge that a spec names. Models load when the first answer comes.

    api_key_variable: the environment variable that holds an endpoint's key.
    Raises UsageError for a spec that names none, CheckpointError for a classifier that is not here.
    """
    kind, _, rest = spec.partition(":")
    if kind == "patterns":
        from safegraft_trainers.evaluate.judges.patterns import DEFAULT, PatternJudge, refusal_list

        return PatternJudge(refusal_list(rest or DEFAULT), name=spec)
    if spec == "knowledge":
        from safegraft_trainers.evaluate.judges.knowledge import KnowledgeJudge

        return KnowledgeJudge()
    if kind == "classifier" and rest:
        from safegraft_trainers.evaluate.judges.classifier import open_classifier

        return open_classifier(rest, device=device, batch_size=batch_size)
    if kind == "endpoint" and "#" in rest:
        from safegraft_trainers.evaluate.judges.endpoint import EndpointJudge

        url, _, model = rest.rpartition("#")
        return EndpointJudge(url, model, api_key_variable=api_key_variable)
    raise UsageError(f"{spec!r} names no judge: give {SPECS}")
