"""A model with an adapter: the same tensors as PEFT's own merge, whatever the adapter is made of."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
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

from safegraft.checkpoint.types import Checkpoint
from safegraft.errors import CheckpointError, InputChangedError, NonFiniteError
from safegraft.local import open_model

# PEFT computes B A for a whole weight at once, safegraft tile by tile: a float32 may differ in its last bits.
FLOAT32 = {"rtol": 2e-6, "atol": 2e-7}

Tensors = dict[str, torch.Tensor]
# PEFT warns that it does what the configs here ask for, and uses names that transformers is about to drop.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")


def llama(**more: Any) -> LlamaForCausalLM:
    sizes = {"vocab_size": 50, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "attention_bias": True}
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**{**sizes, **heads, "tie_word_embeddings": False, **more}))


def gpt2() -> GPT2LMHeadModel:
    """Its weights are stored [in, out], one of them square."""
    torch.manual_seed(0)
    return GPT2LMHeadModel(GPT2Config(vocab_size=50, n_positions=16, n_embd=32, n_layer=2, n_head=4))


def scrambled(model: PeftModel, seed: int = 1) -> PeftModel:
    """Give everything that trains a value of its own: a fresh B is zero."""
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in model.named_parameters():
        if tensor.requires_grad:
            noise = torch.randn(tensor.shape, generator=generator).to(tensor.dtype)
            tensor.data += noise.abs() if "magnitude" in name else 0.3 * noise
    return model


def adapted(base: PreTrainedModel, folder: Path, dtype: torch.dtype = torch.float32, **config: Any) -> Tensors:
    """Save `base` and an adapter for it; returns the tensors that PEFT's own merge saves."""
    base.to(dtype).save_pretrained(folder / "base")
    model = scrambled(
        get_peft_model(base, LoraConfig(**{"r": 4, "lora_alpha": 6, **config}), autocast_adapter_dtype=False)
    )
    model.save_pretrained(folder / "lora")
    model.merge_and_unload().save_pretrained(folder / "merged")
    return load_file(folder / "merged" / "model.safetensors")


def tensors_of(checkpoint: Checkpoint) -> Tensors:
    found: Tensors = {}
    for name, info in checkpoint.tensors.items():
        content = bytearray(info.nbytes)
        checkpoint.read_into(info, 0, memoryview(content))
        found[name] = torch.frombuffer(content, dtype=info.dtype.torch).reshape(info.shape)
    return found


def opened(folder: Path) -> Tensors:
    checkpoint = open_model(f"{folder / 'base'}+{folder / 'lora'}")
    try:
        return tensors_of(checkpoint)
    finally:
        checkpoint.close()


def assert_same(found: Tensors, expected: Mapping[str, torch.Tensor], base: Mapping[str, torch.Tensor]) -> set[str]:
    """Equal names, values within FLOAT32, and bytes where nothing was adapted; returns what was."""
    assert found.keys() == expected.keys()
    changed = {name for name in base if not torch.equal(base[name], expected[name])}
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype
        if name in changed:
            torch.testing.assert_close(found[name], tensor, **FLOAT32)
        else:
            assert torch.equal(found[name], tensor), name
    return changed


ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]


@pytest.mark.parametrize(
    ("config", "changes"),
    [
        ({"target_modules": ATTENTION}, 8),
        ({"target_modules": "all-linear", "use_rslora": True}, 14),
        (
            {
                "target_modules": ATTENTION,
                "rank_pattern": {"layers.0.self_attn.q_proj": 2, ".*v_proj": 3},
                "alpha_pattern": {"^model.layers.1.self_attn.k_proj": 11, "v_proj": 5},
            },
            8,
        ),
        ({"target_modules": ATTENTION, "use_dora": True}, 8),
        ({"target_modules": ["q_proj", "embed_tokens"]}, 3),
        ({"target_modules": ["embed_tokens", "lm_head"], "use_dora": True}, 2),
        ({"target_modules": ["q_proj"], "modules_to_save": ["lm_head", "model.norm"]}, 4),
        ({"target_modules": ["q_proj"], "lora_bias": True}, 4),
        ({"target_modules": ["q_proj"], "bias": "all"}, 10),
        ({"target_modules": ["q_proj"], "bias": "lora_only"}, 4),
        ({"target_modules": ["q_proj"], "layers_to_transform": [1]}, 1),
        ({"target_modules": ["q_proj"], "init_lora_weights": "gaussian"}, 2),
    ],
)
def test_a_model_with_an_adapter_is_what_peft_merges(config: dict[str, Any], changes: int, tmp_path: Path) -> None:
    base = {name: tensor.clone() for name, tensor in llama().state_dict().items()}
    expected = adapted(llama(), tmp_path, **config)
    assert len(assert_same(opened(tmp_path), expected, base)) == changes


