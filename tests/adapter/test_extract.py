"""Extracted adapters: PEFT loads them, and the base with the adapter is the tuned model again."""

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import (
    CLIPVisionConfig,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    LlavaConfig,
    LlavaForConditionalGeneration,
    PreTrainedModel,
)

from safegraft.adapter.extract import Extraction, Wish, extract
from safegraft.errors import AlignmentError, MergeCancelledError, NonFiniteError, OutputError, UsageError
from safegraft.local import open_model

# Factors are float32: at full rank their product has an error of some units in its last place, relative to the
# largest values of the difference.
FULL_RANK = {"rtol": 1e-5, "atol": 1e-6}
TEXT = {"vocab_size": 50, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")


def llama() -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(**TEXT, num_key_value_heads=2, attention_bias=True, tie_word_embeddings=False)
    return LlamaForCausalLM(config)


def llava(**more: Any) -> LlavaForConditionalGeneration:
    torch.manual_seed(0)
    vision = CLIPVisionConfig(
        hidden_size=24, intermediate_size=40, num_hidden_layers=2, num_attention_heads=2, image_size=16, patch_size=8
    )
    text = LlamaConfig(**{**TEXT, "num_key_value_heads": 2, "tie_word_embeddings": False, **more})
    return LlavaForConditionalGeneration(
        LlavaConfig(vision_config=vision, text_config=text, image_token_index=49, tie_word_embeddings=False)
    )


def gpt2() -> GPT2LMHeadModel:
    torch.manual_seed(0)
    return GPT2LMHeadModel(GPT2Config(vocab_size=50, n_positions=16, n_embd=32, n_layer=2, n_head=4))


def changed(model: PreTrainedModel, matrices_only: bool = True) -> PreTrainedModel:
    """The same with every linear weight of its layers (or every parameter) moved a little."""
    tuned = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(3)
    for name, tensor in tuned.named_parameters():
        if not matrices_only or (
            tensor.ndim == 2 and "embed" not in name and ".wte" not in name and ".wpe" not in name
        ):
            tensor.data += 0.1 * torch.randn(tensor.shape, generator=generator)
    return tuned


Extract = Callable[..., Extraction]


@pytest.fixture
def run(tmp_path: Path) -> Extract:
    """Save two models and extract `out` from them."""

    def run(base: PreTrainedModel | None, tuned: PreTrainedModel | None, **wish: Any) -> Extraction:
        for name, model in (("base", base), ("tuned", tuned)):
            if model is not None:
                model.save_pretrained(tmp_path / name)
        checkpoints = [open_model(str(tmp_path / name)) for name in ("tuned", "base")]
        try:
            return extract(*checkpoints, tmp_path / "out", Wish(**wish))
        finally:
            for one in checkpoints:
                one.close()

    return run


def by_peft(model: PreTrainedModel, adapter: Path) -> dict[str, torch.Tensor]:
    loaded = PeftModel.from_pretrained(copy.deepcopy(model), adapter)
    return loaded.merge_and_unload().state_dict()


def by_safegraft(folder: Path) -> dict[str, torch.Tensor]:
    checkpoint = open_model(f"{folder / 'base'}+{folder / 'out'}")
    found: dict[str, torch.Tensor] = {}
    for name, info in checkpoint.tensors.items():
        content = bytearray(info.nbytes)
        checkpoint.read_into(info, 0, memoryview(content))
        found[name] = torch.frombuffer(content, dtype=info.dtype.torch).reshape(info.shape)
    checkpoint.close()
    return found


@pytest.mark.parametrize("make", [llama, llava, gpt2])
def test_at_full_rank_both_ways_lead_back_to_the_tuned_model(
    make: Callable[[], Any], run: Extract, tmp_path: Path
) -> None:
    base, tuned = make(), changed(make())
    result = run(base, tuned, energy=1.0)
    assert all(one.energy == pytest.approx(1) for one in result.modules)
    expected = tuned.state_dict()
    for name, tensor in by_peft(base, tmp_path / "out").items():
        torch.testing.assert_close(tensor, expected[name], **FULL_RANK)
    stored = load_file(tmp_path / "tuned" / "model.safetensors")
    found = by_safegraft(tmp_path)
    assert found.keys() == stored.keys()
    for name in stored:
        torch.testing.assert_close(found[name], stored[name], **FULL_RANK)


def test_everything_else_is_saved_when_asked(run: Extract, tmp_path: Path) -> None:
    base, tuned = llama(), changed(llama(), matrices_only=False)
    result = run(base, tuned, energy=1.0, save_modules=True)
    assert result.left == {}
    assert "model.norm.weight" in result.saved
    assert "model.layers.0.self_attn.q_proj.bias" in result.saved
    expected = tuned.state_dict()
    for found in (by_peft(base, tmp_path / "out"), by_safegraft(tmp_path)):
        assert found.keys() == expected.keys()
        for name, tensor in found.items():
            torch.testing.assert_close(tensor, expected[name], **FULL_RANK)


def test_what_a_lora_cannot_hold_is_reported(run: Extract) -> None:
    result = run(llama(), changed(llama(), matrices_only=False), rank=2, targets="*.mlp.*")
    assert {one.tensor.split(".")[-2] for one in result.modules} == {"gate_proj", "up_proj", "down_proj"}
    assert result.left["model.norm.weight"] == "it is not the weight of a linear layer"
    assert result.left["model.layers.0.self_attn.q_proj.bias"] == "it is not the weight of a linear layer"
    assert result.left["model.layers.0.self_attn.q_proj.weight"] == "it is not among the targets"
    assert result.saved == ()


def test_the_best_approximation_of_a_rank_and_its_energy(run: Extract, tmp_path: Path) -> None:
    """A difference of rank two with singular values 3 and 1: rank 1 keeps 9/10 of its energy."""
    base, tuned = llama(), llama()
    delta = torch.zeros(32, 32)
    delta[0, 5], delta[7, 9] = 3.0, -1.0
    tuned.model.layers[1].self_attn.q_proj.weight.data += delta
    result = run(base, tuned, rank=1)
    (one,) = result.modules
    assert (one.module, one.rank, one.energy) == ("model.layers.1.self_attn.q_proj", 1, pytest.approx(0.9, abs=1e-6))
    factors = load_file(tmp_path / "out" / "adapter_model.safetensors")
    b, a = (factors[f"base_model.model.{one.module}.lora_{side}.weight"] for side in "BA")
    expected = torch.zeros(32, 32)
    expected[0, 5] = 3.0
    torch.testing.assert_close(b @ a, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(("energy", "rank"), [(0.89, 1), (0.91, 2), (1.0, 2)])
def test_the_least_rank_that_holds_an_energy(run: Extract, energy: float, rank: int) -> None:
    tuned = llama()
    delta = torch.zeros(32, 32)
    delta[0, 5], delta[7, 9] = 3.0, -1.0
    tuned.model.layers[1].self_attn.q_proj.weight.data += delta
    base = llama()
    base.model.layers[1].self_attn.q_proj.weight.data.zero_()
    tuned.model.layers[1].self_attn.q_proj.weight.data.copy_(delta)  # exact: no rounding of base + delta
    (one,) = run(base, tuned, energy=energy).modules
    assert one.rank == rank


def test_an_llm_is_the_base_of_an_lvlm(run: Extract, tmp_path: Path) -> None:
    """The adapter is for the LLM, in its names; the rest of the LVLM is no difference of theirs."""
    lvlm = changed(llava())
    text = LlamaForCausalLM(LlamaConfig(**TEXT, num_key_value_heads=2, tie_word_embeddings=False))
    text.load_state_dict(
        {
            name.replace("model.language_model.", "model."): tensor
            for name, tensor in llava().state_dict().items()
            if name.startswith(("model.language_model.", "lm_head."))
        }
    )
    result = run(text, lvlm, energy=1.0)
    assert len(result.modules) == 15  # seven a layer, and the head
    found, tuned = by_safegraft(tmp_path), lvlm.state_dict()
    for name, tensor in found.items():
        there = name if name.startswith("lm_head") else name.replace("model.", "model.language_model.", 1)
        torch.testing.assert_close(tensor, tuned[there], **FULL_RANK)
    assert by_peft(text, tmp_path / "out").keys() == text.state_dict().keys()


def test_a_second_run_finds_it_done(run: Extract, tmp_path: Path) -> None:
    first = run(llama(), changed(llama()), rank=2)
    again = run(None, None, rank=2)
    assert again.complete_before
    assert not first.complete_before
    assert (again.modules, again.left, again.files) == (first.modules, first.left, first.files)
    with pytest.raises(OutputError, match="exists and is not empty"):
        run(None, None, rank=3)


def test_the_same_inputs_give_the_same_bytes(run: Extract, tmp_path: Path) -> None:
    run(llama(), changed(llama()), rank=2)
    content = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    (tmp_path / "out").rename(tmp_path / "first")
    run(None, None, rank=2)
    assert content == {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    assert all(str(tmp_path).encode() not in one for one in content.values())


def test_nothing_is_left_behind_by_what_fails(run: Extract, tmp_path: Path) -> None:
    tuned = changed(llama())
    tuned.model.layers[1].mlp.up_proj.weight.data[3, 3] = torch.nan
    with pytest.raises(NonFiniteError, match=r"layers\.1\.mlp\.up_proj\.weight: holds NaN or inf"):
        run(llama(), tuned, rank=2)
    with pytest.raises(AlignmentError, match="differs from the base in no linear weight"):
        run(llama(), llama(), rank=2)
    checkpoints = [open_model(str(tmp_path / name)) for name in ("tuned", "base")]
    with pytest.raises(MergeCancelledError):
        extract(*checkpoints, tmp_path / "out", Wish(rank=1), cancelled=lambda: True)
    for one in checkpoints:
        one.close()
    assert {path.name for path in tmp_path.iterdir()} == {"base", "tuned"}


@pytest.mark.parametrize("wish", [{}, {"rank": 1, "energy": 0.5}, {"rank": 0}, {"energy": 0.0}, {"energy": 1.1}])
def test_wishes_that_make_no_sense(wish: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        Wish(**wish)


def test_an_unknown_architecture_goes_by_its_names_on_disk(run: Extract, tmp_path: Path) -> None:
    for name, model in (("base", llama()), ("tuned", changed(llama()))):
        model.save_pretrained(tmp_path / name)
        file = tmp_path / name / "config.json"
        file.write_text(json.dumps({**json.loads(file.read_text()), "architectures": ["OwnModel"]}))
    result = run(None, None, rank=2)
    assert len(result.modules) == 14  # the head is not in a layer
    assert any("transformers cannot build the base" in text for text in result.notes)
    assert len(by_safegraft(tmp_path)) > 14


# -- tied embeddings ------------------------------------------------------------------------------


def tied(**more: Any) -> LlamaForCausalLM:
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**TEXT, num_key_value_heads=2, tie_word_embeddings=True, **more))


def test_a_tied_head_follows_the_embedding_that_is_saved(run: Extract, tmp_path: Path) -> None:
    base, tuned = tied(), changed(tied(), matrices_only=False)
    result = run(base, tuned, energy=1.0, save_modules=True)
    assert result.left == {}
    assert "model.embed_tokens.weight" in result.saved
    expected = tuned.state_dict()
    for name, tensor in by_peft(base, tmp_path / "out").items():
        torch.testing.assert_close(tensor, expected[name], **FULL_RANK)
    for name, tensor in by_safegraft(tmp_path).items():
        torch.testing.assert_close(tensor, expected[name], **FULL_RANK)
    loaded = PeftModel.from_pretrained(copy.deepcopy(base), tmp_path / "out").eval()
    tokens = torch.arange(10)[None]
    with torch.no_grad():
        torch.testing.assert_close(loaded(tokens).logits, tuned.eval()(tokens).logits, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("save_modules", [True, False])
def test_a_head_that_the_base_has_not_is_left(run: Extract, save_modules: bool) -> None:
    """The tuned model has untied its head: no adapter for a tied base holds that."""
    base = tied(attention_bias=True)
    base.load_state_dict(llama().state_dict())
    result = run(base, changed(llama(), matrices_only=False), rank=2, save_modules=save_modules)
    assert result.left["lm_head.weight"] == "the base ties its output head to its embedding"
    assert "model.embed_tokens.weight" in result.left
    assert ("model.norm.weight" in result.saved) == save_modules


def test_a_head_that_was_untied_and_stayed_equal_is_no_loss(run: Extract) -> None:
    base, tuned = tied(attention_bias=True), llama()
    tuned.load_state_dict({**llama().state_dict(), "lm_head.weight": llama().model.embed_tokens.weight})
    base.load_state_dict(tuned.state_dict())
    tuned.model.layers[0].self_attn.q_proj.weight.data += 1
    assert run(base, tuned, rank=1).left == {}


def test_biases_that_only_the_tuned_model_has_are_left(run: Extract) -> None:
    base = LlamaForCausalLM(LlamaConfig(**TEXT, num_key_value_heads=2, tie_word_embeddings=False))
    result = run(base, changed(llama(), matrices_only=False), rank=2, save_modules=True)
    assert result.left["model.layers.1.self_attn.q_proj.bias"] == "the base has no such tensor"
    assert len(result.left) == 8
    assert not any("host" in text for text in result.notes)


def test_parts_of_an_lvlm_that_its_llm_has_not_are_no_difference(run: Extract) -> None:
    lvlm = changed(llava(), matrices_only=False)
    text = LlamaForCausalLM(LlamaConfig(**TEXT, num_key_value_heads=2, tie_word_embeddings=False))
    assert all("vision" not in name and "projector" not in name for name in run(text, lvlm, rank=2).left)


def test_the_config_says_which_task_it_is_for(run: Extract, tmp_path: Path) -> None:
    run(llama(), changed(llama()), rank=2)
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert (config["task_type"], config["base_model_name_or_path"]) == ("CAUSAL_LM", None)


def test_an_lvlm_s_own_head_and_biases_are_left(run: Extract, tmp_path: Path) -> None:
    lvlm = llava(attention_bias=True, tie_word_embeddings=False)
    result = run(tied(), changed(lvlm, matrices_only=False), rank=2, save_modules=True)
    assert "ties its output head" in result.left.pop("language_model.lm_head.weight")
    assert "ties its output head" in result.left.pop("model.embed_tokens.weight")
    assert set(result.left.values()) == {"the base has no such tensor"}
    assert len(result.left) == 8
    assert all(name.endswith("_proj.bias") for name in result.left)
    assert result.notes == ()
