"""Early layers from the LVLM, later ones from the LLM."""

from collections.abc import Callable

import pytest
import torch

from safegraft.methods import Context, Input
from safegraft.testing import check_method
from safegraft_plugins.safety.layer_swap import LayerSwap

Merge = Callable[..., torch.Tensor]

F = torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]])
A = torch.tensor([[5.0, 2.0, -1.0], [0.0, 1.0, 2.0]])


def test_contract() -> None:
    check_method(LayerSwap)
    check_method(LayerSwap, parameters={"k": 0, "t": 0.3})


@pytest.mark.parametrize(
    ("layer", "shared", "expected"),
    [
        (0, {}, F),
        (4, {}, F),  # the fifth layer is the last of k = 5
        (5, {}, A),
        (31, {}, A),
        (2, {"k": 2}, A),
        (0, {"k": 0}, A),
        (31, {"k": 32}, F),
        (None, {"k": 0}, F),  # embeddings, final norm, head
        (5, {"t": 0}, F),
        # 3/4 F + 1/4 A
        (5, {"t": 0.25}, torch.tensor([[2.0, 2.0, 2.0], [3.0, 4.0, 5.0]])),
    ],
)
def test_by_hand(merged: Merge, layer: int | None, shared: dict[str, float], expected: torch.Tensor) -> None:
    result = merged(LayerSwap, [F], roles=[A], layer=layer, layers=0 if layer is None else 32, **shared)
    assert torch.equal(result, expected)


@pytest.mark.parametrize(("language", "expected"), [(True, A), (False, F)])
def test_layers_of_a_vision_tower_stay(language: bool, expected: torch.Tensor) -> None:
    context = Context("x", (2, 3), 0, 0, LayerSwap.Parameters(), None, layer=20, layers=24, language=language)
    inputs = [Input("lvlm", F.flatten().clone(), None), Input("aligned", A.flatten().clone(), None)]
    assert torch.equal(LayerSwap().merge(inputs, None, context).view(2, 3), expected)
