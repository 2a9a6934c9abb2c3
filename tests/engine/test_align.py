"""Alignment from names, shapes and configs: prefixes, shifted layers, ties, and what cannot be aligned."""

from collections.abc import Callable
from typing import Any

import pytest

from safegraft.checkpoint.dtypes import DType
from safegraft.engine.align import align
from safegraft.engine.anatomy import depth_of, is_multimodal, language_stack, split_layer, stacks_of, vocabulary_tensors

Shapes = dict[str, tuple[int, ...]]
LLM_CONFIG = {"model_type": "llama", "vocab_size": 20, "hidden_size": 8, "num_hidden_layers": 3}
LVLM_CONFIG: dict[str, Any] = {
    "model_type": "llava",
    "text_config": {**LLM_CONFIG, "vocab_size": 24},
    "vision_config": {"hidden_size": 8, "num_hidden_layers": 3},
}


def decoder(layers: list[int] | int = 3, prefix: str = "model.", vocab: int = 20, hidden: int = 8) -> Shapes:
    shapes: Shapes = {f"{prefix}embed_tokens.weight": (vocab, hidden)}
    for layer in range(layers) if isinstance(layers, int) else layers:
        at = f"{prefix}layers.{layer}"
        shapes |= {
            f"{at}.self_attn.q_proj.weight": (hidden, hidden),
            f"{at}.self_attn.k_proj.weight": (hidden // 2, hidden),
            f"{at}.mlp.up_proj.weight": (2 * hidden, hidden),
            f"{at}.input_layernorm.weight": (hidden,),
        }
    shapes[f"{prefix}norm.weight"] = (hidden,)
    return shapes


def tower(prefix: str, hidden: int = 8) -> Shapes:
    """A vision tower that looks as much like the decoder as it can: same sizes, same number of layers."""
    shapes: Shapes = {f"{prefix}embeddings.patch_embedding.weight": (hidden, 3, 2, 2)}
    for layer in range(3):
        at = f"{prefix}encoder.layers.{layer}"
        shapes |= {
            f"{at}.self_attn.q_proj.weight": (hidden, hidden),
            f"{at}.self_attn.q_proj.bias": (hidden,),
            f"{at}.mlp.fc1.weight": (2 * hidden, hidden),
        }
    shapes[f"{prefix}post_layernorm.weight"] = (hidden,)
    return shapes


def llm(vocab: int = 20) -> Shapes:
    return {**decoder(vocab=vocab), "lm_head.weight": (vocab, 8)}


# Naming styles of LLaVA: where the decoder, the head, the tower and the projector are.
STYLES = {
    "saved": ("language_model.model.", "language_model.lm_head.weight", "vision_tower.", "multi_modal_projector."),
    "memory": ("model.language_model.", "lm_head.weight", "model.vision_tower.", "model.multi_modal_projector."),
    "hub": (
        "language_model.model.",
        "language_model.lm_head.weight",
        "vision_tower.vision_model.",
        "multi_modal_projector.",
    ),
    "qwen": ("model.", "lm_head.weight", "visual.", "merger."),
    "idefics": ("model.text_model.", "lm_head.weight", "model.vision_model.", "model.connector."),
}


def lvlm(style: str, vocab: int = 24) -> Shapes:
    text, head, vision, projector = STYLES[style]
    return {
        **decoder(prefix=text, vocab=vocab),
        head: (vocab, 8),
        **tower(vision),
        f"{projector}linear_1.weight": (8, 8),
        f"{projector}linear_1.bias": (8,),
    }


@pytest.mark.parametrize("style", STYLES)
def test_llm_in_lvlm_every_tensor_finds_its_place(style: str, headers: Callable[..., Any]) -> None:
    host = headers("host", lvlm(style), LVLM_CONFIG)
    found = align(host, headers("llm", llm(), LLM_CONFIG), {})
    text, head, *_ = STYLES[style]
    expected = {text + name.removeprefix("model."): name for name in decoder()} | {head: "lm_head.weight"}
    assert found.tensors == expected
    assert not found.problems
    assert not found.unused


@pytest.mark.parametrize("ours", ["saved", "memory", "hub"])
@pytest.mark.parametrize("theirs", ["saved", "memory", "hub"])
def test_lvlm_in_lvlm_across_namings(ours: str, theirs: str, headers: Callable[..., Any]) -> None:
    host, other = lvlm(theirs), lvlm(ours)
    found = align(headers("host", host, LVLM_CONFIG), headers("other", other, LVLM_CONFIG), {})
    expected = dict(zip(host, other, strict=True))
    assert found.tensors == expected
    assert not found.problems
    assert not found.unused


def test_lvlm_in_llm_keeps_the_language_part_and_says_what_is_unused(headers: Callable[..., Any]) -> None:
    found = align(headers("llm", llm(24), LLM_CONFIG), headers("lvlm", lvlm("saved"), LVLM_CONFIG), {})
    assert set(found.tensors) == set(llm())
    assert not found.problems
    assert len(found.unused) == len(lvlm("saved")) - len(llm())
    assert any("outside its language model" in note for note in found.notes)


def cross_attention_host(cross: list[int], layers: int) -> Shapes:
    """Mllama: cross-attention layers stand between the LLM's; the embedding has eight more rows."""
    prefix = "language_model.model."
    own = [layer for layer in range(layers) if layer not in cross]
    shapes = decoder(own, prefix=prefix, vocab=28)
    for layer in cross:
        at = f"{prefix}layers.{layer}"
        shapes |= {
            f"{at}.cross_attn.q_proj.weight": (8, 8),
            f"{at}.cross_attn_attn_gate": (1,),
            f"{at}.mlp.up_proj.weight": (16, 8),
            f"{at}.input_layernorm.weight": (8,),
        }
    return {**shapes, "language_model.lm_head.weight": (20, 8), **tower("vision_model.")}


@pytest.mark.parametrize("cross", [[1], [0], [4], [1, 3], [0, 1]])
def test_shifted_layers_skip_cross_attention(cross: list[int], headers: Callable[..., Any]) -> None:
    total = 3 + len(cross)
    config = {**LVLM_CONFIG, "text_config": {**LLM_CONFIG, "num_hidden_layers": total}}
    cross = [min(layer, total - 1) for layer in cross]
    host = headers("host", cross_attention_host(cross, total), config)
    found = align(host, headers("llm", llm(), LLM_CONFIG), {})
    assert not found.problems
    places = [layer for layer in range(total) if layer not in cross]
    for name, source in found.tensors.items():
        place = split_layer(name)
        if place:
            assert places.index(place[1]) == split_layer(source)[1]  # type: ignore[index]
    assert len(found.tensors) == len(llm())


def test_tied_llm_meets_both_of_an_untied_host(headers: Callable[..., Any]) -> None:
    found = align(headers("host", lvlm("saved"), LVLM_CONFIG), headers("llm", decoder(), LLM_CONFIG), {})
    assert found.tensors["language_model.lm_head.weight"] == "model.embed_tokens.weight"
    assert found.tensors["language_model.model.embed_tokens.weight"] == "model.embed_tokens.weight"
    assert any("ties its output head" in note for note in found.notes)


def tied_host() -> Shapes:
    return {name: shape for name, shape in lvlm("saved").items() if "lm_head" not in name}


def test_a_head_that_is_missing_is_not_taken_for_tied(headers: Callable[..., Any]) -> None:
    host = headers("host", lvlm("saved"), LVLM_CONFIG)
    config = {**LLM_CONFIG, "tie_word_embeddings": False}
    for lost in ("lm_head.weight", "model.embed_tokens.weight"):
        shapes = {name: shape for name, shape in llm().items() if name != lost}
        found = align(host, headers("llm", shapes, config), {})
        assert len(found.problems) == 1
        assert "is the checkpoint complete?" in found.problems[0]
        assert not align(host, headers("llm", shapes, config), {}, keep_vocabulary=True).problems


@pytest.mark.parametrize("lost", [".mlp.", "model.norm."])
def test_what_the_llm_lacks_is_told(lost: str, headers: Callable[..., Any]) -> None:
    shapes = {name: shape for name, shape in llm().items() if lost not in name}
    found = align(headers("host", lvlm("saved"), LVLM_CONFIG), headers("llm", shapes, LLM_CONFIG), {})
    assert any("of the host's language model have no counterpart" in note and lost in note for note in found.notes)


def test_an_llm_without_layers_is_refused(headers: Callable[..., Any]) -> None:
    shapes = {name: shape for name, shape in llm().items() if ".layers." not in name}
    found = align(headers("host", lvlm("saved"), LVLM_CONFIG), headers("llm", shapes, LLM_CONFIG), {})
    assert any("none of its layers fits any of the host host's" in problem for problem in found.problems)


@pytest.mark.parametrize("size", [None, "20", [20], 7])
def test_vocabulary_tensors_are_known_by_the_tokenizer_where_the_config_fails(
    size: object, headers: Callable[..., Any]
) -> None:
    config = {**LLM_CONFIG, "vocab_size": size}
    known = headers("llm", llm(), config, {f"t{row}": row for row in range(18)})
    assert vocabulary_tensors(known) == {"lm_head.weight", "model.embed_tokens.weight"}


def tower_like_the_decoder(**more: tuple[int, ...]) -> Shapes:
    """A vision tower with the decoder's very shapes, beside a decoder that has something more."""
    shapes = lvlm("saved")
    for layer in range(3):
        for suffix in ("self_attn.q_proj", "self_attn.k_proj", "mlp.up_proj", "input_layernorm"):
            shape = shapes[f"language_model.model.layers.{layer}.{suffix}.weight"]
            shapes[f"tower.layers.{layer}.{suffix}.weight"] = shape
            shapes |= {f"language_model.model.layers.{layer}.{name}": size for name, size in more.items()}
    return shapes


def test_layers_follow_their_embedding_not_the_better_fit(headers: Callable[..., Any]) -> None:
    host = headers("host", tower_like_the_decoder(**{"self_attn.q_proj.bias": (8,)}), LVLM_CONFIG)
    found = align(host, headers("llm", llm(), LLM_CONFIG), {})
    assert not found.problems
    assert {name.partition(".")[0] for name in found.tensors} == {"language_model"}


def test_two_language_models_of_one_shape_are_told_apart_by_the_user(headers: Callable[..., Any]) -> None:
    shapes = {**decoder(prefix="talker.model."), **decoder(prefix="thinker.model.")}
    host = headers("host", shapes, {**LVLM_CONFIG, "text_config": LLM_CONFIG})
    found = align(host, headers("llm", decoder(), LLM_CONFIG), {})
    assert any("fits talker.model.layers and thinker.model.layers" in problem for problem in found.problems)
    chosen = align(host, headers("llm", decoder(), LLM_CONFIG), {"model.": "thinker.model."})
    assert set(chosen.tensors) == set(decoder(prefix="thinker.model."))


def test_the_norm_never_leaves_the_language_model(headers: Callable[..., Any]) -> None:
    shapes = lvlm("saved")
    shapes["vision_tower.norm.weight"] = shapes.pop("language_model.model.norm.weight")
    found = align(headers("host", shapes, LVLM_CONFIG), headers("llm", llm(), LLM_CONFIG), {})
    assert any("model.norm.weight" in problem for problem in found.problems)


def test_a_table_of_positions_is_no_output_head(headers: Callable[..., Any]) -> None:
    shapes = {**lvlm("saved"), "vision_tower.position_embedding.weight": (24, 8)}
    found = align(headers("host", shapes, LVLM_CONFIG), headers("llm", decoder(), LLM_CONFIG), {})
    assert "vision_tower.position_embedding.weight" not in found.tensors
    assert found.tensors["language_model.lm_head.weight"] == "model.embed_tokens.weight"


def test_untied_llm_in_a_tied_host_is_an_error(headers: Callable[..., Any]) -> None:
    found = align(headers("host", tied_host(), LVLM_CONFIG), headers("llm", llm(), LLM_CONFIG), {})
    assert len(found.problems) == 1
    assert "lm_head.weight" in found.problems[0]
    assert "embeddings: host" in found.problems[0]


def test_a_second_copy_of_a_tied_head_is_not_missed(headers: Callable[..., Any]) -> None:
    config = {**LLM_CONFIG, "tie_word_embeddings": True}
    found = align(headers("host", tied_host(), LVLM_CONFIG), headers("llm", llm(), config), {})
    assert not found.problems
    assert "config ties them" in found.unused["lm_head.weight"]


def test_rotary_buffers_and_integers_are_left_to_the_host(headers: Callable[..., Any]) -> None:
    shapes = {**llm(), "model.layers.0.self_attn.rotary_emb.inv_freq": (2,), "model.position_ids": (1, 9)}
    other = headers("llm", shapes, LLM_CONFIG, dtypes={"model.position_ids": DType.I64})
    found = align(headers("host", lvlm("saved"), LVLM_CONFIG), other, {})
    assert not found.problems
    assert set(found.unused) == {"model.layers.0.self_attn.rotary_emb.inv_freq", "model.position_ids"}


def test_a_bias_the_host_lacks_is_an_error_that_names_it(headers: Callable[..., Any]) -> None:
    shapes = {**llm(), **{f"model.layers.{layer}.self_attn.q_proj.bias": (8,) for layer in range(3)}}
    found = align(headers("host", lvlm("saved"), LVLM_CONFIG), headers("llm", shapes, LLM_CONFIG), {})
    assert len(found.problems) == 1
    assert "3 tensors" in found.problems[0]
    assert "self_attn.q_proj.bias" in found.problems[0]


def test_a_bias_only_the_host_has_stays_the_hosts(headers: Callable[..., Any]) -> None:
    shapes = lvlm("saved") | {f"language_model.model.layers.{n}.self_attn.q_proj.bias": (8,) for n in range(3)}
    found = align(headers("host", shapes, LVLM_CONFIG), headers("llm", llm(), LLM_CONFIG), {})
    assert not found.problems
    assert "language_model.model.layers.0.self_attn.q_proj.bias" not in found.tensors


@pytest.mark.parametrize("layers", [2, 4])
def test_another_number_of_layers_is_an_error(layers: int, headers: Callable[..., Any]) -> None:
    other = headers("llm", {**decoder(layers), "lm_head.weight": (20, 8)}, {**LLM_CONFIG, "num_hidden_layers": layers})
    found = align(headers("host", lvlm("saved"), LVLM_CONFIG), other, {})
    assert any(f"has {layers} layers" in problem and "has 3" in problem for problem in found.problems)


def test_another_hidden_size_names_the_closest_mapping(headers: Callable[..., Any]) -> None:
    shapes = {**decoder(hidden=6), "lm_head.weight": (20, 6)}
    found = align(headers("host", lvlm("saved"), LVLM_CONFIG), headers("llm", shapes, LLM_CONFIG), {})
    assert any("closest mapping is model.layers -> language_model.model.layers" in one for one in found.problems)
    assert any("[6, 6]" in one and "[8, 8]" in one for one in found.problems)


def test_tensor_map_overrides_and_leaves_out(headers: Callable[..., Any]) -> None:
    shapes = {name.replace("model.", "backbone.").replace("layers", "blocks"): s for name, s in decoder().items()}
    other = headers("llm", shapes | {"extra.weight": (3, 3)}, LLM_CONFIG)
    host = headers("host", lvlm("saved"), LVLM_CONFIG)
    tensor_map = {
        "backbone.blocks.": "language_model.model.layers.",
        "backbone.": "language_model.model.",
        "extra.": None,
    }
    found = align(host, other, tensor_map)
    assert not found.problems
    assert found.unused == {"extra.weight": "left out by tensor_map"}
    assert found.tensors["language_model.model.layers.2.mlp.up_proj.weight"] == "backbone.blocks.2.mlp.up_proj.weight"


@pytest.mark.parametrize(
    ("tensor_map", "message"),
    [
        ({"nothing.": "model."}, "no tensor name begins with 'nothing.'"),
        ({"model.norm": "language_model.nowhere"}, "which the host host does not have"),
        ({"model.norm": "language_model.model.embed_tokens"}, "[8] in llm"),
    ],
)
def test_a_wrong_tensor_map_is_told(tensor_map: dict[str, str], message: str, headers: Callable[..., Any]) -> None:
    found = align(headers("host", lvlm("saved"), LVLM_CONFIG), headers("llm", llm(), LLM_CONFIG), tensor_map)
    assert any(message in problem for problem in found.problems), found.problems


def test_the_language_stack_is_told_from_a_tower_of_the_same_size(headers: Callable[..., Any]) -> None:
    for style, (text, *_) in STYLES.items():
        stack = language_stack(headers("host", lvlm(style), LVLM_CONFIG))
        assert stack is not None
        assert stack.prefix == f"{text}layers"


def test_multimodal_by_nested_configs() -> None:
    assert is_multimodal(LVLM_CONFIG)
    assert not is_multimodal(LLM_CONFIG)


def test_depth_counts_layers_of_the_own_stack(headers: Callable[..., Any]) -> None:
    stacks = stacks_of(headers("host", lvlm("saved"), LVLM_CONFIG).tensors.values())
    assert depth_of("language_model.model.layers.0.mlp.up_proj.weight", stacks) == 0
    assert depth_of("language_model.model.layers.1.mlp.up_proj.weight", stacks) == 0.5
    assert depth_of("vision_tower.encoder.layers.2.mlp.fc1.weight", stacks) == 1
    assert depth_of("language_model.lm_head.weight", stacks) == 0
    single = stacks_of(headers("one", decoder(1), LLM_CONFIG).tensors.values())
    assert depth_of("model.layers.0.mlp.up_proj.weight", single) == 1
