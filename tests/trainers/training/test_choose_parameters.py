"""Which parameters learn: found by structure, and seen to change, they and no others."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from transformers import LlamaConfig, LlamaForCausalLM
from trl import ModelConfig, SFTConfig, SFTTrainer

from safegraft.errors import UsageError
from safegraft_trainers.training.arguments import BOTH, EVERYTHING, LANGUAGE, PROJECTOR, CommonArguments
from safegraft_trainers.training.base import choose_parameters, load_for_training, lora_targets
from safegraft_trainers.training.parts import Part, find_parts
from safegraft_trainers.training.trainer import Extended


class Trainer(Extended, SFTTrainer):
    pass


Step = Callable[..., tuple[dict[str, Any], Any]]


@pytest.fixture
def step(make_rows: Callable[..., Dataset], quiet_arguments: dict[str, Any]) -> Step:
    """One optimisation step; the weights before it, and the trainer."""

    def run(folder: Path, script: CommonArguments, **lora: Any) -> tuple[dict[str, Any], Any]:
        return _step(folder, script, make_rows(4), quiet_arguments, lora)

    return run


def _step(
    folder: Path, script: CommonArguments, rows: Dataset, arguments: dict[str, Any], lora: dict[str, Any]
) -> tuple[dict[str, Any], Any]:
    model_config = ModelConfig(**lora)
    model, processor = load_for_training(str(folder), model_config)
    choice = choose_parameters(model, script, model_config)
    before = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    trainer = Trainer(
        model=model,
        args=SFTConfig(**arguments, max_steps=1, learning_rate=0.1, weight_decay=0.0),
        train_dataset=rows,
        processing_class=processor,
        peft_config=choice.peft_config,
    )
    if script.projector_learning_rate is not None:
        trainer.use_projector_rate(choice.parts, script.projector_learning_rate)
    trainer.train()
    return before, trainer


def within(name: str, modules: tuple[str, ...]) -> bool:
    return any(name == module or name.startswith(f"{module}.") for module in modules)


@pytest.mark.parametrize("train_parts", [PROJECTOR, BOTH])
def test_one_step_changes_the_parts_that_learn_and_nothing_else(family: Any, train_parts: str, step: Step) -> None:
    before, trainer = step(family.folder, CommonArguments(train_parts=train_parts))
    changed = {name for name, weight in trainer.model.named_parameters() if not torch.equal(weight, before[name])}
    roots = family.projector + (family.language if train_parts == BOTH else ())
    assert changed == {name for name in before if within(name, roots)}
    assert any(within(name, family.tower) for name in before)


def test_lora_touches_the_language_model_alone_and_merges(family: Any, step: Step) -> None:
    before, trainer = step(family.folder, CommonArguments(), use_peft=True, lora_r=2)
    adapted = {
        name.removeprefix("base_model.model.").partition(".lora_A")[0]
        for name, _ in trainer.model.named_parameters()
        if ".lora_A" in name
    }
    layers = family.language[0] + ".layers"
    linear = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
    assert all(name.startswith(layers) for name in adapted)
    assert {name.rpartition(".")[2] for name in adapted} == linear
    assert len(adapted) == 2 * len(linear)
    merged = trainer.model.merge_and_unload()
    changed = {name for name, weight in merged.named_parameters() if not torch.equal(weight, before[name])}
    projector = {name for name in before if within(name, family.projector) and name != "model.image_newline"}
    assert changed == projector | {f"{name}.weight" for name in adapted}


def test_lora_says_which_parameter_it_must_leave_alone(lvlms: dict[str, Path]) -> None:
    model_config = ModelConfig(use_peft=True)
    model, _ = load_for_training(str(lvlms["llava_next"]), model_config)
    choice = choose_parameters(model, CommonArguments(), model_config)
    assert choice.notes == (
        "model.image_newline is a parameter of its own, which no adapter file can hold: it stays as it is",
    )


@pytest.mark.parametrize("lora", [{}, {"use_peft": True, "lora_r": 2}])
def test_the_projector_learns_at_its_own_rate(lvlms: dict[str, Path], step: Step, lora: dict[str, Any]) -> None:
    script = CommonArguments(projector_learning_rate=0.025)
    _, trainer = step(lvlms["llava"], script, **lora)
    named = {id(weight): name for name, weight in trainer.model.named_parameters()}
    rates = {
        named[id(weight)]: group["initial_lr"] for group in trainer.optimizer.param_groups for weight in group["params"]
    }
    assert set(rates) == {name for name, weight in trainer.model.named_parameters() if weight.requires_grad}
    assert {rate for name, rate in rates.items() if "multi_modal_projector" in name} == {0.025}
    assert {rate for name, rate in rates.items() if "multi_modal_projector" not in name} == {0.1}


def test_layers_asked_for_by_name_are_the_language_models(lvlms: dict[str, Path]) -> None:
    model, _ = load_for_training(str(lvlms["llava"]), ModelConfig())
    parts = find_parts(model)
    wanted = re.compile(lora_targets(model, parts, ["q_proj", "v_proj"]))
    hit = [name for name, _ in model.named_modules() if wanted.fullmatch(name)]
    assert len(hit) == 4
    assert all(name.startswith("model.language_model.layers") for name in hit)
    with pytest.raises(UsageError, match="no linear layer fc1; it has down_proj"):
        lora_targets(model, parts, ["fc1"])  # the tower has it


def test_a_text_only_model_is_language_all_over() -> None:
    model = LlamaForCausalLM(
        LlamaConfig(vocab_size=8, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1)
    )
    assert set(find_parts(model).of.values()) == {Part.LANGUAGE}
    with pytest.raises(UsageError, match="nothing would learn"):
        choose_parameters(model, CommonArguments(train_parts=PROJECTOR), ModelConfig())


def test_an_unknown_family_is_named_by_hand(lvlms: dict[str, Path]) -> None:
    model, _ = load_for_training(str(lvlms["llava"]), ModelConfig())
    model.model.bridge = model.model.multi_modal_projector
    del model.model.multi_modal_projector
    with pytest.raises(UsageError, match=r"not known what model\.bridge is; name the modules by --language_modules"):
        find_parts(model)
    parts = find_parts(model, {Part.PROJECTOR: ["model.bridge"]})
    assert parts.modules[Part.PROJECTOR] == ("model.bridge",)
    with pytest.raises(UsageError, match=r"no parameter starts with model\.brigde; the model has"):
        find_parts(model, {Part.PROJECTOR: ["model.brigde"]})


def test_a_tower_named_as_language_is_found_out(lvlms: dict[str, Path]) -> None:
    model, _ = load_for_training(str(lvlms["llava"]), ModelConfig())
    with pytest.raises(UsageError, match="holds the text embeddings, yet counts as tower"):
        find_parts(model, {Part.TOWER: ["model.language_model"], Part.LANGUAGE: ["model.vision_tower"]})


@pytest.mark.parametrize(
    ("script", "lora", "message"),
    [
        ({"train_parts": PROJECTOR}, {"use_peft": True}, "adapts the language model"),
        ({"train_parts": EVERYTHING}, {"use_peft": True}, "adapts the language model"),
        ({"train_parts": LANGUAGE}, {"load_in_4bit": True}, "quantized weights cannot learn"),
    ],
)
def test_contradictions_are_refused(
    lvlms: dict[str, Path], script: dict[str, Any], lora: dict[str, Any], message: str
) -> None:
    model, _ = load_for_training(str(lvlms["llava"]), ModelConfig())
    with pytest.raises(UsageError, match=message):
        choose_parameters(model, CommonArguments(**script), ModelConfig(**lora))
