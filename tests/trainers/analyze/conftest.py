"""Llamas and LLaVAs whose weights a test chooses, and one torch thread."""

from collections.abc import Callable, Generator, Mapping
from pathlib import Path

import pytest
import torch

from safegraft.testing import llama_config, llama_tensors, words, write_checkpoint

Tensors = dict[str, torch.Tensor]
VOCABULARY = 20


@pytest.fixture(autouse=True, scope="module")  # before a module's own: sums of two threads end in other digits
def _one_thread() -> Generator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def weights() -> Tensors:
    return llama_tensors(vocab=VOCABULARY, seed=1)


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., str]:
    """write("name", tensors) -> the reference of an LLM with these weights."""

    def written(name: str, tensors: Tensors, tokens: Mapping[str, int] | None = None) -> str:
        config = llama_config(vocab=len(tensors["model.embed_tokens.weight"]))
        folder = write_checkpoint(tmp_path / name, tensors, config, tokens=tokens or words(config["vocab_size"]))
        return str(folder)

    return written


@pytest.fixture
def write_lvlm(tmp_path: Path) -> Callable[[str, Tensors], str]:
    """An LVLM around an LLM's weights, with a vision tower and four more tokens, which come first."""

    def written(name: str, tensors: Tensors) -> str:
        generator = torch.Generator().manual_seed(9)
        inner = {f"language_model.{key}": value for key, value in tensors.items()}
        for key in ("model.embed_tokens.weight", "lm_head.weight"):
            extra = torch.randn(4, 8, generator=generator)
            inner[f"language_model.{key}"] = torch.cat([extra, tensors[key]])
        inner["multi_modal_projector.linear_1.weight"] = torch.randn(8, 6, generator=generator)
        for layer in range(2):
            weight = torch.randn(6, 6, generator=generator)
            inner[f"vision_tower.encoder.layers.{layer}.self_attn.q_proj.weight"] = weight
        config = {
            "architectures": ["LlavaForConditionalGeneration"],
            "model_type": "llava",
            "image_token_index": 0,
            "text_config": llama_config(vocab=VOCABULARY + 4),
            "vision_config": {"model_type": "clip_vision_model", "hidden_size": 6, "num_hidden_layers": 2},
        }
        tokens = {f"extra{row}": row for row in range(4)} | {word: row + 4 for word, row in words(VOCABULARY).items()}
        return str(write_checkpoint(tmp_path / name, inner, config, tokens=tokens))

    return written
