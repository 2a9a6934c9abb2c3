"""Tiny models of three families with tokenizers, the data to show them, and what plain transformers makes of it."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import (
    AutoProcessor,
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    LlamaConfig,
    LlamaForCausalLM,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)
from transformers.utils import logging

from safegraft.calibration import Request, open_data
from safegraft.calibration.data import DataSet
from safegraft.checkpoint.types import Checkpoint
from safegraft.local import open_model
from safegraft.methods.contract import Statistic
from safegraft.recipe.model import CalibrationSet
from safegraft.testing import words

WORDS = 40
SPECIAL = ["<unk>", "<image>", "<user>", "<assistant>", "<end>"]
VOCABULARY = [*words(WORDS), *SPECIAL]
IMAGE_TOKEN = VOCABULARY.index("<image>")

LLM_TEMPLATE = (
    "{% for m in messages %}<{{ m['role'] }}> {{ m['content'] }} <end> {% endfor %}"
    "{% if add_generation_prompt %}<assistant> {% endif %}"
)
LVLM_TEMPLATE = (
    "{% for m in messages %}<{{ m['role'] }}> {% for part in m['content'] %}"
    "{% if part['type'] == 'image' %}<image> {% else %}{{ part['text'] }} {% endif %}{% endfor %}<end> {% endfor %}"
    "{% if add_generation_prompt %}<assistant> {% endif %}"
)
TEXT: dict[str, Any] = {
    "vocab_size": len(VOCABULARY),
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
    "max_position_embeddings": 64,
}
LAYER_TYPES = ["sliding_attention", "full_attention", "sliding_attention"]
PROMPTS = [
    {"instruction": "w1 w2 w0 w3", "output": "w4 w5"},
    {"instruction": "w6", "output": "w7 w8 w9 w1"},
    {"instruction": "w2 w2 w11 w12", "output": "w2"},
    {"instruction": "w13 w14", "output": "w15 w16 w17"},
]


@pytest.fixture(autouse=True)
def _quiet() -> None:
    logging.set_verbosity_error()
    logging.disable_progress_bar()


def tokenizer(template: str | None) -> PreTrainedTokenizerFast:
    inner = Tokenizer(WordLevel({word: row for row, word in enumerate(VOCABULARY)}, unk_token="<unk>"))
    inner.pre_tokenizer = WhitespaceSplit()
    made = PreTrainedTokenizerFast(
        tokenizer_object=inner, unk_token="<unk>", extra_special_tokens={"image_token": "<image>"}
    )
    made.chat_template = template
    return made


def scrambled(model: PreTrainedModel, seed: int) -> PreTrainedModel:
    """Weights large enough that every gradient is well above rounding."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.data.add_(torch.randn(parameter.shape, generator=generator), alpha=0.3)
    return model.eval()


@dataclass(frozen=True)
class Model:
    """A checkpoint, and the model it was saved from in plain transformers."""

    checkpoint: Checkpoint
    plain: PreTrainedModel
    names: Mapping[str, str]  # the plain model's parameter -> the checkpoint's tensor


def saved(model: PreTrainedModel, folder: Path, rename: Callable[[str], str] = str) -> Model:
    model.save_pretrained(folder)
    checkpoint = open_model(str(folder))
    names = {name: rename(name) for name, _ in model.named_parameters()}
    assert set(names.values()) == set(checkpoint.tensors)
    return Model(checkpoint, model, names)


def llava_name(name: str) -> str:
    """As LLaVA's parameters are called on the disk."""
    name = name.removeprefix("model.")
    if name.startswith("lm_head"):
        return f"language_model.{name}"
    return name.replace("language_model.", "language_model.model.", 1)


@pytest.fixture(scope="session")
def llm(tmp_path_factory: pytest.TempPathFactory) -> Model:
    folder = tmp_path_factory.mktemp("llm")
    tokenizer(LLM_TEMPLATE).save_pretrained(folder)
    return saved(scrambled(LlamaForCausalLM(LlamaConfig(**TEXT)), 1), folder)


@pytest.fixture(scope="session")
def other_llm(tmp_path_factory: pytest.TempPathFactory) -> Model:
    """Of the same architecture."""
    folder = tmp_path_factory.mktemp("other-llm")
    tokenizer(LLM_TEMPLATE).save_pretrained(folder)
    return saved(scrambled(LlamaForCausalLM(LlamaConfig(**TEXT)), 7), folder)


@pytest.fixture(scope="session")
def tied(tmp_path_factory: pytest.TempPathFactory) -> Model:
    """Its output head is its embedding, whose row 0 is padding. It has no chat template, and two kinds of attention."""
    folder = tmp_path_factory.mktemp("tied")
    tokenizer(None).save_pretrained(folder)
    config = Gemma3TextConfig(**TEXT, sliding_window=4, layer_types=LAYER_TYPES)
    return saved(scrambled(Gemma3ForCausalLM(config), 2), folder)


