"""The way from a checkpoint's tensors to parameters, and back."""

from typing import Any

import pytest
import torch
from transformers.core_model_loading import Chunk, Concatenate, MergeModulelist, Transpose, WeightConverter

from safegraft.calibration.mapping import Group
from safegraft.checkpoint.dtypes import DType
from safegraft.checkpoint.types import TensorInfo

Q, K = torch.arange(6.0).view(2, 3), torch.arange(6.0, 15.0).view(3, 3)


def group(
    model: Any, converter: WeightConverter, targets: dict[str, tuple[int, ...]], **sources: torch.Tensor
) -> Group:
    patterns = converter.source_patterns if len(converter.source_patterns) > 1 else converter.source_patterns * 9
    named = [TensorInfo(name, DType.F32, tuple(value.shape), "f", 0) for name, value in sources.items()]
    return Group(next(iter(targets)), tuple(zip(patterns, named, strict=False)), targets, converter, model.plain)


@pytest.fixture
def joined(llm: Any) -> Group:
    """Two matrices, one below the other."""
    return group(llm, WeightConverter(["q", "k"], "qk", [Concatenate(0)]), {"qk": (5, 3)}, q=Q, k=K)


@pytest.fixture
def split(llm: Any) -> Group:
    """One matrix whose halves are two parameters."""
    return group(llm, WeightConverter("qk", ["q", "k"], [Chunk(0)]), {"q": (2, 3), "k": (2, 3)}, qk=torch.zeros(4, 3))


@pytest.fixture
def turned(llm: Any) -> Group:
    return group(llm, WeightConverter("w", "v", [Transpose(0, 1)]), {"v": (3, 2)}, w=Q)


@pytest.fixture
def stacked(llm: Any) -> Group:
    """Experts one by one, in one parameter of rank 3."""
    converter = WeightConverter("e", "s", [MergeModulelist(0)])
    return group(llm, converter, {"s": (2, 2, 3)}, e0=Q, e1=Q)


@pytest.mark.parametrize("name", ["joined", "split", "turned", "stacked"])
def test_there_and_back(name: str, request: pytest.FixtureRequest) -> None:
    one: Group = request.getfixturevalue(name)
    generator = torch.Generator().manual_seed(1)
    values = [torch.randn(info.shape, generator=generator) for _, info in one.sources]
    made = one.converted([value.clone() for value in values])
    assert {target: tuple(value.shape) for target, value in made.items()} == one.targets
    back = one.taken_back(made)
    assert list(back) == list(one.names)
    assert all(torch.equal(back[name], value) for name, value in zip(one.names, values, strict=True))


def test_a_parameter_without_a_value_counts_as_zeros(split: Group) -> None:
    back = split.taken_back({"k": torch.ones(2, 3)})
    assert back["qk"].tolist() == [[0, 0, 0], [0, 0, 0], [1, 1, 1], [1, 1, 1]]


def test_columns_of_joined_matrices_are_the_parameters(joined: Group) -> None:
    for name in ("q", "k"):
        found = joined.columns(name)
        assert found is not None
        assert (found[0], found[1].tolist()) == ("qk", [0, 1, 2])


def test_columns_of_a_split_matrix_are_those_of_its_first_part(split: Group) -> None:
    found = split.columns("qk")
    assert found is not None
    assert (found[0], found[1].tolist()) == ("q", [0, 1, 2])


def test_a_turned_matrix_and_stacked_ones_have_no_columns(turned: Group, stacked: Group) -> None:
    assert turned.columns("w") is None
    assert stacked.columns("e0") is None
