"""Other mixes than one LLM with one LVLM: two LVLMs, two LLMs, three models, a base, and vocabularies in disorder."""

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoModelForMultimodalLM

NAMINGS = ("llava", "llava_in_memory", "llava_hub", "llava_in_memory_hub_tower")


def recipe_of(method: str, weights: Mapping[Any, float], **keys: Any) -> dict[str, Any]:
    models = [{"model": one.reference, "parameters": {"weight": weight}} for one, weight in weights.items()]
    return {"merge_method": method, "models": models, **keys}


def average(ours: torch.Tensor, theirs: torch.Tensor) -> torch.Tensor:
    return ((ours.float() + theirs.float()) / 2).to(ours.dtype)


def keep(ours: torch.Tensor, theirs: torch.Tensor) -> torch.Tensor:
    return ours


def assert_merged(zoo: Any, family: Any, out: Path, expected: Any) -> None:
    """The result is `expected` in the family's naming, to the bit, and loads."""
    zoo.save(expected, out.parent / "expected", family.on_disk, None)
    assert zoo.bytes_of(out) == zoo.bytes_of(out.parent / "expected")
    _, info = AutoModelForMultimodalLM.from_pretrained(out, output_loading_info=True)
    assert {problem: keys for problem, keys in info.items() if keys} == {}


@pytest.fixture
def llava(families: Mapping[str, Any]) -> Any:
    return families["llava"]


# -- two LVLMs ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("naming", "other_naming"), list(zip(NAMINGS, NAMINGS[1:] + NAMINGS[:1], strict=True)))
def test_two_llavas_in_two_namings_merge_like_one(
    naming: str, other_naming: str, zoo: Any, families: Any, merge: Any, tmp_path: Path
) -> None:
    ours, theirs = (
        dataclasses.replace(families["llava"], name=f"plain_{name}", on_disk=families[name].on_disk)
        for name in (naming, other_naming)
    )
    host, other = zoo.host(ours), zoo.host(theirs, seed=2)
    recipe = recipe_of("linear", {host: 1.0, other: 1.0}, host_model=host.reference)
    merge(recipe, tmp_path / "out")
    assert_merged(zoo, ours, tmp_path / "out", zoo.mixed(host, other, average))


@pytest.mark.parametrize("name", ["mllama", "gemma3", "qwen2_vl", "idefics3", "phi4_multimodal"])
def test_two_lvlms_of_a_family(name: str, zoo: Any, families: Any, merge: Any, tmp_path: Path) -> None:
    family = families[name]
    host, other = zoo.host(family), zoo.host(family, seed=2)
    merge(recipe_of("linear", {other: 1.0, host: 1.0}, host_model=host.reference), tmp_path / "out")
    assert_merged(zoo, family, tmp_path / "out", zoo.mixed(host, other, average))


@pytest.mark.parametrize("name", ["llava", "mllama", "gemma4"])
def test_two_lvlms_with_different_tokenizers_meet_token_by_token(
    name: str, zoo: Any, families: Any, merge: Any, tmp_path: Path
) -> None:
    """A token has another row in the other model; a vocabulary tensor that is not known as one would be mixed up."""
    family = families[name]
    host = zoo.host(family)
    shuffled = dataclasses.replace(family, name=f"{name}_shuffled", tokens="permuted")
    other = zoo.host(shuffled, seed=2)
    keys = {"host_model": host.reference, "on_nan": "host"}  # Gemma 4's audio tower is born with infinite clip bounds
    merge(recipe_of("linear", {other: 1.0, host: 1.0}, **keys), tmp_path / "out")

    expected = zoo.mixed(host, other, average)
    state, ours, theirs = expected.state_dict(), host.model.state_dict(), other.model.state_dict()
    vocabulary = [key for key in state if "embed_tokens" in key or key == "lm_head.weight"]
    host_rows, other_rows = zip(*((row, other.tokens[token]) for token, row in host.tokens.items()), strict=True)
    for key in vocabulary:
        state[key].copy_(ours[key])
        state[key][list(host_rows)] = average(ours[key][list(host_rows)], theirs[key][list(other_rows)])
    assert_merged(zoo, family, tmp_path / "out", expected)


