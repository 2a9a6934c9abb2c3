"""Select, calculate, erase: numbers worked by hand, and what each step implies."""

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from safegraft.testing import check_method
from safegraft_plugins.sce import Sce

Merge = Callable[..., torch.Tensor]

FIXED = settings(derandomize=True, deadline=None)

values = st.sampled_from([-3.0, -1.0, -0.5, 0.0, 0.0, 0.5, 1.0, 2.0])


@st.composite
def models(draw: st.DrawFn, least: int = 1) -> list[torch.Tensor]:
    """Differences from a base, with many equal variances."""
    size = draw(st.integers(1, 13))
    rows = st.lists(values, min_size=size, max_size=size)
    return [torch.tensor(draw(rows)) for _ in range(draw(st.integers(least, 4)))]


@pytest.mark.parametrize("select_topk", [0, 0.3, 1])
@pytest.mark.parametrize("inputs", [1, 2, 4])
def test_contract(select_topk: float, inputs: int) -> None:
    check_method(Sce, parameters={"select_topk": select_topk}, inputs=inputs)


X = torch.tensor([[4.0, 0.0, -1.0], [0.0, 3.0, 1.0]])
Y = torch.tensor([[2.0, 1.0, 1.0], [0.0, -1.0, 1.0]])


@pytest.mark.parametrize(
    ("factor", "select_topk", "expected"),
    [
        # Squares: X 16 + 1 + 9 + 1 = 27, Y 4 + 4 * 1 = 8; weights 27/35 and 8/35. Signs: all +, the sums
        # being 6, 1, 0, 0, 2, 2. First element (27 * 4 + 8 * 2) / 35, last (27 + 8) / 35; else one agrees, or none.
        (1.0, 1.0, [[124 / 35, 1.0, 1.0], [0.0, 3.0, 1.0]]),
        # Variances 1, 1/4, 1, 0, 4, 0: of four elements that differ two are kept, 3 - -1, and of two equal ones the
        # first. Squares then: X 16 + 9 = 25, Y 4 + 1 = 5; first element (25 * 4 + 5 * 2) / 30.
        (1.0, 0.5, [[110 / 30, 0.0, 0.0], [0.0, 3.0, 0.0]]),
        # int(0.9 * 4) = 3: the tie's other element, too, where Y's 1 agrees with plus
        (1.0, 0.9, [[4 * 26 / 32 + 2 * 6 / 32, 0.0, 1.0], [0.0, 3.0, 0.0]]),
        (1.0, 0.2, [[0.0, 0.0, 0.0], [0.0, 0.0, 0.0]]),
        (1.0, 0.0, [[0.0, 0.0, 0.0], [0.0, 0.0, 0.0]]),
        # mean squares of 27/6 and 8/6 times 2^-24 are too small to weigh: first element (4 + 2) / 2
        (2**-12, 1.0, [[3.0, 1.0, 1.0], [0.0, 3.0, 1.0]]),
    ],
)
def test_by_hand(merged: Merge, factor: float, select_topk: float, expected: list[list[float]]) -> None:
    base = torch.tensor([[1.0, 2.0, 0.0], [-1.0, 0.5, 0.0]]) * factor
    result = merged(Sce, [base + X * factor, base + Y * factor], base=base, select_topk=select_topk)
    torch.testing.assert_close(result, base + torch.tensor(expected) * factor, rtol=3e-7, atol=0)


def test_one_model_is_itself_or_has_no_variance(merged: Merge) -> None:
    base, x = torch.tensor([1.0, 2.0]), torch.tensor([3.0, -2.0])
    assert torch.equal(merged(Sce, [x], base=base), x)
    assert torch.equal(merged(Sce, [x], base=base, select_topk=0.9), base)
    assert merged(Sce, [torch.tensor([3.0])], base=torch.tensor([1.0])).tolist() == [3.0]


@FIXED
@given(models(least=2), st.sampled_from([0.1, 0.5, 0.77]))
def test_the_selection_is_the_elements_of_largest_variance(
    merged: Merge, deltas: list[torch.Tensor], select_topk: float
) -> None:
    """All but they are the base's; with equal variances the first count. Of two models the variance is monotonous in
    the distance, which tells them apart without rounding."""
    x, y = deltas[:2]
    distance = (x - y).abs()
    count = int(int((distance > 0).sum()) * select_topk)
    chosen = sorted(range(len(distance)), key=lambda at: (-float(distance[at]), at))[:count]
    mask = torch.zeros(len(distance), dtype=torch.bool)
    mask[chosen] = True
    masked = merged(Sce, [x * mask, y * mask], base=torch.zeros(len(distance)))
    assert torch.equal(merged(Sce, [x, y], base=torch.zeros(len(distance)), select_topk=select_topk), masked)


@FIXED
@given(models(), st.integers(1, 4))
def test_equal_models_give_themselves(merged: Merge, deltas: list[torch.Tensor], count: int) -> None:
    x = deltas[0]
    torch.testing.assert_close(merged(Sce, [x] * count, base=torch.zeros_like(x)), x, rtol=3e-7, atol=0)
    base = deltas[-1]
    assert torch.equal(merged(Sce, [base] * count, base=base), base)


@FIXED
@given(models(least=2), st.data())
def test_the_order_of_models_matters_to_rounding_only(
    merged: Merge, deltas: list[torch.Tensor], data: st.DataObject
) -> None:
    base = torch.zeros_like(deltas[0])
    order = data.draw(st.permutations(deltas))
    torch.testing.assert_close(merged(Sce, deltas, base=base), merged(Sce, order, base=base), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("asked", [{"select_topk": 1.1}, {"select_topk": -0.1}, {"topk": 0.5}])
def test_parameters_are_known_and_in_range(asked: dict[str, float]) -> None:
    with pytest.raises(ValidationError):
        Sce.Parameters.model_validate(asked)