@pytest.mark.parametrize("dora", [False, True])
def test_weights_stored_the_other_way_round(dora: bool, tmp_path: Path) -> None:
    base = {name: tensor.clone() for name, tensor in gpt2().state_dict().items()}
    expected = adapted(gpt2(), tmp_path, target_modules=["c_attn", "c_proj"], fan_in_fan_out=True, use_dora=dora)
    changed = assert_same(opened(tmp_path), expected, {name: base[name] for name in expected})
    assert len(changed) == 6
    assert base["transformer.h.0.attn.c_proj.weight"].shape == (32, 32)  # the config alone tells


def test_bfloat16_is_rounded_once(tmp_path: Path) -> None:
    """PEFT rounds B A and then the sum; here the sum is rounded alone, and so is never farther from the truth."""
    base = {name: tensor.to(torch.bfloat16) for name, tensor in llama().state_dict().items()}
    merged = adapted(llama(), tmp_path, dtype=torch.bfloat16, target_modules=ATTENTION)
    factors = load_file(tmp_path / "lora" / "adapter_model.safetensors")
    found = opened(tmp_path)
    name = "model.layers.0.self_attn.q_proj"
    b, a = (factors[f"base_model.model.{name}.lora_{side}.weight"].double() for side in "BA")
    truth = base[f"{name}.weight"].double() + 1.5 * (b @ a)
    ours, peft = (tensors[f"{name}.weight"].double() for tensors in (found, merged))
    torch.testing.assert_close(ours, truth, rtol=2**-8, atol=1e-6)
    assert (ours - truth).abs().sum() < (peft - truth).abs().sum()


@pytest.mark.parametrize("config", [{}, {"use_dora": True}])
def test_any_byte_range_gives_the_bytes_of_the_whole(config: dict[str, Any], tmp_path: Path) -> None:
    wide = llama(hidden_size=64, intermediate_size=4100)  # gate_proj takes three tiles, whose rows do not fill them
    adapted(wide, tmp_path, target_modules=["gate_proj", "down_proj"], **config)
    checkpoint = open_model(f"{tmp_path / 'base'}+{tmp_path / 'lora'}")
    generator = torch.Generator().manual_seed(7)
    for name in ("model.layers.0.mlp.gate_proj.weight", "model.layers.1.mlp.down_proj.weight"):
        info = checkpoint.tensors[name]
        whole = bytearray(info.nbytes)
        checkpoint.read_into(info, 0, memoryview(whole))
        for _ in range(20):
            start, stop = sorted(torch.randint(0, info.nbytes + 1, (2,), generator=generator).tolist())
            part = bytearray(stop - start)
            checkpoint.read_into(info, start, memoryview(part))
            assert part == whole[start:stop]
        with pytest.raises(ValueError, match="out of range"):
            checkpoint.read_into(info, 1, memoryview(whole))
    checkpoint.close()


def test_rows_longer_than_a_tile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from safegraft.checkpoint import lora_tiles

    monkeypatch.setattr(lora_tiles, "TILE", 20)  # of 32 or 48 columns
    base = {name: tensor.clone() for name, tensor in llama().state_dict().items()}
    expected = adapted(llama(), tmp_path, target_modules="all-linear", use_dora=True)
    assert len(assert_same(opened(tmp_path), expected, base)) == 14


