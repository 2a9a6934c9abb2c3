"""The safety-tuned model mixed in where updates leave the alignment: by hand, limits, drop and rescale."""

from collections.abc import Callable

import pytest
import torch
from pydantic import ValidationError

from safegraft.testing import check_method
from safegraft_plugins.safety.safemerge import SafeMerge

Merge = Callable[..., torch.Tensor]

B = torch.zeros(2, 3)
A = torch.tensor([[0.0, 5.0, 0.0], [0.0, 0.0, 0.0]])  # V = A: C = diag(5, 0), the first row alone
S = A + 10
AWAY = A + torch.tensor([[0.0, 0.0, 0.0], [1.0, 2.0, 2.0]])  # C d = 0: rho = 0
PARTLY = A + torch.tensor([[3.0, 0.0, 0.0], [0.0, 4.0, 0.0]])  # C d = [[15, 0, 0], 0]: rho = 45 / (15 * 5) = 0.6


@pytest.mark.parametrize("shared", [{}, {"threshold": 1}, {"threshold": 1, "merge_type": "dare_linear"}])
def test_contract(shared: dict[str, float | str]) -> None:
    check_method(SafeMerge, parameters=shared)


def test_by_hand(merged: Merge) -> None:
    # rho = 0 < 0.35: 0.8 F + 0.2 S = A + 0.8 d + 2
    expected = torch.tensor([[2.0, 7.0, 2.0], [2.8, 3.6, 3.6]])
    torch.testing.assert_close(merged(SafeMerge, [AWAY], base=B, roles=[A, S]), expected, rtol=1e-6, atol=0)
    # rho = 0.6
    assert torch.equal(merged(SafeMerge, [PARTLY], base=B, roles=[A, S]), PARTLY)
    # 1/2 F + 1/2 S = A + d / 2 + 5
    half = merged(SafeMerge, [PARTLY], base=B, roles=[A, S], threshold=0.61, safe_weight=0.5)
    assert half.tolist() == [[6.5, 10.0, 5.0], [5.0, 7.0, 5.0]]


def test_limits(merged: Merge) -> None:
    everywhere = {"threshold": 1, "base": B}
    assert torch.equal(merged(SafeMerge, [AWAY], roles=[A, S], safe_weight=0, **everywhere), AWAY)
    assert torch.equal(merged(SafeMerge, [AWAY], roles=[A, S], safe_weight=1, **everywhere), S)
    assert torch.equal(merged(SafeMerge, [AWAY], roles=[A, AWAY], **everywhere), AWAY)
    assert torch.equal(merged(SafeMerge, [AWAY], roles=[A, S], threshold=0, base=B), AWAY)  # below, not at


def test_rho_is_0_where_there_is_no_direction(merged: Merge) -> None:
    """As in the authors' code: a matrix that alignment has not changed is merged, at any threshold above 0."""
    result = merged(SafeMerge, [PARTLY], base=A, roles=[A, S], threshold=0.01, safe_weight=0.5)
    assert result.tolist() == [[6.5, 10.0, 5.0], [5.0, 7.0, 5.0]]


def test_what_is_no_matrix_stays(merged: Merge) -> None:
    shared = {"threshold": 1, "safe_weight": 1}
    assert torch.equal(merged(SafeMerge, [AWAY], base=B, roles=[A, S], vocabulary=True, **shared), AWAY)
    assert torch.equal(merged(SafeMerge, [AWAY[1]], base=B[1], roles=[A[1], S[1]], **shared), AWAY[1])


def test_dare_linear(merged: Merge) -> None:
    """Updates of 1 and 2 become 0 or twice that, each by its own draw; weights 3/4 and 1/4 on them."""
    a = torch.zeros(100, 100)
    f, s, b = a + 1, a + 2, a - 1
    shared = {"threshold": 1, "safe_weight": 0.25, "merge_type": "dare_linear", "density": 0.5}
    f[0, 0] = 0  # so that the update is not along V, and rho below 1
    result = merged(SafeMerge, [f], base=b, roles=[a, s], **shared).flatten()[1:]
    assert result.unique().tolist() == [0.0, 1.0, 1.5, 2.5]
    assert float(result.mean()) == pytest.approx(1.25, abs=0.05)
    for value in (0.0, 1.0, 1.5, 2.5):
        assert float((result == value).float().mean()) == pytest.approx(0.25, abs=0.02)
    again = merged(SafeMerge, [f], base=b, roles=[a, s], seed=1, **shared).flatten()[1:]
    assert not torch.equal(again, result)


def test_dare_linear_that_keeps_everything_is_linear(merged: Merge) -> None:
    dare = merged(SafeMerge, [AWAY], base=B, roles=[A, S], merge_type="dare_linear", density=1)
    torch.testing.assert_close(dare, merged(SafeMerge, [AWAY], base=B, roles=[A, S]), rtol=1e-6, atol=0)


@pytest.mark.parametrize("asked", [{"density": 0}, {"safe_weight": 1.1}, {"threshold": 2}, {"merge_type": "ties"}])
def test_parameters_have_ranges(asked: dict[str, float | str]) -> None:
    with pytest.raises(ValidationError):
        SafeMerge.Parameters.model_validate(asked)


def test_the_default_threshold(merged: Merge) -> None:
    # C = diag(5, 0): rho = |first row| / |d|. 3 / sqrt(9 + 55) = 0.375 is kept,
    above = A + torch.tensor([[3.0, 0.0, 0.0], [0.0, 55**0.5, 0.0]])
    assert torch.equal(merged(SafeMerge, [above], base=B, roles=[A, S]), above)
    # 1 / sqrt(1 + 8) = 1 / 3 is not: 0.8 F + 0.2 S = A + 0.8 d + 2
    below = A + torch.tensor([[1.0, 0.0, 0.0], [0.0, 8**0.5, 0.0]])
    expected = torch.tensor([[2.8, 7.0, 2.0], [2.0, 2 + 0.8 * 8**0.5, 2.0]])
    torch.testing.assert_close(merged(SafeMerge, [below], base=B, roles=[A, S]), expected, rtol=1e-6, atol=0)


def test_dare_linear_keeps_half_by_default(merged: Merge) -> None:
    a, b = torch.zeros(60, 60), torch.zeros(60, 60)
    b[0] = -1  # V is the first row alone, and the update has none of it: rho = 0
    f = torch.ones(60, 60)
    f[0] = 0
    result = merged(SafeMerge, [f], base=b, roles=[a, a], safe_weight=0, merge_type="dare_linear")[1:]
    assert result.unique().tolist() == [0.0, 2.0]  # 1 / 0.5
    kept = float((result == 2).float().mean())
    assert kept == pytest.approx(0.5, abs=4 * (0.25 / result.numel()) ** 0.5)  # four standard deviations


def test_each_expert_is_decided_and_drawn_by_itself(merged: Merge) -> None:
    experts = torch.stack([AWAY, PARTLY])
    a, s, b = A.expand(2, 2, 3), S.expand(2, 2, 3), B.expand(2, 2, 3)
    result = merged(SafeMerge, [experts], base=b, roles=[a, s])
    assert torch.equal(result[0], merged(SafeMerge, [AWAY], base=B, roles=[A, S]))
    assert torch.equal(result[1], PARTLY)
    twins = torch.zeros(2, 8, 8)
    twins[:, 1:] = 1
    base = torch.zeros(2, 8, 8)
    base[:, 0] = -1
    aligned = torch.zeros(2, 8, 8)
    one, other = merged(SafeMerge, [twins], base=base, roles=[aligned, aligned], merge_type="dare_linear")
    assert not torch.equal(one, other)
