"""gradient_square and saliency against plain autograd over the whole model."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch.nn import functional
from transformers import AutoProcessor

from safegraft.calibration import gather
from safegraft.methods.contract import Statistic

SQUARE, SALIENCY = Statistic.GRADIENT_SQUARE, Statistic.SALIENCY

Score = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
SCORES: dict[Statistic, Score] = {SQUARE: lambda g, w: g**2, SALIENCY: lambda g, w: (g * w).abs()}


def plainly(model: Any, samples: Sequence[tuple[dict[str, Any], int]], score: Score) -> dict[str, torch.Tensor]:
    """Mean over samples of score(gradient, weight), by the checkpoint's names. samples: (inputs, first token of the
    response)."""
    model.plain.requires_grad_(True)
    parameters = dict(model.plain.named_parameters())
    sums = {name: torch.zeros_like(one) for name, one in parameters.items()}
    for inputs, begin in samples:
        model.plain.zero_grad()
        logits = model.plain(**inputs, use_cache=False).logits
        functional.cross_entropy(logits[0, begin - 1 : -1], inputs["input_ids"][0, begin:]).backward()
        for name, one in parameters.items():
            if one.grad is not None:
                sums[name] += score(one.grad, one.detach())
    return {model.names[name]: value / len(samples) for name, value in sums.items()}


def assert_gathered(gathered: Any, expected: dict[str, torch.Tensor]) -> None:
    assert set(gathered.tensors) == set(expected)
    for name, value in expected.items():
        assert gathered.tensors[name].shape == tuple(value.shape)
        torch.testing.assert_close(gathered.whole(name), value, rtol=1e-4, atol=1e-9)


@pytest.mark.parametrize("statistic", SCORES)
def test_of_an_llm_through_its_chat_template(
    statistic: Statistic, llm: Any, data: Any, tokens_of: Any, request_of: Any, prompts: Any, tmp_path: Path
) -> None:
    asked = [f"<user> {row['instruction']} <end> <assistant>" for row in prompts]
    said = [f"<user> {row['instruction']} <end> <assistant> {row['output']} <end>" for row in prompts]
    # The template puts the answer where the generation prompt ends, so the response is all that follows it.
    samples = [(tokens_of(whole), len(begin.split())) for begin, whole in zip(asked, said, strict=True)]
    gathered = gather(request_of(llm, statistic, data.prompts()), tmp_path)
    assert_gathered(gathered, plainly(llm, samples, SCORES[statistic]))


@pytest.mark.parametrize("statistic", SCORES)
def test_of_a_model_whose_head_is_its_embedding(
    statistic: Statistic, tied: Any, data: Any, tokens_of: Any, request_of: Any, prompts: Any, tmp_path: Path
) -> None:
    samples = [(tokens_of(f"{row['instruction']} {row['output']}"), len(row["instruction"].split())) for row in prompts]
    gathered = gather(request_of(tied, statistic, data.prompts()), tmp_path)
    assert_gathered(gathered, plainly(tied, samples, SCORES[statistic]))


@pytest.mark.parametrize("statistic", SCORES)
def test_of_an_lvlm_with_images(
    statistic: Statistic, lvlm: Any, data: Any, picture_samples: Any, request_of: Any, tmp_path: Path
) -> None:
    gathered = gather(request_of(lvlm, statistic, data.pictures()), tmp_path)
    expected = plainly(lvlm, picture_samples(lvlm), SCORES[statistic])
    assert_gathered(gathered, expected)
    assert expected["vision_tower.encoder.layers.0.mlp.fc1.weight"].any()  # the images were seen
    assert not expected["vision_tower.encoder.layers.2.mlp.fc1.weight"].any()  # LLaVA leaves its last layer out


def test_of_whole_texts(llm: Any, data: Any, tokens_of: Any, request_of: Any, tmp_path: Path) -> None:
    texts = ["w1 w2 w3", "w4 w5", "w6 w7 w8 w9 w1"]
    gathered = gather(request_of(llm, SQUARE, data.open([{"text": text} for text in texts])), tmp_path)
    assert_gathered(gathered, plainly(llm, [(tokens_of(text), 1) for text in texts], SCORES[SQUARE]))


def test_of_a_text_whose_image_comes_first(lvlm: Any, data: Any, request_of: Any, tmp_path: Path) -> None:
    row = {"text": "w1 w2 w3", "image": data.picture("a.png", 1)}
    opened = data.open([row], fields={"text": "text", "image": "image"})
    processor = AutoProcessor.from_pretrained(lvlm.checkpoint.name)
    image = Image.open(data.folder / "a.png").convert("RGB")
    inputs = dict(processor(text=["<image>\nw1 w2 w3"], images=[image], return_tensors="pt"))
    pixels = inputs["input_ids"].shape[1] - 3  # nobody has to predict the image
    gathered = gather(request_of(lvlm, SQUARE, opened), tmp_path)
    assert_gathered(gathered, plainly(lvlm, [(inputs, pixels)], SCORES[SQUARE]))


def test_a_text_only_model_is_shown_the_texts_of_images(llm: Any, data: Any, request_of: Any, tmp_path: Path) -> None:
    pictures = data.pictures()
    plain = data.open(data.picture_rows(), "plain", fields={"prompt": "instruction", "response": "output"})
    with_images = gather(request_of(llm, SQUARE, pictures), tmp_path)
    without = gather(request_of(llm, SQUARE, plain), tmp_path)
    assert all(torch.equal(with_images.whole(name), without.whole(name)) for name in without.tensors)


def test_only_the_tensors_that_are_asked_for(lvlm: Any, data: Any, request_of: Any, tmp_path: Path) -> None:
    some = ["language_model.model.layers.1.mlp.up_proj.weight", "vision_tower.encoder.layers.1.layer_norm1.bias"]
    everything = gather(request_of(lvlm, SQUARE, data.pictures()), tmp_path)
    gathered = gather(request_of(lvlm, SQUARE, data.pictures(), tensors=some), tmp_path)
    assert set(gathered.tensors) == set(some)
    assert all(torch.equal(gathered.whole(name), everything.whole(name)) for name in some)


def test_samples_beyond_max_length_are_cut(
    llm: Any, data: Any, tokens_of: Any, request_of: Any, tmp_path: Path
) -> None:
    cut = data.open([{"text": "w1 w2 w3 w4 w5 w6 w7 w8 w9 w10"}], max_length=8)
    gathered = gather(request_of(llm, SQUARE, cut), tmp_path)
    assert_gathered(gathered, plainly(llm, [(tokens_of("w1 w2 w3 w4 w5 w6 w7 w8"), 1)], SCORES[SQUARE]))
