"""What all methods that see matrices share: which tensors are matrices, what a weight is, what they must obey."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from safegraft.methods import MergeMethod
from safegraft_plugins.iso import IsoC, IsoCts
from safegraft_plugins.knots import Knots
from safegraft_plugins.matrixwise import total
from safegraft_plugins.star import Star
from safegraft_plugins.tsv import TsvMerge
from safegraft_plugins.wudi import Aswudi, Swudi

Merge = Callable[..., torch.Tensor]


@dataclass(frozen=True)
class Case:
    """A method with the parameters that it is tried with."""

    method: type[MergeMethod]
    shared: dict[str, Any]
    turns_inputs: bool = True  # whether a rotation of the input side turns the result with it


CASES = [
    Case(TsvMerge, {}),
    Case(IsoC, {}),
    Case(IsoCts, {"common_space_fraction": 0.5}),
    Case(Star, {}),
    Case(Swudi, {"t": 3}),
    Case(Swudi, {"t": 3, "start": "mean"}),
    Case(Aswudi, {}),
    Case(Knots, {"density": 0.5}, turns_inputs=False),  # TIES looks at elements of the input side
]
every = pytest.mark.parametrize("case", CASES, ids=lambda case: " ".join([case.method.name, *map(str, case.shared)]))


def draw(*shape: int, seed: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def models(*shape: int, count: int = 3) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """A base, and models a tenth of its size away."""
    base = draw(*shape, seed=9)
    return base, [base + 0.1 * draw(*shape, seed=seed) for seed in range(count)]


def close(one: torch.Tensor, other: torch.Tensor, atol: float = 1e-9) -> None:
    torch.testing.assert_close(one, other, rtol=0, atol=atol)


# Two task vectors, [2, 4, -6] and [4, -2, 2]: their mean is [3, 1, -2].
VECTOR = torch.tensor([1.0, 1.0, 1.0])
VECTORS = [VECTOR + torch.tensor([2.0, 4.0, -6.0]), VECTOR + torch.tensor([4.0, -2.0, 2.0])]


@every
@pytest.mark.parametrize("shape", [(3,), (1, 1, 1, 3)])
def test_others_than_matrices_take_the_mean(merged: Merge, case: Case, shape: tuple[int, ...]) -> None:
    base, *tensors = (one.reshape(shape) for one in (VECTOR, *VECTORS))
    assert merged(case.method, tensors, base=base, **case.shared).flatten().tolist() == [4.0, 2.0, -1.0]


@every
def test_vocabulary_tensors_take_the_mean(merged: Merge, case: Case) -> None:
    base, tensors = VECTOR.expand(2, 3), [one.expand(2, 3) for one in VECTORS]
    result = merged(case.method, tensors, base=base, vocabulary=True, **case.shared)
    assert result.tolist() == [[4.0, 2.0, -1.0]] * 2


@every
def test_weights_and_lambda_are_factors_there_too(merged: Merge, case: Case) -> None:
    """(3 [2, 4, -6] + 1 [4, -2, 2]) / 2 = [5, 5, -8], half of it added. Of the sum: the double."""
    result = merged(case.method, VECTORS, [{"weight": 3}, {}], VECTOR, **{**case.shared, "lambda": 0.5})
    update = torch.tensor([2.5, 2.5, -4.0]) * (
        2 if case.method in (Swudi, Aswudi) and "start" not in case.shared else 1
    )
    assert torch.equal(result, VECTOR + update)


@every
def test_stacked_experts_are_matrices_side_by_side(merged: Merge, case: Case) -> None:
    base, tensors = models(4, 6, 5)
    whole = merged(case.method, tensors, base=base, **case.shared)
    for expert in range(4):
        alone = merged(case.method, [one[expert] for one in tensors], base=base[expert], **case.shared)
        assert torch.equal(whole[expert], alone)


@every
def test_the_base_alone_stays(merged: Merge, case: Case) -> None:
    base, tensors = models(5, 7, count=2)
    for shape in [(5, 7), (35,), (1, 35), (35, 1)]:
        flat = base.reshape(shape)
        assert torch.equal(merged(case.method, [flat, flat], base=flat, **case.shared), flat)
        zero = [{"weight": 0}, {"weight": 0}]
        assert torch.equal(merged(case.method, [x.reshape(shape) for x in tensors], zero, flat, **case.shared), flat)


@every
def test_lambda_is_a_factor_on_the_update(merged: Merge, case: Case) -> None:
    base, tensors = models(6, 8)
    one = merged(case.method, tensors, base=base, **{**case.shared, "lambda": 1}) - base
    assert torch.equal(merged(case.method, tensors, base=base, **{**case.shared, "lambda": 0}), base)
    close(merged(case.method, tensors, base=base, **{**case.shared, "lambda": -1.5}) - base, -1.5 * one, 1e-12)


@every
@pytest.mark.parametrize("shape", [(6, 8), (9,)])
def test_weight_zero_is_absence(merged: Merge, case: Case, shape: tuple[int, ...]) -> None:
    base, tensors = models(*shape)
    weighted = merged(case.method, tensors, [{}, {"weight": 0}, {"weight": -2}], base, **case.shared)
    without = merged(case.method, [tensors[0], tensors[2]], [{}, {"weight": -2}], base, **case.shared)
    assert torch.equal(weighted, without)


@every
def test_a_weight_is_a_factor_on_the_task_vector(merged: Merge, case: Case) -> None:
    base, tensors = models(6, 8)
    base.zero_()  # so that task vectors are scaled without rounding
    weighted = merged(case.method, tensors, [{"weight": w} for w in (2, 1, -0.5)], base, **case.shared)
    scaled = [one * w for one, w in zip(tensors, (2, 1, -0.5), strict=True)]
    assert torch.equal(weighted, merged(case.method, scaled, base=base, **case.shared))


@every
@pytest.mark.parametrize("shape", [(6, 9), (9, 6)])
def test_the_order_of_models_does_not_matter(merged: Merge, case: Case, shape: tuple[int, int]) -> None:
    base, tensors = models(*shape)
    close(
        merged(case.method, tensors, base=base, **case.shared),
        merged(case.method, [tensors[2], tensors[0], tensors[1]], base=base, **case.shared),
    )


@every
@pytest.mark.parametrize("factor", [1e-6, 7.0, -1e4])
def test_scaling_all_task_vectors_scales_the_update(merged: Merge, case: Case, factor: float) -> None:
    _, tensors = models(6, 9)
    base = torch.zeros_like(tensors[0])
    one = merged(case.method, tensors, base=base, **case.shared)
    scaled = merged(case.method, [factor * x for x in tensors], base=base, **case.shared)
    close(scaled / factor, one)


@every
def test_turning_all_task_vectors_turns_the_update(merged: Merge, case: Case) -> None:
    _, tensors = models(6, 9)
    base = torch.zeros_like(tensors[0])
    left = torch.linalg.qr(draw(6, 6, seed=11)).Q
    right = torch.linalg.qr(draw(9, 9, seed=12)).Q if case.turns_inputs else torch.eye(9, dtype=torch.float64)
    one = merged(case.method, tensors, base=base, **case.shared)
    close(merged(case.method, [left @ x @ right for x in tensors], base=base, **case.shared), left @ one @ right)


@every
@pytest.mark.parametrize("shape", [(1, 6), (6, 1), (1, 1), (2, 6), (6, 6)])
def test_thin_deficient_and_opposite_task_vectors_give_numbers(
    merged: Merge, case: Case, shape: tuple[int, int]
) -> None:
    base = draw(*shape, seed=1)
    column, row = draw(shape[0], 1, seed=2), draw(1, shape[1], seed=3)
    low = base + column @ row
    for tensors in (
        [base, low, base + draw(*shape, seed=4)],  # one zero, one of rank 1
        [low, base - column @ row],  # their sum is zero
        [low, low, base + 1e-30 * column @ row],
        [low],
    ):
        for dtype in (torch.float32, torch.float64):
            result = merged(case.method, [x.to(dtype) for x in tensors], base=base.to(dtype), **case.shared)
            assert result.dtype == dtype
            assert result.shape == shape
            assert bool(result.isfinite().all())
            assert float((result - base).abs().max()) < 100


@every
@pytest.mark.parametrize("size", [1e-30, 1e30])
def test_float32_may_be_tiny_or_huge(merged: Merge, case: Case, size: float) -> None:
    """Squares and cubes of these would leave float32."""
    tensors = [draw(5, 7, seed=seed, dtype=torch.float32) for seed in range(2)]
    base = torch.zeros(5, 7)
    one = merged(case.method, tensors, base=base, **case.shared)
    scaled = merged(case.method, [x * size for x in tensors], base=base, **case.shared)
    torch.testing.assert_close(scaled / size, one, rtol=1e-4, atol=1e-5)


@every
def test_weights_are_numbers_that_float32_holds(case: Case) -> None:
    for asked in ({"weight": float("nan")}, {"weight": float("inf")}, {"wieght": 1}):
        with pytest.raises(ValidationError):
            case.method.InputParameters.model_validate(asked)
    for asked in ({"lambda": float("inf")}, {"lamda": 1}):
        with pytest.raises(ValidationError):
            case.method.Parameters.model_validate(asked)
    inputs = [case.method.InputParameters.model_validate({"weight": w}) for w in (1e39, 1)]
    (message,) = case.method().check(inputs, case.method.Parameters.model_validate({}))
    assert "out of float32's range" in message


@every
def test_needs_a_base_and_one_model(case: Case) -> None:
    assert (case.method.requires.base, case.method.requires.min_inputs) == ("required", 1)
    assert "lambda" in case.method.Parameters.model_json_schema()["properties"]


def test_total_leaves_its_arguments_alone() -> None:
    tensors = [torch.tensor([1.0]), torch.tensor([2.0]), torch.tensor([4.0])]
    assert total(tensors).tolist() == [7.0]
    assert [float(one) for one in tensors] == [1.0, 2.0, 4.0]
