"""Other mixes than one LLM with one LVLM: two LVLMs, two LLMs, three models, a base, whole-tensor methods."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForMultimodalLM

NAMINGS = ("llava", "llava_in_memory", "llava_hub", "llava_in_memory_hub_tower")


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
    recipe = zoo.recipe("linear", {host: 1.0, other: 1.0}, host_model=host.reference)
    merge(recipe, tmp_path / "out")
    zoo.assert_merged(ours, tmp_path / "out", zoo.mixed(host, other, zoo.average))


@pytest.mark.parametrize("name", ["mllama", "gemma3", "qwen2_vl", "idefics3", "phi4_multimodal"])
def test_two_lvlms_of_a_family(name: str, zoo: Any, families: Any, merge: Any, tmp_path: Path) -> None:
    family = families[name]
    host, other = zoo.host(family), zoo.host(family, seed=2)
    merge(zoo.recipe("linear", {other: 1.0, host: 1.0}, host_model=host.reference), tmp_path / "out")
    zoo.assert_merged(family, tmp_path / "out", zoo.mixed(host, other, zoo.average))


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
    merge(zoo.recipe("linear", {other: 1.0, host: 1.0}, **keys), tmp_path / "out")

    expected = zoo.mixed(host, other, zoo.average)
    state, ours, theirs = expected.state_dict(), host.model.state_dict(), other.model.state_dict()
    vocabulary = [key for key in state if "embed_tokens" in key or key == "lm_head.weight"]
    host_rows, other_rows = zip(*((row, other.tokens[token]) for token, row in host.tokens.items()), strict=True)
    for key in vocabulary:
        state[key].copy_(ours[key])
        state[key][list(host_rows)] = zoo.average(ours[key][list(host_rows)], theirs[key][list(other_rows)])
    zoo.assert_merged(family, tmp_path / "out", expected)


def test_another_vision_tower_is_left_alone_with_its_projector(zoo: Any, families: Any, plan_of: Any) -> None:
    """The language models fit, the vision towers do not: a projector mixed from two towers would be none."""
    host, other = zoo.host(families["llava"]), zoo.host(families["llava_twin"])
    plan = plan_of(zoo.recipe("linear", {other: 1.0, host: 1.0}, host_model=host.reference))
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
    merge(zoo.recipe("linear", {llm: 1.0, host: 1.0}), tmp_path / "out")
    zoo.save(zoo.grafted(family, host, llm, zoo.average), tmp_path / "expected", (), None)
    assert zoo.bytes_of(tmp_path / "out") == zoo.bytes_of(tmp_path / "expected")
    torch.save({}, tmp_path / "out" / "spk_dict.pt")  # transformers insists on it; a pickle does not come along
    loaded = AutoModelForMultimodalLM.from_pretrained(tmp_path / "out")
    assert zoo.logits(thinker, loaded.thinker).isfinite().all()


# -- two LLMs -------------------------------------------------------------------------------------


def test_two_llms(zoo: Any, llava: Any, merge: Any, tmp_path: Path) -> None:
    one, other = zoo.llm(llava), zoo.llm(llava, seed=3)
    merge(zoo.recipe("linear", {one: 1.0, other: 1.0}), tmp_path / "out")
    loaded, info = AutoModelForCausalLM.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert {problem: keys for problem, keys in info.items() if keys} == {}
    expected = zoo.mixed(one, other, zoo.average).state_dict()
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

    merge(zoo.recipe("linear", {llm: 1.0, host: 2.0}), tmp_path / "lvlm")
    merge(zoo.recipe("linear", {llm: 1.0, part: 2.0}, host_model=part.reference), tmp_path / "llm")
    whole = AutoModelForMultimodalLM.from_pretrained(tmp_path / "lvlm", dtype="auto").state_dict()
    language = dataclasses.replace(part, model=AutoModelForCausalLM.from_pretrained(tmp_path / "llm", dtype="auto"))
    for key, expected in zoo.counterparts(family, host, language).items():
        assert torch.equal(whole[key], expected.tensor), key


# -- three models ---------------------------------------------------------------------------------


def linear_of_three(zoo: Any, family: Any, host: Any, other: Any, llm: Any) -> Any:
    """(llm + 2 other + 4 host) / 7 where all three have it, (2 other + 4 host) / 6 elsewhere."""
    expected = zoo.mixed(host, other, lambda ours, _: ours)
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
    recipe = zoo.recipe("linear", {llm: 1.0, other: 2.0, host: 4.0}, host_model=host.reference)
    plan = merge(recipe, tmp_path / "out")
    zoo.assert_merged(llava, tmp_path / "out", linear_of_three(zoo, llava, host, other, llm))
    contributors = {task.name: [one.model for one in task.inputs] for task in plan.tensors}
    assert contributors["language_model.model.norm.weight"] == [one.reference for one in (llm, other, host)]
    assert contributors["multi_modal_projector.linear_1.weight"] == [one.reference for one in (other, host)]


@pytest.mark.parametrize("name", ["llava", "gemma3", "mllama", "idefics3"])
def test_task_arithmetic_over_a_plain_llm(name: str, zoo: Any, families: Any, merge: Any, tmp_path: Path) -> None:
    """base + (llm - base) + (host - base) / 2 in the language model; the rest is the host's."""
    family = families[name]
    host, llm, base = zoo.host(family), zoo.llm(family), zoo.llm(family, seed=3)
    recipe = zoo.recipe("task_arithmetic", {llm: 1.0, host: 0.5}, base_model=base.reference)
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


