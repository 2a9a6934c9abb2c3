"""Tiny vision-language models of five families, made from their configs, with processors that take real images."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset, Features, Image, List, Value
from PIL import Image as Pixels
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import (
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    CLIPVisionModel,
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    Gemma3ImageProcessorPil,
    Gemma3Processor,
    Idefics3Config,
    Idefics3ForConditionalGeneration,
    Idefics3ImageProcessorPil,
    Idefics3Processor,
    LlamaConfig,
    LlamaForCausalLM,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
    LlavaNextImageProcessorPil,
    LlavaNextProcessor,
    LlavaProcessor,
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLProcessor,
    Qwen2VLImageProcessorPil,
    set_seed,
)
from transformers.utils import logging

from safegraft_trainers.processors import NoVideos, without_videos

WORDS = [
    *("a", "b", "c", "red", "green", "blue", "square", "circle"),
    *("what", "shape", "is", "this", "it", "user", "assistant", "system", "say"),
]
TEXT_TEMPLATE = """\
{%- for message in messages -%}
{{ message['role'] }} {{ message['content'] }} {{ eos_token }}
{%- endfor -%}
{%- if add_generation_prompt %}assistant {% endif -%}"""
PART_TEMPLATE = """\
{%- for message in messages -%}
{{ message['role'] }} {% for part in message['content'] -%}
{%- if part['type'] == 'image' %}IMAGE {% else %}{{ part['text'] }} {% endif -%}
{%- endfor -%}{{ eos_token }}
{%- endfor -%}
{%- if add_generation_prompt %}assistant {% endif -%}"""

TEXT: dict[str, Any] = {
    "vocab_size": 128,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 16,
    "max_position_embeddings": 512,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
VISION: dict[str, Any] = {
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 16,
    "patch_size": 8,
    "projection_dim": 16,
}
SIZE = {"height": 16, "width": 16}


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> None:
    torch.set_num_threads(1)
    logging.disable_progress_bar()


@dataclass(frozen=True)
class Family:
    """Builds a model and its processor. roots: where language model, projector and tower are."""

    build: Callable[[], tuple[Any, Any]]
    language: tuple[str, ...]
    projector: tuple[str, ...]
    tower: tuple[str, ...]


def tokenizer(*special: str, template: str | None = None, **named: str) -> PreTrainedTokenizerFast:
    words = ["<pad>", "<s>", "</s>", "<unk>", *special, *WORDS]
    backend = Tokenizer(WordLevel({word: row for row, word in enumerate(words)}, unk_token="<unk>"))
    backend.pre_tokenizer = Whitespace()
    made = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        additional_special_tokens=list(special),
        **({"extra_special_tokens": named} if named else {}),
    )
    made.chat_template = template
    return made


def _clip() -> CLIPImageProcessorPil:
    return CLIPImageProcessorPil(size={"shortest_edge": 16}, crop_size=SIZE)


def _llava() -> tuple[Any, Any]:
    tokens = tokenizer("<image>")
    config = LlavaConfig(text_config=LlamaConfig(**TEXT), vision_config=CLIPVisionConfig(**VISION), image_token_index=4)
    template = PART_TEMPLATE.replace("IMAGE", "<image>")
    processor = LlavaProcessor(_clip(), tokens, 8, "default", chat_template=template, num_additional_image_tokens=1)
    return LlavaForConditionalGeneration(config), processor


def _llava_next() -> tuple[Any, Any]:
    tokens = tokenizer("<image>")
    config = LlavaNextConfig(
        text_config=LlamaConfig(**TEXT),
        vision_config=CLIPVisionConfig(**VISION),
        image_token_index=4,
        image_grid_pinpoints=[[16, 32], [32, 16]],
    )
    images = LlavaNextImageProcessorPil(
        size={"shortest_edge": 16}, crop_size=SIZE, image_grid_pinpoints=[[16, 32], [32, 16]]
    )
    template = PART_TEMPLATE.replace("IMAGE", "<image>")
    processor = LlavaNextProcessor(images, tokens, 8, "default", chat_template=template, num_additional_image_tokens=1)
    return LlavaNextForConditionalGeneration(config), processor


def _gemma3() -> tuple[Any, Any]:
    names = {"image_token": "<image_soft_token>", "boi_token": "<start_of_image>", "eoi_token": "<end_of_image>"}
    tokens = tokenizer(*names.values(), **names)
    config = Gemma3Config(
        text_config={**TEXT, "sliding_window": 64, "layer_types": ["sliding_attention", "full_attention"]},
        vision_config=VISION,
        mm_tokens_per_image=4,
        image_token_index=4,
        boi_token_index=5,
        eoi_token_index=6,
    )
    images = Gemma3ImageProcessorPil(size=SIZE)
    template = PART_TEMPLATE.replace("IMAGE", "<start_of_image>")
    processor = Gemma3Processor(images, tokens, chat_template=template, image_seq_length=4)
    return Gemma3ForConditionalGeneration(config), processor


def _idefics3() -> tuple[Any, Any]:
    tokens = tokenizer("<image>", "<fake_token_around_image>", "<global-img>", "<end_of_utterance>")
    text = LlamaConfig(**TEXT)
    config = Idefics3Config(text_config=text, vision_config=VISION, image_token_id=4, scale_factor=2, pad_token_id=0)
    images = Idefics3ImageProcessorPil(
        size={"longest_edge": 16}, max_image_size={"longest_edge": 16}, do_image_splitting=False
    )
    template = PART_TEMPLATE.replace("IMAGE", "<image>")
    processor = Idefics3Processor(images, tokens, image_seq_len=1, chat_template=template)
    return Idefics3ForConditionalGeneration(config), processor


def _qwen2_5_vl() -> tuple[Any, Any]:
    tokens = tokenizer("<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|vision_end|>")
    config = Qwen2_5_VLConfig(
        text_config={
            **TEXT,
            "rope_parameters": {"rope_type": "default", "mrope_section": [2, 3, 3]},
            "layer_types": ["full_attention"] * 2,
        },
        vision_config={
            "depth": 2,
            "hidden_size": 24,
            "intermediate_size": 40,
            "num_heads": 2,
            "patch_size": 8,
            "spatial_merge_size": 2,
            "out_hidden_size": 32,
            "fullatt_block_indexes": [1],
            "window_size": 32,
        },
        image_token_id=4,
        video_token_id=5,
        vision_start_token_id=6,
        vision_end_token_id=7,
    )
    images = Qwen2VLImageProcessorPil(
        patch_size=8, merge_size=2, size={"shortest_edge": 16 * 16, "longest_edge": 32 * 32}
    )
    template = PART_TEMPLATE.replace("IMAGE", "<|vision_start|><|image_pad|><|vision_end|>")
    settings = NoVideos({"video_processor_type": "Qwen2VLVideoProcessor", "patch_size": 8, "merge_size": 2})
    processor = without_videos(Qwen2_5_VLProcessor)(images, tokens, settings, chat_template=template)
    return Qwen2_5_VLForConditionalGeneration(config), processor


_LANGUAGE = ("model.language_model", "lm_head")
FAMILIES = {
    "llava": Family(_llava, _LANGUAGE, ("model.multi_modal_projector",), ("model.vision_tower",)),
    "llava_next": Family(
        _llava_next, _LANGUAGE, ("model.multi_modal_projector", "model.image_newline"), ("model.vision_tower",)
    ),
    "gemma3": Family(_gemma3, _LANGUAGE, ("model.multi_modal_projector",), ("model.vision_tower",)),
    "idefics3": Family(_idefics3, ("model.text_model", "lm_head"), ("model.connector",), ("model.vision_model",)),
    "qwen2_5_vl": Family(
        _qwen2_5_vl, _LANGUAGE, ("model.visual.merger",), ("model.visual.blocks", "model.visual.patch_embed")
    ),
}


@pytest.fixture(scope="session")
def lvlms(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A checkpoint folder of each family."""
    root = tmp_path_factory.mktemp("lvlms")
    for name, family in FAMILIES.items():
        set_seed(7)
        model, processor = family.build()
        for weight in model.parameters():
            if not weight.any():
                torch.nn.init.normal_(weight, std=0.02)  # Gemma 3's projector starts at zero: nothing behind it learns
        model.save_pretrained(root / name)
        processor.save_pretrained(root / name)
    return {name: root / name for name in FAMILIES}


