"""An LLM and a vision encoder become a LLaVA that keeps both, to the bit."""

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from transformers import (
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoProcessor,
    AutoTokenizer,
    CLIPConfig,
    CLIPModel,
    CLIPVisionModel,
    Gemma2Config,
    Gemma2ForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    SiglipImageProcessorPil,
    SiglipVisionConfig,
    SiglipVisionModel,
    set_seed,
)
from trl import ModelConfig

from safegraft.errors import CheckpointError, InputError
from safegraft_trainers.training.joining import join

TALK = [
    {"role": "user", "content": "what is this"},
    {"role": "assistant", "content": "a red square"},
    {"role": "user", "content": "what shape"},
]


def joined(llm: Path, tower: Path, folder: Path, **options: Any) -> tuple[Any, Any]:
    """What from_pretrained makes of the joined checkpoint."""
    model, processor = join(str(llm), str(tower), ModelConfig(), **options)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    loaded, report = AutoModelForImageTextToText.from_pretrained(folder, output_loading_info=True)
    assert not any(report.values())
    return loaded, AutoProcessor.from_pretrained(folder)


def test_both_parts_are_kept_to_the_bit(llm: Path, clip: Path, tmp_path: Path) -> None:
    model, processor = joined(llm, clip, tmp_path / "lvlm")
    alone, tower = AutoModelForCausalLM.from_pretrained(llm), CLIPVisionModel.from_pretrained(clip)
    rows = alone.get_input_embeddings().weight.shape[0]
    for name, weight in alone.model.named_parameters():
        ours = model.model.language_model.get_parameter(name)
        assert torch.equal(ours[:rows] if name == "embed_tokens.weight" else ours, weight)
    assert torch.equal(model.lm_head.weight[:rows], alone.lm_head.weight)
    assert all(torch.equal(model.model.vision_tower.get_parameter(name), one) for name, one in tower.named_parameters())
    token = processor.tokenizer.convert_tokens_to_ids("<image>")
    assert model.config.image_token_id == token == rows
    assert torch.allclose(model.get_input_embeddings().weight[token], alone.get_input_embeddings().weight.mean(0))


def test_no_path_of_this_machine_is_written(llm: Path, clip: Path, tmp_path: Path) -> None:
    joined(llm, clip, tmp_path / "lvlm")
    assert str(llm.parent) not in (tmp_path / "lvlm" / "config.json").read_text()


def test_the_tokenizer_gains_one_token_and_moves_none(llm: Path, clip: Path, tmp_path: Path) -> None:
    _, processor = joined(llm, clip, tmp_path / "lvlm")
    before = AutoTokenizer.from_pretrained(llm).get_vocab()
    assert processor.tokenizer.get_vocab() == {**before, "<image>": len(before)}


@pytest.mark.parametrize("prompting", [True, False])
def test_text_is_put_as_the_llm_puts_it(llm: Path, clip: Path, tmp_path: Path, prompting: bool) -> None:
    _, processor = joined(llm, clip, tmp_path / "lvlm")
    theirs = AutoTokenizer.from_pretrained(llm).apply_chat_template(
        TALK, tokenize=False, add_generation_prompt=prompting
    )
    in_parts = [{**turn, "content": [{"type": "text", "text": turn["content"]}]} for turn in TALK]
    for talk in (TALK, in_parts):
        assert processor.apply_chat_template(talk, tokenize=False, add_generation_prompt=prompting) == theirs


def test_an_image_comes_where_it_was_put_and_is_seen(llm: Path, clip: Path, tmp_path: Path) -> None:
    model, processor = joined(llm, clip, tmp_path / "lvlm")
    parts = [{"type": "image"}, {"type": "text", "text": "what shape"}]
    text = processor.apply_chat_template([{"role": "user", "content": parts}], tokenize=False)
    assert text.startswith("user <image>\nwhat shape")
    last = [{"type": "text", "text": "what shape "}, {"type": "image"}]
    assert "what shape <image> </s>" in processor.apply_chat_template(
        [{"role": "user", "content": last}], tokenize=False
    )

    def answer(colour: str) -> torch.Tensor:
        batch = processor(images=[Image.new("RGB", (30, 20), colour)], text=[text], return_tensors="pt")
        assert int((batch["input_ids"] == model.config.image_token_id).sum()) == 4  # (16 / 8) squared
        with torch.no_grad():
            return model(**batch).logits

    assert not torch.equal(answer("red"), answer("blue"))


