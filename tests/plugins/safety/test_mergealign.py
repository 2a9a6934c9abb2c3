"""Domain and alignment vectors interpolated, in a line and along an arc."""

import math
from collections.abc import Callable

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from safegraft.testing import check_method
from safegraft_plugins.safety.mergealign import MergeAlign
from safegraft_plugins.safety.pre_post import PrePost
from safegraft_plugins.slerp import Slerp

Merge = Callable[..., torch.Tensor]

FIXED = settings(derandomize=True, deadline=None)
B = torch.tensor([[1.0, 1.0, 1.0], [2.0, 2.0, 2.0]])
F = torch.tensor([[5.0, 1.0, 1.0], [2.0, 2.0, 6.0]])  # B + [[4, 0, 0], [0, 0, 4]]
A = torch.tensor([[1.0, 1.0, 5.0], [6.0, 2.0, 2.0]])  # B + [[0, 0, 4], [4, 0, 0]]

rows = st.lists(st.floats(-64, 64, width=32), min_size=6, max_size=6).map(torch.tensor)


def test_contract() -> None:
    check_method(MergeAlign)
    check_method(MergeAlign, parameters={"t": 0.3, "interpolation": "slerp"})


def test_by_hand(merged: Merge) -> None:
    # B + 1/2 [[4, 0, 0], [0, 0, 4]] + 1/2 [[0, 0, 4], [4, 0, 0]]
    assert merged(MergeAlign, [F], base=B, roles=[A]).tolist() == [[3.0, 1.0, 3.0], [4.0, 2.0, 4.0]]
    # B + 3/4 of the first + 1/4 of the second
    assert merged(MergeAlign, [F], base=B, roles=[A], t=0.25).tolist() == [[4.0, 1.0, 2.0], [3.0, 2.0, 5.0]]


def test_along_an_arc_by_hand(merged: Merge) -> None:
    # The vectors are orthogonal: a third of the way is cos 30 = 0.8660254 of F - B and sin 30 = 0.5 of A - B
    expected = [[1 + 4 * math.cos(math.pi / 6), 1.0, 3.0], [4.0, 2.0, 2 + 4 * math.cos(math.pi / 6)]]
    result = merged(MergeAlign, [F], base=B, roles=[A], t=1 / 3, interpolation="slerp")
    torch.testing.assert_close(result, torch.tensor(expected), rtol=3e-7, atol=0)


@FIXED
@given(rows, rows, rows, st.floats(0, 1))
def test_in_a_line_the_base_cancels(merged: Merge, f: torch.Tensor, a: torch.Tensor, b: torch.Tensor, t: float) -> None:
    line = merged(MergeAlign, [f], base=b, roles=[a], t=t)
    expected = b.double() + (1 - t) * (f.double() - b) + t * (a.double() - b)
    torch.testing.assert_close(line.double(), expected, rtol=0, atol=64 * 1e-6)
    torch.testing.assert_close(line, merged(PrePost, [f], roles=[a], **{"lambda": 1 - t}), rtol=0, atol=64 * 1e-6)
    assert torch.equal(merged(MergeAlign, [f], base=b, roles=[a], t=0), f)
    assert torch.equal(merged(MergeAlign, [f], base=b, roles=[a], t=1), a)
    assert torch.equal(merged(MergeAlign, [f], base=b, roles=[f], t=t), f)


@FIXED
@given(rows, rows, st.integers(0, 8).map(lambda step: step / 8))
def test_seen_from_zero_the_arc_is_slerp(merged: Merge, f: torch.Tensor, a: torch.Tensor, t: float) -> None:
    arc = merged(MergeAlign, [f], base=torch.zeros(6), roles=[a], t=t, interpolation="slerp")
    # Collinear vectors are interpolated in a line, which rounds otherwise than slerp: three roundings of up to 64.
    torch.testing.assert_close(arc, merged(Slerp, [a], base=f, t=t), rtol=0, atol=3 * 64 * 2**-23)


@FIXED
@given(rows, rows, rows, st.floats(0, 1))
def test_the_arc_has_exact_ends(merged: Merge, f: torch.Tensor, a: torch.Tensor, b: torch.Tensor, t: float) -> None:
    assert torch.equal(merged(MergeAlign, [f], base=b, roles=[a], t=0, interpolation="slerp"), f)
    assert torch.equal(merged(MergeAlign, [f], base=b, roles=[a], t=1, interpolation="slerp"), a)
    # Equal vectors are collinear, but one of length below 1e-8 counts as zero.
    if float((f - b).norm()) > 1e-6:
        assert torch.equal(merged(MergeAlign, [f], base=b, roles=[f], t=t, interpolation="slerp"), f)


def test_a_zero_vector_is_orthogonal(merged: Merge) -> None:
    # F = B: halfway it is cos 45 * 0 + sin 45 (A - B), A - B = [[0, 0, 4], [4, 0, 0]]
    quarter = 4 * math.sin(math.pi / 4)
    result = merged(MergeAlign, [B], base=B, roles=[A], interpolation="slerp")
    expected = torch.tensor([[1.0, 1.0, 1 + quarter], [2 + quarter, 2.0, 2.0]])
    torch.testing.assert_close(result, expected, rtol=3e-7, atol=0)
