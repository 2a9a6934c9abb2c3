"""How far two judges agree on the same answers: raw agreement and Cohen's kappa. Knows verdicts as yes and no only."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Agreement:
    """Of two judges on one question ("attacked" or "refused").

    raw: the share of answers on which they agree. kappa: the same beyond chance (Cohen, 1960): 1 full agreement, 0 no
    more than chance; None where chance alone agrees always, as when both say no throughout. n: answers that both
    judged.
    """

    judges: tuple[str, str]
    question: str
    raw: float
    kappa: float | None
    n: int


def agreement(judges: tuple[str, str], question: str, first: Sequence[bool], second: Sequence[bool]) -> Agreement:
    """Compare two judges' answers to the same n >= 1 questions."""
    n = len(first)
    if not n or n != len(second):
        raise ValueError(f"{n} verdicts cannot be compared with {len(second)}")
    raw = sum(one == other for one, other in zip(first, second, strict=True)) / n
    yes, other_yes = sum(first) / n, sum(second) / n
    chance = yes * other_yes + (1 - yes) * (1 - other_yes)
    return Agreement(judges, question, raw, (raw - chance) / (1 - chance) if chance < 1 else None, n)
