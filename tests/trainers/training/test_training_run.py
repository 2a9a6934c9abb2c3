"""What surrounds training: arguments, the output folder, record, card, publication; and the batches that are learnt."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
import yaml
from datasets import Dataset
from transformers import AutoProcessor
from trl import DPOConfig, GRPOConfig, ModelConfig, SFTConfig, SFTTrainer

from safegraft.errors import OutputError, UsageError
from safegraft_trainers.training.arguments import CommonArguments, configurations, find_configuration, parse
from safegraft_trainers.training.base import choose_parameters, load_for_training
from safegraft_trainers.training.card import render_card
from safegraft_trainers.training.dry_run import cost_of, decoded
from safegraft_trainers.training.provenance import Counts, DataSource, Record, public_name
from safegraft_trainers.training.run import Story, check_output, run
from safegraft_trainers.training.trainer import Extended

SOURCE = DataSource("org/data", 6, "0" * 64)
KINDS = (CommonArguments, SFTConfig, ModelConfig)


class Trainer(Extended, SFTTrainer):
    pass


@pytest.fixture
def train(lvlms: dict[str, Path], make_rows: Callable[..., Dataset], quiet_arguments: dict[str, Any]) -> Any:
    def start(script: CommonArguments, base: str = "org/base", lora: Any = None, **changes: Any) -> Path:
        model_config = ModelConfig(**(lora or {}))
        training = SFTConfig(**{**quiet_arguments, "max_steps": 1, **changes})
        check_output(training, script)
        model, processor = load_for_training(str(lvlms["llava"]), model_config)
        choice = choose_parameters(model, script, model_config)
        trainer = Trainer(
            model=model,
            args=training,
            train_dataset=make_rows(6),
            processing_class=processor,
            peft_config=choice.peft_config,
        )
        return run(trainer, script, choice=choice, story=Story("adapt", "A test", (base,), (SOURCE,)))

    return start


# -- arguments ----------------------------------------------------------------------------------


@pytest.mark.parametrize("config", [SFTConfig, DPOConfig, GRPOConfig])
def test_every_trainers_arguments_go_together(config: type[Any], tmp_path: Path) -> None:
    arguments = ["--output_dir", str(tmp_path), "--use_cpu", "true"]
    _, training, _ = parse((CommonArguments, config, ModelConfig), arguments, command="adapt")
    assert training.hub_private_repo is True
    assert getattr(training, "max_length", None) is None  # TRL's 1024 may cut image tokens off


def test_command_line_over_file_over_defaults(tmp_path: Path) -> None:
    file = tmp_path / "some.yaml"
    file.write_text("learning_rate: 1e-3\nweight_decay: 0.1\nseed: 3\n")
    arguments = [f"--config={file}", "--seed", "4", "--output_dir", str(tmp_path), "--use_cpu", "true"]
    defaults = {"weight_decay": 0.2, "warmup_steps": 7, "learning_rate": 5.0}
    _, training, _ = parse(KINDS, arguments, command="adapt", defaults=defaults)
    values = (training.learning_rate, training.weight_decay, training.seed, training.warmup_steps)
    assert values == (1e-3, 0.1, 4, 7)


def test_defaults_may_depend_on_what_is_asked_for(tmp_path: Path) -> None:
    arguments = ["--use_peft", "--output_dir", str(tmp_path), "--use_cpu", "true"]
    _, training, _ = parse(
        KINDS, arguments, command="adapt", defaults=lambda asked: {"learning_rate": 0.5 if asked.use_peft else 0.1}
    )
    assert training.learning_rate == 0.5


@pytest.mark.parametrize("name", ["adapt_stage1", "adapt_stage2", "adapt_stage2_lora"])
def test_the_configurations_of_adapt_are_llavas(name: str, tmp_path: Path) -> None:
    from safegraft_trainers.adapt import parse as parse_adapt

    assert name in configurations()
    document = yaml.safe_load(find_configuration(name).read_text())
    arguments = ["--config", name, "--data", "x", "--output_dir", str(tmp_path), "--use_cpu", "true"]
    script, training, model = parse_adapt(arguments)
    rates = {"adapt_stage1": 1e-3, "adapt_stage2": 2e-5, "adapt_stage2_lora": 2e-4}
    assert training.learning_rate == rates[name] == float(document["learning_rate"])
    assert script.train_parts == ("projector" if name == "adapt_stage1" else "language+projector")
    assert (training.warmup_steps, training.weight_decay, training.num_train_epochs) == (0.03, 0.0, 1)
    assert training.lr_scheduler_type == "cosine"
    if model.use_peft:
        assert (model.lora_r, model.lora_alpha, script.projector_learning_rate) == (128, 256, 2e-5)
    # Without the file the stage alone gives the same.
    stage = ["--stage", str(document["stage"]), *(["--use_peft"] if model.use_peft else [])]
    assert parse_adapt([*stage, *arguments[2:]])[1].learning_rate == training.learning_rate


# -- batches ------------------------------------------------------------------------------------


def test_the_loss_counts_the_answer_alone_and_rows_without_image_go_along(
    lvlms: dict[str, Path], make_rows: Callable[..., Dataset], quiet_arguments: dict[str, Any]
) -> None:
    model, processor = load_for_training(str(lvlms["llava"]), ModelConfig())
    trainer = Trainer(
        model=model, args=SFTConfig(**quiet_arguments), train_dataset=make_rows(2), processing_class=processor
    )
    batch = trainer.data_collator([trainer.train_dataset[0], trainer.train_dataset[1]])
    assert batch["pixel_values"].shape[0] == 1
    counted = [
        processor.tokenizer.decode(ids[labels != -100])
        for ids, labels in zip(batch["input_ids"], batch["labels"], strict=True)
    ]
    assert counted == ["it is a red square </s>", "it is a green square </s>"]
    alone = trainer.data_collator([trainer.train_dataset[1]])
    assert "pixel_values" not in alone


def test_marks_surround_what_counts_and_images_are_folded(lvlms: dict[str, Path]) -> None:
    tokenizer = AutoProcessor.from_pretrained(lvlms["llava"]).tokenizer
    ids = tokenizer("user <image> <image> <image> <image> <image> what it is a red square")["input_ids"]
    shown = decoded(ids, [False] * (len(ids) - 4) + [True] * 4, tokenizer)
    assert shown == "user<image>x5what it⟦is a red square⟧"


def test_costs_are_counted_in_bytes() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(3, 5), torch.nn.Linear(5, 2).to(torch.bfloat16))
    model[0].requires_grad_(False)
    cost = cost_of(model, "adamw_torch_fused")
    assert (cost.weights, cost.gradients, cost.optimizer) == (20 * 4 + 12 * 2, 12 * 2, 2 * 12 * 2)
    assert cost_of(model, "adamw_bnb_8bit").optimizer == 2 * 12
    assert cost_of(model, "galore_adamw").optimizer is None


# -- the output folder --------------------------------------------------------------------------


def test_a_finished_model_is_not_written_over(train: Any) -> None:
    out = train(CommonArguments())
    before = (out / "model.safetensors").read_bytes()
    with pytest.raises(OutputError, match="holds a model already"):
        train(CommonArguments())
    assert (out / "model.safetensors").read_bytes() == before


def test_weights_that_were_not_gathered_are_no_model(train: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Trainer, "save_model", lambda *_, **__: None)
    with pytest.raises(OutputError, match="FULL_STATE_DICT"):
        train(CommonArguments())


def test_merging_nothing_is_refused(train: Any) -> None:
    with pytest.raises(UsageError, match="--merge_adapter: nothing learns through an adapter"):
        train(CommonArguments(merge_adapter=True))


# -- publication --------------------------------------------------------------------------------


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, dict[str, Any]]]:
    """What is asked of the Hub."""
    calls: list[tuple[str, dict[str, Any]]] = []

    def create_repo(_: Any, repo_id: str, **kwargs: Any) -> Any:
        calls.append(("create", {"repo_id": repo_id, **kwargs}))
        return huggingface_hub.RepoUrl(f"https://huggingface.co/{repo_id}")

    def upload_folder(_: Any, **kwargs: Any) -> None:
        folder = Path(kwargs["folder_path"])
        files = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
        kept = huggingface_hub.utils.filter_repo_objects(files, ignore_patterns=kwargs["ignore_patterns"])
        calls.append(("upload", {"repo_id": kwargs["repo_id"], "files": set(kept)}))

    monkeypatch.setattr(huggingface_hub.HfApi, "create_repo", create_repo)
    monkeypatch.setattr(huggingface_hub.HfApi, "upload_folder", upload_folder)
    return calls


def test_a_model_is_published_privately_with_our_card(
    train: Any, hub: list[tuple[str, dict[str, Any]]], tmp_path: Path
) -> None:
    options = {"push_to_hub": True, "hub_model_id": "me/model", "hub_private_repo": True, "hub_strategy": "end"}
    out = train(CommonArguments(), save_strategy="steps", save_steps=1, **options)
    assert [name for name, _ in hub] == ["create", "upload"]
    assert hub[0][1]["private"] is True
    assert {"model.safetensors", "README.md", "safegraft_training.json", "chat_template.jinja"} <= hub[1][1]["files"]
    assert not any("checkpoint-" in file or file.endswith(".bin") for file in hub[1][1]["files"])
    assert (out / "README.md").read_text().partition("# ")[2].startswith("model\n")


def test_an_adapter_of_a_local_model_is_not_published(train: Any, hub: list[Any]) -> None:
    options = {"push_to_hub": True, "hub_model_id": "me/model", "hub_private_repo": True, "hub_strategy": "end"}
    with pytest.raises(UsageError, match=r"an adapter of base, which is no model on the Hub"):
        train(CommonArguments(), base="./some/base", lora={"use_peft": True, "lora_r": 2}, **options)
    assert "upload" not in [name for name, _ in hub]


# -- record and card ----------------------------------------------------------------------------


def record(**changes: Any) -> Record:
    values: dict[str, Any] = {
        "command": "adapt",
        "title": "VL adaptation, stage 2",
        "base_models": ("org/base", "local`|name"),
        "data": (SOURCE, DataSource("rows|x.json", 2, "f" * 64)),
        "parameters": (Counts("language", 1234, 1234), Counts("tower", 10, 0)),
        "arguments": {"learning_rate": 2e-5},
        "versions": {"torch": "2"},
        "multimodal": True,
        "steps": 12,
        "epochs": 1.0,
        "losses": {"loss": 0.5},
    }
    return Record(**{**values, **changes})


def test_the_card_says_what_was_done_and_claims_no_licence() -> None:
    card = render_card(record(filter_report="1 of 3"), "lvlm")
    head = yaml.safe_load(card.split("---")[1])
    assert head["base_model"] == ["org/base"]
    assert head["base_model_relation"] == "finetune"
    assert head["datasets"] == ["org/data"]
    assert head["pipeline_tag"] == "image-text-to-text"
    assert "license" not in head
    assert "| language | 1,234 | 1,234 |" in card
    assert r"| `rows\|x.json` | 2 | `ffffffffffff` |" in card
    assert "12 optimisation steps" in card
    assert "`loss`: 0.5" in card
    assert "1 of 3" in card
    adapter = yaml.safe_load(render_card(record(adapter={"r": 2}), "lvlm").split("---")[1])
    assert (adapter["library_name"], adapter["base_model_relation"]) == ("peft", "adapter")


def test_the_record_is_json_and_names_no_folder(train: Any, tmp_path: Path) -> None:
    out = train(CommonArguments(), base=str(tmp_path / "secret" / "base"))
    text = (out / "safegraft_training.json").read_text()
    assert str(tmp_path) not in text
    written = json.loads(text)
    assert written["base_models"] == ["base"]
    assert written["arguments"]["max_steps"] == 1
    assert written["versions"].keys() >= {"torch", "transformers", "trl", "safegraft"}


@pytest.mark.parametrize(
    ("reference", "public"),
    [("org/model", "org/model"), ("/home/me/model/", "model"), ("./a/model", "model"), ("../model", "model")],
)
def test_names_lose_their_folders(reference: str, public: str) -> None:
    assert public_name(reference) == public
