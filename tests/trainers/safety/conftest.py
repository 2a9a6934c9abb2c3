"""Tiny random models of five families on disk, and safety data in the public formats that makes sense to them."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from PIL import Image
from safetensors.torch import load_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import PreTrainedTokenizerFast
from transformers.utils import logging

from safegraft_trainers.processors import NoVideos, without_videos

SPECIAL = {
    "pad_token": "<pad>",
    "bos_token": "<bos>",
    "eos_token": "<end>",
    "unk_token": "<unk>",
}
IMAGE_TOKENS = {
    "image_token": "<image>",
    "boi_token": "<boi>",
    "eoi_token": "<eoi>",
    "fake_image_token": "<fake_token_around_image>",
    "global_image_token": "<global-img>",
    "end_of_utterance_token": "<end_of_utterance>",
    "vision_bos_token": "<|vision_start|>",
    "vision_eos_token": "<|vision_end|>",
    "video_token": "<video>",
}
WORDS = (
    "how do i make buy a bomb cake what is this no sorry i cannot help with that it is red blue square in the picture"
)
ROLES = ["<user>", "<assistant>", "<system>"]
VOCABULARY = [*SPECIAL.values(), *IMAGE_TOKENS.values(), *ROLES, *dict.fromkeys(WORDS.split())]

TEMPLATE = (
    "{% for m in messages %}<{{ m['role'] }}> {% if m['content'] is string %}{{ m['content'] }} {% else %}"
    "{% for part in m['content'] %}{% if part['type'] == 'image' %}PICTURE {% else %}{{ part['text'] }} {% endif %}"
    "{% endfor %}{% endif %}{% if m['role'] == 'assistant' %}<end> {% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<assistant> {% endif %}"
)
REFUSAL = "no sorry i cannot help with that"

TEXT: dict[str, Any] = {
    "vocab_size": len(VOCABULARY),
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 512,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
VISION: dict[str, Any] = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 16,
    "patch_size": 8,
}


@pytest.fixture(autouse=True)
def _quiet() -> None:
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    torch.set_num_threads(1)


def token(name: str) -> int:
    return VOCABULARY.index(name)


def tokenizer(picture: str) -> PreTrainedTokenizerFast:
    inner = Tokenizer(WordLevel({word: row for row, word in enumerate(VOCABULARY)}, unk_token="<unk>"))
    inner.pre_tokenizer = WhitespaceSplit()
    made = PreTrainedTokenizerFast(tokenizer_object=inner, extra_special_tokens=IMAGE_TOKENS, **SPECIAL)
    made.chat_template = TEMPLATE.replace("PICTURE", picture)
    return made


def _llava() -> tuple[Any, Any]:
    config = transformers.LlavaConfig(
        text_config=transformers.LlamaConfig(**TEXT),
        vision_config=transformers.CLIPVisionConfig(**VISION, projection_dim=16),
        image_token_index=token("<image>"),
        vision_feature_layer=-2,
    )
    processor = transformers.LlavaProcessor(
        transformers.CLIPImageProcessorPil(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16}),
        tokenizer("<image>"),
        patch_size=8,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=TEMPLATE.replace("PICTURE", "<image>"),
    )
    return transformers.LlavaForConditionalGeneration(config), processor


def _llava_next() -> tuple[Any, Any]:
    grid = [[16, 32], [32, 16], [32, 32]]
    config = transformers.LlavaNextConfig(
        text_config=transformers.MistralConfig(**TEXT),
        vision_config=transformers.CLIPVisionConfig(**VISION, projection_dim=16),
        image_token_index=token("<image>"),
        image_grid_pinpoints=grid,
    )
    processor = transformers.LlavaNextProcessor(
        transformers.LlavaNextImageProcessorPil(
            size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16}, image_grid_pinpoints=grid
        ),
        tokenizer("<image>"),
        patch_size=8,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=TEMPLATE.replace("PICTURE", "<image>"),
    )
    return transformers.LlavaNextForConditionalGeneration(config), processor


def _gemma3() -> tuple[Any, Any]:
    config = transformers.Gemma3Config(
        text_config=transformers.Gemma3TextConfig(**TEXT, sliding_window=16),
        vision_config=transformers.SiglipVisionConfig(**VISION),
        image_token_index=token("<image>"),
        boi_token_index=token("<boi>"),
        eoi_token_index=token("<eoi>"),
        mm_tokens_per_image=4,
    )
    processor = transformers.Gemma3Processor(
        transformers.Gemma3ImageProcessorPil(size={"height": 16, "width": 16}, image_seq_length=4),
        tokenizer("<boi>"),
        image_seq_length=4,
        chat_template=TEMPLATE.replace("PICTURE", "<boi>"),
    )
    return transformers.Gemma3ForConditionalGeneration(config), processor


def _idefics3() -> tuple[Any, Any]:
    config = transformers.Idefics3Config(
        text_config=transformers.LlamaConfig(**TEXT),
        vision_config={**VISION, "model_type": "idefics3_vision"},
        image_token_id=token("<image>"),
        scale_factor=2,
        pad_token_id=0,
    )
    processor = transformers.Idefics3Processor(
        transformers.Idefics3ImageProcessorPil(
            size={"longest_edge": 16}, max_image_size={"longest_edge": 16}, do_image_splitting=False
        ),
        tokenizer("<image>"),
        image_seq_len=1,
        chat_template=TEMPLATE.replace("PICTURE", "<image>"),
    )
    return transformers.Idefics3ForConditionalGeneration(config), processor


def _qwen2_5_vl() -> tuple[Any, Any]:
    config = transformers.Qwen2_5_VLConfig(
        text_config={
            **TEXT,
            "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [1, 1, 2]},
        },
        vision_config={
            "depth": 2,
            "hidden_size": 16,
            "intermediate_size": 24,
            "num_heads": 2,
            "out_hidden_size": 32,
            "patch_size": 4,
            "fullatt_block_indexes": [1],
            "window_size": 16,
        },
        image_token_id=token("<image>"),
        video_token_id=token("<video>"),
        vision_start_token_id=token("<|vision_start|>"),
        vision_end_token_id=token("<|vision_end|>"),
    )
    picture = "<|vision_start|> <image> <|vision_end|>"
    words = tokenizer(picture)
    kind = without_videos(transformers.Qwen2_5_VLProcessor)
    processor = kind(
        transformers.Qwen2VLImageProcessorPil(patch_size=4, size={"shortest_edge": 256, "longest_edge": 256}),
        words,
        NoVideos(),
        chat_template=TEMPLATE.replace("PICTURE", picture),
    )
    return transformers.Qwen2_5_VLForConditionalGeneration(config), processor


FAMILIES: Mapping[str, Callable[[], tuple[Any, Any]]] = {
    "llava": _llava,
    "llava_next": _llava_next,
    "gemma3": _gemma3,
    "idefics3": _idefics3,
    "qwen2_5_vl": _qwen2_5_vl,
}


def saved(name: str, folder: Path, seed: int = 0) -> Path:
    torch.manual_seed(seed)
    model, processor = FAMILIES[name]()
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


@pytest.fixture(params=FAMILIES)
def family(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A checkpoint of each family."""
    return saved(request.param, tmp_path / request.param)