def test_an_llm_with_rows_to_spare_keeps_its_size(llm: Path, clip: Path, tmp_path: Path) -> None:
    config = LlamaConfig.from_pretrained(llm, vocab_size=40, tie_word_embeddings=True)
    roomy = LlamaForCausalLM(config)
    roomy.save_pretrained(tmp_path / "roomy")
    AutoTokenizer.from_pretrained(llm).save_pretrained(tmp_path / "roomy")
    model, _ = joined(tmp_path / "roomy", clip, tmp_path / "lvlm")
    assert torch.equal(model.get_input_embeddings().weight, roomy.get_input_embeddings().weight)
    assert model.lm_head.weight is model.get_input_embeddings().weight


def test_the_vision_half_of_a_pair_is_taken(llm: Path, clip: Path, tmp_path: Path) -> None:
    vision = CLIPVisionModel.from_pretrained(clip)
    text = {"vocab_size": 9, "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    pair = CLIPModel(CLIPConfig(text_config=text, vision_config=vision.config.to_dict(), projection_dim=16))
    pair.save_pretrained(tmp_path / "pair")
    (tmp_path / "pair" / "preprocessor_config.json").write_text((clip / "preprocessor_config.json").read_text())
    model, _ = joined(llm, tmp_path / "pair", tmp_path / "lvlm")
    name = "encoder.layers.1.mlp.fc1.weight"
    theirs = {key.partition("vision_model.")[2]: one for key, one in pair.named_parameters()}
    assert torch.equal(model.model.vision_tower.get_parameter(name), theirs[name])


def test_a_tower_without_a_class_token_gives_all_its_features(llm: Path, tmp_path: Path) -> None:
    settings = {"hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 2}
    SiglipVisionModel(SiglipVisionConfig(**settings, image_size=16, patch_size=8)).save_pretrained(tmp_path / "siglip")
    SiglipImageProcessorPil(size={"height": 16, "width": 16}).save_pretrained(tmp_path / "siglip")
    model, processor = joined(llm, tmp_path / "siglip", tmp_path / "lvlm")
    assert model.config.vision_feature_select_strategy == "full"
    text = processor.apply_chat_template([{"role": "user", "content": [{"type": "image"}]}], tokenize=False)
    batch = processor(images=[Image.new("RGB", (16, 16))], text=[text], return_tensors="pt")
    model(**batch)  # as many features as tokens, or it raises


def test_the_projector_is_a_matter_of_the_seed(llm: Path, clip: Path) -> None:
    def projector(seed: int) -> torch.Tensor:
        set_seed(seed)
        return join(str(llm), str(clip), ModelConfig())[0].model.multi_modal_projector.linear_1.weight

    assert torch.equal(projector(1), projector(1))
    assert not torch.equal(projector(1), projector(2))


def test_an_llm_whose_logits_a_llava_would_not_give_is_refused(llm: Path, clip: Path, tmp_path: Path) -> None:
    config = Gemma2Config(
        vocab_size=40, hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, head_dim=16, final_logit_softcapping=0.05,
    )  # fmt: skip
    Gemma2ForCausalLM(config).save_pretrained(tmp_path / "capped")
    AutoTokenizer.from_pretrained(llm).save_pretrained(tmp_path / "capped")
    with pytest.raises(InputError, match="does something to its logits"):
        join(str(tmp_path / "capped"), str(clip), ModelConfig())


def test_what_cannot_be_joined_says_why(llm: Path, clip: Path, lvlms: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(InputError, match="sees images already"):
        join(str(lvlms["llava"]), str(clip), ModelConfig())
    with pytest.raises(CheckpointError, match="transformers cannot load it"):
        join(str(llm), str(tmp_path / "nothing"), ModelConfig())
    base = AutoModelForCausalLM.from_pretrained(llm)
    base.save_pretrained(tmp_path / "base")
    tokens = AutoTokenizer.from_pretrained(llm)
    tokens.chat_template = None
    tokens.save_pretrained(tmp_path / "base")
    with pytest.raises(InputError, match=r"no chat template of its own; give one by --chat_template_path"):
        join(str(tmp_path / "base"), str(clip), ModelConfig())
    _, processor = join(str(tmp_path / "base"), str(clip), ModelConfig(), template="{{ messages[0]['content'] }}")
    assert processor.apply_chat_template(TALK, tokenize=False) == "what is this"