@pytest.fixture(scope="session")
def lvlm(tmp_path_factory: pytest.TempPathFactory) -> Model:
    folder = tmp_path_factory.mktemp("lvlm")
    vision: dict[str, Any] = {"hidden_size": 12, "intermediate_size": 20, "num_hidden_layers": 3}
    vision |= {"num_attention_heads": 2, "image_size": 8, "patch_size": 4, "projection_dim": 12}
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(**vision),
        text_config=LlamaConfig(**TEXT),
        image_token_index=IMAGE_TOKEN,
        vision_feature_layer=-2,
        tie_word_embeddings=False,
    )
    sizes = {"size": {"shortest_edge": 8}, "crop_size": {"height": 8, "width": 8}}
    processor = LlavaProcessor(
        CLIPImageProcessorPil(**sizes),
        tokenizer(LVLM_TEMPLATE),
        patch_size=4,
        vision_feature_select_strategy="default",
        image_token="<image>",
        num_additional_image_tokens=1,
        chat_template=LVLM_TEMPLATE,
    )
    processor.save_pretrained(folder)
    return saved(scrambled(LlavaForConditionalGeneration(config), 3), folder, llava_name)


@dataclass(frozen=True)
class Data:
    """A folder to put data in."""

    folder: Path

    def jsonl(self, rows: Sequence[Mapping[str, Any]], name: str = "data.jsonl") -> Path:
        path = self.folder / name
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return path

    def picture(self, name: str, seed: int) -> str:
        pixels = torch.randint(0, 256, (10, 9, 3), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)
        Image.fromarray(pixels.numpy()).save(self.folder / name)
        return name

    def open(self, rows: Sequence[Mapping[str, Any]], name: str = "task", **changes: Any) -> DataSet:
        return open_data(spec(name, **changes), self.jsonl(rows, f"{name}.jsonl"), "recipe.yml: calibration.task.data")

    def prompts(self) -> DataSet:
        return self.open(PROMPTS, fields={"prompt": "instruction", "response": "output"})

    def picture_rows(self) -> list[dict[str, str]]:
        rows = [dict(row) for row in PROMPTS[:3]]
        rows[0]["image"], rows[2]["image"] = self.picture("a.png", 1), self.picture("b.png", 2)
        return rows

    def pictures(self) -> DataSet:
        """Two with an image, one without."""
        fields = {"prompt": "instruction", "response": "output", "image": "image"}
        return self.open(self.picture_rows(), "pictures", fields=fields)


def spec(name: str = "task", **changes: Any) -> CalibrationSet:
    values: dict[str, Any] = {"fields": {"text": "text"}, "samples": 128, "seed": 0, "max_length": 512}
    return CalibrationSet(name=name, data="data.jsonl", at=("calibration", name), **{**values, **changes})


@pytest.fixture
def data(tmp_path: Path) -> Data:
    (tmp_path / "data").mkdir()
    return Data(tmp_path / "data")


@pytest.fixture
def prompts() -> list[dict[str, str]]:
    return PROMPTS


@pytest.fixture
def tokens_of() -> Callable[[str], dict[str, torch.Tensor]]:
    """The model's inputs for a text of words."""
    return lambda text: {"input_ids": torch.tensor([[VOCABULARY.index(word) for word in text.split()]])}


@pytest.fixture
def picture_samples(data: Data) -> Callable[[Model], list[tuple[dict[str, Any], int]]]:
    """`Data.pictures` as the LVLM's own processor makes them: (inputs, first token of the response)."""

    def make(model: Model) -> list[tuple[dict[str, Any], int]]:
        processor = AutoProcessor.from_pretrained(model.checkpoint.name)
        samples: list[tuple[dict[str, Any], int]] = []
        for row in data.picture_rows():
            image = [Image.open(data.folder / row["image"]).convert("RGB")] if "image" in row else None
            begin = f"<user> {'<image> ' if image else ''}{row['instruction']} <end> <assistant> "
            inputs = processor(text=[f"{begin}{row['output']} <end>"], images=image, return_tensors="pt")
            response = len(row["output"].split()) + 1
            samples.append((dict(inputs), inputs["input_ids"].shape[1] - response))
        return samples

    return make


@pytest.fixture(name="request_of")
def _request_of() -> Callable[..., Request]:
    def make(
        model: Model, statistic: Statistic, *sets: DataSet, tensors: Sequence[str] | None = None, **more: Any
    ) -> Request:
        asked = tuple(model.checkpoint.tensors if tensors is None else tensors)
        return Request(statistic, model.checkpoint, sets, more.get("reference"), asked)

    return make
