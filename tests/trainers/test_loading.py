"""Processors with a video part load where torchvision is not installed, and are saved as they were."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import (
    AutoProcessor,
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2VLConfig,
    Qwen3VLConfig,
)

from safegraft.errors import CheckpointError, UsageError
from safegraft_trainers.loading import front_of
from safegraft_trainers.processors import load_processor

WORDS = ["<pad>", "</s>", "<unk>", "<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|vision_end|>", "what"]
VIDEO = {"video_processor_type": "Qwen2VLVideoProcessor", "patch_size": 8, "merge_size": 2, "max_frames": 7}
IMAGES: dict[str, Any] = {
    "image_processor_type": "Qwen2VLImageProcessor",
    "patch_size": 8,
    "merge_size": 2,
    "size": {"shortest_edge": 256, "longest_edge": 1024},
}
FAMILIES = {
    "Qwen2VLProcessor": Qwen2VLConfig,
    "Qwen2_5_VLProcessor": Qwen2_5_VLConfig,
    "Qwen3VLProcessor": Qwen3VLConfig,
}


@pytest.fixture(params=FAMILIES)
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """The small files of a Qwen-VL checkpoint, as they are on the Hub."""
    backend = Tokenizer(WordLevel({word: row for row, word in enumerate(WORDS)}, unk_token="<unk>"))
    tokens = PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<pad>", eos_token="</s>", additional_special_tokens=WORDS[3:7]
    )
    tokens.chat_template = "{{ messages }}"
    tokens.save_pretrained(tmp_path)
    FAMILIES[request.param]().save_pretrained(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({**IMAGES, "processor_class": request.param}))
    (tmp_path / "video_preprocessor_config.json").write_text(json.dumps(VIDEO))
    return tmp_path


def test_torchvision_is_what_they_lack(folder: Path) -> None:
    """Should this fail, transformers loads them by itself and processors.py can go."""
    with pytest.raises((ImportError, ValueError), match=r"[Tt]orchvision|video"):
        AutoProcessor.from_pretrained(folder)


def test_they_load_and_see_images(folder: Path) -> None:
    front = front_of(folder, multimodal=True)
    kind = json.loads((folder / "preprocessor_config.json").read_text())["processor_class"]
    assert type(front).__name__ == kind
    assert front.tokenizer.padding_side == "left"
    text = ["<|vision_start|><|image_pad|><|vision_end|>"]
    batch = front(images=[Image.new("RGB", (16, 32), "red")], text=text, return_tensors="pt")
    assert batch["image_grid_thw"].tolist() == [[1, 4, 2]]
    assert int((batch["input_ids"] == 3).sum()) == 2  # eight patches, merged by four
    with pytest.raises(UsageError, match="videos need torchvision"):
        front.video_processor(torch.zeros(2, 3, 16, 16))


def test_the_video_settings_survive(folder: Path, tmp_path: Path) -> None:
    front = front_of(folder, multimodal=True)
    front.save_pretrained(tmp_path / "again")
    shutil.copy(folder / "config.json", tmp_path / "again")
    written = json.loads((tmp_path / "again" / "processor_config.json").read_text())
    assert written["video_processor"] == VIDEO
    assert written["processor_class"] == type(front).__name__
    again = front_of(tmp_path / "again", multimodal=True)
    assert dict(again.video_processor) == VIDEO
    assert again.video_processor.merge_size == 2


def test_revision_and_place_are_handed_on(folder: Path) -> None:
    config = FAMILIES[json.loads((folder / "preprocessor_config.json").read_text())["processor_class"]]()
    assert load_processor(folder, config, revision="main", local_files_only=True).video_processor.max_frames == 7


def test_a_broken_processor_is_an_error_in_words(folder: Path) -> None:
    (folder / "preprocessor_config.json").unlink()
    with pytest.raises(CheckpointError, match="its tokenizer or processor cannot be loaded"):
        front_of(folder, multimodal=True)