def test_an_output_of_zeros_stays_zero_under_dora(tmp_path: Path) -> None:
    """PEFT divides by its norm of zero there."""
    adapted(llama(), tmp_path, target_modules=["q_proj"], use_dora=True)
    weights, factors = tmp_path / "base" / "model.safetensors", tmp_path / "lora" / "adapter_model.safetensors"
    name = "model.layers.0.self_attn.q_proj"
    for file, key in ((weights, f"{name}.weight"), (factors, f"base_model.model.{name}.lora_B.weight")):
        tensors = load_file(file)
        tensors[key][3] = 0
        save_file(tensors, file, {"format": "pt"})
    found = opened(tmp_path)[f"{name}.weight"]
    assert torch.equal(found[3], torch.zeros(32))
    assert torch.isfinite(found).all()


# -- NaN and inf ----------------------------------------------------------------------------------


def changed_value(tensors: Tensors, ending: str, value: float) -> None:
    name = next(name for name in tensors if name.endswith(ending))
    tensors[name].view(-1)[0] = value


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e38])
@pytest.mark.parametrize(
    ("config", "part"),
    [
        ({}, "lora_A.weight"),
        ({"use_dora": True}, "lora_magnitude_vector"),
        ({"lora_bias": True}, "lora_B.bias"),
        ({"modules_to_save": ["norm"]}, "model.norm.weight"),
    ],
)
def test_nan_and_inf_that_an_adapter_brings_about(
    config: dict[str, Any], part: str, value: float, tmp_path: Path
) -> None:
    """The base is float16: 1e38 fits the adapter and not the result."""
    adapted(llama(), tmp_path, target_modules=["q_proj"], **config)
    llama().to(torch.float16).save_pretrained(tmp_path / "base")
    edit_tensors(tmp_path, lambda tensors: changed_value(tensors, part, value))
    if part == "model.norm.weight" and value != 1e38:
        assert not torch.isfinite(opened(tmp_path)["model.norm.weight"]).all()  # a copy stays what it is
        return
    with pytest.raises(NonFiniteError, match=r"lora: makes NaN or inf of \d+ values of model\..*F16"):
        opened(tmp_path)


def test_nan_of_the_base_stays(pair: Path) -> None:
    file = pair / "base" / "model.safetensors"
    tensors = load_file(file)
    tensors["model.layers.0.self_attn.q_proj.weight"][3, 4] = torch.nan
    save_file(tensors, file, {"format": "pt"})
    found = opened(pair)["model.layers.0.self_attn.q_proj.weight"]
    assert torch.isnan(found).nonzero().tolist() == [[3, 4]]


# -- tied embeddings ------------------------------------------------------------------------------

TOKENS = torch.arange(10)[None]


def trained(folder: Path, **config: Any) -> torch.Tensor:
    """Save a tied base and an adapter for it; returns the logits of the model as it was trained."""
    base = llama(tie_word_embeddings=True)
    base.save_pretrained(folder / "base")
    model = scrambled(get_peft_model(base, LoraConfig(**{"r": 4, "lora_alpha": 6, **config}))).eval()
    model.save_pretrained(folder / "lora")
    with torch.no_grad():
        return model(TOKENS).logits


