"""Random numbers by position: which they are, that cutting does not matter, how they are distributed."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from safegraft_plugins.random_bits import limit, uniform

FIXED = settings(derandomize=True, deadline=None)
SEEDS = st.integers(0, 2**64 - 1)


@FIXED
@given(SEEDS, st.integers(0, 9), st.integers(0, 100), st.integers(0, 40))
def test_a_cut_gets_the_whole_ones_numbers(seed: int, stream: int, position: int, count: int) -> None:
    whole = uniform(seed, stream, 0, position + count)
    assert torch.equal(uniform(seed, stream, position, count), whole[position:])


def test_they_are_philox_words() -> None:
    """Of each 64-bit word the lower half first, without its top bit."""
    words = np.random.Philox(key=np.array([2**63 + 5, 3], np.uint64)).random_raw(6)
    halves = [int(half) & 0x7FFFFFFF for word in words for half in (int(word), int(word) >> 32)]
    assert uniform(2**63 + 5, 3, 0, 12).tolist() == halves


def test_far_positions() -> None:
    at = 10**13 + 3
    assert torch.equal(uniform(1, 0, at, 20)[5:], uniform(1, 0, at + 5, 15))


def test_seeds_and_streams_differ() -> None:
    drawn = {tuple(uniform(seed, stream, 0, 4).tolist()) for seed in range(4) for stream in range(4)}
    assert len(drawn) == 16


def test_uniform() -> None:
    """Mean and variance of 2^20 numbers, within five standard errors; neighbours are uncorrelated."""
    numbers = uniform(7, 0, 0, 1 << 20).double() / 2**31
    assert float(numbers.mean()) == pytest.approx(0.5, abs=5 / (12**0.5 * 2**10))
    assert float(numbers.var()) == pytest.approx(1 / 12, abs=5 / (180**0.5 * 2**10))
    assert abs(float(((numbers[1:] - 0.5) * (numbers[:-1] - 0.5)).mean())) < 5 / (12 * 2**10)


@pytest.mark.parametrize(("probability", "expected"), [(0, 0), (0.25, 2**29), (0.5, 2**30), (1, 2**31 - 1)])
def test_limits(probability: float, expected: int) -> None:
    assert limit(probability) == expected