@dataclass(frozen=True)
class Specimen:
    """A family's checkpoint, and where its parts are."""

    folder: Path
    language: tuple[str, ...]
    projector: tuple[str, ...]
    tower: tuple[str, ...]


@pytest.fixture(params=FAMILIES)
def family(request: pytest.FixtureRequest, lvlms: dict[str, Path]) -> Specimen:
    built = FAMILIES[request.param]
    return Specimen(lvlms[request.param], built.language, built.projector, built.tower)


@pytest.fixture(scope="session")
def llm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A text-only LLM whose vocabulary has no row to spare."""
    folder = tmp_path_factory.mktemp("llm")
    tokens = tokenizer(template=TEXT_TEMPLATE)
    set_seed(3)
    LlamaForCausalLM(LlamaConfig(**{**TEXT, "vocab_size": len(tokens)})).save_pretrained(folder)
    tokens.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clip")
    set_seed(4)
    CLIPVisionModel(CLIPVisionConfig(**VISION)).save_pretrained(folder)
    _clip().save_pretrained(folder)
    return folder


def rows(count: int = 8, *, text_only: int = 1) -> Dataset:
    """Prompts with an image and answers; the last `text_only` have no image."""
    part = {"type": Value("string"), "text": Value("string")}
    message = {"role": Value("string"), "content": List(part)}
    features = Features({"images": List(Image()), "prompt": List(message), "completion": List(message)})
    made = []
    for number in range(count):
        has_image = number < count - text_only
        colour = [(255, 0, 0), (0, 255, 0), (0, 0, 255)][number % 3]
        image = [{"type": "image", "text": None}] if has_image else []
        asked = [*image, {"type": "text", "text": "what shape is this"}]
        answer = f"it is a {WORDS[3 + number % 3]} square"
        made.append(
            {
                "images": [Pixels.new("RGB", (16, 16), colour)] if has_image else [],
                "prompt": [{"role": "user", "content": asked}],
                "completion": [{"role": "assistant", "content": [{"type": "text", "text": answer}]}],
            }
        )
    return Dataset.from_list(made, features=features)


@pytest.fixture(scope="session")
def make_rows() -> Callable[..., Dataset]:
    return rows


@pytest.fixture
def quiet_arguments(tmp_path: Path) -> dict[str, Any]:
    """What makes TRL's arguments small and silent."""
    return {
        "output_dir": str(tmp_path / "out"),
        "use_cpu": True,
        "bf16": False,
        "report_to": [],
        "disable_tqdm": True,
        "activation_checkpointing": False,
        "max_length": None,
        "per_device_train_batch_size": 2,
        "dataloader_pin_memory": False,
        "save_strategy": "no",
        "seed": 5,
    }