@pytest.mark.parametrize(
    "config",
    [
        {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"]},
        {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]},
        {"target_modules": ["q_proj", "embed_tokens"]},
        {"target_modules": ["q_proj", "lm_head"]},
    ],
)
def test_a_head_that_was_trained_with_its_embedding_stays_tied(config: dict[str, Any], tmp_path: Path) -> None:
    """Held against the model that was trained: PEFT's merge adds a LoRA of both to the one matrix twice."""
    expected = trained(tmp_path, **config, ensure_weight_tying=True)
    model = llama(tie_word_embeddings=True)
    model.load_state_dict(opened(tmp_path), strict=False)
    model.tie_weights()
    with torch.no_grad():
        torch.testing.assert_close(model.eval()(TOKENS).logits, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "config",
    [
        {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"]},
        {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]},
        {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens", "lm_head"]},
        {"target_modules": ["q_proj", "embed_tokens"]},
        {"target_modules": ["q_proj", "lm_head"]},
    ],
)
def test_what_unties_a_base_is_refused_once(config: dict[str, Any], tmp_path: Path) -> None:
    trained(tmp_path, **config)
    with pytest.raises(CheckpointError, match="ties its output head to its embedding") as caught:
        opened(tmp_path)
    assert "ensure_weight_tying" in str(caught.value)
    assert len(caught.value.problems) == 1


def test_a_tied_embedding_that_was_saved_unchanged_is_no_change(tmp_path: Path) -> None:
    """PEFT saves embeddings beside the LoRA when it thinks that they may have been resized."""
    base = llama(tie_word_embeddings=True)
    adapted(base, tmp_path, target_modules=["q_proj"])
    matrix = load_file(tmp_path / "base" / "model.safetensors")["model.embed_tokens.weight"]
    for name in ("model.embed_tokens", "lm_head"):
        edit_tensors(tmp_path, lambda t, name=name: t.update({f"base_model.model.{name}.weight": matrix.clone()}))
        assert torch.equal(opened(tmp_path)["model.embed_tokens.weight"], matrix)


# -- what it is -----------------------------------------------------------------------------------


@pytest.fixture
def pair(tmp_path: Path) -> Path:
    adapted(llama(), tmp_path, target_modules=["q_proj"])
    return tmp_path


def test_it_has_the_base_s_files_and_names_of_its_own(pair: Path) -> None:
    checkpoint, base = open_model(f"{pair / 'base'}+{pair / 'lora'}"), open_model(str(pair / "base"))
    assert checkpoint.tensors == base.tensors
    assert checkpoint.config == base.config
    assert checkpoint.sidecars == base.sidecars
    assert checkpoint.sources == (str(pair / "base"), str(pair / "lora"))
    assert checkpoint.modified_ns() == (pair / "lora" / "adapter_model.safetensors").stat().st_mtime_ns
    for one in (checkpoint, base):
        one.close()


def test_its_identity_is_that_of_both(pair: Path, tmp_path: Path) -> None:
    def identity() -> tuple[str, str]:
        checkpoint = open_model(f"{pair / 'base'}+{pair / 'lora'}")
        checkpoint.close()
        return checkpoint.identity.scheme, checkpoint.identity.digest

    first = identity()
    assert first[0] == "sha256"
    assert identity() == first
    for file in (pair / "lora" / "adapter_config.json", pair / "base" / "config.json"):
        content = json.loads(file.read_text())
        file.write_text(json.dumps({**content, "lora_alpha": 7}))
        assert identity() != first
        first = identity()


def test_a_changed_adapter_is_noticed(pair: Path) -> None:
    checkpoint = open_model(f"{pair / 'base'}+{pair / 'lora'}")
    checkpoint.verify_unchanged()
    file = pair / "lora" / "adapter_model.safetensors"
    file.write_bytes(file.read_bytes() + b"x")
    with pytest.raises(InputChangedError, match=r"adapter_model.safetensors: changed"):
        checkpoint.verify_unchanged()
    checkpoint.close()


# -- what may be wrong ----------------------------------------------------------------------------


def notes(folder: Path, base: str | None = None) -> list[str]:
    checkpoint = open_model(f"{base or folder / 'base'}+{folder / 'lora'}")
    checkpoint.close()
    return list(checkpoint.notes)


def test_modules_that_are_named_and_not_there_are_noted(pair: Path) -> None:
    assert notes(pair) == []
    edit_config(pair, target_modules=["q_proj", "other"])
    assert notes(pair) == [f"{pair / 'lora'}: target_modules in its config names 'other', of which it has nothing"]
    edit_config(pair, target_modules=["q_proj"])
    edit_tensors(pair, lambda t: [t.pop(f"{Q}.lora_{side}.weight") for side in "AB"])
    (note,) = notes(pair)
    assert note.endswith("names 'model.layers.0.self_attn.q_proj.weight' too, of which it has nothing")
    edit_config(pair, layers_to_transform=[1])
    assert notes(pair) == []


def test_an_llm_s_adapter_says_nothing_of_a_vision_tower(tmp_path: Path) -> None:
    """Both have a q_proj; the adapter's config can only mean the language model's."""
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    text = LlamaConfig(**sizes, vocab_size=50, num_attention_heads=4, num_key_value_heads=2, attention_bias=True)
    vision = CLIPVisionConfig(**sizes, num_attention_heads=2, image_size=16, patch_size=8)
    config = LlavaConfig(vision_config=vision, text_config=text, image_token_index=49, tie_word_embeddings=False)
    adapted(llama(), tmp_path, target_modules=["q_proj"])
    LlavaForConditionalGeneration(config).save_pretrained(tmp_path / "lvlm")
    assert notes(tmp_path, str(tmp_path / "lvlm")) == []


@pytest.mark.parametrize(
    ("name", "is_noted"), [("Org/Base", False), ("other/base", True), ("/home/me/base", False), (None, False)]
)
def test_an_adapter_of_another_hub_model_is_noted(pair: Path, name: str | None, is_noted: bool) -> None:
    cached = pair / "models--org--base" / "snapshots" / ("0123456789" * 4)
    cached.parent.mkdir(parents=True)
    (pair / "base").rename(cached)
    edit_config(pair, base_model_name_or_path=name)
    expected = f"{pair / 'lora'}: its config names {name} as its model, and it is added to org/base"
    assert notes(pair, str(cached)) == ([expected] if is_noted else [])


# -- what is refused ------------------------------------------------------------------------------


def edit_config(folder: Path, **changes: Any) -> None:
    file = folder / "lora" / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"peft_type": "IA3"}, "is of 'IA3'; only LORA adapters"),
        ({"peft_type": None}, "is of no PEFT type"),
        ({"target_parameters": ["experts.gate_up_proj"]}, "sets target_parameters: it adapts stacked parameters"),
        ({"layer_replication": [[0, 2]]}, "sets layer_replication"),
        ({"alora_invocation_tokens": [3]}, "sets alora_invocation_tokens"),
        ({"use_something_new": True}, "sets 'use_something_new', which is not known here"),
        ({"init_lora_weights": "pissa_niter_4"}, "belongs to a changed base"),
        ({"r": 0}, "r must be an integer from 1 up"),
        ({"r": 8}, "has rank 4; its config says 8"),
        ({"lora_alpha": "much"}, "lora_alpha must be a finite number"),
        ({"alpha_pattern": {"(a+)+": 1}}, "repeats a group"),
        ({"alpha_pattern": {".*.*.*": 1}}, "more than 2 repeats"),
        ({"alpha_pattern": {"(": 1}}, "is not a regular expression"),
        ({"alpha_pattern": {"q_proj": None}}, "alpha_pattern['q_proj'] must be a finite number"),
        ({"rank_pattern": {"q_proj": 0}}, "rank_pattern['q_proj'] must be an integer from 1 up"),
        ({"r": 10**400}, "r must be an integer from 1 up to 1,000,000"),
        ({"lora_alpha": 10**400}, "lora_alpha must be a finite number"),
        ({"bias": "weird"}, "bias must be none, all or lora_only"),
        ({"bias": ["all"]}, "bias must be none, all or lora_only"),
        ({"modules_to_save": "lm_head"}, "modules_to_save must be a list of at most 2,000 names"),
        ({"modules_to_save": [5]}, "modules_to_save must be a list"),
        ({"modules_to_save": ["lm_head"]}, "lacks 'lm_head', which modules_to_save in its config names"),
        ({"target_modules": 5}, "target_modules must be a list"),
        ({"ensure_weight_tying": "yes"}, "ensure_weight_tying must be true or false"),
        ({"use_dora": True}, "lacks lora_magnitude_vector"),
        ({"lora_bias": True}, "lacks lora_B.bias"),
    ],
)
def test_a_config_that_cannot_be_followed(pair: Path, changes: dict[str, Any], message: str) -> None:
    edit_config(pair, **changes)
    with pytest.raises(CheckpointError) as caught:
        opened(pair)
    assert message in str(caught.value)
    assert str(pair / "lora") in str(caught.value)


