"""Intervals and agreement against closed forms."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from safegraft_trainers.evaluate.agreement import agreement
from safegraft_trainers.evaluate.statistics import Z, mean_with_interval, paired_difference


def binomial_quantile(n: int, p: float, level: float) -> int:
    """The smallest k with P(X <= k) >= level."""
    total = 0.0
    for k in range(n + 1):
        total += math.comb(n, k) * p**k * (1 - p) ** (n - k)
        if total >= level:
            return k
    return n


@pytest.mark.parametrize(("hits", "n"), [(29, 60), (5, 60), (150, 200), (1, 2)])
def test_resampling_zeros_and_ones_is_the_binomial_distribution(hits: int, n: int) -> None:
    found = mean_with_interval([1.0] * hits + [0.0] * (n - hits))
    assert found.value == hits / n
    assert found.low == pytest.approx(binomial_quantile(n, hits / n, 0.025) / n, abs=1.001 / n)
    assert found.high == pytest.approx(binomial_quantile(n, hits / n, 0.975) / n, abs=1.001 / n)


def test_resampling_by_counts_is_resampling() -> None:
    values = np.random.default_rng(1).uniform(size=80).round(1)
    draws = np.random.default_rng(2).choice(values, size=(10_000, 80)).mean(axis=1)
    found = mean_with_interval(values.tolist())
    assert (found.low, found.high) == pytest.approx(np.quantile(draws, [0.025, 0.975]), abs=0.006)


@pytest.mark.parametrize("n", [1, 10, 60])
def test_answers_all_alike_are_no_certainty(n: int) -> None:
    """Wilson's interval, by its formula: the centre and half the width at k = 0."""
    centre = half = Z**2 / (2 * n) / (1 + Z**2 / n)
    none, all_ = mean_with_interval([0.0] * n), mean_with_interval([1.0] * n)
    assert (none.value, none.low, none.high) == pytest.approx((0, 0, centre + half))
    assert (all_.value, all_.low, all_.high) == pytest.approx((1, 1 - centre - half, 1))


def test_the_seed_decides() -> None:
    values = np.linspace(0, 1, 37).tolist()
    assert mean_with_interval(values, seed=3) == mean_with_interval(values, seed=3)
    assert mean_with_interval(values, seed=3) != mean_with_interval(values, seed=4)


def test_pairing_takes_out_how_hard_the_examples_are() -> None:
    """Two models that differ on 4 of 100 prompts: the difference is sure, the two means are not."""
    values = [float(index % 2) for index in range(100)]
    others = [1.0 if index in (0, 2, 4, 6) else value for index, value in enumerate(values)]
    found = paired_difference(values, others)
    assert found.value == pytest.approx(0.04)
    assert 0 < found.low < found.high <= 0.09
    apart = mean_with_interval(others).high - mean_with_interval(others).low
    assert found.high - found.low < apart / 2


def test_models_that_differ_nowhere_are_not_proven_equal() -> None:
    found = paired_difference([0.0, 1.0] * 10, [0.0, 1.0] * 10)
    assert found.value == 0
    assert -found.low == found.high == pytest.approx(Z**2 / (20 + Z**2))


@settings(deadline=None, max_examples=30)
@given(st.lists(st.sampled_from([0.0, 0.5, 1.0]), min_size=1, max_size=50))
def test_an_interval_is_around_its_mean_and_within_bounds(values: list[float]) -> None:
    found = mean_with_interval(values)
    slack = 1e-12
    assert -slack <= found.low <= found.value + slack
    assert found.value - slack <= found.high <= 1 + slack


def test_no_values_have_no_mean() -> None:
    with pytest.raises(ValueError, match="no mean"):
        mean_with_interval([])
    with pytest.raises(ValueError, match="cannot be paired"):
        paired_difference([1.0], [])


def test_kappa_by_hand() -> None:
    """A textbook table: 20 both yes, 15 both no, 5 and 10 apart: agreement .7, chance .5, kappa .4."""
    first = [True] * 20 + [False] * 15 + [True] * 5 + [False] * 10
    second = [True] * 20 + [False] * 15 + [False] * 5 + [True] * 10
    found = agreement(("a", "b"), "attacked", first, second)
    assert (found.raw, found.kappa, found.n) == (0.7, pytest.approx(0.4), 50)


def test_kappa_is_unknown_where_nobody_ever_says_yes() -> None:
    found = agreement(("a", "b"), "refused", [False] * 3, [False] * 3)
    assert (found.raw, found.kappa) == (1.0, None)