def test_the_llm_may_be_the_host(zoo: Any, llava: Any, merge: Any, tmp_path: Path) -> None:
    """What an LVLM learnt, back into its LLM: the vision tower is not used, and the plan says so."""
    lvlm, llm = zoo.host(llava), zoo.llm(llava)
    plan = merge(zoo.recipe("linear", {llm: 1.0, lvlm: 1.0}, host_model=llm.reference), tmp_path / "out")
    loaded, info = AutoModelForCausalLM.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert {problem: keys for problem, keys in info.items() if keys} == {}
    result = dataclasses.replace(llm, model=loaded)
    seeing = lvlm.model.state_dict()
    before, after = zoo.counterparts(llava, lvlm, llm), zoo.counterparts(llava, lvlm, result)
    for key, ours in before.items():
        host_rows, rows = ours.rows or (slice(None), slice(None))
        wanted = ours.tensor.clone()
        wanted[rows] = zoo.average(ours.tensor[rows], seeing[key][host_rows])
        assert torch.equal(after[key].tensor, wanted), key
    assert any("vision_tower" in warning for warning in plan.warnings)


@pytest.mark.parametrize("name", ["llava", "gemma3"])
def test_a_method_over_whole_tensors_sees_the_shared_rows_alone(
    name: str, zoo: Any, families: Any, merge: Any, tmp_path: Path
) -> None:
    """slerp's angle is between the rows that both have, not between a matrix and part of another."""
    family = dataclasses.replace(families[name], name=f"{name}_slerp", tokens="permuted")
    host, llm = zoo.host(family), zoo.llm(family)
    recipe = {
        "merge_method": "slerp",
        "base_model": host.reference,
        "models": [{"model": one.reference} for one in (host, llm)],
        "parameters": {"t": 0.25},
    }
    merge(recipe, tmp_path / "out")
    loaded = AutoModelForMultimodalLM.from_pretrained(tmp_path / "out").state_dict()
    for key, expected in zoo.grafted(family, host, llm, slerp).state_dict().items():
        torch.testing.assert_close(loaded[key], expected, rtol=1e-5, atol=1e-7)


def slerp(ours: torch.Tensor, theirs: torch.Tensor, t: float = 0.25) -> torch.Tensor:
    """On the arc from ours to theirs; mergekit's rule for lengths: neither is made one length first."""
    one, other = ours.double(), theirs.double()
    angle = torch.arccos((one / one.norm() * (other / other.norm())).sum())
    mixed = (torch.sin((1 - t) * angle) * one + torch.sin(t * angle) * other) / torch.sin(angle)
    return mixed.to(ours.dtype)