def test_another_vision_tower_is_left_alone_with_its_projector(zoo: Any, families: Any, plan_of: Any) -> None:
    """The language models fit, the vision towers do not: a projector mixed from two towers would be none."""
    host, other = zoo.host(families["llava"]), zoo.host(families["llava_twin"])
    plan = plan_of(recipe_of("linear", {other: 1.0, host: 1.0}, host_model=host.reference))
    plan.close()
    merged = {task.name.partition(".")[0] for task in plan.tensors if task.action == "merge"}
    assert merged == {"language_model"}
    assert any("vision_tower" in warning for warning in plan.warnings)


def test_qwen_omni_with_a_talker_like_its_thinker(zoo: Any, families: Any, merge: Any, tmp_path: Path) -> None:
    """Two language models of one architecture and size in one file, and configs that nest deeper than usual."""
    thinker = families["qwen2_5_omni_thinker"]
    talker = {**thinker.config["text_config"], "vocab_size": 71, "embedding_size": 64}
    encoder = {"enc_emb_dim": 6, "enc_dim": 4, "enc_channels": [4, 4, 4, 4, 12], "enc_attention_channels": 4}
    voice = {
        "dit_config": {
            **encoder,
            "emb_dim": 8,
            "mel_dim": 4,
            "num_embeds": 9,
            "enc_res2net_scale": 2,
            "enc_se_channels": 4,
        },
        "bigvgan_config": {"mel_dim": 4, "upsample_initial_channel": 64},
    }
    family = dataclasses.replace(
        thinker,
        name="qwen2_5_omni",
        host="qwen2_5_omni",
        tokens="permuted",
        decoder="thinker.model.language_model",
        head="thinker.lm_head",
        config={"thinker_config": thinker.config, "talker_config": talker, "token2wav_config": voice},
    )
    host, llm = zoo.host(family), zoo.llm(thinker)
    merge(recipe_of("linear", {llm: 1.0, host: 1.0}), tmp_path / "out")
    zoo.save(zoo.grafted(family, host, llm, average), tmp_path / "expected", (), None)
    assert zoo.bytes_of(tmp_path / "out") == zoo.bytes_of(tmp_path / "expected")
    torch.save({}, tmp_path / "out" / "spk_dict.pt")  # transformers insists on it; a pickle does not come along
    loaded = AutoModelForMultimodalLM.from_pretrained(tmp_path / "out")
    assert zoo.logits(thinker, loaded.thinker).isfinite().all()


# -- two LLMs -------------------------------------------------------------------------------------


def test_two_llms(zoo: Any, llava: Any, merge: Any, tmp_path: Path) -> None:
    one, other = zoo.llm(llava), zoo.llm(llava, seed=3)
    merge(recipe_of("linear", {one: 1.0, other: 1.0}), tmp_path / "out")
    loaded, info = AutoModelForCausalLM.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert {problem: keys for problem, keys in info.items() if keys} == {}
    expected = zoo.mixed(one, other, average).state_dict()
    assert {name: tensor.tolist() for name, tensor in loaded.state_dict().items()} == {
        name: tensor.tolist() for name, tensor in expected.items()
    }