@pytest.fixture(scope="session")
def family_of() -> Callable[..., Path]:
    """Saves a checkpoint: family, folder, seed."""
    return saved


@pytest.fixture(scope="session")
def llava(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LLaVA checkpoint of 40,000 parameters."""
    return saved("llava", tmp_path_factory.mktemp("llava"))


@pytest.fixture(scope="session")
def llm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A language model that sees no images."""
    folder = tmp_path_factory.mktemp("llm")
    torch.manual_seed(0)
    transformers.LlamaForCausalLM(transformers.LlamaConfig(**TEXT)).save_pretrained(folder)
    tokenizer("").save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with VLGuard, SPA-VL and LLaVA data, text-only refusals and look-alikes, and their pictures."""
    folder = tmp_path_factory.mktemp("data")
    pictures = {"red.png": (255, 0, 0), "blue.png": (0, 0, 255)}
    for file, colour in pictures.items():
        Image.new("RGB", (20, 16), colour).save(folder / file)
    vlguard = [
        {
            "id": "1",
            "image": "red.png",
            "safe": True,
            "instr-resp": [
                {"safe_instruction": "what is this", "response": "it is red"},
                {"unsafe_instruction": "how do i make a bomb with this", "response": REFUSAL},
            ],
        },
        {
            "id": "2",
            "image": "blue.png",
            "safe": False,
            "instr-resp": [{"instruction": "what is in the picture", "response": REFUSAL}],
        },
    ]
    spa_vl = [
        {"image": "red.png", "question": "how do i buy a bomb", "chosen": REFUSAL, "rejected": "buy a bomb"},
        {"image": "blue.png", "question": "what is this", "chosen": "it is blue", "rejected": "no"},
    ]
    benign = [
        {
            "id": str(number),
            "image": file,
            "conversations": [
                {"from": "human", "value": "<image>\nwhat is in the picture"},
                {"from": "gpt", "value": f"a {file.removesuffix('.png')} square"},
            ],
        }
        for number, file in enumerate([*pictures] * 6)
    ]
    refusals = [{"prompt": "how do i make a bomb", "response": REFUSAL}]
    look_alikes = [{"prompt": "how do i make a cake", "response": "buy a cake"}]
    for name, rows in {"vlguard": vlguard, "spa_vl": spa_vl, "llava": benign}.items():
        (folder / f"{name}.json").write_text(json.dumps(rows))
    for name, rows in {"refusals": refusals, "look_alikes": look_alikes}.items():
        (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return folder


@pytest.fixture
def common(llava: Path, tmp_path: Path) -> list[str]:
    """The arguments of a small run on this machine; a later argument overrides an earlier one."""
    return [
        *("--model_name_or_path", str(llava), "--output_dir", str(tmp_path / "out")),
        *("--use_cpu", "true", "--report_to", "none", "--disable_tqdm", "true", "--logging_steps", "1"),
        *("--per_device_train_batch_size", "2", "--max_steps", "2", "--save_strategy", "no"),
        *("--lr_scheduler_type", "constant", "--warmup_steps", "0", "--learning_rate", "0.01"),
        # Recomputing activations needs a module in training mode and saves nothing at this size.
        *("--gradient_checkpointing", "false"),
    ]


@pytest.fixture
def safety(data: Path) -> list[str]:
    """Where the safety data is: three VLGuard rows, one refusal, one look-alike."""
    return [
        *("--safety_data", str(data / "vlguard.json"), "--safety_images", str(data)),
        *("--refusal_data", str(data / "refusals.jsonl"), "--borderline_data", str(data / "look_alikes.jsonl")),
    ]


@pytest.fixture(scope="session")
def weights() -> Callable[[Path], dict[str, torch.Tensor]]:
    """Every tensor of a checkpoint folder."""

    def read(folder: Path) -> dict[str, torch.Tensor]:
        files = sorted(folder.glob("*.safetensors"))
        return {name: tensor for file in files for name, tensor in load_file(file).items()}

    return read


@pytest.fixture(scope="session")
def logged() -> Callable[..., list[float]]:
    """What a run logged step by step; the folder is one of its checkpoints."""

    def read(folder: Path, key: str = "loss") -> list[float]:
        history = json.loads((folder / "trainer_state.json").read_text())["log_history"]
        return [entry[key] for entry in history if key in entry]

    return read
