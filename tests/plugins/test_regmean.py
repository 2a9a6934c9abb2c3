"""RegMean: against least squares on the data themselves, and numbers worked by hand."""

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from safegraft.testing import check_method
from safegraft_plugins.regmean import Regmean

Merge = Callable[..., torch.Tensor]

FIXED = settings(derandomize=True, deadline=None)


def known(*grams: torch.Tensor | None) -> list[dict[str, torch.Tensor | None]]:
    return [{"gram": gram} for gram in grams]


def each(*numbers: float) -> list[dict[str, float]]:
    return [{"weight": number} for number in numbers]


def drawn(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("inputs", [1, 2, 4])
def test_contract(inputs: int) -> None:
    check_method(Regmean, inputs=inputs)


def test_by_hand(merged: Merge) -> None:
    """alpha 1/2 makes [[2, .5], [.5, 2]] of the first matrix and leaves the second. Their sum is [[3, .5], [.5, 3]],
    its inverse [[3, -.5], [-.5, 3]] / 8.75."""
    first, second = torch.tensor([[2.0, 1.0], [1.0, 2.0]]), torch.eye(2)
    # row 1: (1, 0) G_1 + (0, 1) G_2 = (2, 1.5), times the inverse (5.25, 3.5) / 8.75
    # row 2: (0, 2) G_1 + (0, 2) G_2 = (1, 6), times the inverse (0, 17.5) / 8.75: both have it, so it is kept
    x, y = torch.tensor([[1.0, 0.0], [0.0, 2.0]]), torch.tensor([[0.0, 1.0], [0.0, 2.0]])
    result = merged(Regmean, [x, y], statistics=known(first, second), alpha=0.5)
    torch.testing.assert_close(result, torch.tensor([[0.6, 0.4], [0.0, 2.0]]), rtol=0, atol=2e-6)


def test_features_by_their_energy(merged: Merge) -> None:
    # Diagonal matrices weigh columns: 1 : 3, 2 : 2, and 0 : 0, which the ridge makes the mean. Weights 3 : 1 make the
    # first 3 : 3, the second 6 : 2, the third 3 : 1.
    x, y = torch.tensor([[4.0, 4.0, 4.0], [0.0, 8.0, -4.0]]), torch.tensor([[0.0, 8.0, 0.0], [4.0, 0.0, 4.0]])
    statistics = known(torch.diag(torch.tensor([1.0, 2.0, 0.0])), torch.diag(torch.tensor([3.0, 2.0, 0.0])))
    result = merged(Regmean, [x, y], statistics=statistics)
    torch.testing.assert_close(result, torch.tensor([[1.0, 6.0, 2.0], [3.0, 4.0, 0.0]]), rtol=0, atol=2e-5)
    result = merged(Regmean, [x, y], each(3, 1), statistics=statistics)
    torch.testing.assert_close(result, torch.tensor([[2.0, 5.0, 3.0], [2.0, 6.0, -2.0]]), rtol=0, atol=2e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_it_is_the_least_squares_fit_of_all_outputs(merged: Merge, dtype: torch.dtype) -> None:
    """With alpha = 1: solved here from the tokens themselves, by another algorithm."""
    tokens = [drawn(seed, 40, 6).to(torch.float64) * (seed + 1) for seed in range(3)]
    weights = [drawn(10 + seed, 5, 6).to(dtype) for seed in range(3)]
    shares = (0.5, 2.0, 1.0)
    outputs = [x @ w.double().T for x, w in zip(tokens, weights, strict=True)]
    roots = [share**0.5 for share in shares]
    stacked = torch.cat([x * root for x, root in zip(tokens, roots, strict=True)])
    wanted = torch.cat([y * root for y, root in zip(outputs, roots, strict=True)])
    expected = torch.linalg.lstsq(stacked, wanted).solution.T
    grams = [x.T @ x / len(x) for x in tokens]
    result = merged(Regmean, weights, each(*shares), statistics=known(*grams), alpha=1)
    torch.testing.assert_close(result.double(), expected, rtol=0, atol=2e-5)


@pytest.mark.parametrize("grams", [(None, None), (torch.eye(3), None)])
def test_without_the_statistic_it_is_the_mean(merged: Merge, grams: tuple[torch.Tensor | None, ...]) -> None:
    x, y = torch.tensor([[4.0, 4.0, 4.0]]), torch.tensor([[0.0, 8.0, 0.0]])
    assert merged(Regmean, [x, y], each(3, 1), statistics=known(*grams)).tolist() == [[3.0, 5.0, 3.0]]
    bias = [torch.tensor([1.0]), torch.tensor([2.0])]
    assert merged(Regmean, bias, statistics=known(None, None)).tolist() == [1.5]


def test_no_input_at_all_is_the_mean(merged: Merge) -> None:
    x, y = drawn(0, 2, 3), drawn(1, 2, 3)
    result = merged(Regmean, [x, y], each(3, 1), statistics=known(torch.zeros(3, 3), torch.zeros(3, 3)))
    torch.testing.assert_close(result, (3 * x + y) / 4)


def test_fewer_tokens_than_features(merged: Merge) -> None:
    """The sum of rank 2 of 6 is solved: what the tokens see is fitted, and what none of them sees is the mean."""
    tokens = [drawn(seed, 1, 6).double() for seed in range(2)]
    weights = [drawn(10 + seed, 5, 6) for seed in range(2)]
    grams = [x.T @ x for x in tokens]
    result = merged(Regmean, weights, statistics=known(*grams), alpha=1).double()
    for x, w in zip(tokens, weights, strict=True):
        torch.testing.assert_close(result @ x.T, w.double() @ x.T, rtol=0, atol=1e-4)
    unseen = torch.linalg.qr(torch.cat(tokens).T, mode="complete").Q[:, 2:]
    torch.testing.assert_close(result @ unseen, (weights[0] + weights[1]).double() / 2 @ unseen, rtol=0, atol=1e-4)


def test_a_sum_that_cannot_be_solved_is_an_error(merged: Merge) -> None:
    """A matrix of ones with rounding's negative eigenvalues, larger than the ridge."""
    gram = torch.ones(4, 4) + torch.diag(torch.tensor([-1e-4, 0.0, 0.0, 0.0]))
    with pytest.raises(ValueError, match="is singular; choose a smaller `alpha`"):
        merged(Regmean, [torch.ones(2, 4), torch.zeros(2, 4)], statistics=known(gram, gram), alpha=1)


@FIXED
@given(st.integers(1, 4), st.integers(1, 5), st.integers(1, 4), st.integers(0, 99), st.floats(0, 1))
def test_equal_models_and_absent_ones(
    merged: Merge, out: int, features: int, count: int, seed: int, alpha: float
) -> None:
    tensors = [drawn(seed + number, out, features) for number in range(count)]
    tokens = [drawn(100 + seed + number, 9, features) for number in range(count)]
    grams = [x.T @ x / 9 for x in tokens]
    equal = merged(Regmean, tensors[:1] * count, statistics=known(*grams), alpha=alpha)
    assert torch.equal(equal, tensors[0])
    without = merged(Regmean, tensors, statistics=known(*grams), alpha=alpha)
    weights = each(0, *[1] * count)
    with_other = merged(
        Regmean,
        [drawn(7, out, features), *tensors],
        weights,
        statistics=known(torch.eye(features), *grams),
        alpha=alpha,
    )
    assert torch.equal(with_other, without)
    scaled = merged(Regmean, tensors, statistics=known(*(gram * 1e8 for gram in grams)), alpha=alpha)
    torch.testing.assert_close(scaled, without, rtol=1e-5, atol=1e-5)


def test_some_weight_is_needed() -> None:
    inputs = [Regmean.InputParameters(weight=0)] * 2
    messages = list(Regmean().check(inputs, Regmean.Parameters()))
    assert messages == ["every weight is zero; give at least one model a weight"]
