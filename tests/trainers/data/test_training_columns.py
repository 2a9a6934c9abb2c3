"""What the loaders give is what TRL's trainers and their collators read: a batch of each, through a real LLaVA."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer

import safegraft_trainers.lab
from safegraft_trainers.data.columns import text_only
from safegraft_trainers.data.llava import load_llava
from safegraft_trainers.data.mixing import mix
from safegraft_trainers.data.spa_vl import load_spa_vl
from safegraft_trainers.data.text_chat import load_chat
from safegraft_trainers.data.vlguard import load_vlguard
from safegraft_trainers.loading import Loaded, load

Write = Callable[..., Path]

CHECKPOINTS = Path(safegraft_trainers.lab.__file__).parent / "checkpoints"


# TRL asks its models by a name that transformers is about to drop.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Any:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def lvlm() -> Loaded:
    return load(str(CHECKPOINTS / "adapted-lvlm"))


def settings(folder: Path) -> dict[str, Any]:
    return {
        "output_dir": str(folder),
        "per_device_train_batch_size": 5,
        "max_length": None,
        "use_cpu": True,
        "report_to": "none",
        "activation_checkpointing": False,
        "dataloader_pin_memory": False,
    }


def learnt_words(tokenizer: Any, batch: Any) -> list[str]:
    """What each row's loss counts, without blanks and special tokens."""
    kept = [labels[labels != -100] for labels in batch["labels"]]
    return sorted("".join(tokenizer.decode(tokens, skip_special_tokens=True).split()) for tokens in kept)


def test_supervised(lvlm: Loaded, write_rows: Write, tmp_path: Path) -> None:
    """Rows of three loaders in one batch, text among them; the loss counts the answers and nothing else."""
    words = [word for word in lvlm.tokenizer.get_vocab() if word.isalpha() and len(word) > 2]
    first, second, third, fourth, fifth = sorted(words)[:5]
    talk = [
        {"from": "human", "value": "<image>\nred"},
        {"from": "gpt", "value": first},
        {"from": "human", "value": "red"},
        {"from": "gpt", "value": second},
    ]
    pair = {"instruction": "red", "response": third}
    harmful = [{"image": "green.png", "safe": False, "instr-resp": [pair]}]
    two = [{"prompt": "<image> red <image>", "response": fourth, "images": ["red.png", "sub/blue.jpg"]}]
    pieces = [
        load_llava(write_rows([{"conversations": talk, "image": "red.png"}], "llava.json")),
        load_vlguard(write_rows(harmful, "train.json")),
        load_llava(write_rows(two, "two.jsonl")),
        load_chat(write_rows([{"prompt": "red", "response": fifth}], "chat.json")),
    ]
    data = mix([(piece, len(piece)) for piece in pieces])
    arguments = SFTConfig(**settings(tmp_path / "out"))
    trainer: Any = SFTTrainer(lvlm.model, arguments, train_dataset=data, processing_class=lvlm.front)
    batch = next(iter(trainer.get_train_dataloader()))
    assert batch["pixel_values"].shape[0] == 5
    assert learnt_words(lvlm.tokenizer, batch) == sorted([first, second, third, fourth, fifth])
    assert torch.isfinite(trainer.compute_loss(lvlm.model, batch))


def test_preferences(lvlm: Loaded, write_rows: Write, tmp_path: Path) -> None:
    rows = [
        {"image": "red.png", "question": "red", "chosen": "red", "rejected": "blue"},
        {"question": "red", "chosen": "blue", "rejected": "red"},
    ]
    data = load_spa_vl(write_rows(rows))
    arguments = DPOConfig(**settings(tmp_path / "out"))
    reference = load(str(CHECKPOINTS / "adapted-lvlm")).model
    trainer: Any = DPOTrainer(lvlm.model, reference, arguments, train_dataset=data, processing_class=lvlm.front)
    batch = next(iter(trainer.get_train_dataloader()))
    assert batch["pixel_values"].shape[0] == 2  # once for the chosen answer, once for the rejected one
    kept = [tokens[mask.bool()] for tokens, mask in zip(batch["input_ids"], batch["completion_mask"], strict=True)]
    said = [lvlm.tokenizer.decode(tokens, skip_special_tokens=True).strip() for tokens in kept]
    assert said in (["red", "blue", "blue", "red"], ["blue", "red", "red", "blue"])
    assert torch.isfinite(trainer.compute_loss(lvlm.model, batch))


def test_text_for_a_model_without_vision(write_rows: Write, tmp_path: Path) -> None:
    llm = load(str(CHECKPOINTS / "aligned-llm"))
    data = text_only(load_chat(write_rows([{"prompt": "red", "response": "blue"}])))
    arguments = SFTConfig(**settings(tmp_path / "out"))
    trainer: Any = SFTTrainer(llm.model, arguments, train_dataset=data, processing_class=llm.tokenizer)
    batch = next(iter(trainer.get_train_dataloader()))
    assert learnt_words(llm.tokenizer, batch) == ["blue"]
