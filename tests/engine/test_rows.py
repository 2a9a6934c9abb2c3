"""Row pairing, and the cuts of a layout against a plain gather."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from safegraft.engine.rows import NO_ROW, RowLayout, pair_by_position, pair_by_token


@st.composite
def layouts(draw: st.DrawFn) -> tuple[list[np.ndarray], int]:
    rows = draw(st.integers(1, 12))
    sources = draw(st.integers(1, 3))
    maps = [
        np.array(draw(st.lists(st.integers(-1, 15), min_size=rows, max_size=rows)), dtype=np.int64)
        for _ in range(sources)
    ]
    return maps, draw(st.integers(1, 4))


@given(layouts(), st.data())
def test_cuts_gather_what_the_maps_say(case: tuple[list[np.ndarray], int], data: st.DataObject) -> None:
    maps, width = case
    layout = RowLayout(maps, (len(maps[0]), width))
    elements = len(maps[0]) * width
    start = data.draw(st.integers(0, elements))
    stop = data.draw(st.integers(start, elements))
    shared = [row for row in range(len(maps[0])) if all(one[row] >= 0 for one in maps)]
    assert layout.shared_rows == len(shared)
    places = {row: at for at, row in enumerate(shared)}
    expected = [places[e // width] * width + e % width if e // width in places else None for e in range(start, stop)]
    assert expand(layout.shared_of_host(start, stop), stop - start) == expected


@given(layouts(), st.data())
def test_shared_cuts_have_no_gaps(case: tuple[list[np.ndarray], int], data: st.DataObject) -> None:
    maps, width = case
    layout = RowLayout(maps, (len(maps[0]), width))
    stop = data.draw(st.integers(0, layout.shared_rows * width))
    start = data.draw(st.integers(0, stop))
    shared = [row for row in range(len(maps[0])) if all(one[row] >= 0 for one in maps)]
    for index, one in enumerate(maps):
        expected = [int(one[shared[e // width]]) * width + e % width for e in range(start, stop)]
        assert expand(layout.shared_cut(index, start, stop), stop - start) == expected


def expand(pieces: object, size: int) -> list[int | None]:
    """Pieces as one source index an element; they must tile the cut."""
    out: list[int | None] = []
    for piece in pieces:  # type: ignore[attr-defined]
        assert piece.at == len(out)
        assert piece.count > 0
        out += [None if piece.source is None else piece.source + step for step in range(piece.count)]
    assert len(out) == size
    return out


def test_equal_vocabularies_pair_padding_rows_too() -> None:
    tokens = {"a": 0, "b": 1}
    assert pair_by_token(tokens, dict(tokens), 4, 4).tolist() == [0, 1, 2, 3]


def test_rows_beyond_the_tokens_stay_the_hosts_when_sizes_differ() -> None:
    assert pair_by_token({"a": 0, "b": 1}, {"a": 0, "b": 1}, 4, 3).tolist() == [0, 1, NO_ROW, NO_ROW]


def test_tokens_are_paired_by_string_not_by_row() -> None:
    assert pair_by_token({"a": 0, "b": 1, "img": 2}, {"b": 0, "a": 1}, 3, 2).tolist() == [1, 0, NO_ROW]


def test_tokens_without_a_row_are_left_out() -> None:
    assert pair_by_token({"a": 0, "far": 9}, {"a": 7, "far": 0}, 2, 2).tolist() == [NO_ROW, NO_ROW]


def test_position_pairs_the_common_rows() -> None:
    assert pair_by_position(4, 3).tolist() == [0, 1, 2, NO_ROW]


def test_equal_maps_are_recognised_as_identity() -> None:
    rows = pair_by_position(3, 3)
    assert RowLayout([rows, rows], (3, 2)).is_identity
    assert not RowLayout([rows, pair_by_position(3, 2)], (3, 2)).is_identity
