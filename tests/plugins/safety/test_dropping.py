"""Drop and rescale: the share that is kept, its mean, and cuts."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from safegraft_plugins.safety.dropping import drop

FIXED = settings(derandomize=True, deadline=None)
COUNT = 40_000


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_kept_share_and_mean(rate: float, dtype: torch.dtype) -> None:
    result = drop(torch.full((COUNT,), 3.0, dtype=dtype), rate, 5, 0, 0)
    kept = result != 0
    # Bernoulli of 1 - rate: within four standard deviations
    assert float(kept.double().mean()) == pytest.approx(1 - rate, abs=4 * (rate * (1 - rate) / COUNT) ** 0.5)
    assert result.dtype == dtype
    torch.testing.assert_close(result[kept], torch.full_like(result[kept], 3 / (1 - rate)))


@FIXED
@given(st.lists(st.integers(0, 40), max_size=5), st.integers(0, 100), st.floats(0, 0.99))
def test_cuts_do_not_matter(at: list[int], position: int, rate: float) -> None:
    values = torch.arange(1.0, 41)
    whole = drop(values.clone(), rate, 3, 1, position)
    borders = [0, *sorted(at), 40]
    parts = [drop(values[i:j].clone(), rate, 3, 1, position + i) for i, j in itertools.pairwise(borders)]
    assert torch.equal(torch.cat(parts), whole)


def test_what_draws_depend_on() -> None:
    drawn = [drop(torch.ones(200), 0.5, *key) for key in ((1, 0, 0), (2, 0, 0), (1, 1, 0), (1, 0, 200))]
    for index, one in enumerate(drawn):
        assert not any(torch.equal(one, other) for other in drawn[:index])


def test_the_ends() -> None:
    values = torch.tensor([1.0, -2.0, 0.0])
    assert torch.equal(drop(values.clone(), 0, 1, 0, 0), values)
    assert torch.equal(drop(values.clone(), 1 - 2**-53, 1, 0, 0), torch.zeros(3))  # less than one draw in 2^31