@pytest.mark.parametrize("name", ["llava_in_memory", "llava_next", "qwen3_vl", "idefics3", "llama4"])
def test_the_language_part_is_what_merging_two_llms_gives(
    name: str, zoo: Any, families: Any, merge: Any, tmp_path: Path
) -> None:
    family = dataclasses.replace(families[name], name=f"{name}_equal_vocabulary", tokens="position")
    host, llm = zoo.host(family), zoo.llm(family)
    part = zoo.llm(family, seed=4)  # replaced by the host's language model
    for key, tensor in zoo.counterparts(family, host, part).items():
        tensor.tensor.copy_(host.model.state_dict()[key])
    zoo.save(part.model, part.folder, (), None)

    merge(recipe_of("linear", {llm: 1.0, host: 2.0}), tmp_path / "lvlm")
    merge(recipe_of("linear", {llm: 1.0, part: 2.0}, host_model=part.reference), tmp_path / "llm")
    whole = AutoModelForMultimodalLM.from_pretrained(tmp_path / "lvlm", dtype="auto").state_dict()
    language = dataclasses.replace(part, model=AutoModelForCausalLM.from_pretrained(tmp_path / "llm", dtype="auto"))
    for key, expected in zoo.counterparts(family, host, language).items():
        assert torch.equal(whole[key], expected.tensor), key


# -- three models ---------------------------------------------------------------------------------


def linear_of_three(zoo: Any, family: Any, host: Any, other: Any, llm: Any) -> Any:
    """(llm + 2 other + 4 host) / 7 where all three have it, (2 other + 4 host) / 6 elsewhere."""
    expected = zoo.mixed(host, other, keep)
    state, ours, theirs = expected.state_dict(), host.model.state_dict(), other.model.state_dict()
    shared = zoo.counterparts(family, host, llm)
    for key, result in state.items():
        pair = 2 * theirs[key] + 4 * ours[key]
        if key not in shared:
            result.copy_(pair / 6)
        elif shared[key].rows is None:
            result.copy_((shared[key].tensor + 2 * theirs[key] + 4 * ours[key]) / 7)
        else:
            rows, llm_rows = shared[key].rows
            result[rows] = (shared[key].tensor[llm_rows] + 2 * theirs[key][rows] + 4 * ours[key][rows]) / 7
    return expected


def test_an_llm_and_two_lvlms(zoo: Any, llava: Any, merge: Any, tmp_path: Path) -> None:
    host, other, llm = zoo.host(llava), zoo.host(llava, seed=3), zoo.llm(llava)
    recipe = recipe_of("linear", {llm: 1.0, other: 2.0, host: 4.0}, host_model=host.reference)
    plan = merge(recipe, tmp_path / "out")
    assert_merged(zoo, llava, tmp_path / "out", linear_of_three(zoo, llava, host, other, llm))
    contributors = {task.name: [one.model for one in task.inputs] for task in plan.tensors}
    assert contributors["language_model.model.norm.weight"] == [one.reference for one in (llm, other, host)]
    assert contributors["multi_modal_projector.linear_1.weight"] == [one.reference for one in (other, host)]


@pytest.mark.parametrize("name", ["llava", "gemma3", "mllama", "idefics3"])
def test_task_arithmetic_over_a_plain_llm(name: str, zoo: Any, families: Any, merge: Any, tmp_path: Path) -> None:
    """base + (llm - base) + (host - base) / 2 in the language model; the rest is the host's."""
    family = families[name]
    host, llm, base = zoo.host(family), zoo.llm(family), zoo.llm(family, seed=3)
    recipe = recipe_of("task_arithmetic", {llm: 1.0, host: 0.5}, base_model=base.reference)
    plan = merge(recipe, tmp_path / "out")
    assert plan.host_model == host.reference

    loaded = AutoModelForMultimodalLM.from_pretrained(tmp_path / "out").state_dict()
    ours, bases = host.model.state_dict(), zoo.counterparts(family, host, base)
    shared = zoo.counterparts(family, host, llm)
    language = {ours[key].data_ptr() for key in shared}  # a tied head is the embedding under another name
    for key, before in ours.items():
        if key in shared:
            rows, llm_rows = shared[key].rows or (slice(None), slice(None))
            wanted = before.clone()
            start = bases[key].tensor[llm_rows]
            wanted[rows] = start + (shared[key].tensor[llm_rows] - start) + (before[rows] - start) / 2
            torch.testing.assert_close(loaded[key], wanted, rtol=1e-6, atol=1e-7)
        elif before.data_ptr() not in language:
            assert torch.equal(loaded[key], before), key


