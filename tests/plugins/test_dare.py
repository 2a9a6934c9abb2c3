"""Drop and rescale: what holds for every draw, and how the draws are distributed."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from safegraft.testing import check_method
from safegraft_plugins.dare import DareLinear, DareTies
from safegraft_plugins.mergekit import merge_methods as mergekit_methods
from safegraft_plugins.task_arithmetic import TaskArithmetic

Merge = Callable[..., torch.Tensor]

FIXED = settings(derandomize=True, deadline=None)
THEIRS = {one.name: one for one in mergekit_methods()}
SIZE = 40_000  # of drawn tensors: standard errors of shares are at most 0.0025


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def each(*own: tuple[float, float]) -> list[dict[str, float]]:
    return [{"weight": weight, "density": density} for weight, density in own]


@pytest.mark.parametrize("method", [DareLinear, DareTies])
@pytest.mark.parametrize("rescale", [True, False, "probability"])
def test_contract(method: type[DareLinear], rescale: Any) -> None:
    check_method(method, input_parameters={"weight": 0.5})
    own = {"weight": -0.5, "density": 0.4}
    check_method(method, input_parameters=own, parameters={"rescale": rescale, "normalize": True}, inputs=3)


@pytest.mark.parametrize("density", [0.1, 0.5, 0.93])
@pytest.mark.parametrize(("rescale", "factor"), [(False, 1.0), ("probability", None)])
def test_kept_elements_and_their_share(merged: Merge, density: float, rescale: Any, factor: float | None) -> None:
    delta = normal(200, 200)
    result = merged(DareLinear, [delta], each((1, density)), torch.zeros_like(delta), rescale=rescale)
    kept = result != 0
    assert float(kept.double().mean()) == pytest.approx(density, abs=5 * (density * (1 - density) / SIZE) ** 0.5)
    torch.testing.assert_close(result[kept], delta[kept] * (factor or 1 / density), rtol=3e-7, atol=0)


@FIXED
@given(st.integers(1, 40), st.floats(0.05, 0.95), st.integers(0, 2**64 - 1))
def test_rescaling_restores_the_l1_norm(merged: Merge, size: int, density: float, seed: int) -> None:
    """Unless nothing is kept: then there is nothing to rescale."""
    delta = normal(size, seed=seed % 1000)
    shared = {"base": torch.zeros(size), "seed": seed}
    result = merged(DareLinear, [delta], each((1, density)), **shared)
    mask = merged(DareLinear, [torch.ones(size)], each((1, density)), **shared, rescale=False)
    assert torch.equal(result != 0, mask != 0)
    norm = float(result.double().abs().sum())
    assert norm == pytest.approx(float(delta.double().abs().sum()), rel=1e-5) or not mask.any()


def test_tiny_task_vectors_are_not_rescaled(merged: Merge) -> None:
    """As in mergekit: L1 norms below 1e-7."""
    delta = torch.full((100,), 9e-10)
    result = merged(DareLinear, [delta], each((1, 0.5)), torch.zeros(100))
    assert set(result.tolist()) == {0.0, float(delta[0])}


def test_the_mean_over_seeds_is_task_arithmetic(merged: Merge) -> None:
    """Each element is x / p with probability p: over 400 seeds, its standard error is |x| sqrt((1 - p) / (400 p))."""
    base, x, y = normal(50), normal(50, seed=1), normal(50, seed=2)
    own = each((0.7, 0.4), (-0.3, 0.8))
    draws = [merged(DareLinear, [x, y], own, base, rescale="probability", seed=seed) for seed in range(400)]
    exact = merged(TaskArithmetic, [x, y], own, base)
    error = 0.7 * (x - base).abs() * (0.6 / 160) ** 0.5 + 0.3 * (y - base).abs() * (0.2 / 320) ** 0.5
    assert bool(((torch.stack(draws).mean(0) - exact).abs() < 5 * error).all())


def test_models_are_masked_independently(merged: Merge) -> None:
    """Both kept with probability 0.5 * 0.4, the mean of the products of +-1 and the like is 0."""
    ones = torch.ones(SIZE)
    own = each((1, 0.5), (10, 0.4))
    result = merged(DareLinear, [ones, ones], own, torch.zeros(SIZE), rescale=False)
    for value, share in ((0, 0.3), (1, 0.3), (10, 0.2), (11, 0.2)):
        assert float((result == value).double().mean()) == pytest.approx(share, abs=0.0125)


def test_seeds_draw_differently(merged: Merge) -> None:
    ones = torch.ones(100)
    drawn = [merged(DareLinear, [ones], each((1, 0.5)), torch.zeros(100), seed=seed).tolist() for seed in range(3)]
    assert drawn[0] != drawn[1] != drawn[2] != drawn[0]


@pytest.mark.parametrize("method", [DareLinear, DareTies])
@pytest.mark.parametrize("shared", [{}, {"normalize": True}, {"rescale": False, "lambda": 0.5}])
def test_distributed_as_in_mergekit(merged: Merge, method: type[DareLinear], shared: dict[str, Any]) -> None:
    """Two constant task vectors give few different values: each as often as there, to five standard errors, and equal
    but for the factors, which vary with the draw."""
    size = 4000
    x, y, base = torch.full((size,), 2.0), torch.full((size,), -0.5), torch.zeros(size)
    own = each((1, 0.3), (0.5, 0.6))
    ours = merged(method, [x, y], own, base, **shared)
    theirs = merged(THEIRS[f"mergekit:{method.name}"], [x, y], own, base, **shared)
    (values, counts), (their_values, their_counts) = (one.unique(return_counts=True) for one in (ours, theirs))
    torch.testing.assert_close(values, their_values, rtol=0.2, atol=1e-3)
    assert bool(((counts - their_counts).abs() < 5 * (2 * size * 0.25) ** 0.5).all())


@pytest.mark.parametrize("method", [DareLinear, DareTies])
@pytest.mark.parametrize("shared", [{}, {"normalize": True, "lambda": 0.8}])
def test_undropped_the_same_bits_as_mergekit(merged: Merge, method: type[DareLinear], shared: dict[str, Any]) -> None:
    base, *tensors = (normal(13, 17, seed=seed) for seed in range(4))
    own = each((0.7, 1), (-0.4, 1), (0.2, 0))
    theirs = merged(THEIRS[f"mergekit:{method.name}"], tensors, own, base, **shared)
    assert torch.equal(merged(method, tensors, own, base, **shared), theirs)


@pytest.mark.parametrize("method", [DareLinear, DareTies])
def test_weight_zero_is_absence(merged: Merge, method: type[DareLinear]) -> None:
    """Draws included: a model's number counts models that take part."""
    base, x, y, z = (normal(30, seed=seed) for seed in range(4))
    own = each((0.5, 0.5), (0.0, 0.5), (-0.5, 0.7))
    result = merged(method, [x, y, z], own, base)
    assert torch.equal(result, merged(method, [x, z], [own[0], own[2]], base))
    assert torch.equal(merged(method, [x, y], each((0, 0.5), (0, 0.5)), base), base)


@pytest.mark.parametrize("asked", ["mean", 2, None])
def test_rescale_is_one_of_three(asked: Any) -> None:
    with pytest.raises(ValidationError):
        DareLinear.Parameters.model_validate({"rescale": asked})


def test_mergekits_parameters_and_defaults() -> None:
    for method in (DareLinear, DareTies):
        defaults = method.Parameters().model_dump(by_alias=True)
        assert defaults == {"lambda": 1.0, "normalize": False, "rescale": True, "int8_mask": False}
        assert method.InputParameters(weight=1).model_dump() == {"weight": 1.0, "density": 1.0}