def test_a_number_without_end(pair: Path) -> None:
    file = pair / "lora" / "adapter_config.json"
    file.write_text(file.read_text().replace('"r": 4', f'"r": {"9" * 5000}'))
    with pytest.raises(CheckpointError, match=r"an integer of 5,000 digits$"):
        opened(pair)


def edit_tensors(folder: Path, change: Callable[[Tensors], Any]) -> None:
    file = folder / "lora" / "adapter_model.safetensors"
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file, {"format": "pt"})


Q = "base_model.model.model.layers.0.self_attn.q_proj"


def test_the_head_that_peft_adds_for_a_task_may_be_missing(pair: Path) -> None:
    edit_config(pair, task_type="SEQ_CLS", modules_to_save=["classifier", "score"])
    opened(pair)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop(f"{Q}.lora_A.weight"), "lacks lora_A.weight"),
        (lambda t: t.update({f"{Q}.lora_A.weight": torch.zeros(3, 32)}), "A is [3, 32] and B is [32, 4]"),
        (
            lambda t: t.update({f"{Q}.lora_A.weight": torch.zeros(4, 31)}),
            "is [32, 32], and the adapter is for [32, 31]",
        ),
        (lambda t: t.update({f"{Q}.lora_A.weight": torch.zeros(4, 32, dtype=torch.int8)}), "holds I8 values"),
        (lambda t: t.update({f"{Q}.lora_A.weight": torch.zeros(4, 32, 1, 1)}), "adapts a convolution"),
        (lambda t: t.update({f"{Q}.lora_magnitude_vector": torch.zeros(32)}), "its config does not speak of"),
        (lambda t: t.update({"base_model.model.x.ia3_l": torch.zeros(4)}), "kind of adapter that cannot be added"),
        (lambda t: t.update({"base_model.model.x.lora_C.weight": torch.zeros(4)}), "cannot be added to weights"),
        (lambda t: t.update({"base_model.model.score.weight": torch.zeros(4)}), "nothing like 'score.weight'"),
        (
            lambda t: t.update({"base_model.model.lm_head.weight": torch.zeros(51, 32)}),
            "'lm_head.weight' is [50, 32], and the adapter is for [51, 32]",
        ),
        (
            lambda t: t.update({"base_model.model.layers.0.self_attn.q_proj.weight": torch.zeros(32, 32)}),
            "both mean 'model.layers.0.self_attn.q_proj.weight'",
        ),
        (
            lambda t: t.update({f"{Q.removeprefix('base_model.model.')}.lora_A.weight": torch.zeros(4, 32)}),
            f"'{Q}.lora_A.weight' and '{Q.removeprefix('base_model.model.')}.lora_A.weight' mean the same",
        ),
        (
            lambda t: t.update({f"{Q}.base_layer.weight": torch.zeros(32, 32), f"{Q}.weight": torch.zeros(32, 32)}),
            f"'{Q}.base_layer.weight' and '{Q}.weight' mean the same",
        ),
        (lambda t: t.clear(), "holds no tensors"),
    ],
)
def test_tensors_that_cannot_be_placed(pair: Path, change: Callable[[Tensors], Any], message: str) -> None:
    edit_tensors(pair, change)
    with pytest.raises(CheckpointError) as caught:
        opened(pair)
    assert message in str(caught.value)


