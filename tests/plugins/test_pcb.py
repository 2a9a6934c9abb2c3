"""Parameter competition balancing: worked by hand, and against the paper's equations in double precision."""

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from safegraft.testing import check_method
from safegraft_plugins.pcb import Pcb
from safegraft_plugins.task_arithmetic import TaskArithmetic

Merge = Callable[..., torch.Tensor]

FIXED = settings(derandomize=True, deadline=None)

BASE = torch.tensor([[1.0, 1.0, 1.0], [2.0, 2.0, 2.0]])
X = BASE + torch.tensor([[2.0, 0.0, -1.0], [0.0, 1.0, 0.0]])
Y = BASE + torch.tensor([[1.0, 2.0, 0.0], [0.0, 0.0, 0.0]])


def test_two_elements_by_hand(merged: Merge) -> None:
    """t_1 = (2, 0), t_2 = (1, 2). Products: (4, 0), (2, 0), (1, 4), so that norms are (1, 0), (1, 0), (0, 1).

    With e = exp 1 and softmax (e, 1) / (e + 1), and for intra-balancing (e^2, 1) / (e^2 + 1):
    beta_1 = (e^2, 1) / (e^2 + 1) * 2 (e, 1) / (e + 1), beta_2 = (1, e^2) / (e^2 + 1) * ((1, e) + (e, 1)) / (e + 1)
    """
    x, y, base = torch.tensor([2.0, 0.0]), torch.tensor([1.0, 2.0]), torch.zeros(2)
    e = math.e
    first, second = (2 * e**3, 2.0), (1 + e, e**2 * (1 + e))
    whole = [(f * s + g * t) / (f + g) for f, g, s, t in zip(first, second, (2, 0), (1, 2), strict=True)]
    torch.testing.assert_close(merged(Pcb, [x, y], base=base, ratio=1), torch.tensor(whole))
    # half: beta_1 is larger at 0, beta_2 at 1
    torch.testing.assert_close(merged(Pcb, [x, y], base=base, ratio=0.5), torch.tensor([2.0, 2.0]))
    own = [{"weight": 1.5}, {"weight": -1.0}]
    torch.testing.assert_close(merged(Pcb, [x, y], own, base, ratio=0.5), torch.tensor([3.0, -2.0]))


def test_contract() -> None:
    check_method(Pcb)
    check_method(Pcb, parameters={"ratio": 0.6}, input_parameters={"weight": -0.5}, inputs=4)


def by_the_paper(deltas: torch.Tensor, weights: list[float], ratio: float) -> tuple[torch.Tensor, torch.Tensor]:
    """The merged task vector in double precision, and how far each element is from being dropped or kept instead."""
    count, size = deltas.shape

    def norm(product: torch.Tensor) -> torch.Tensor:
        low, high = product.min(), product.max()
        return (product - low) / (high - low) if high - low > 1e-30 else torch.zeros_like(product)

    intra = torch.stack([torch.softmax(count * norm(one * one), 0) for one in deltas])
    inter = torch.stack([sum(torch.softmax(norm(one * other), 0) for other in deltas) for one in deltas])
    beta = intra * inter
    limits = beta.sort(dim=1).values[:, int((1 - ratio) * size), None] if int((1 - ratio) * size) < size else beta
    kept = beta * (beta >= limits)
    margin = torch.where(beta == limits, 1.0, ((beta - limits) / limits).abs()).min(0).values
    total = (kept * deltas * torch.tensor(weights)[:, None]).sum(0)
    divisor = kept.sum(0)
    return torch.where(divisor > 0, total / divisor.clamp(min=1e-300), 0), margin


values = st.one_of(st.just(0.0), st.floats(2**-10, 4, width=32), st.floats(-4, -(2**-10), width=32))


@st.composite
def models(draw: st.DrawFn) -> tuple[torch.Tensor, list[torch.Tensor], list[float]]:
    size = draw(st.integers(1, 12))
    row = st.lists(values, min_size=size, max_size=size)
    tensors = [torch.tensor(draw(row)) for _ in range(draw(st.integers(1, 4)))]
    return torch.tensor(draw(row)), tensors, [draw(st.sampled_from([-1.0, 0.5, 1.5])) for _ in tensors]


@FIXED
@given(models(), st.sampled_from([0.1, 0.4, 1.0]))
def test_the_papers_equations(
    merged: Merge, case: tuple[torch.Tensor, list[torch.Tensor], list[float]], ratio: float
) -> None:
    base, tensors, weights = case
    deltas = torch.stack([one - base for one in tensors]).double()
    expected, margin = by_the_paper(deltas, weights, ratio)
    result = merged(Pcb, tensors, [{"weight": weight} for weight in weights], base, ratio=ratio).double() - base
    clear = margin > 1e-5  # elsewhere rounding may decide what is dropped
    torch.testing.assert_close(result[clear], expected[clear], rtol=1e-4, atol=1e-4)


def test_everything_of_one_model_is_task_arithmetic(merged: Merge) -> None:
    own = [{"weight": 0.5}]
    torch.testing.assert_close(
        merged(Pcb, [X], own, BASE, ratio=1), merged(TaskArithmetic, [X], own, BASE), rtol=3e-7, atol=0
    )


def test_equal_models_keep_the_same_elements(merged: Merge) -> None:
    """Of the scores of (2, 0, -1, 0, 1, 0) that of rank int(0.8 * 6) = 4, from 0, is the limit: a one's. Both ones have
    it, and stay."""
    result = merged(Pcb, [X, X, X], base=BASE, ratio=0.2)
    torch.testing.assert_close(result, BASE + torch.tensor([[2.0, 0.0, -1.0], [0.0, 1.0, 0.0]]))


def test_zero_weight_is_absence(merged: Merge) -> None:
    own = [{"weight": 1.0}, {"weight": 0.0}, {"weight": -1.0}]
    assert torch.equal(
        merged(Pcb, [X, BASE * 3, Y], own, BASE, ratio=0.5), merged(Pcb, [X, Y], [own[0], own[2]], BASE, ratio=0.5)
    )
    assert torch.equal(merged(Pcb, [X], [{"weight": 0.0}], BASE), BASE)


def test_many_models_overflow_nothing(merged: Merge) -> None:
    """exp(100) is more than float32 holds."""
    generator = torch.Generator().manual_seed(0)
    tensors = [torch.randn(7, generator=generator) for _ in range(100)]
    result = merged(Pcb, tensors, base=torch.zeros(7), ratio=1)
    expected, _ = by_the_paper(torch.stack(tensors).double(), [1.0] * 100, 1)
    torch.testing.assert_close(result.double(), expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("ratio", [0, 1.1, float("nan")])
def test_ratio_is_a_share(ratio: float) -> None:
    with pytest.raises(ValidationError):
        Pcb.Parameters.model_validate({"ratio": ratio})
