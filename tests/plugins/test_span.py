"""Inner products over blocks, and sums that leave equal tensors alone."""

import dataclasses
from collections.abc import Iterator, Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from safegraft.methods import Context, Input, TensorView
from safegraft_plugins.span import Along, cosine, gram, weighted_sum


@dataclasses.dataclass
class Blocks(TensorView):
    tensors: Sequence[torch.Tensor]
    base: torch.Tensor | None
    size: int

    def __post_init__(self) -> None:
        self.shape = tuple(self.tensors[0].shape)
        self.context = Context("weight", self.shape, 0, 0, None, None)

    def blocks(self) -> Iterator[tuple[Sequence[Input], torch.Tensor | None]]:
        for start in range(0, self.tensors[0].numel(), self.size):
            cuts = [one.flatten()[start : start + self.size] for one in self.tensors]
            base = None if self.base is None else self.base.flatten()[start : start + self.size]
            yield [Input("model", cut, None) for cut in cuts], base


@pytest.mark.parametrize("shape", [(), (1,), (7,), (3, 5), (5, 1), (1, 6), (2, 3, 4)])
@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 7, 100])
@pytest.mark.parametrize("with_base", [False, True])
def test_the_same_in_blocks_of_any_size(shape: tuple[int, ...], size: int, with_base: bool) -> None:
    """Against the definition, on small integers, whose sums are exact in any order."""
    generator = torch.Generator().manual_seed(3)
    tensors = [torch.randint(-9, 10, shape, generator=generator).float() for _ in range(3)]
    base = torch.randint(-9, 10, shape, generator=generator).float() if with_base else None
    view = Blocks(tensors, base, size)
    deltas = [one.double() - (0 if base is None else base.double()) for one in tensors]
    one_vector = len(shape) < 2
    expected = {
        Along.ALL: [[(x * y).sum().view(1) for y in deltas] for x in deltas],
        Along.LAST: [[(x * y).sum(-1 if not one_vector else None).flatten() for y in deltas] for x in deltas],
        Along.FIRST: [[(x * y).sum(0 if not one_vector else None).flatten() for y in deltas] for x in deltas],
    }
    for along, rows in expected.items():
        assert torch.equal(gram(view, along), torch.stack([torch.stack(row) for row in rows])), along


def test_no_precision_is_lost_in_float32() -> None:
    """(1 + 2^-20)^2 needs 41 bits; a hundred thousand of them are summed without rounding."""
    tensor = torch.full((100_000,), 1 + 2**-20)
    assert float(gram(Blocks([tensor], None, 4096))) == 100_000 * (1 + 2**-20) ** 2


def test_cosines() -> None:
    # (3, 4) and (4, 3): 24 / 25; a zero vector; equal vectors; vectors whose norms' product 1e-8 counts as 1e-6
    tensors = [torch.tensor([[3.0, 4.0], [0.0, 0.0], [0.1, 0.7], [1e-4, 0.0]])]
    tensors.append(torch.tensor([[4.0, 3.0], [1.0, 1.0], [0.1, 0.7], [1e-4, 0.0]]))
    products = gram(Blocks(tensors, None, 3), Along.LAST)
    assert cosine(products, 0, 1, 1e-6).tolist() == [0.96, 0.0, 1.0, pytest.approx(0.01, rel=1e-6)]


def test_weighted_sum_by_hand() -> None:
    # 2 (1, -2) + 0.5 (4, 8) - (1, 1)
    tensors = [torch.tensor([1.0, -2.0]), torch.tensor([4.0, 8.0]), torch.tensor([1.0, 1.0])]
    assert weighted_sum(tensors, [2.0, 0.5, -1.0]).tolist() == [3.0, -1.0]


@settings(derandomize=True, deadline=None)
@given(
    st.lists(st.floats(-(2.0**99), 2.0**99, width=32), min_size=1, max_size=9),
    st.lists(st.floats(-10, 10), min_size=1, max_size=5),
)
def test_equal_tensors_and_absent_ones_leave_no_trace(values: list[float], weights: list[float]) -> None:
    tensor = torch.tensor(values)
    shares = [*weights, 1 - sum(weights)]
    assert torch.equal(weighted_sum([tensor.clone() for _ in shares], shares), tensor)
    other = torch.full_like(tensor, 3.0)
    assert torch.equal(weighted_sum([other, tensor.clone()], [0.0, 1.0]), tensor)