def test_a_bias_needs_a_bias(tmp_path: Path) -> None:
    base = llama(attention_bias=False)
    base.save_pretrained(tmp_path / "base")
    with pytest.warns(UserWarning, match="has no bias"):
        model = get_peft_model(base, LoraConfig(r=2, target_modules=["q_proj"], lora_bias=True))
    model.save_pretrained(tmp_path / "lora")
    with pytest.raises(CheckpointError, match=r"q_proj.bias. is not there"):
        opened(tmp_path)


def test_files_of_other_kinds_are_refused(pair: Path) -> None:
    lora = pair / "lora"
    with pytest.raises(CheckpointError, match=r"is a PEFT adapter, not a model.*BASE\+ADAPTER"):
        open_model(str(lora))
    with pytest.raises(CheckpointError, match="is a model, not an adapter"):
        open_model(f"{pair / 'base'}+{pair / 'base'}")
    (lora / "adapter_model.safetensors").rename(lora / "adapter_model.bin")
    with pytest.raises(CheckpointError, match="only as pickle"):
        opened(pair)
    (lora / "adapter_model.bin").unlink()
    with pytest.raises(CheckpointError, match="is the download complete"):
        opened(pair)


@pytest.mark.parametrize("cut", [0, 5, 100, -1])
def test_a_truncated_adapter_is_refused(pair: Path, cut: int) -> None:
    file = pair / "lora" / "adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[:cut])
    with pytest.raises(CheckpointError):
        opened(pair)
