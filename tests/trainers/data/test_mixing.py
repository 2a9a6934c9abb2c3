"""Shares of data sets: counted exactly, drawn without chance, and honest about what was repeated."""

import logging
from collections import Counter
from fractions import Fraction
from typing import Any

import datasets
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from safegraft.errors import InputError, UsageError
from safegraft_trainers.data.columns import PREFERENCE, SUPERVISED
from safegraft_trainers.data.digest import digest
from safegraft_trainers.data.mixing import draw, mix


def message(role: str, text: str) -> list[dict[str, Any]]:
    return [{"role": role, "content": [{"type": "text", "text": text}]}]


def rows_of(name: str, count: int) -> datasets.Dataset:
    rows = [
        {
            "id": f"{name}{number}",
            "images": [],
            "prompt": message("user", "a"),
            "completion": message("assistant", "b"),
        }
        for number in range(count)
    ]
    return datasets.Dataset.from_list(rows, features=SUPERVISED)


A, B = rows_of("a", 40), rows_of("b", 11)


@settings(deadline=None, max_examples=60)
@given(
    counts=st.lists(st.integers(1, 30), min_size=1, max_size=4),
    shares=st.lists(st.integers(1, 20), min_size=4, max_size=4),
    size=st.none() | st.integers(80, 120),
    seed=st.integers(0, 2**32),
)
def test_what_a_mix_promises(counts: list[int], shares: list[int], size: int | None, seed: int) -> None:
    """Counts within one row of the shares; no row more than once too often; the same again; another order elsewhere."""
    sources = [
        (rows_of(f"{place}:", count), share / 10)
        for place, (count, share) in enumerate(zip(counts, shares, strict=False))
    ]
    total = Fraction(sum(shares[: len(counts)]), 10)
    if size is None and min(count * total * 10 // share for count, share in zip(counts, shares, strict=False)) < 80:
        size = 80  # so few that a small share may come to no row, which is refused: another test's matter
    mixture = draw(sources, size, seed)
    rows = len(mixture.dataset)
    assert sum(mixture.taken) == rows == (rows if size is None else size)
    assert mixture.available == tuple(counts)
    for count, taken, share in zip(counts, mixture.taken, shares, strict=False):
        assert abs(taken - rows * Fraction(share, 10) / total) < 1
        assert size is not None or taken <= count
    drawn = Counter(mixture.dataset["id"])
    for place, (count, taken) in enumerate(zip(counts, mixture.taken, strict=True)):
        times = [drawn[f"{place}:{number}"] for number in range(count)]
        assert sum(times) == taken
        assert max(times) - min(times) <= 1
    assert len(mixture.notes) == sum(taken > count for taken, count in zip(mixture.taken, counts, strict=True))
    assert draw(sources, size, seed).dataset["id"] == mixture.dataset["id"]


def test_as_large_as_shares_allow() -> None:
    """All of the scarcer source, and what goes with it; then nothing is repeated."""
    mixture = draw([(A, 0.1), (B, 0.9)])
    assert mixture.taken == (1, 11)
    assert draw([(A, 3), (B, 1)]).taken == (33, 11)
    assert draw([(A, 40), (B, 11)]).taken == (40, 11)
    assert mixture.notes == ()


def test_decimal_shares_are_taken_as_written() -> None:
    """0.1 is no binary fraction; a hundred rows at a tenth are still a thousand in all."""
    assert draw([(rows_of("a", 100), 0.1), (rows_of("b", 900), 0.9)]).taken == (100, 900)


def test_which_rows_does_not_change_between_versions() -> None:
    """Recorded once: a published card's seed must go on meaning the same rows."""
    assert mix([(A, 0.5), (B, 0.5)], size=8, seed=3)["id"] == ["a17", "b8", "a19", "b10", "b4", "a36", "b6", "a11"]
    assert mix([(A, 0.5), (B, 0.5)], size=8, seed=4)["id"] != mix([(A, 0.5), (B, 0.5)], size=8, seed=3)["id"]


def test_a_larger_draw_holds_a_smaller_one() -> None:
    small, large = (set(mix([(A, 1)], size=size)["id"]) for size in (10, 20))
    assert small < large


def test_repetition_is_said(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        data = mix([(A, 0.5), (B, 0.5)], size=60)
    assert "source 2 of the mix has 11 rows and its share asks for 30: each is taken 2 or 3 times" in caplog.text
    assert Counter(Counter(data["id"]).values()) == {1: 30, 2: 3, 3: 8}


def test_columns_that_only_some_have() -> None:
    labelled = B.add_column("unsafe", [True] * len(B))
    data = mix([(A, 0.5), (labelled, 0.5)], size=10)
    assert {(name[0], unsafe) for name, unsafe in zip(data["id"], data["unsafe"], strict=True)} == {
        ("a", None),
        ("b", True),
    }


def test_record_for_the_card() -> None:
    mixture = draw([(A, 0.75), (B, 0.25)], size=8, seed=5)
    assert mixture.to_dict() == {
        "rows": 8,
        "sources": [{"rows": 6, "of": 40}, {"rows": 2, "of": 11}],
        "seed": 5,
        "digest": digest(mixture.dataset),
    }


@pytest.mark.parametrize("share", [0, -1, float("nan"), float("inf")])
def test_shares_that_make_no_sense(share: float) -> None:
    with pytest.raises(UsageError, match="source 2 of the mix has the share"):
        mix([(A, 1), (B, share)])


def test_what_cannot_be_mixed() -> None:
    with pytest.raises(UsageError, match="at least one data set"):
        mix([])
    with pytest.raises(InputError, match="source 2 of the mix: has no rows"):
        mix([(A, 1), (B.select([]), 1)])
    with pytest.raises(UsageError, match="none for source 2: ask for 100 rows or more"):
        mix([(A, 0.99), (B, 0.01)], size=10)
    answers = {"chosen": message("assistant", "b"), "rejected": message("assistant", "c")}
    row = {"id": "p", "images": [], "prompt": message("user", "a"), **answers}
    preference = datasets.Dataset.from_list([row], features=PREFERENCE)
    with pytest.raises(InputError, match="both preferences and plain examples"):
        mix([(A, 1), (preference, 1)])
    with pytest.raises(InputError, match="has neither the columns prompt and completion nor"):
        mix([(A, 1), (A.remove_columns("completion"), 1)])
    other = A.remove_columns("images").add_column("images", [["x"]] * len(A))
    with pytest.raises(InputError, match=r"column images is .* in one data set and .* in another"):
        mix([(A, 1), (other, 1)])
