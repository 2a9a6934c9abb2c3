"""Updates projected onto the directions of alignment: by hand, against the factors of a LoRA, by rank."""

from collections.abc import Callable, Sequence

import pytest
import torch

from safegraft.methods import Context, Input, Prepared
from safegraft.testing import check_method
from safegraft_plugins.safety.alignment import project
from safegraft_plugins.safety.safe_lora import SafeLora

Merge = Callable[..., torch.Tensor]

ZERO = torch.zeros(2, 3)
# V = A - B = A: V V^T = diag(9, 16), its norm 5, so C = diag(1.8, 3.2)
BOTH = torch.tensor([[3.0, 0.0, 0.0], [0.0, 4.0, 0.0]])
# V V^T = diag(25, 0), norm 5: C = diag(5, 0) keeps the first row alone
FIRST = torch.tensor([[0.0, 5.0, 0.0], [0.0, 0.0, 0.0]])


def drawn(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def near(result: torch.Tensor, expected: Sequence[Sequence[float]]) -> None:
    torch.testing.assert_close(result, torch.tensor(expected, dtype=torch.float32), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("shared", [{}, {"threshold": 1}, {"num_proj_layers": 3}, {"threshold": 1, "length": "fitted"}])
def test_contract(shared: dict[str, float | str]) -> None:
    check_method(SafeLora, parameters=shared)


def test_by_hand(merged: Merge) -> None:
    update = torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
    # C d = [[1.8, 0, 0], [0, 3.2, 0]], cos = (1.8 + 3.2) / (sqrt 2 sqrt 13.48) = 0.96297
    near(merged(SafeLora, [BOTH + update], base=ZERO, roles=[BOTH], threshold=0.963), [[4.8, 0, 0], [0, 7.2, 0]])
    kept = merged(SafeLora, [BOTH + update], base=ZERO, roles=[BOTH], threshold=0.962)
    assert torch.equal(kept, BOTH + update)


def test_against_the_alignment_nothing_is_left(merged: Merge) -> None:
    update = torch.tensor([[0.0, 0.0, 0.0], [1.0, 2.0, 2.0]])  # C d = 0: cos 0
    assert torch.equal(merged(SafeLora, [FIRST + update], base=ZERO, roles=[FIRST]), FIRST)
    assert torch.equal(merged(SafeLora, [FIRST + update], base=ZERO, roles=[FIRST], threshold=-0.1), FIRST + update)


def test_length(merged: Merge) -> None:
    update = torch.tensor([[3.0, 0.0, 0.0], [0.0, 4.0, 0.0]])
    # C d = [[15, 0, 0], 0]: cos = 45 / (15 * 5) = 0.6, above the default threshold
    assert torch.equal(merged(SafeLora, [FIRST + update], base=ZERO, roles=[FIRST]), FIRST + update)
    near(merged(SafeLora, [FIRST + update], base=ZERO, roles=[FIRST], threshold=0.61), [[15, 5, 0], [0, 0, 0]])
    # <d, C d> / |C d|^2 = 45 / 225 = 0.2: of d the part along C d, [[3, 0, 0], 0]
    fitted = merged(SafeLora, [FIRST + update], base=ZERO, roles=[FIRST], threshold=0.61, length="fitted")
    near(fitted, [[3, 5, 0], [0, 0, 0]])


@pytest.mark.parametrize("shape", [(6, 4), (4, 6)])
def test_it_is_the_loras_b_that_is_projected(merged: Merge, shape: tuple[int, int]) -> None:
    """The authors' way: factors B and A of a LoRA on the aligned model, C by its definition, in double precision."""
    rows, columns = shape
    base, aligned = drawn(1, rows, columns), drawn(2, rows, columns)
    b, a = drawn(3, rows, 2), drawn(4, 2, columns)
    v = aligned - base
    c = v @ v.T / v.norm()
    update, projected = (b @ a).flatten(), (c @ b @ a).flatten()
    cosine = float(torch.nn.functional.cosine_similarity(update, projected, dim=0))
    assert 0.1 < cosine < 0.9
    fine_tuned = aligned + b @ a
    for threshold, expected in ((cosine + 1e-6, aligned + (c @ b) @ a), (cosine - 1e-6, fine_tuned)):
        result = merged(SafeLora, [fine_tuned], base=base, roles=[aligned], threshold=threshold)
        torch.testing.assert_close(result, expected, rtol=1e-12, atol=1e-12)


def test_the_cosine_has_no_scale_and_the_projection_has_that_of_both() -> None:
    d, v = drawn(5, 3, 4).float(), drawn(6, 3, 4).float()
    one, tiny = project(d.clone(), v.clone()), project(d * 2**-60, v * 2**-60)  # V V^T underflows float32
    assert one is not None
    assert tiny is not None
    assert tiny.cosine == pytest.approx(one.cosine, rel=1e-6)
    torch.testing.assert_close(tiny.delta * 2.0**60, one.delta * 2.0**-60, rtol=1e-5, atol=0)


def test_where_there_is_no_matrix_or_no_direction_it_is_the_fine_tuned_model(merged: Merge) -> None:
    f, a, b = (drawn(seed, 4, 3).float() for seed in (7, 8, 9))
    assert not torch.equal(merged(SafeLora, [f], base=b, roles=[a], threshold=1), f)
    assert torch.equal(merged(SafeLora, [f], base=b, roles=[a], threshold=1, vocabulary=True), f)
    assert torch.equal(merged(SafeLora, [f], base=a, roles=[a], threshold=1), f)
    assert torch.equal(merged(SafeLora, [a], base=b, roles=[a], threshold=1), a)
    assert torch.equal(merged(SafeLora, [f[0]], base=b[0], roles=[a[0]], threshold=1), f[0])


def test_stacked_experts_are_decided_one_by_one(merged: Merge) -> None:
    updates = torch.tensor([[[0.0, 0.0, 0.0], [1.0, 2.0, 2.0]], [[3.0, 0.0, 0.0], [0.0, 4.0, 0.0]]])  # cos 0 and 0.6
    aligned = torch.stack([FIRST, FIRST])
    result = merged(SafeLora, [aligned + updates], base=torch.zeros(2, 2, 3), roles=[aligned])
    assert torch.equal(result, torch.stack([FIRST, FIRST + updates[1]]))


def test_by_rank_over_all_matrices() -> None:
    def prepared(count: int, *cosines: float | None) -> Prepared:
        return Prepared("x", (2, 3), 0, 1, SafeLora.Parameters(num_proj_layers=count), cosines or None)

    tensors = [prepared(2, 0.9), prepared(2, 0.2, None), prepared(2), prepared(2, 0.5, 0.7), prepared(9, 0.1, 0.8)]
    assert SafeLora().survey(tensors) == {2: 0.5, 9: 0.8}
    assert SafeLora().survey([prepared(0), prepared(3, None)]) == {}


def test_rank_replaces_the_threshold(merged: Merge) -> None:
    """The only matrix is the worst of all."""
    f, a, b = (drawn(seed, 4, 3).float() for seed in (13, 14, 15))
    by_rank = merged(SafeLora, [f], base=b, roles=[a], threshold=-1, num_proj_layers=1)
    torch.testing.assert_close(by_rank, merged(SafeLora, [f], base=b, roles=[a], threshold=1))


def test_the_default_threshold(merged: Merge) -> None:
    # V = [[0, 5, 0], 0]: C = diag(5, 0) and cos = |first row| / |d|. 13 / sqrt(169 + 484) = 0.5087 is kept,
    assert torch.equal(merged(SafeLora, [FIRST + rows(13, 22)], base=ZERO, roles=[FIRST]), FIRST + rows(13, 22))
    # 1 / sqrt(1 + 3.24) = 0.4856 is not: C d = [[5, 0, 0], 0]
    near(merged(SafeLora, [FIRST + rows(1, 1.8)], base=ZERO, roles=[FIRST]), [[5, 5, 0], [0, 0, 0]])


def rows(first: float, second: float) -> torch.Tensor:
    return torch.tensor([[first, 0.0, 0.0], [0.0, second, 0.0]])


def test_the_survey_and_the_merge_go_by_the_same_cosine() -> None:
    """Another number of threads may round a product otherwise: what was ranked decides, whatever is found again."""
    f = FIRST + rows(3, 4)  # cos 0.6

    def result(ranked: float) -> torch.Tensor:
        parameters = SafeLora.Parameters(num_proj_layers=1)
        context = Context("x", (2, 3), 0, 0, parameters, state=(ranked,), survey={1: 0.6})
        inputs = [Input("f", f.clone(), None), Input("aligned", FIRST.clone(), None)]
        return SafeLora().merge(inputs, ZERO.clone(), context)

    near(result(0.6), [[15, 5, 0], [0, 0, 0]])
    assert torch.equal(result(0.6001), f)


def test_the_sign_of_the_alignment_does_not_matter() -> None:
    d, v = drawn(16, 4, 3).float(), drawn(17, 4, 3).float()
    one, other = project(d.clone(), v.clone()), project(d.clone(), -v)
    assert one is not None
    assert other is not None
    assert one.cosine == other.cosine
    assert torch.equal(one.delta, other.delta)


@pytest.mark.parametrize("seed", range(20))
def test_the_cosine_is_never_negative(seed: int) -> None:
    """C is positive semidefinite, so that a threshold below 0 projects nothing; a d against V is no exception."""
    d, v = drawn(2 * seed, 5, 3).float(), drawn(2 * seed + 1, 5, 3).float()
    for update in (d, -d, -v):
        found = project(update.clone(), v.clone())
        assert found is not None
        assert 0 <= found.cosine <= 1
