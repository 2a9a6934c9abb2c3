"""Sizes: what people write means what transformers takes it for, and what is shown can be written."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from safegraft.cli.sizes import format_size, parse_size

DECIMAL = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
BINARY = {"KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40}


@given(st.integers(1, 10**6), st.sampled_from(sorted(DECIMAL | BINARY)), st.sampled_from(["", " "]))
def test_number_times_unit(number: int, unit: str, space: str) -> None:
    assert parse_size(f"{number}{space}{unit}") == number * (DECIMAL | BINARY)[unit]


@given(st.integers(1, 10**15))
def test_plain_bytes_are_themselves(size: int) -> None:
    assert parse_size(str(size)) == size


@pytest.mark.parametrize(("text", "size"), [("1.5GB", 1_500_000_000), ("0.5KiB", 512), (" 5GB ", 5 * 10**9)])
def test_fractions_and_blanks(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize(
    "text",
    ["", "GB", "5Gb", "5gb", "-1", "5 GB GB", "1e9", "0x10", "1.0001", "0", "0GB", ".5GB", "5PB", "\u0665GB", "nan"],
)
def test_anything_else_is_refused_by_name(text: str) -> None:
    with pytest.raises(ValueError, match="byte") as caught:
        parse_size(text)
    assert repr(text) in str(caught.value)


def test_agrees_with_transformers() -> None:
    from transformers.utils.hub import convert_file_size_to_int

    for text in ("5GB", "500MB", "200KB", "3GiB", "7MiB", "9KiB"):
        assert parse_size(text) == convert_file_size_to_int(text)


@given(st.integers(1, 10**17))
def test_shown_size_is_within_rounding_of_the_size(size: int) -> None:
    shown = format_size(size)
    assert abs(parse_size(shown) - size) <= 0.005 * size + 0.5
    assert len(shown.split()[0]) <= 4 or size >= 10**15


@pytest.mark.parametrize(
    ("size", "shown"), [(0, "0 B"), (999, "999 B"), (1000, "1.00 KB"), (999_499, "999 KB"), (999_500, "1.00 MB")]
)
def test_shown_size_at_the_edges(size: int, shown: str) -> None:
    assert format_size(size) == shown
