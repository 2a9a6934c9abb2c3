"""How large the models are, and what their tensors are called. Knows shapes, no values and no files."""

from collections.abc import Iterator
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

Tensor = tuple[str, tuple[int, ...]]

ITEM_BYTES = 2  # everything is bfloat16
EXTRA_TOKENS = 64  # that LLaVA adds to its language model's
LANGUAGE = "language_model."


@dataclass(frozen=True, slots=True)
class Language:
    """A Llama."""

    hidden: int
    intermediate: int
    layers: int
    heads: int
    key_value_heads: int
    vocabulary: int = 32000

    def tensors(self, vocabulary: int) -> Iterator[Tensor]:
        """In the order of the files that transformers writes: by layer."""
        width = self.hidden // self.heads * self.key_value_heads
        yield "model.embed_tokens.weight", (vocabulary, self.hidden)
        for layer in range(self.layers):
            at = f"model.layers.{layer}"
            yield f"{at}.input_layernorm.weight", (self.hidden,)
            yield f"{at}.mlp.down_proj.weight", (self.hidden, self.intermediate)
            yield f"{at}.mlp.gate_proj.weight", (self.intermediate, self.hidden)
            yield f"{at}.mlp.up_proj.weight", (self.intermediate, self.hidden)
            yield f"{at}.post_attention_layernorm.weight", (self.hidden,)
            yield f"{at}.self_attn.k_proj.weight", (width, self.hidden)
            yield f"{at}.self_attn.o_proj.weight", (self.hidden, self.hidden)
            yield f"{at}.self_attn.q_proj.weight", (self.hidden, self.hidden)
            yield f"{at}.self_attn.v_proj.weight", (width, self.hidden)
        yield "model.norm.weight", (self.hidden,)
        yield "lm_head.weight", (vocabulary, self.hidden)

    def config(self, vocabulary: int) -> dict[str, Any]:
        return {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "torch_dtype": "bfloat16",
            "vocab_size": vocabulary,
            "hidden_size": self.hidden,
            "intermediate_size": self.intermediate,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.key_value_heads,
            "hidden_act": "silu",
            "max_position_embeddings": 4096,
            "rms_norm_eps": 1e-5,
            "tie_word_embeddings": False,
        }


@dataclass(frozen=True, slots=True)
class Vision:
    """A CLIP vision tower."""

    hidden: int
    layers: int
    heads: int
    image: int = 336
    patch: int = 14

    def tensors(self) -> Iterator[Tensor]:
        at = "vision_tower.vision_model"
        width, positions = self.hidden, (self.image // self.patch) ** 2 + 1
        yield f"{at}.embeddings.class_embedding", (width,)
        yield f"{at}.embeddings.patch_embedding.weight", (width, 3, self.patch, self.patch)
        yield f"{at}.embeddings.position_embedding.weight", (positions, width)
        for layer in range(self.layers):
            for name, outputs, inputs in (
                ("self_attn.q_proj", width, width),
                ("self_attn.k_proj", width, width),
                ("self_attn.v_proj", width, width),
                ("self_attn.out_proj", width, width),
                ("mlp.fc1", 4 * width, width),
                ("mlp.fc2", width, 4 * width),
            ):
                yield f"{at}.encoder.layers.{layer}.{name}.weight", (outputs, inputs)
                yield f"{at}.encoder.layers.{layer}.{name}.bias", (outputs,)
            yield from _norm(f"{at}.encoder.layers.{layer}.layer_norm1", width)
            yield from _norm(f"{at}.encoder.layers.{layer}.layer_norm2", width)
        yield from _norm(f"{at}.post_layernorm", width)
        yield from _norm(f"{at}.pre_layrnorm", width)  # CLIP's own spelling

    def config(self) -> dict[str, Any]:
        return {
            "model_type": "clip_vision_model",
            "hidden_size": self.hidden,
            "intermediate_size": 4 * self.hidden,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "image_size": self.image,
            "patch_size": self.patch,
            "projection_dim": self.hidden,
        }


@dataclass(frozen=True, slots=True)
class Size:
    """A Llama, and a LLaVA around such a Llama. shard_bytes: no weights file is larger, unless a tensor is."""

    language: Language
    vision: Vision
    shard_bytes: int = 5 * 10**9

    def llm(self) -> Iterator[Tensor]:
        return self.language.tensors(self.language.vocabulary)

    def llm_config(self) -> dict[str, Any]:
        return self.language.config(self.language.vocabulary)

    def lvlm(self) -> Iterator[Tensor]:
        hidden = self.language.hidden
        for name, shape in self.language.tensors(self.language.vocabulary + EXTRA_TOKENS):
            yield LANGUAGE + name, shape
        for number, inputs in ((1, self.vision.hidden), (2, hidden)):
            yield f"multi_modal_projector.linear_{number}.bias", (hidden,)
            yield f"multi_modal_projector.linear_{number}.weight", (hidden, inputs)
        yield from self.vision.tensors()

    def lvlm_config(self) -> dict[str, Any]:
        vocabulary = self.language.vocabulary + EXTRA_TOKENS
        return {
            "architectures": ["LlavaForConditionalGeneration"],
            "model_type": "llava",
            "torch_dtype": "bfloat16",
            "image_token_index": self.language.vocabulary,
            "projector_hidden_act": "gelu",
            "tie_word_embeddings": False,
            "vision_feature_layer": -2,
            "vision_feature_select_strategy": "default",
            "text_config": self.language.config(vocabulary),
            "vision_config": self.vision.config(),
        }


def _norm(name: str, width: int) -> Iterator[Tensor]:
    yield f"{name}.bias", (width,)
    yield f"{name}.weight", (width,)


# By what the Llama's weights take: megabytes, gigabytes, and the two that are only headers.
SIZES = MappingProxyType(
    {
        "tiny": Size(Language(128, 344, 2, 4, 4, vocabulary=1000), Vision(64, 2, 2, image=56), shard_bytes=10**6),
        "20MB": Size(Language(256, 688, 8, 8, 8, vocabulary=8000), Vision(128, 3, 4)),
        "0.3GB": Size(Language(768, 2048, 14, 12, 12), Vision(512, 6, 8)),
        "1GB": Size(Language(1536, 4096, 14, 16, 16), Vision(768, 12, 12)),
        "4GB": Size(Language(2560, 6912, 23, 32, 32), Vision(1024, 24, 16), shard_bytes=2 * 10**9),
        "7B": Size(Language(4096, 11008, 32, 32, 32), Vision(1024, 24, 16)),
        "70B": Size(Language(8192, 28672, 80, 64, 8), Vision(1024, 24, 16)),
    }
)
