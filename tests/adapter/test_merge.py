"""Adapters merged into an adapter: the merge of what they add, in factors that PEFT loads."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

import safegraft

# Factors are float32: their product has an error of some units in its last place, relative to its largest values.
CLOSE = {"rtol": 1e-5, "atol": 1e-5}

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")


def deltas(folder: Path) -> dict[str, torch.Tensor]:
    """Module -> scale B A, straight from the files."""
    config = json.loads((folder / "adapter_config.json").read_text())
    factors = load_file(folder / "adapter_model.safetensors")
    found: dict[str, torch.Tensor] = {}
    for name in factors:
        if name.endswith(".lora_A.weight"):
            module = name.removeprefix("base_model.model.").removesuffix(".lora_A.weight")
            a, b = factors[name], factors[name.replace("lora_A", "lora_B")]
            alpha = config.get("alpha_pattern", {}).get(module, config["lora_alpha"])
            found[module] = alpha / a.shape[0] * (b @ a)
    return found


@pytest.fixture
def pair(models: Any, write_lora: Any, tmp_path: Path) -> tuple[Path, Path]:
    """One adapter of rank 2 for attention, one of rank 3 for attention's q_proj and the MLP."""
    one = write_lora(tmp_path / "one", models.llm, seed=1)
    two = write_lora(tmp_path / "two", models.llm, targets="*[qp]_proj.weight", seed=2, r=3)
    return one, two


def recipe(pair: tuple[Path, ...], method: str, *weights: float, **more: Any) -> dict[str, Any]:
    models = [{"model": str(one), "parameters": {"weight": weight}} for one, weight in zip(pair, weights, strict=True)]
    return {"models": models, "merge_method": method, **more}


def test_linear_is_the_weighted_sum_of_what_they_add(pair: tuple[Path, Path], tmp_path: Path) -> None:
    asked = recipe(pair, "linear", 0.75, -0.5, parameters={"normalize": False})
    safegraft.merge(asked, out=tmp_path / "out")
    one, two, found = (deltas(folder) for folder in (*pair, tmp_path / "out"))
    assert found.keys() == one.keys() | two.keys()
    assert one.keys() - two.keys()
    assert two.keys() - one.keys()
    zero = torch.zeros(())
    for module, delta in found.items():
        torch.testing.assert_close(delta, 0.75 * one.get(module, zero) - 0.5 * two.get(module, zero), **CLOSE)
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert config["r"] == 5  # of modules in both; others keep their own
    assert set(config["rank_pattern"].values()) == {2, 3}


def test_peft_loads_it_and_so_does_safegraft(models: Any, pair: tuple[Path, Path], tmp_path: Path) -> None:
    safegraft.merge(recipe(pair, "linear", 0.5, 0.5), out=tmp_path / "out")
    model = AutoModelForCausalLM.from_pretrained(models.llm)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    after = PeftModel.from_pretrained(model, tmp_path / "out").merge_and_unload().state_dict()
    passed = {"models": [{"model": f"{models.llm}+{tmp_path / 'out'}"}], "merge_method": "passthrough"}
    added = deltas(tmp_path / "out")
    with safegraft.open(passed) as ours:
        for name, tensor in ours.tensors.items():
            torch.testing.assert_close(tensor, after[name], **CLOSE)
            expected = before[name] + added.get(name.removesuffix(".weight"), torch.zeros(()))
            torch.testing.assert_close(tensor, expected, **CLOSE)


def test_methods_with_a_base_merge_over_zeros(pair: tuple[Path, Path], tmp_path: Path) -> None:
    """task_arithmetic over a base of zeros is the weighted sum, times lambda."""
    asked = recipe(pair, "task_arithmetic", 0.5, 2, parameters={"lambda": 0.5})
    safegraft.merge(asked, out=tmp_path / "out")
    one, two, found = (deltas(folder) for folder in (*pair, tmp_path / "out"))
    module = next(iter(one.keys() & two.keys()))
    torch.testing.assert_close(found[module], 0.25 * one[module] + two[module], **CLOSE)


def test_a_lower_rank_keeps_the_largest_part_and_says_what_is_lost(pair: tuple[Path, Path], tmp_path: Path) -> None:
    safegraft.merge(recipe(pair, "linear", 0.5, 0.5), out=tmp_path / "out", rank=1)
    one, two, found = (deltas(folder) for folder in (*pair, tmp_path / "out"))
    manifest = json.loads((tmp_path / "out" / "safegraft.json").read_text())
    energies = {entry["module"]: entry["energy"] for entry in manifest["modules"]}
    for module in one.keys() & two.keys():
        exact = (one[module] + two[module]) / 2
        singular = torch.linalg.svdvals(exact)
        assert torch.linalg.matrix_rank(found[module]) == 1
        torch.testing.assert_close((exact - found[module]).norm(), singular[1:].norm(), **CLOSE)
        assert energies[module] == pytest.approx(float(singular[0] ** 2 / (singular**2).sum()), rel=1e-5)


def test_the_same_again_is_complete_and_without_paths(pair: tuple[Path, Path], tmp_path: Path) -> None:
    asked = recipe(pair, "linear", 0.5, 0.5)
    first = safegraft.merge(asked, out=tmp_path / "out", threads=1)
    assert not first.resumed
    again = safegraft.merge(asked, out=tmp_path / "out", threads=2)
    assert (again.resumed, again.bytes_written, again.files) == (True, 0, first.files)
    other = safegraft.merge(asked, out=tmp_path / "other", threads=2)
    assert other.files == first.files
    assert all(str(tmp_path) not in path.read_text("latin-1") for path in (tmp_path / "out").iterdir())


