"""An LVLM that gets another vocabulary is the same model: it says the same of the same words and images."""

import json
import shutil
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageTextToText, AutoProcessor

import safegraft
import safegraft_trainers.lab

LAB = Path(safegraft_trainers.lab.__file__).parent / "checkpoints"
EMBEDDINGS = ("model.embed_tokens.weight", "lm_head.weight")


def shuffled(source: Path, target: Path, more: int) -> Path:
    """The LLM with `more` tokens, all in other rows: another tokenizer, the same model."""
    shutil.copytree(source, target)
    tokenizer = json.loads((source / "tokenizer.json").read_text())
    vocab: dict[str, int] = tokenizer["model"]["vocab"]
    words = [*vocab, *(f"extra{number}" for number in range(more))]
    Random(1).shuffle(words)
    tokenizer["model"]["vocab"] = {word: row for row, word in enumerate(words)}
    for entry in tokenizer["added_tokens"]:
        entry["id"] = tokenizer["model"]["vocab"].get(entry["content"], -1)
    tokenizer["added_tokens"] = [entry for entry in tokenizer["added_tokens"] if entry["id"] >= 0]
    tokenizer["added_tokens"].sort(key=lambda entry: entry["id"])
    for name, special in ((tokenizer["post_processor"] or {}).get("special_tokens") or {}).items():
        special["ids"] = [tokenizer["model"]["vocab"][name]]
    (target / "tokenizer.json").write_text(json.dumps(tokenizer))
    settings = json.loads((source / "tokenizer_config.json").read_text())
    (target / "tokenizer_config.json").write_text(json.dumps(settings))
    tensors = load_file(source / "model.safetensors")
    for name in EMBEDDINGS:
        rows = [vocab.get(word, 0) for word in words]
        tensors[name] = tensors[name][rows].contiguous()
    save_file(tensors, target / "model.safetensors", {"format": "pt"})
    config = json.loads((source / "config.json").read_text())
    rows = tokenizer["model"]["vocab"]
    config |= {"vocab_size": len(words), "bos_token_id": rows["<s>"], "eos_token_id": rows["</s>"]}
    (target / "config.json").write_text(json.dumps({**config, "pad_token_id": rows["<pad>"]}))
    (target / "generation_config.json").unlink()
    return target


def answer(folder: Path) -> tuple[list[str], torch.Tensor, Any]:
    """What the model writes about an image, its first scores, and its processor."""
    processor = AutoProcessor.from_pretrained(folder, use_fast=False)
    model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32)
    image = Image.linear_gradient("L").convert("RGB").resize((32, 32))
    inputs = processor(images=image, text="<image> <user> how <assistant>", return_tensors="pt")
    with torch.no_grad():
        scores = model(**inputs).logits[0, -1]
        written = model.generate(**inputs, max_new_tokens=8, do_sample=False)
    return processor.tokenizer.convert_ids_to_tokens(written[0]), scores, processor


@pytest.mark.parametrize("more", [1, 7])
def test_a_union_leaves_the_lvlm_as_it_is(more: int, tmp_path: Path) -> None:
    lvlm = LAB / "adapted-lvlm"
    llm = shuffled(LAB / "aligned-llm", tmp_path / "llm", more)
    recipe = {
        "merge_method": "linear",
        "models": [
            {"model": str(llm), "parameters": {"weight": 0}},
            {"model": str(lvlm), "parameters": {"weight": 1}},
        ],
        "base_model": str(llm),
        "tokenizer": {"source": "union", "pad_to_multiple_of": 32},
    }
    safegraft.merge(recipe, out=tmp_path / "out", threads=1)

    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["image_token_index"] != json.loads((lvlm / "config.json").read_text())["image_token_index"]
    assert config["text_config"]["vocab_size"] % 32 == 0
    (expected, scores, before), (found, new_scores, after) = answer(lvlm), answer(tmp_path / "out")
    assert found == expected
    old, new = before.tokenizer.get_vocab(), after.tokenizer.get_vocab()
    assert old.keys() <= new.keys()
    torch.testing.assert_close(new_scores[[new[token] for token in old]], scores[[old[token] for token in old]])
    assert config["image_token_index"] == new["<image>"] == after.tokenizer.convert_tokens_to_ids(after.image_token)
    assert before.tokenizer.special_tokens_map.items() <= after.tokenizer.special_tokens_map.items()