# -- embeddings and heads -------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["llava", "gemma3", "mllama", "gemma4"])
def test_embeddings_of_the_host(name: str, zoo: Any, families: Any, merge: Any, tmp_path: Path) -> None:
    family = families[name]
    host, llm = zoo.host(family), zoo.llm(family)
    merge(recipe_of("linear", {llm: 1.0, host: 1.0}, embeddings="host"), tmp_path / "out")
    expected = zoo.grafted(family, host, llm, average)
    state = expected.state_dict()
    for key, tensor in zoo.counterparts(family, host, llm).items():
        if tensor.rows is not None:
            state[key].copy_(host.model.state_dict()[key])
    assert_merged(zoo, family, tmp_path / "out", expected)


def test_a_tied_llm_meets_both_matrices_of_an_untied_host(zoo: Any, llava: Any, merge: Any, tmp_path: Path) -> None:
    host, llm = zoo.host(llava), zoo.llm(llava, tie_word_embeddings=True)
    assert "lm_head.weight" not in zoo.bytes_of(llm.folder)
    merge(recipe_of("linear", {llm: 1.0, host: 1.0}), tmp_path / "out")
    assert_merged(zoo, llava, tmp_path / "out", zoo.grafted(llava, host, llm, average))


def test_an_untied_llm_into_a_tied_host_with_the_hosts_vocabulary(
    zoo: Any, families: Any, merge: Any, tmp_path: Path
) -> None:
    family = families["gemma3"]
    host, llm = zoo.host(family), zoo.llm(family, tie_word_embeddings=False)
    merge(recipe_of("linear", {llm: 1.0, host: 1.0}, embeddings="host"), tmp_path / "out")
    expected = zoo.grafted(family, host, llm, average)
    expected.get_input_embeddings().weight.data.copy_(host.model.get_input_embeddings().weight)
    assert_merged(zoo, family, tmp_path / "out", expected)


def test_one_tokenizer_is_not_needed_when_the_sizes_agree(zoo: Any, llava: Any, merge: Any, tmp_path: Path) -> None:
    family = dataclasses.replace(llava, name="llava_one_tokenizer", tokens="position")
    host, llm = zoo.host(family), zoo.llm(family)
    Path(host.folder, "tokenizer.json").write_bytes(Path(zoo.host(llava).folder, "tokenizer.json").read_bytes())
    merge(recipe_of("linear", {llm: 1.0, host: 1.0}), tmp_path / "out")
    assert_merged(zoo, family, tmp_path / "out", zoo.grafted(family, host, llm, average))


def test_no_token_in_common(zoo: Any, llava: Any, plan_of: Any) -> None:
    """Nothing of the embeddings can be merged, and the plan says so."""
    family = dataclasses.replace(llava, name="llava_strangers")
    host, llm = zoo.host(family), zoo.llm(family)
    tokenizer = Path(llm.folder, "tokenizer.json")
    tokenizer.write_text(tokenizer.read_text().replace("word", "mot"))
    plan = plan_of(recipe_of("linear", {llm: 1.0, host: 1.0}))
    plan.close()
    kept = {task.name for task in plan.tensors if task.action == "copy" and task.name.startswith("language_model")}
    assert kept == {"language_model.model.embed_tokens.weight", "language_model.lm_head.weight"}
    assert any("0 of 103 vocabulary rows" in warning for warning in plan.warnings)


# -- what one side has and the other has not ------------------------------------------------------


def test_biases_that_only_the_host_has_stay(zoo: Any, families: Any, merge: Any, tmp_path: Path) -> None:
    family = families["llava_onevision"]  # Qwen2 inside, which has biases
    host, llm = zoo.host(family), zoo.llm(families["llava"])
    plan = merge(recipe_of("linear", {llm: 1.0, host: 1.0}), tmp_path / "out")
    assert_merged(zoo, family, tmp_path / "out", zoo.grafted(family, host, llm, average))
    kept = [task.name for task in plan.tensors if task.name.startswith("language_model.") and task.action == "copy"]
    assert kept
    assert all(name.endswith(("q_proj.bias", "k_proj.bias", "v_proj.bias")) for name in kept)


