"""Methods against mergekit's own on single tensors in fp32: equal, or with the tolerance explained.

mergekit finds norms, angles and ratios in float32, where ours come from double precision. Both then multiply and add in
float32, so that results differ by a few of its roundings, relative to the tensors' size.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytest
import torch
from mergekit.merge_methods import registry
from mergekit.merge_methods.base import TensorGroup

from safegraft.methods import MergeMethod
from safegraft_plugins.karcher import Karcher
from safegraft_plugins.model_stock import ModelStock
from safegraft_plugins.multislerp import Multislerp
from safegraft_plugins.nearswap import Nearswap
from safegraft_plugins.nuslerp import Nuslerp
from safegraft_plugins.ram import Ram, RamPlus
from safegraft_plugins.sce import Sce

Merge = Callable[..., torch.Tensor]

ROUNDINGS = 2e-6  # of values of about 1
WEIGHTS = (0.3, 0.9, -0.2, 0.5)

BASE = torch.randn(40, 64, generator=torch.Generator().manual_seed(0))
MODELS = [BASE + 0.3 * torch.randn(40, 64, generator=torch.Generator().manual_seed(seed)) for seed in range(1, 5)]
# Nothing in common, and of different lengths.
STRANGERS = [10.0**seed * torch.randn(40, 64, generator=torch.Generator().manual_seed(seed)) for seed in (-1, 0, 1)]


def theirs(
    name: str,
    tensors: Sequence[torch.Tensor],
    weights: Sequence[float],
    base: torch.Tensor | None,
    shared: Mapping[str, Any],
) -> torch.Tensor:
    ids = [f"model-{number}" for number in range(len(tensors))]
    everyone = [one.clone() for one in tensors]
    parameters = dict(shared)
    if weights:
        parameters["weight"] = dict(zip(ids, weights, strict=True))
    if base is not None:
        ids.append("base")
        everyone.append(base.clone())
    index = None if base is None else len(tensors)
    group = TensorGroup.from_tensors(everyone, ids=ids, base_index=index, name="up_proj.weight")
    method = registry.get(name)
    method.validate_inputs(ids, None if base is None else "base", group_name="up_proj.weight")
    (result,) = method((group,), parameters=parameters)
    return result


def both(
    merged: Merge,
    method: type[MergeMethod],
    tensors: Sequence[torch.Tensor],
    weights: Sequence[float] = (),
    base: torch.Tensor | None = None,
    **shared: Any,
) -> tuple[torch.Tensor, torch.Tensor]:
    each = [{"weight": weight} for weight in weights] or None
    return merged(method, tensors, each, base, **shared), theirs(method.name, tensors, weights, base, shared)


def assert_close(pair: tuple[torch.Tensor, torch.Tensor], tolerance: float = ROUNDINGS) -> None:
    ours, reference = pair
    assert ours.dtype == reference.dtype == torch.float32
    torch.testing.assert_close(ours, reference, rtol=0, atol=tolerance)


@pytest.mark.parametrize("base", [None, BASE])
@pytest.mark.parametrize(
    "shared", [{}, {"nuslerp_flatten": False}, {"nuslerp_flatten": False, "nuslerp_row_wise": True}]
)
@pytest.mark.parametrize("weights", [(0.3, 0.9), (1.0, -1.0), (2.0, 0.0)])
def test_nuslerp(
    merged: Merge, base: torch.Tensor | None, shared: dict[str, Any], weights: tuple[float, float]
) -> None:
    assert_close(both(merged, Nuslerp, MODELS[:2], weights, base, **shared))
    deep = [one.view(8, 5, 64) for one in MODELS[:2]]
    assert_close(both(merged, Nuslerp, deep, weights, None if base is None else base.view(8, 5, 64), **shared))
    assert_close(
        both(merged, Nuslerp, [one[0] for one in MODELS[:2]], weights, None if base is None else base[0], **shared)
    )


@pytest.mark.parametrize("base", [None, BASE])
@pytest.mark.parametrize("count", [1, 2, 4])
@pytest.mark.parametrize("normalize", [True, False])
def test_multislerp(merged: Merge, base: torch.Tensor | None, count: int, normalize: bool) -> None:
    """Their step in the tangent space, which is zero but for rounding, adds to the difference."""
    pair = both(merged, Multislerp, MODELS[:count], WEIGHTS[:count], base, normalize_weights=normalize)
    assert_close(pair)


def test_multislerp_where_theirs_fails(merged: Merge) -> None:
    zeros = [torch.zeros(3)] * 3
    with pytest.raises(ValueError, match="weighted sum of the input tensors is zero"):
        theirs("multislerp", zeros, WEIGHTS[:3], None, {})
    assert merged(Multislerp, zeros, [{"weight": 1}] * 3).tolist() == [0.0, 0.0, 0.0]
    assert_close(both(merged, Multislerp, [BASE, -BASE], (1.0, 1.0)))


@pytest.mark.parametrize("tensors", [MODELS[:1], MODELS[:2], MODELS, STRANGERS])
@pytest.mark.parametrize("max_iter", [0, 1, 10])
def test_karcher(merged: Merge, tensors: list[torch.Tensor], max_iter: int) -> None:
    """Their angles are float32's arc cosines, which are wrong by up to 3e-4 near 0 and by less elsewhere."""
    size = max(float(one.abs().max()) for one in tensors)
    assert_close(both(merged, Karcher, tensors, max_iter=max_iter), 1e-6 * size)


@pytest.mark.parametrize("count", [2, 4])
@pytest.mark.parametrize("filter_wise", [False, True])
def test_model_stock(merged: Merge, count: int, filter_wise: bool) -> None:
    assert_close(both(merged, ModelStock, MODELS[:count], base=BASE, filter_wise=filter_wise))
    deep, base = [one.view(8, 5, 64) for one in MODELS[:count]], BASE.view(8, 5, 64)
    assert_close(both(merged, ModelStock, deep, base=base, filter_wise=filter_wise))
    small = [BASE + 1e-5 * (one - BASE) for one in MODELS[:count]]  # norms of which a product counts as 1e-6
    assert_close(both(merged, ModelStock, small, base=BASE, filter_wise=filter_wise))


@pytest.mark.parametrize("count", [1, 2, 4])
@pytest.mark.parametrize("select_topk", [0.0, 0.3, 0.77, 1.0])
@pytest.mark.parametrize("scale", [1.0, 1e-3])
def test_sce(merged: Merge, count: int, select_topk: float, scale: float) -> None:
    """With the smaller scale their energies sum to less than 1e-6, and so all models weigh the same. Random
    variances are seldom equal, so that both select the same elements."""
    models = [BASE + scale * (one - BASE) for one in MODELS[:count]]
    assert_close(both(merged, Sce, models, base=BASE, select_topk=select_topk))


@pytest.mark.parametrize("count", [1, 2, 4])
@pytest.mark.parametrize("epsilon", [1e-5, 0.2, 0.5])
def test_ram_is_equal(merged: Merge, count: int, epsilon: float) -> None:
    ours, reference = both(merged, Ram, MODELS[:count], base=BASE, epsilon=epsilon)
    assert torch.equal(ours, reference)
    assert_close(both(merged, RamPlus, MODELS[:count], base=BASE, epsilon=epsilon, r=0.7, alpha=0.9), 3e-7)


@pytest.mark.parametrize("t", [0.0, 1e-7, 0.1, 2.0])
def test_nearswap_is_equal(merged: Merge, t: float) -> None:
    ours, reference = both(merged, Nearswap, MODELS[:1], base=BASE, t=t)
    assert torch.equal(ours, reference)
