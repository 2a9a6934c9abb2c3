"""Dropping by rank: probabilities worked by hand, how draws are distributed, and mergekit's own."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from safegraft.testing import check_method
from safegraft_plugins.della import Della, DellaLinear, keep_probabilities, ranks_to_columns
from safegraft_plugins.mergekit import merge_methods as mergekit_methods
from safegraft_plugins.task_arithmetic import TaskArithmetic

Merge = Callable[..., torch.Tensor]

THEIRS = {one.name: one for one in mergekit_methods()}


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def each(*own: tuple[float, float, float]) -> list[dict[str, float]]:
    return [{"weight": weight, "density": density, "epsilon": epsilon} for weight, density, epsilon in own]


def test_ranks_by_hand() -> None:
    rows = torch.tensor([[3.0, -1.0, 2.0, 1.0], [0.0, -5.0, 0.0, 4.0]])
    assert ranks_to_columns(rows).tolist() == [[1, 3, 2, 0], [0, 2, 3, 1]]
    assert ranks_to_columns(rows.double()).tolist() == [[1, 3, 2, 0], [0, 2, 3, 1]]


def test_probabilities_by_hand() -> None:
    assert keep_probabilities(0.5, 0.2, 5) == pytest.approx([0.3, 0.4, 0.5, 0.6, 0.7])
    assert keep_probabilities(0.5, 0.2, 1) == [0.5]


@pytest.mark.parametrize("method", [DellaLinear, Della])
@pytest.mark.parametrize("rescale", [True, False, "probability"])
def test_contract(method: type[DellaLinear], rescale: Any) -> None:
    check_method(method, input_parameters={"weight": 0.5})
    own = {"weight": -0.5, "density": 0.4, "epsilon": 0.3}
    check_method(method, input_parameters=own, parameters={"rescale": rescale}, inputs=3)


@pytest.mark.parametrize("rescale", [False, "probability"])
@pytest.mark.parametrize(
    ("shape", "ranked_along"),
    [((4000, 5), 1), ((5,), 0), ((2000, 5, 2), 1)],
)
def test_kept_as_often_as_the_rank_says(merged: Merge, shape: tuple[int, ...], ranked_along: int, rescale: Any) -> None:
    """Magnitudes 3 1 5 2 4 in every row: probabilities 0.5 0.3 0.7 0.4 0.6, from at least 1,500 draws each."""
    probabilities = torch.tensor([0.5, 0.3, 0.7, 0.4, 0.6])
    along = [5 if axis == ranked_along else 1 for axis in range(len(shape))]
    delta = torch.tensor([3.0, -1.0, 5.0, -2.0, 4.0]).view(along).expand(shape).contiguous()
    seeds = range(1500 if shape == (5,) else 1)
    own, base = each((1, 0.5, 0.2)), torch.zeros(shape)
    results = torch.stack([merged(DellaLinear, [delta], own, base, rescale=rescale, seed=seed) for seed in seeds])
    kept = (results != 0).movedim(ranked_along + 1, -1).reshape(-1, 5).double()
    assert bool(((kept.mean(0) - probabilities).abs() < 5 * 0.5 / len(kept) ** 0.5).all())
    scaled = delta / probabilities.view(along) if rescale else delta
    everywhere = scaled.expand(results.shape)
    torch.testing.assert_close(results[results != 0], everywhere[results != 0], rtol=3e-7, atol=0)


def test_the_mean_over_seeds_is_task_arithmetic(merged: Merge) -> None:
    base, x = normal(3, 20), normal(3, 20, seed=1)
    own = each((0.7, 0.5, 0.3))
    draws = [merged(DellaLinear, [x], own, base, rescale="probability", seed=seed) for seed in range(400)]
    exact = merged(TaskArithmetic, [x], [{"weight": 0.7}], base)
    error = 0.7 * (x - base).abs() * (0.8 / 0.2 / 400) ** 0.5  # of the least probable; of others it is smaller
    assert bool(((torch.stack(draws).mean(0) - exact).abs() < 5 * error).all())


@pytest.mark.parametrize("shape", [(6, 7), (17,), (4, 3, 2)])
def test_rescaling_restores_the_l1_norm(merged: Merge, shape: tuple[int, ...]) -> None:
    """Over the whole tensor, though ranks are those of rows."""
    delta = normal(*shape)
    result = merged(DellaLinear, [delta], each((1, 0.5, 0.2)), torch.zeros(shape))
    assert float(result.abs().sum()) == pytest.approx(float(delta.abs().sum()), rel=1e-5)
    assert 0 < int((result == 0).sum()) < delta.numel()


@pytest.mark.parametrize("method", [DellaLinear, Della])
def test_distributed_as_in_mergekit(merged: Merge, method: type[DellaLinear]) -> None:
    """The mean over many equal rows, column by column: two draws of it differ by their standard errors."""
    rows = 800
    x, y = (normal(1, 8, seed=seed).expand(rows, 8).contiguous() for seed in (1, 2))
    own = each((0.7, 0.4, 0.3), (0.5, 0.6, 0.1))
    ours = merged(method, [x, y], own, torch.zeros(rows, 8))
    theirs = merged(THEIRS[f"mergekit:{method.name}"], [x, y], own, torch.zeros(rows, 8))
    error = (2 * theirs.var(0) / rows).sqrt() + 1e-4
    assert bool(((ours.mean(0) - theirs.mean(0)).abs() < 5 * error).all())
    zeros = [(one == 0).double().mean(0) for one in (ours, theirs)]
    assert bool(((zeros[0] - zeros[1]).abs() < 5 * (2 * 0.25 / rows) ** 0.5).all())


@pytest.mark.parametrize("method", [DellaLinear, Della])
@pytest.mark.parametrize("shared", [{}, {"normalize": True, "lambda": 0.8}])
def test_undropped_the_same_bits_as_mergekit(merged: Merge, method: type[DellaLinear], shared: dict[str, Any]) -> None:
    base, *tensors = (normal(13, 17, seed=seed) for seed in range(4))
    own = each((0.7, 1, 0.1), (-0.4, 1, 0.1), (0.2, 0, 0.1))
    theirs = merged(THEIRS[f"mergekit:{method.name}"], tensors, own, base, **shared)
    assert torch.equal(merged(method, tensors, own, base, **shared), theirs)


def test_weight_zero_is_absence(merged: Merge) -> None:
    base, x, y, z = (normal(4, 6, seed=seed) for seed in range(4))
    own = each((0.5, 0.5, 0.1), (0, 0.5, 0.1), (-0.5, 0.7, 0.1))
    assert torch.equal(merged(Della, [x, y, z], own, base), merged(Della, [x, z], [own[0], own[2]], base))


@pytest.mark.parametrize(
    ("density", "epsilon", "fine"),
    [(0.5, 0.15, True), (1, 0.15, True), (0, 0.15, True), (0.9, 0.15, False), (0.1, 0.1, False), (0.75, 0.25, False)],
)
def test_probabilities_must_be_between_0_and_1(density: float, epsilon: float, fine: bool) -> None:
    own = Della.InputParameters(weight=1, density=density, epsilon=epsilon)
    messages = list(Della().check([own], Della.Parameters()))
    assert messages == [] if fine else "they must lie between 0 and 1" in messages[0]


def test_mergekits_parameters_and_defaults() -> None:
    for method, normalize in ((DellaLinear, False), (Della, True)):
        defaults = method.Parameters().model_dump(by_alias=True)
        assert defaults == {"lambda": 1.0, "normalize": normalize, "rescale": True, "int8_mask": False}
        assert method.InputParameters(weight=1).model_dump() == {"weight": 1.0, "density": 1.0, "epsilon": 0.15}
