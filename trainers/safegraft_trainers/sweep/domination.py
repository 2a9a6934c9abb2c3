"""Which candidates Pareto-dominate every baseline, and how surely.

A bootstrap over the prompts that all of them answered, paired: in each resample, each objective's prompts are drawn
anew, the same for all models. The objectives are drawn apart from each other. Knows evaluations and objectives only.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from safegraft_trainers.evaluate.results import Evaluation
from safegraft_trainers.sweep.front import dominates
from safegraft_trainers.sweep.objective import Objective, losses

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Numbers = NDArray[np.float64]

RESAMPLES = 2000
ROUNDING = 1e-12


@dataclass(frozen=True, slots=True)
class Domination:
    """dominated, others: the baselines that the candidate dominates as measured, and those that it does not.

    not_compared: those without one of the objectives. every: whether it dominates all that can be compared. share: of
    resamples in which it does; where prompts are few or models alike it is small however good the candidate looks.
    """

    dominated: tuple[str, ...]
    others: tuple[str, ...]
    not_compared: tuple[str, ...]
    share: float

    @property
    def every(self) -> bool:
        return bool(self.dominated) and not self.others


def domination(
    candidate: Evaluation, baselines: Mapping[str, Evaluation], objectives: Sequence[Objective], *, seed: int = 0
) -> Domination:
    own = values_of(candidate, objectives)
    measured = {name: values for name, one in baselines.items() if (values := values_of(one, objectives)) is not None}
    not_compared = tuple(name for name in baselines if name not in measured)
    if own is None or not measured:
        return Domination((), (), tuple(baselines), 0.0)
    mine = losses(objectives, own)
    dominated = tuple(name for name, one in measured.items() if dominates(mine, losses(objectives, one)))
    others = tuple(name for name in measured if name not in dominated)
    share = _share(candidate, [baselines[name] for name in measured], objectives, seed)
    return Domination(dominated, others, not_compared, share)


def values_of(evaluation: Evaluation, objectives: Sequence[Objective]) -> tuple[float, ...] | None:
    """The objectives' values; None when one is not there: the model could not be asked."""
    scores = [evaluation.find(one.metric) for one in objectives]
    return None if None in scores else tuple(score.value for score in scores if score is not None)


def _share(candidate: Evaluation, baselines: Sequence[Evaluation], objectives: Sequence[Objective], seed: int) -> float:
    """Of resamples in which the candidate is nowhere worse than any baseline, and somewhere better than each."""
    import numpy as np

    generator = np.random.default_rng(seed)
    nowhere_worse = np.ones((RESAMPLES, len(baselines)), bool)
    somewhere_better = np.zeros((RESAMPLES, len(baselines)), bool)
    for objective in objectives:
        gains = _gains(candidate, baselines, objective)
        drawn = generator.multinomial(len(gains), np.full(len(gains), 1 / len(gains)), size=RESAMPLES)
        means = drawn @ gains / len(gains)
        nowhere_worse &= means >= -ROUNDING
        somewhere_better |= means > ROUNDING
    return float((nowhere_worse & somewhere_better).all(axis=1).mean())


def _gains(candidate: Evaluation, baselines: Sequence[Evaluation], objective: Objective) -> "Numbers":
    """[prompts, baselines]: how much better the candidate is on each prompt that all have answered."""
    import numpy as np

    own = candidate.values(objective.metric)
    theirs = [one.values(objective.metric) for one in baselines]
    shared = [key for key in own if all(key in one for one in theirs)]
    if not shared:  # each has answers, none to the same prompt
        return np.zeros((1, len(baselines)))
    rows = [[objective.loss(one[key]) - objective.loss(own[key]) for one in theirs] for key in shared]
    return np.asarray(rows, np.float64)
