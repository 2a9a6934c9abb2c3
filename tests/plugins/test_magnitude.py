"""The largest elements of a tensor seen in blocks: against a sort of the whole."""

import itertools
import random
import struct
from collections.abc import Iterator
from unittest.mock import patch

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from safegraft_plugins import magnitude as magnitude_module
from safegraft_plugins.float_bits import magnitude
from safegraft_plugins.magnitude import EVERYTHING, NOTHING, Largest, belongs, largest, thresholds

FIXED = settings(derandomize=True, deadline=None)

# Few different values give ties; denormal, huge and equal upper bits come too.
values = st.one_of(
    st.sampled_from([0.0, -0.0, 1.0, -1.0, 1.0000001, -2.0, 1e-42, 3e38]), st.floats(-4, 4, width=32, allow_nan=False)
)


def kept(tensor: torch.Tensor, count: int, block: int) -> list[int]:
    """The indices that `largest` finds, tested in uneven cuts."""
    found = largest(lambda: ((part,) for part in tensor.split(block)), {0: [count]}, len(tensor))[0][0]
    cuts = sorted({0, 1, len(tensor) // 3, len(tensor)})
    masks = [belongs(magnitude(tensor[start:stop]), found, start) for start, stop in itertools.pairwise(cuts)]
    mask = torch.cat(masks)
    assert set(mask.tolist()) <= {0, -1}
    return mask.nonzero().flatten().tolist()


@FIXED
@given(st.lists(values, min_size=1, max_size=40), st.floats(0, 1), st.integers(1, 9), st.sampled_from([0, 3, 99]))
def test_agrees_with_a_stable_sort(numbers: list[float], share: float, block: int, held: int) -> None:
    """Whether or not the elements near the threshold can be held in memory."""
    tensor = torch.tensor(numbers)
    count = round(share * len(numbers))
    expected = sorted(range(len(numbers)), key=lambda at: (-abs(float(tensor[at])), at))[:count]
    with patch.object(magnitude_module, "HELD", held):
        assert kept(tensor, count, block) == sorted(expected)


def test_by_hand() -> None:
    # magnitudes 3 1 2 2 2 0: the three largest are 3 and the first two 2s, at 0, 2 and 3
    tensor = torch.tensor([3.0, -1.0, -2.0, 2.0, -2.0, 0.0])
    (found,) = largest(lambda: ((part,) for part in tensor.split(2)), {0: [3]}, 6)[0]
    assert found == Largest(struct.unpack("<i", struct.pack("<f", 2.0))[0], 3)


def test_none_and_all_need_no_look() -> None:
    def walk() -> Iterator[list[torch.Tensor]]:
        raise AssertionError("nothing has to be looked at")

    assert largest(walk, {0: [0, 5], 1: [7]}, 5) == {0: [NOTHING, EVERYTHING], 1: [EVERYTHING]}


def test_several_tensors_and_counts_at_once() -> None:
    generator = torch.Generator().manual_seed(0)
    pair = [torch.randn(1000, generator=generator).bfloat16().float() for _ in range(2)]

    def walk() -> Iterator[list[torch.Tensor]]:
        return (list(parts) for parts in zip(*(one.split(300) for one in pair), strict=True))

    together = largest(walk, {0: [10, 700], 1: [250]}, 1000)
    alone = [largest(lambda: ((part,) for part in pair[0].split(300)), {0: [count]}, 1000)[0][0] for count in (10, 700)]
    assert together[0] == alone
    assert int(belongs(magnitude(pair[1]), together[1][0], 0).sum()) == -250


@pytest.mark.parametrize("seed", range(3))
def test_thresholds_are_ranks(seed: int) -> None:
    """Rank and number of equals, on numbers of which many share their upper 15 bits."""
    draw = random.Random(seed)
    tensor = torch.tensor([1 + draw.randrange(50) * 2**-23 for _ in range(300)])
    ordered = sorted(tensor.tolist(), reverse=True)
    for k in (1, 17, 150, 300):
        found = thresholds(lambda: ((part,) for part in tensor.split(64)), {(0, k)})[0, k]
        value = struct.unpack("<f", struct.pack("<i", found.bits))[0]
        assert value == ordered[k - 1]
        assert found.equal == ordered.count(value)
        assert found.rank == k - ordered.index(value)


def test_float64_is_ranked_as_float32() -> None:
    tensor = torch.tensor([1.0, 1.0 + 1e-12, 0.5], dtype=torch.float64)
    assert kept(tensor, 1, 2) == [0]
