"""What a merge has to satisfy, written as a person says it: `helpfulness >= 97% of lvlm`.

    CONSTRAINT = METRIC (">=" | "<=") BOUND
    BOUND      = NUMBER ["%"]                        0.05, 5%
               | NUMBER ["%"] "of" MODEL             97% of lvlm
               | MODEL [("+" | "-") NUMBER]          lvlm, lvlm + 0.02

Metrics, models and numbers hold no blanks; `of`, `+` and `-` have blanks around them. Knows no evaluation: whoever
has measured the model says what its value is.
"""

import math
import re
from dataclasses import dataclass
from typing import Literal

_WORD = r"[^\s<>=%]+"
_NUMBER = r"(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][-+]?\d+)?"
_RELATION = re.compile(r"\s*(?P<metric>\S*?)\s*(?P<relation>[<>=!]+)\s*(?P<bound>.*?)\s*", re.DOTALL)
_ABSOLUTE = re.compile(rf"(?P<number>{_NUMBER})\s*(?P<percent>%?)")
_SHARE = re.compile(rf"(?P<number>{_NUMBER})\s*(?P<percent>%?)\s+of\s+(?P<model>{_WORD})")
_SHIFTED = re.compile(rf"(?P<model>{_WORD})(?:\s+(?P<sign>[-+])\s+(?P<number>{_NUMBER}))?")
_POINTS = re.compile(rf"(?P<model>{_WORD})\s+(?P<sign>[-+])\s+(?P<number>{_NUMBER})\s*(%|points?)")
_METRIC = re.compile(r"[^\s<>=%+]+")

# A bound worked out in binary is off by some 1e-17, and a merge that meets it exactly must pass.
SLACK = 1e-9


@dataclass(frozen=True, slots=True)
class Constraint:
    """`metric` `relation` `factor` x (the metric of `model`) + `shift`; without a model, `shift` alone.

    text: as it was written.
    """

    metric: str
    relation: Literal[">=", "<="]
    shift: float
    model: str | None
    factor: float
    text: str

    def bound(self, reference: float | None) -> float:
        """The limit, when `reference` is the model's value; None where there is no model."""
        if self.model is None:
            return self.shift
        if reference is None:
            raise ValueError(f"{self.text} needs the value of {self.model}")
        return self.factor * reference + self.shift

    def excess(self, value: float, bound: float) -> float:
        """How far a value is on the wrong side: met at 0 or below, as Optuna wants it."""
        over = value - bound if self.relation == "<=" else bound - value
        return 0.0 if abs(over) <= SLACK else over

    def is_met(self, value: float, bound: float) -> bool:
        return self.excess(value, bound) <= 0

    def is_hopeless(self, low: float, high: float, bound: float) -> bool:
        """Whether a whole confidence interval is on the wrong side."""
        return not self.is_met(low if self.relation == "<=" else high, bound)


def parse_constraint(text: str) -> Constraint:
    """Raises ValueError that says what is wrong and how to write it."""
    found = _RELATION.fullmatch(text)
    if found is None:
        raise ValueError(f"{text!r} has no comparison; write it as `helpfulness >= 97% of lvlm`")
    metric, relation, bound = found["metric"], found["relation"], found["bound"]
    if relation not in (">=", "<="):
        raise ValueError(f"{text!r}: {relation} is not known; compare with >= or <=")
    if not _METRIC.fullmatch(metric):
        raise ValueError(f"{text!r}: the left side has to be a metric, such as helpfulness or xstest/safe@knowledge")
    side: Literal[">=", "<="] = ">=" if relation == ">=" else "<="
    if match := _ABSOLUTE.fullmatch(bound):
        return Constraint(metric, side, _number(text, match), None, 0.0, text)
    if match := _SHARE.fullmatch(bound):
        return Constraint(metric, side, 0.0, match["model"], _number(text, match), text)
    if (match := _SHIFTED.fullmatch(bound)) and not _looks_like_a_number(match["model"]):
        shift = _number(text, match) if match["sign"] else 0.0
        return Constraint(metric, side, -shift if match["sign"] == "-" else shift, match["model"], 1.0, text)
    raise ValueError(f"{text!r}: {_advice(bound)}")


def _number(text: str, match: "re.Match[str]") -> float:
    number = float(match["number"])
    if not math.isfinite(number):
        raise ValueError(f"{text!r}: {match['number']} is too large")
    return number / 100 if match.groupdict().get("percent") else number


def _looks_like_a_number(word: str) -> bool:
    return re.fullmatch(r"[-+.]?\d[\d.,]*|[-+]?(?:nan|inf)", word, re.IGNORECASE) is not None


def _advice(bound: str) -> str:
    if not bound:
        return "the right side is missing: a number (0.05, 5%), `97% of MODEL` or `MODEL + 0.02`"
    if match := _POINTS.fullmatch(bound):
        points = f"{float(match['number']) / 100:g}"
        return (
            f"percent of what? For points write `{match['model']} {match['sign']} {points}`, "
            f"for a share `N% of {match['model']}`"
        )
    return f"{bound!r} is no bound: write a number (0.05, 5%), `97% of MODEL` or `MODEL + 0.02`, with blanks in between"