@pytest.mark.parametrize(
    ("config", "message"),
    [({"use_dora": True}, "lacks lora_magnitude_vector"), ({"fan_in_fan_out": True}, "differ in fan_in_fan_out")],
)
def test_adapters_that_are_more_than_b_a_are_refused(
    models: Any, write_lora: Any, tmp_path: Path, config: dict[str, Any], message: str
) -> None:
    pair = (write_lora(tmp_path / "one", models.llm), write_lora(tmp_path / "two", models.llm, **config))
    with pytest.raises(safegraft.InputError, match=message):
        safegraft.merge(recipe(pair, "linear", 1, 1), out=tmp_path / "out")


def test_adapters_for_other_models_are_refused(models: Any, write_lora: Any, tmp_path: Path) -> None:
    from safegraft.testing import llama_config, llama_tensors, write_checkpoint

    wide = write_checkpoint(tmp_path / "wide", llama_tensors(vocab=20, hidden=16), llama_config(vocab=20, hidden=16))
    pair = (write_lora(tmp_path / "one", models.llm), write_lora(tmp_path / "two", wide))
    with pytest.raises(safegraft.AlignmentError, match="the adapters are not for one model"):
        safegraft.merge(recipe(pair, "linear", 1, 1), out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_adapter_among_models_is_refused(models: Any, pair: tuple[Path, Path], tmp_path: Path) -> None:
    with pytest.raises(safegraft.InputError, match=r"is a PEFT adapter, not a model.*BASE\+ADAPTER"):
        safegraft.merge(recipe((models.llm, pair[0]), "linear", 1, 1), out=tmp_path / "out")
    with pytest.raises(safegraft.UsageError, match="all adapters"):
        safegraft.merge(models.linear(), out=tmp_path / "out", rank=2)


def spoil(folder: Path, value: float) -> Path:
    from safetensors.torch import save_file

    file = folder / "adapter_model.safetensors"
    tensors = load_file(file)
    next(iter(tensors.values()))[0, 0] = value
    save_file(tensors, file, {"format": "pt"})
    return folder


@pytest.mark.parametrize("on_nan", ["error", "host"])
@pytest.mark.parametrize("which", [0, 1])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_an_adapter_with_nan_is_named(
    pair: tuple[Path, Path], tmp_path: Path, on_nan: str, which: int, value: float
) -> None:
    spoil(pair[which], value)
    for method in ("linear", "ties"):
        with pytest.raises(safegraft.NonFiniteError, match=f"{pair[which].name}: makes NaN or inf"):
            safegraft.merge(recipe(pair, method, 0.5, 0.5, on_nan=on_nan), out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("on_nan", ["error", "host"])
def test_a_model_with_an_adapter_with_nan_names_the_adapter(
    models: Any, pair: tuple[Path, Path], tmp_path: Path, on_nan: str
) -> None:
    spoil(pair[0], float("nan"))
    asked = {"models": [{"model": f"{models.llm}+{pair[0]}"}], "merge_method": "passthrough", "on_nan": on_nan}
    with pytest.raises(safegraft.NonFiniteError, match=f"{pair[0].name}: makes NaN or inf"):
        safegraft.merge(asked, out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("key", ["dtype", "out_dtype"])
def test_a_dtype_is_refused(pair: tuple[Path, Path], tmp_path: Path, key: str) -> None:
    with pytest.raises(safegraft.RecipeError, match=f"{key}: has no meaning where all models are adapters"):
        safegraft.merge(recipe(pair, "linear", 1, 1, **{key: "bfloat16"}), out=tmp_path / "out")


def test_every_adapter_that_cannot_be_opened_is_told(pair: tuple[Path, Path], tmp_path: Path) -> None:
    for folder in pair:
        (folder / "adapter_model.safetensors").unlink()
    with pytest.raises(safegraft.InputError) as caught:
        safegraft.merge(recipe(pair, "linear", 1, 1), out=tmp_path / "out")
    assert len(caught.value.problems) == 2


def test_whole_tensors_are_explained(models: Any, pair: tuple[Path, Path], tmp_path: Path) -> None:
    from safetensors.torch import save_file

    file = pair[0] / "adapter_model.safetensors"
    embedding = {"base_model.model.lm_head.weight": load_file(models.llm / "model.safetensors")["lm_head.weight"]}
    save_file({**load_file(file), **embedding}, file)
    with pytest.raises(safegraft.InputError, match=r"such as 'lm_head.weight'.*save_embedding_layers=False"):
        safegraft.merge(recipe(pair, "linear", 1, 1), out=tmp_path / "out")


def test_what_speaks_against_one_model_is_a_warning(models: Any, write_lora: Any, tmp_path: Path) -> None:
    from safegraft.adapter.merge import merge_adapters
    from safegraft.api import registry
    from safegraft.local import open_adapter

    one = write_lora(tmp_path / "one", models.llm, base_model_name_or_path="org/one")
    two = write_lora(
        tmp_path / "two", models.llm, base_model_name_or_path="org/two", target_modules=["q_proj", "other"]
    )
    asked = safegraft.Recipe.load(recipe((one, two), "linear", 1, 1))
    notes = merge_adapters(asked, open_adapter, registry(), tmp_path / "out").notes
    assert any(note.endswith("trained on: org/one, org/two") for note in notes)
    assert any("two: target_modules in its config names 'other', of which it has nothing" in note for note in notes)
    assert json.loads((tmp_path / "out" / "adapter_config.json").read_text())["base_model_name_or_path"] is None
