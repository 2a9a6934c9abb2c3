"""Intervals of means, by the percentile bootstrap. Knows numbers only.

n values drawn with replacement are a multinomial draw over the distinct ones, and scores have few distinct values (0
and 1, mostly): ten thousand resamples cost as much memory as ten thousand pairs of counts, whatever n is.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

RESAMPLES = 10_000
CONFIDENCE = 0.95
Z = 1.959964  # the normal distribution's two-sided 95 % quantile


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean and its 95 % interval."""

    value: float
    low: float
    high: float


def mean_with_interval(values: Sequence[float], *, seed: int = 0) -> Estimate:
    """The mean of n >= 1 values between 0 and 1, and its 95 % interval.

    Resamples of values that are all alike are alike too, and would claim certainty after a single answer. There the
    interval is Wilson's (1927), as for n successes of n.
    """
    _require(values)
    data = np.asarray(values, dtype=np.float64)
    value = float(data.mean())
    if (data == data[0]).all():
        slack = _wilson_slack(len(data))
        return Estimate(value, value - slack * value, value + slack * (1 - value))
    low, high = _percentiles(data, seed)
    return Estimate(value, low, high)


def paired_difference(values: Sequence[float], others: Sequence[float], *, seed: int = 0) -> Estimate:
    """The mean of `others[i] - values[i]`, both of the same example i, and its 95 % interval.

    Pairing takes the examples' difficulty out: the interval is narrower than that of two independent means. Where
    all differences are alike the bootstrap sees no spread; the interval is Wilson's there too, towards both sides.
    """
    if len(values) != len(others):
        raise ValueError(f"{len(values)} values cannot be paired with {len(others)}")
    _require(values)
    data = np.asarray(others, dtype=np.float64) - np.asarray(values, dtype=np.float64)
    value = float(data.mean())
    if (data == data[0]).all():
        slack = _wilson_slack(len(data))
        return Estimate(value, value - slack * (1 + value), value + slack * (1 - value))
    low, high = _percentiles(data, seed)
    return Estimate(value, low, high)


def _wilson_slack(n: int) -> float:
    """The width of Wilson's interval at no success, or no failure, in n."""
    return Z**2 / (n + Z**2)


def _require(values: Sequence[float]) -> None:
    if not len(values):
        raise ValueError("there is no mean of no values")


def _percentiles(data: "np.ndarray[tuple[int], np.dtype[np.float64]]", seed: int) -> tuple[float, float]:
    distinct, counts = np.unique(data, return_counts=True)
    draws = np.random.default_rng(seed).multinomial(len(data), counts / len(data), size=RESAMPLES)
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(draws @ distinct / len(data), [tail, 1 - tail])
    return float(low), float(high)
