"""Random numbers by position: which they are, that cutting does not matter, how they are distributed."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from safegraft_plugins.random_bits import limit, philox, uniform

FIXED = settings(derandomize=True, deadline=None)
SEEDS = st.integers(0, 2**64 - 1)


@FIXED
@given(SEEDS, st.integers(0, 9), st.integers(0, 100), st.integers(0, 40))
def test_a_cut_gets_the_whole_ones_numbers(seed: int, stream: int, position: int, count: int) -> None:
    whole = uniform(seed, stream, 0, position + count)
    assert torch.equal(uniform(seed, stream, position, count), whole[position:])


# Counter, key and words: the known answers of Random123, the authors' own code.
KNOWN = {
    10: [
        ([0] * 4, [0] * 2, [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]),
        ([0xFFFFFFFF] * 4, [0xFFFFFFFF] * 2, [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]),
        (
            [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
            [0xA4093822, 0x299F31D0],
            [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1],
        ),
    ],
    7: [([0] * 4, [0] * 2, [0x5F6FB709, 0x0D893F64, 0x4F121F81, 0x4F730A48])],
}


@pytest.mark.parametrize("rounds", KNOWN)
def test_it_is_philox(rounds: int) -> None:
    for counter, (low, high), expected in KNOWN[rounds]:
        words = philox([np.array([word], np.uint64) for word in counter], low | high << 32, rounds)
        assert [int(word[0]) for word in words] == expected


def test_which_word_is_whose() -> None:
    """The words of sixteen counters, the first of each before the second of each; without their lowest bits."""
    counters = [np.arange(3 * 16, 4 * 16, dtype=np.uint64), *(np.full(16, one, np.uint64) for one in (0, 9, 0))]
    words = np.concatenate(philox(counters, 2**63 + 5)) >> np.uint64(1)
    assert uniform(2**63 + 5, 9, 3 * 64, 64).tolist() == words.tolist()


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
