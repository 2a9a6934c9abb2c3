"""Numbers that can be worked out by hand, and an LLM inside an LVLM compared as if it stood alone."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch

from safegraft.errors import AlignmentError, InputError, NonFiniteError, UsageError
from safegraft_trainers.analyze import layout
from safegraft_trainers.analyze.kinds import kind_of
from safegraft_trainers.analyze.task_vectors import task_vectors
from safegraft_trainers.analyze.weights import Comparison, compare

Tensors = dict[str, torch.Tensor]
Write = Callable[..., str]
UP = "model.layers.1.mlp.up_proj.weight"


def changed(weights: Tensors, amount: float = 0.1, seed: int = 5) -> Tensors:
    generator = torch.Generator().manual_seed(seed)
    return {name: one + amount * torch.randn(one.shape, generator=generator) for name, one in weights.items()}


def numbers(comparison: Comparison, prefix: str = "") -> dict[str, tuple[Any, ...]]:
    return {
        one.name.removeprefix(prefix): (one.layer, one.kind, one.shape, one.change, one.spectrum)
        for one in comparison.tensors
        if one.part == layout.LANGUAGE_MODEL
    }


def test_a_rank_one_change(write: Write, weights: Tensors) -> None:
    left, right = torch.randn(16), torch.randn(8)
    tuned = weights | {UP: weights[UP] + torch.outer(left, right)}
    found = compare(write("a", weights), write("b", tuned))
    assert (found.reference, found.model) == ("a", "b")
    for one in found.tensors:
        if one.name != UP:
            assert (one.change.relative, one.change.cosine) == (0, 1)
            continue
        length = float(left.norm() * right.norm())
        assert one.change.relative == pytest.approx(length / float(weights[UP].norm()), rel=1e-5)
        expected = torch.cosine_similarity(weights[UP].flatten().double(), tuned[UP].flatten().double(), 0)
        assert one.change.cosine == pytest.approx(float(expected), rel=1e-9)
        assert one.spectrum is not None
        assert one.spectrum.spectral_norm == pytest.approx(length, rel=1e-5)
        assert one.spectrum.effective_rank == pytest.approx(1, abs=1e-3)
        assert (one.part, one.layer, one.kind) == (layout.LANGUAGE_MODEL, 1, "mlp up")
    assert [group.layer for group in found.ranking()] == [1, 0]
    assert found.ranked_tensors()[0].name == UP


def test_models_that_are_equal(write: Write, weights: Tensors) -> None:
    found = compare(write("a", weights), write("b", weights))
    assert len(found.tensors) == len(weights)
    assert (found.overall.relative, found.overall.cosine) == (0, 1)
    assert all(group.rank_share is None for group in found.by_layer())
    assert not found.left_out


def test_a_scaled_copy(write: Write, weights: Tensors) -> None:
    found = compare(write("a", weights), write("b", {name: 1.5 * one for name, one in weights.items()}))
    for group in [*found.by_layer(), *found.by_kind(), *found.by_part()]:
        assert group.change.relative == pytest.approx(0.5, rel=1e-6)
        assert group.change.cosine == pytest.approx(1, abs=1e-12)


def test_groups_are_sums_over_their_tensors(write: Write, weights: Tensors) -> None:
    tuned = changed(weights)
    found = compare(write("a", weights), write("b", tuned), spectral=False)
    layer = [name for name in weights if name.startswith("model.layers.1.")]
    norms = [name for name in weights if "norm" in name]
    assert len(norms) == 5
    for names, group in (
        (layer, found.by_layer()[1]),
        (norms, next(one for one in found.by_kind() if one.kind == "norm")),
        (list(weights), found.by_part()[0]),
    ):
        one, other = (torch.cat([some[name].flatten().double() for name in names]) for some in (weights, tuned))
        assert group.change.relative == pytest.approx(float((other - one).norm() / one.norm()), rel=1e-6)
        assert group.change.cosine == pytest.approx(float(torch.cosine_similarity(one, other, 0)), rel=1e-9)
    assert all(one.spectrum is None for one in found.tensors)
    cells = found.by_layer_and_kind()
    assert sum(len(cell.tensors) for cell in cells) == sum(len(layer.tensors) for layer in found.by_layer())


def test_an_llm_inside_an_lvlm_gives_the_numbers_of_the_llm(
    write: Write, write_lvlm: Callable[[str, Tensors], str], weights: Tensors
) -> None:
    tuned = changed(weights)
    reference = write("a", weights)
    alone = compare(reference, write("llm", tuned))
    inside = compare(reference, write_lvlm("lvlm", tuned))
    assert numbers(inside, "language_model.") == numbers(alone)
    assert sorted(inside.left_out["lvlm"]) == [
        "multi_modal_projector.linear_1.weight",
        "vision_tower.encoder.layers.0.self_attn.q_proj.weight",
        "vision_tower.encoder.layers.1.self_attn.q_proj.weight",
    ]
    assert any("20 of its 24 rows" in note for note in inside.notes)
    # The other way round it is the same language model, and what is measured against what turns round.
    back = compare(write_lvlm("lvlm2", tuned), reference)
    assert back.overall.reference_square == pytest.approx(inside.overall.model_square, rel=1e-12)


def test_two_lvlms_are_compared_with_their_vision_towers(
    write_lvlm: Callable[[str, Tensors], str], weights: Tensors
) -> None:
    found = compare(write_lvlm("a", weights), write_lvlm("b", changed(weights)))
    assert found.parts == [layout.LANGUAGE_MODEL, "multi_modal_projector", "vision_tower"]
    assert [(group.part, group.layer) for group in found.by_layer() if group.part == "vision_tower"] == [
        ("vision_tower", 0),
        ("vision_tower", 1),
    ]
    assert {group.part: group.change.relative for group in found.by_part()}["vision_tower"] == 0
    assert not found.left_out


def test_blocks_of_any_size_give_the_same(write: Write, weights: Tensors, monkeypatch: pytest.MonkeyPatch) -> None:
    base, one, other = write("base", weights), write("a", changed(weights)), write("b", changed(weights, seed=6))
    whole, vectors = compare(one, other).to_dict(), task_vectors([one, other], base).to_dict()
    monkeypatch.setattr(layout, "BLOCK_ELEMENTS", 7)
    _assert_close(compare(one, other).to_dict(), whole)
    _assert_close(task_vectors([one, other], base).to_dict(), vectors)


def _assert_close(found: Any, wanted: Any) -> None:
    if isinstance(wanted, dict):
        assert found.keys() == wanted.keys()
        for key, value in wanted.items():
            _assert_close(found[key], value)
    elif isinstance(wanted, list):
        assert len(found) == len(wanted)
        for one, other in zip(found, wanted, strict=True):
            _assert_close(one, other)
    else:
        assert found == (pytest.approx(wanted, rel=1e-9) if isinstance(wanted, float) else wanted)


def test_rows_of_embeddings_meet_by_token(write: Write, weights: Tensors) -> None:
    order = torch.randperm(20, generator=torch.Generator().manual_seed(3))
    moved = weights | {name: weights[name][order] for name in ("model.embed_tokens.weight", "lm_head.weight")}
    tokens = {f"w{int(old)}": new for new, old in enumerate(order)}
    assert compare(write("a", weights), write("b", moved, tokens)).overall.relative == 0


def test_task_vectors_by_hand(write: Write, weights: Tensors) -> None:
    base = {name: torch.zeros_like(one) for name, one in weights.items()}
    base[UP] = torch.full((16, 8), 2.0)
    one, other = (dict(base) for _ in range(2))
    first, second = torch.zeros(16, 8), torch.zeros(16, 8)
    first[0, :4] = torch.tensor([3.0, -4.0, 1.0, 0.0])
    second[0, :4] = torch.tensor([3.0, 4.0, 2.0, 5.0])
    one[UP], other[UP] = base[UP] + first, base[UP] + second
    found = task_vectors([write("one", one), write("other", other)], write("base", base))
    overall = found.pairs[0].overall
    # 9 - 16 + 2 over sqrt(26) sqrt(54); of three elements that both changed, two have equal signs.
    assert overall.cosine == pytest.approx(-5 / math.sqrt(26 * 54))
    assert overall.sign_agreement == pytest.approx(2 / 3)
    assert found.norms["one"] == pytest.approx((math.sqrt(26), 2 * math.sqrt(128)))
    assert {key: one.cosine for key, one in found.pairs[0].layers.items()} == {
        ("model.layers", 0): None,
        ("model.layers", 1): pytest.approx(-5 / math.sqrt(26 * 54)),
    }


def test_what_cannot_be_compared(write: Write, weights: Tensors) -> None:
    good = write("a", weights)
    with pytest.raises(UsageError, match="given twice"):
        compare(good, good)
    with pytest.raises(InputError, match="no such folder"):
        compare(good, "nowhere/at-all")
    damaged = dict(weights) | {UP: weights[UP].clone().index_fill_(0, torch.tensor([3]), math.nan)}
    with pytest.raises(NonFiniteError, match=rf"{UP}: holds NaN or inf in a or nan"):
        compare(good, write("nan", damaged))
    with pytest.raises(NonFiniteError):
        task_vectors([good], write("nan2", damaged))
    smaller = {name: one for name, one in weights.items() if ".layers.1." not in name}
    with pytest.raises(AlignmentError):
        compare(good, write("smaller", smaller))


@pytest.mark.parametrize(
    ("suffix", "kind"),
    [
        ("self_attn.q_proj.weight", "attention q"),
        ("self_attn.q_proj.bias", "attention q"),
        ("self_attn.q_norm.weight", "norm"),
        ("input_layernorm.weight", "norm"),
        ("ln_1.weight", "norm"),
        ("attn.c_proj.weight", "attention o"),
        ("mlp.c_proj.weight", "mlp down"),
        ("mlp.gate.weight", "mlp router"),
        ("mlp.experts.3.gate_proj.weight", "mlp gate"),
        ("mlp.experts.gate_up_proj", "mlp gate+up"),
        ("mixer.conv1d.weight", "mixer.conv1d"),
    ],
)
def test_kinds(suffix: str, kind: str) -> None:
    assert kind_of(suffix) == kind