@pytest.mark.parametrize("where", ["llm", "host", "both"])
def test_rotary_buffers_of_old_checkpoints(where: str, zoo: Any, llava: Any, merge: Any, tmp_path: Path) -> None:
    family = dataclasses.replace(llava, name=f"llava_inv_freq_{where}")
    host, llm = zoo.host(family), zoo.llm(family)
    before = {}
    for specimen, prefix in ((llm, "model.layers"), (host, "language_model.model.layers")):
        if where in ("both", "llm" if specimen is llm else "host"):
            file = specimen.folder / "model.safetensors"
            buffers = {f"{prefix}.{layer}.self_attn.rotary_emb.inv_freq": torch.rand(8) for layer in range(3)}
            save_file({**load_file(file), **buffers}, file, {"format": "pt"})
            before = buffers if specimen is host else before
    merge(recipe_of("linear", {llm: 1.0, host: 1.0}), tmp_path / "out")
    tensors = load_file(tmp_path / "out" / "model.safetensors")
    assert {name for name in tensors if "inv_freq" in name} == before.keys()
    assert all(torch.equal(tensors[name], buffer) for name, buffer in before.items())
    loaded = AutoModelForMultimodalLM.from_pretrained(tmp_path / "out")
    expected = zoo.grafted(family, host, llm, average).state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in loaded.state_dict().items())


# -- files ----------------------------------------------------------------------------------------


def test_shards_make_no_difference(zoo: Any, llava: Any, merge: Any, tmp_path: Path) -> None:
    host, llm = zoo.host(llava), zoo.llm(llava)
    sharded = [dataclasses.replace(one, folder=tmp_path / one.folder.name) for one in (host, llm)]
    for one, size in zip(sharded, ("100KB", "60KB"), strict=True):
        one.model.save_pretrained(one.folder, max_shard_size=size)
        (one.folder / "tokenizer.json").write_bytes((zoo.root / one.folder.name / "tokenizer.json").read_bytes())
        assert len(json.loads((one.folder / "model.safetensors.index.json").read_text())["weight_map"]) > 1
    merge(recipe_of("linear", {sharded[1]: 1.0, sharded[0]: 1.0}), tmp_path / "out")
    assert_merged(zoo, llava, tmp_path / "out", zoo.grafted(llava, host, llm, average))


def test_dtypes_may_differ(zoo: Any, llava: Any, merge: Any, tmp_path: Path) -> None:
    """The sum is taken in float32; the result has the host's dtype."""
    half = dataclasses.replace(llava, name="llava_half", dtype="bfloat16")
    for host, llm in ((zoo.host(llava), zoo.llm(half)), (zoo.host(half), zoo.llm(llava))):
        out = tmp_path / host.folder.name / "out"
        merge(recipe_of("linear", {llm: 1.0, host: 1.0}), out)
        assert_merged(zoo, llava, out, zoo.grafted(llava, host, llm, average))


def test_the_order_of_models_decides_nothing_but_rounding(zoo: Any, llava: Any, plan_of: Any) -> None:
    host, llm = zoo.host(llava), zoo.llm(llava)
    plans = [plan_of(recipe_of("linear", dict.fromkeys(order, 1.0))) for order in ((llm, host), (host, llm))]
    pairs: Sequence[Callable[[Any], Any]] = (
        lambda plan: plan.host_model,
        lambda plan: [(task.name, task.action, sorted(one.tensor for one in task.inputs)) for task in plan.tensors],
    )
    for pair in pairs:
        assert pair(plans[0]) == pair(plans[1])
    for plan in plans:
        plan.close()
