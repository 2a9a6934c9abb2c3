"""Models that all but fit: other vocabularies and heads, tensors that one side lacks, namings, shards, dtypes."""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForMultimodalLM


@pytest.fixture
def llava(families: Mapping[str, Any]) -> Any:
    return families["llava"]


# -- embeddings and heads -------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["llava", "gemma3", "mllama", "gemma4"])
def test_embeddings_of_the_host(name: str, zoo: Any, families: Any, merge: Any, tmp_path: Path) -> None:
    family = families[name]
    host, llm = zoo.host(family), zoo.llm(family)
    merge(zoo.recipe("linear", {llm: 1.0, host: 1.0}, embeddings="host"), tmp_path / "out")
    expected = zoo.grafted(family, host, llm, zoo.average)
    state = expected.state_dict()
    for key, tensor in zoo.counterparts(family, host, llm).items():
        if tensor.rows is not None:
            state[key].copy_(host.model.state_dict()[key])
    zoo.assert_merged(family, tmp_path / "out", expected)


def test_a_tied_llm_meets_both_matrices_of_an_untied_host(zoo: Any, llava: Any, merge: Any, tmp_path: Path) -> None:
    host, llm = zoo.host(llava), zoo.llm(llava, tie_word_embeddings=True)
    assert "lm_head.weight" not in zoo.bytes_of(llm.folder)
    merge(zoo.recipe("linear", {llm: 1.0, host: 1.0}), tmp_path / "out")
    zoo.assert_merged(llava, tmp_path / "out", zoo.grafted(llava, host, llm, zoo.average))


def test_an_untied_llm_into_a_tied_host_with_the_hosts_vocabulary(
    zoo: Any, families: Any, merge: Any, tmp_path: Path
) -> None:
    family = families["gemma3"]
    host, llm = zoo.host(family), zoo.llm(family, tie_word_embeddings=False)
    merge(zoo.recipe("linear", {llm: 1.0, host: 1.0}, embeddings="host"), tmp_path / "out")
    expected = zoo.grafted(family, host, llm, zoo.average)
    expected.get_input_embeddings().weight.data.copy_(host.model.get_input_embeddings().weight)
    zoo.assert_merged(family, tmp_path / "out", expected)


def test_one_tokenizer_is_not_needed_when_the_sizes_agree(zoo: Any, llava: Any, merge: Any, tmp_path: Path) -> None:
    family = dataclasses.replace(llava, name="llava_one_tokenizer", tokens="position")
    host, llm = zoo.host(family), zoo.llm(family)
    Path(host.folder, "tokenizer.json").write_bytes(Path(zoo.host(llava).folder, "tokenizer.json").read_bytes())
    merge(zoo.recipe("linear", {llm: 1.0, host: 1.0}), tmp_path / "out")
    zoo.assert_merged(family, tmp_path / "out", zoo.grafted(family, host, llm, zoo.average))


def test_no_token_in_common(zoo: Any, llava: Any, plan_of: Any) -> None:
    """Nothing of the embeddings can be merged, and the plan says so."""
    family = dataclasses.replace(llava, name="llava_strangers")
    host, llm = zoo.host(family), zoo.llm(family)
    tokenizer = Path(llm.folder, "tokenizer.json")
    tokenizer.write_text(tokenizer.read_text().replace("word", "mot"))
    plan = plan_of(zoo.recipe("linear", {llm: 1.0, host: 1.0}))
    plan.close()
    kept = {task.name for task in plan.tensors if task.action == "copy" and task.name.startswith("language_model")}
    assert kept == {"language_model.model.embed_tokens.weight", "language_model.lm_head.weight"}
    assert any("0 of 103 vocabulary rows" in warning for warning in plan.warnings)


# -- what one side has and the other has not ------------------------------------------------------


def test_biases_that_only_the_host_has_stay(zoo: Any, families: Any, merge: Any, tmp_path: Path) -> None:
    family = families["llava_onevision"]  # Qwen2 inside, which has biases
    host, llm = zoo.host(family), zoo.llm(families["llava"])
    plan = merge(zoo.recipe("linear", {llm: 1.0, host: 1.0}), tmp_path / "out")
    zoo.assert_merged(family, tmp_path / "out", zoo.grafted(family, host, llm, zoo.average))
    kept = [task.name for task in plan.tensors if task.name.startswith("language_model.") and task.action == "copy"]
    assert kept
    assert all(name.endswith(("q_proj.bias", "k_proj.bias", "v_proj.bias")) for name in kept)


