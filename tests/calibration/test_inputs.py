"""input_norm and input_gram against hooks on the whole model."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from safegraft.calibration import gather
from safegraft.methods.contract import Statistic

NORM, GRAM = Statistic.INPUT_NORM, Statistic.INPUT_GRAM


def inputs_of(model: Any, samples: list[dict[str, Any]]) -> dict[str, list[torch.Tensor]]:
    """What comes into each linear layer, [tokens, in] for each sample, by the checkpoint's names."""
    seen: dict[str, list[torch.Tensor]] = {}
    hooks = [
        module.register_forward_pre_hook(
            lambda _, args, name=name: seen.setdefault(name, []).append(args[0].reshape(-1, args[0].shape[-1]))
        )
        for name, module in model.plain.named_modules()
        if isinstance(module, nn.Linear)
    ]
    with torch.no_grad():
        for inputs in samples:
            model.plain(**inputs, use_cache=False)
    for hook in hooks:
        hook.remove()
    return {model.names[f"{name}.weight"]: found for name, found in seen.items() if f"{name}.weight" in model.names}


def norm(found: list[torch.Tensor]) -> torch.Tensor:
    return torch.cat(found).square().sum(0).sqrt()


def gram(found: list[torch.Tensor]) -> torch.Tensor:
    return torch.stack([one.T @ one / len(one) for one in found]).mean(0)


@pytest.mark.parametrize(("statistic", "expected"), [(NORM, norm), (GRAM, gram)])
def test_of_an_llm(
    statistic: Statistic, expected: Any, llm: Any, data: Any, tokens_of: Any, request_of: Any, tmp_path: Path
) -> None:
    texts = ["w1 w2 w3", "w4 w5", "w6 w7 w8 w9 w1"]  # of unequal length: every sample weighs the same in the Gram
    gathered = gather(request_of(llm, statistic, data.open([{"text": text} for text in texts])), tmp_path)
    found = inputs_of(llm, [tokens_of(text) for text in texts])
    assert set(gathered.tensors) == set(found)
    assert "model.embed_tokens.weight" not in found
    for name, seen in found.items():
        torch.testing.assert_close(gathered.whole(name), expected(seen), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("statistic", "expected"), [(NORM, norm), (GRAM, gram)])
def test_of_an_lvlm_where_some_samples_have_no_image(
    statistic: Statistic, expected: Any, lvlm: Any, data: Any, picture_samples: Any, request_of: Any, tmp_path: Path
) -> None:
    gathered = gather(request_of(lvlm, statistic, data.pictures()), tmp_path)
    found = inputs_of(lvlm, [inputs for inputs, _ in picture_samples(lvlm)])
    assert len(found["multi_modal_projector.linear_1.weight"]) == 2  # of three samples
    assert set(gathered.tensors) == set(found)
    for name, seen in found.items():
        torch.testing.assert_close(gathered.whole(name), expected(seen), rtol=1e-4, atol=1e-6)


def test_a_head_that_is_the_embedding_has_none(tied: Any, data: Any, request_of: Any, tmp_path: Path) -> None:
    gathered = gather(request_of(tied, NORM, data.prompts()), tmp_path)
    assert "model.embed_tokens.weight" not in gathered.tensors
    assert "model.layers.2.mlp.down_proj.weight" in gathered.tensors
