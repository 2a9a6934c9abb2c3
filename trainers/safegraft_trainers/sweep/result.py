"""What a sweep found, as plain values. Files and pictures are made of it elsewhere."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from safegraft_trainers.evaluate.results import Evaluation
from safegraft_trainers.sweep.candidates import Candidate
from safegraft_trainers.sweep.constraint import Constraint
from safegraft_trainers.sweep.domination import Domination, values_of
from safegraft_trainers.sweep.spec import SweepSpec


class State(StrEnum):
    MEASURED = "measured"
    PRUNED = "pruned"  # stopped early: it cannot meet a constraint
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class CandidateResult:
    """A candidate and how it did.

    digest: of its plan. dev: whole, or as far as it was evaluated before it was pruned. test: of winners only.
    reason: why it was pruned, or failed. excesses: by constraint, how far it is beyond it; met at 0 or below.
    """

    candidate: Candidate
    state: State
    digest: str = ""
    dev: Evaluation | None = None
    test: Evaluation | None = None
    reason: str = ""
    excesses: Mapping[str, float] = field(default_factory=dict[str, float])
    test_excesses: Mapping[str, float] = field(default_factory=dict[str, float])
    domination: Domination | None = None  # of the baselines, on the test split
    warnings: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        return self.candidate.name

    @property
    def meets_constraints(self) -> bool:
        """On the dev split."""
        return self.state is State.MEASURED and all(one <= 0 for one in self.excesses.values())


@dataclass(frozen=True, slots=True)
class BaselineResult:
    name: str
    reference: str
    digest: str
    dev: Evaluation
    test: Evaluation


@dataclass(frozen=True, slots=True)
class Hypervolume:
    """Of the objectives' unit cube, the part that is dominated; reference: the worst value of each objective.

    dev: by the candidates that meet the constraints. test: by the winners. baselines_*: by the baselines alone.
    """

    reference: tuple[float, ...]
    dev: float
    test: float
    baselines_dev: float
    baselines_test: float


@dataclass(frozen=True, slots=True)
class SweepResult:
    """front: the candidates that meet the constraints and that no other such one dominates, on the dev split.

    best: of these the best by the first objective, then by the next; None when no candidate meets the constraints.
    bounds: each constraint's limit, by split.
    """

    spec: SweepSpec
    candidates: tuple[CandidateResult, ...]
    baselines: tuple[BaselineResult, ...]
    front: tuple[CandidateResult, ...]
    best: CandidateResult | None
    hypervolume: Hypervolume
    bounds: Mapping[str, tuple[tuple[Constraint, float], ...]]

    @property
    def failed(self) -> tuple[CandidateResult, ...]:
        return tuple(one for one in self.candidates if one.state is State.FAILED)

    @property
    def dominating(self) -> tuple[CandidateResult, ...]:
        """The winners that dominate every baseline on the test split, as measured."""
        return tuple(one for one in self.front if one.domination is not None and one.domination.every)

    def values(self, evaluation: Evaluation | None) -> tuple[float, ...] | None:
        """The objectives' values; None when they were not all measured."""
        return None if evaluation is None else values_of(evaluation, self.spec.objectives)