def test_a_tensor_that_the_llm_lacks_stays(zoo: Any, llava: Any, merge: Any, tmp_path: Path) -> None:
    family = dataclasses.replace(llava, name="llava_lacking")
    host, llm = zoo.host(family), zoo.llm(family)
    file = llm.folder / "model.safetensors"
    tensors = load_file(file)
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, file, {"format": "pt"})
    plan = merge(zoo.recipe("linear", {llm: 1.0, host: 1.0}), tmp_path / "out")
    expected = zoo.grafted(family, host, llm, zoo.average)
    missing = "model.language_model.layers.1.mlp.up_proj.weight"
    expected.state_dict()[missing].copy_(host.model.state_dict()[missing])
    zoo.assert_merged(family, tmp_path / "out", expected)
    notes = {task.name: (task.action, task.note) for task in plan.tensors}
    assert notes["language_model.model.layers.1.mlp.up_proj.weight"] == ("copy", "only the host has it")


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
    merge(zoo.recipe("linear", {llm: 1.0, host: 1.0}), tmp_path / "out")
    tensors = load_file(tmp_path / "out" / "model.safetensors")
    assert {name for name in tensors if "inv_freq" in name} == before.keys()
    assert all(torch.equal(tensors[name], buffer) for name, buffer in before.items())
    loaded = AutoModelForMultimodalLM.from_pretrained(tmp_path / "out")
    expected = zoo.grafted(family, host, llm, zoo.average).state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in loaded.state_dict().items())


# -- checkpoints that transformers does not know --------------------------------------------------

LANGUAGE = "^language_model."
ORIGINAL_REPOSITORIES = {
    "internvl": ([("^vision_tower", "vision_model"), ("^multi_modal_projector", "mlp1")], "llm_config", LANGUAGE),
    "deepseek_vl": ([("^language_model", "language")], "language_config", "^language."),
    "minicpm_v": ([("^language_model", "llm"), ("^vision_tower", "vpm")], "", "^llm."),
    "llava": ([("^language_model.", ""), ("^(vision_tower|multi_modal_projector)", "model.mm.\\1")], "", "^"),
}


@pytest.mark.parametrize("repository", ORIGINAL_REPOSITORIES)
def test_namings_of_original_repositories(repository: str, zoo: Any, llava: Any, plan_of: Any, tmp_path: Path) -> None:
    """Remote-code models: other module names, and the text config under another key or flat at the top."""
    rewrites, key, prefix = ORIGINAL_REPOSITORIES[repository]
    llm, host = zoo.llm(llava), dataclasses.replace(zoo.host(llava), folder=tmp_path / repository)
    zoo.save(host.model, host.folder, rewrites, host.tokens)
    config = json.loads((host.folder / "config.json").read_text())
    text = config.pop("text_config")
    config |= {key: text} if key else text
    if repository == "llava":
        del config["vision_config"]
        config["mm_vision_tower"] = "openai/clip-vit-large-patch14-336"
    (host.folder / "config.json").write_text(json.dumps({**config, "model_type": repository}))

    # Nothing in LLaVA's config tells that it sees: the recipe must.
    keys = {"host_model": host.reference} if repository == "llava" else {}
    plan = plan_of(zoo.recipe("linear", {llm: 1.0, host: 1.0}, **keys))
    plan.close()
    assert plan.host_model == host.reference
    merged = {task.name: task.inputs[0].tensor for task in plan.tensors if task.action == "merge"}
    assert merged == {prefix.removeprefix("^") + name: name for name in zoo.bytes_of(llm.folder)}


# -- files ----------------------------------------------------------------------------------------


def test_shards_make_no_difference(zoo: Any, llava: Any, merge: Any, tmp_path: Path) -> None:
    host, llm = zoo.host(llava), zoo.llm(llava)
    sharded = [dataclasses.replace(one, folder=tmp_path / one.folder.name) for one in (host, llm)]
    for one, size in zip(sharded, ("100KB", "60KB"), strict=True):
        one.model.save_pretrained(one.folder, max_shard_size=size)
        (one.folder / "tokenizer.json").write_bytes((zoo.root / one.folder.name / "tokenizer.json").read_bytes())
        assert len(json.loads((one.folder / "model.safetensors.index.json").read_text())["weight_map"]) > 1
    merge(zoo.recipe("linear", {sharded[1]: 1.0, sharded[0]: 1.0}), tmp_path / "out")
    zoo.assert_merged(llava, tmp_path / "out", zoo.grafted(llava, host, llm, zoo.average))


def test_dtypes_may_differ(zoo: Any, llava: Any, merge: Any, tmp_path: Path) -> None:
    """The sum is taken in float32; the result has the host's dtype."""
    half = dataclasses.replace(llava, name="llava_half", dtype="bfloat16")
    for host, llm in ((zoo.host(llava), zoo.llm(half)), (zoo.host(half), zoo.llm(llava))):
        out = tmp_path / host.folder.name / "out"
        merge(zoo.recipe("linear", {llm: 1.0, host: 1.0}), out)
        zoo.assert_merged(llava, out, zoo.grafted(llava, host, llm, zoo.average))


def test_the_order_of_models_decides_nothing_but_rounding(zoo: Any, llava: Any, plan_of: Any) -> None:
    host, llm = zoo.host(llava), zoo.llm(llava)
    plans = [plan_of(zoo.recipe("linear", dict.fromkeys(order, 1.0))) for order in ((llm, host), (host, llm))]
    for plan in plans:
        plan.close()
    first, second = (
        [(task.name, task.action, {(one.model, one.tensor) for one in task.inputs}) for task in plan.tensors]
        for plan in plans
    )
    assert first == second
    assert plans[0].host_model == plans[1].host_model == host.reference
