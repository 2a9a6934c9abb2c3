"""Which candidates are tried, and in which order: all of a grid, some at random, or those that Optuna proposes.

Asked for a candidate, and told how it did. The same answers lead to the same questions, so a rerun that has its
evaluations on disk goes the same way. Knows no model.
"""

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from safegraft_trainers.sweep.candidates import Arm, Candidate
from safegraft_trainers.sweep.parts import OptunaSearch, RandomSearch, Strengths
from safegraft_trainers.sweep.spec import SweepSpec

if TYPE_CHECKING:
    import optuna

DIGITS = 4  # of a strength that a search draws: finer ones are indistinguishable, and recipes stay legible
ATTEMPTS = 100  # at drawing a candidate that was not drawn before


@dataclass(frozen=True, slots=True)
class Told:
    """How a candidate did. losses: of the objectives, None when it was not measured whole. excesses: by constraint."""

    losses: tuple[float, ...] | None
    excesses: Mapping[str, float] = field(default_factory=dict[str, float])
    pruned: bool = False


class Search(Protocol):
    """total: how many candidates it asks for at most. prunes: whether evaluations may be stopped early."""

    total: int
    prunes: bool

    def __iter__(self) -> Iterator[Candidate]:
        """Before the next one, `tell` is called with how the last one did."""
        ...

    def tell(self, told: Told) -> None: ...


def search_of(spec: SweepSpec, arms: Sequence[Arm]) -> Search:
    if spec.search.random is not None:
        return Listed(_drawn(arms, spec.search.random))
    if spec.search.optuna is not None:
        return Proposed(arms, spec.search.optuna, len(spec.objectives))
    return Listed([candidate for arm in arms for candidate in arm.grid()])


class Listed:
    """Known beforehand."""

    prunes = False

    def __init__(self, candidates: Sequence[Candidate]) -> None:
        self._candidates = candidates
        self.total = len(candidates)

    def __iter__(self) -> Iterator[Candidate]:
        return iter(self._candidates)

    def tell(self, told: Told) -> None:
        pass


def _drawn(arms: Sequence[Arm], search: RandomSearch) -> list[Candidate]:
    """Different candidates: first the arm, each as likely, then the strength. Fewer when there are no more."""
    generator = random.Random(search.seed)
    drawn: dict[str, Candidate] = {}
    for _ in range(search.trials):
        for _ in range(ATTEMPTS):
            arm = generator.choice(arms)
            candidate = arm.at(_strength(arm.strengths, generator))
            if candidate.name not in drawn:
                drawn[candidate.name] = candidate
                break
    return list(drawn.values())


def _strength(strengths: Strengths | None, generator: random.Random) -> float | None:
    if strengths is None:
        return None
    if strengths.values is not None:
        return generator.choice(strengths.values)
    low, high = _range(strengths)
    return round(generator.uniform(low, high), DIGITS)


def _range(strengths: Strengths) -> tuple[float, float]:
    assert strengths.low is not None  # there is a list, or there are both ends
    assert strengths.high is not None
    return strengths.low, strengths.high


class Proposed:
    """Optuna's NSGA-II over (arm, strength), with the constraints as Optuna knows them.

    Optuna prunes no studies of several objectives; what was stopped early is told as pruned, and has no offspring.
    """

    def __init__(self, arms: Sequence[Arm], search: OptunaSearch, objectives: int) -> None:
        import optuna

        optuna.logging.set_verbosity(optuna.logging.WARNING)  # it would tell of every trial, on stderr
        self.total, self.prunes = search.trials, search.pruner
        self._arms = {arm.name: arm for arm in arms}
        sampler = optuna.samplers.NSGAIISampler(seed=search.seed, population_size=search.population)
        directions = [optuna.study.StudyDirection.MINIMIZE] * objectives
        self._study = optuna.create_study(directions=directions, sampler=sampler)
        self._trial: optuna.Trial | None = None

    def __iter__(self) -> Iterator[Candidate]:
        for _ in range(self.total):
            self._trial = self._study.ask()
            arm = self._arms[self._trial.suggest_categorical("arm", list(self._arms))]
            yield arm.at(_suggested(self._trial, arm))

    def tell(self, told: Told) -> None:
        from optuna.trial import TrialState

        assert self._trial is not None  # something was asked for before
        if told.losses is not None:
            for constraint, excess in told.excesses.items():
                self._trial.set_constraint(constraint, excess)
            self._study.tell(self._trial, list(told.losses))
        else:
            self._study.tell(self._trial, state=TrialState.PRUNED if told.pruned else TrialState.FAIL)


def _suggested(trial: "optuna.Trial", arm: Arm) -> float | None:
    """Arms with the sweep's strengths share a parameter, so that what one has learned is of use to the next."""
    strengths = arm.strengths
    if strengths is None:
        return None
    name = "strength" if strengths == arm.spec.strengths else f"strength of {arm.name}"
    if strengths.values is not None:
        return strengths.values[trial.suggest_int(name, 0, len(strengths.values) - 1)]
    return round(trial.suggest_float(name, *_range(strengths)), DIGITS)
