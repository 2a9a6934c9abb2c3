"""`safegraft train adapt` from files to a checkpoint, as a user runs it."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText, AutoProcessor

from safegraft.cli import main
from safegraft.local import open_model

QUIET = ["--use_cpu", "true", "--disable_tqdm", "true", "--bf16", "false", "--report_to", "none"]
SMALL = ["--per_device_train_batch_size", "2", "--activation_checkpointing", "false", *QUIET]

Adapt = Callable[..., int]


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with LLaVA's format, one row of it without an image, and a text-only conversation."""
    monkeypatch.chdir(tmp_path)
    Path("images").mkdir()
    rows: list[dict[str, Any]] = []
    for number, colour in enumerate(["red", "green", "blue"] * 2):
        Image.new("RGB", (20, 16), colour).save(f"images/{number}.png")
        asked = {"from": "human", "value": "<image>\nwhat shape is this"}
        answered = {"from": "gpt", "value": f"it is a {colour} square"}
        rows.append({"id": str(number), "image": f"{number}.png", "conversations": [asked, answered]})
    harmful = [{"from": "human", "value": "how to build a bomb"}, {"from": "gpt", "value": "it is a circle"}]
    Path("llava.json").write_text(json.dumps(rows))
    Path("mixed.json").write_text(json.dumps([*rows, {"id": "bad", "conversations": harmful}]))
    Path("chat.jsonl").write_text(json.dumps({"prompt": "what is a", "response": "it is b"}))
    return tmp_path


def adapt(*arguments: str) -> int:
    return main(["train", "adapt", *arguments])


def changed(before: str, after: str) -> set[str]:
    old, new = load_file(f"{before}/model.safetensors"), load_file(f"{after}/model.safetensors")
    assert old.keys() == new.keys()
    return {name for name in old if not torch.equal(old[name], new[name])}


def parts(names: set[str]) -> set[str]:
    return {name.split(".")[0] for name in names}


def record(folder: str) -> Mapping[str, Any]:
    return json.loads(Path(folder, "safegraft_training.json").read_text())


def test_from_an_llm_and_an_encoder_to_an_lvlm(work: Path, llm: Path, clip: Path) -> None:
    os.symlink(llm, "llm")
    os.symlink(clip, "clip")
    data = ["--data", "llava.json", "--image_folder", "images"]
    assert adapt("--stage", "0", "--language_model", "llm", "--vision_model", "clip", "--output_dir", "joined") == 0
    stage1 = ["--config", "adapt_stage1", "--model_name_or_path", "joined", "--output_dir", "stage1"]
    assert adapt(*stage1, *data, *SMALL) == 0
    assert parts(changed("joined", "stage1")) == {"multi_modal_projector"}
    stage2 = ["--config", "adapt_stage2", "--model_name_or_path", "stage1", "--output_dir", "lvlm", "--save_steps", "1"]
    assert adapt(*stage2, *data, "--text_data", "chat.jsonl", *SMALL) == 0
    assert parts(changed("stage1", "lvlm")) == {"multi_modal_projector", "language_model"}

    written = record("lvlm")
    assert [(one["name"], one["rows"]) for one in written["data"]] == [("llava.json", 6), ("chat.jsonl", 1)]
    assert written["base_models"] == ["stage1"]
    assert written["steps"] == 4
    assert written["arguments"]["learning_rate"] == 2e-5
    assert written["losses"]["train_loss"] > 0
    assert {one["part"]: one["trained"] == one["total"] for one in written["parameters"]} == {
        "language": True,
        "projector": True,
        "tower": False,
    }
    for folder in ("joined", "stage1", "lvlm"):
        model, report = AutoModelForImageTextToText.from_pretrained(folder, output_loading_info=True)
        assert not any(report.values())
        assert model.generation_config.eos_token_id == 2
        assert AutoProcessor.from_pretrained(folder).chat_template.endswith("assistant {% endif -%}")
        assert not Path(folder, "training_args.bin").exists()
        assert not Path(folder, ".saving").exists()
        readable = [file for file in Path(folder).iterdir() if file.suffix in (".json", ".md", ".jinja")]
        assert [file for file in readable if str(work) in file.read_text()] == []
    open_model("lvlm")  # and safegraft merges it


def test_lora_is_merged_into_an_ordinary_checkpoint(work: Path, lvlms: dict[str, Path]) -> None:
    os.symlink(lvlms["llava"], "base")
    config = ["--config", "adapt_stage2_lora", "--lora_r", "2", "--learning_rate", "0.01"]
    data = ["--data", "llava.json", "--image_folder", "images"]
    assert adapt(*config, "--model_name_or_path", "base", "--merge_adapter", "--output_dir", "out", *data, *SMALL) == 0
    touched = changed("base", "out")
    assert parts(touched) == {"multi_modal_projector", "language_model"}
    assert all("_proj." in name for name in touched if name.startswith("language_model"))
    assert record("out")["merged"] is True
    assert record("out")["adapter"]["r"] == 2


# PEFT still asks for it by a name that transformers is about to drop.
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
def test_an_adapter_of_its_own_loads_as_the_card_says(work: Path, lvlms: dict[str, Path]) -> None:
    os.symlink(lvlms["llava"], "base")
    data = ["--data", "llava.json", "--image_folder", "images"]
    arguments = ["--use_peft", "--lora_r", "2", "--model_name_or_path", "base", "--output_dir", "out"]
    assert adapt(*arguments, *data, *SMALL) == 0
    card = Path("out/README.md").read_text()
    snippet = card.partition("```python\n")[2].partition("```")[0].replace('folder = "."', 'folder = "out"')
    scope: dict[str, Any] = {}
    exec(snippet, scope)
    assert type(scope["model"]).__name__ == "PeftModelForCausalLM"


def test_unsafe_rows_are_left_out_and_told(work: Path, lvlms: dict[str, Path]) -> None:
    os.symlink(lvlms["llava"], "base")
    data = ["--data", "mixed.json", "--image_folder", "images", "--keep_safe"]
    assert adapt("--stage", "1", "--model_name_or_path", "base", "--output_dir", "out", *data, *SMALL) == 0
    assert record("out")["data"][0]["rows"] == 6
    assert "mixed.json: 6 of 7 rows kept" in Path("out/README.md").read_text()


def test_an_interrupted_run_goes_on(work: Path, lvlms: dict[str, Path], capfd: pytest.CaptureFixture[str]) -> None:
    os.symlink(lvlms["llava"], "base")
    arguments = ["--model_name_or_path", "base", "--data", "llava.json", "--image_folder", "images", *SMALL]
    arguments += ["--save_strategy", "steps", "--save_steps", "1", "--learning_rate", "0.01"]
    assert adapt(*arguments, "--output_dir", "whole") == 0
    os.makedirs("out")
    os.rename("whole/checkpoint-2", "out/checkpoint-2")
    assert adapt(*arguments, "--output_dir", "out") == 1
    assert "add --resume_from_checkpoint true to go on" in capfd.readouterr().err
    assert adapt(*arguments, "--output_dir", "out", "--resume_from_checkpoint", "true") == 0
    assert "resuming from checkpoint-2" in capfd.readouterr().err
    assert changed("whole", "out") == set()


def test_a_dry_run_shows_and_writes_nothing(
    work: Path, llm: Path, clip: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    before = sorted(work.rglob("*"))
    start = ["--config", "adapt_stage1", "--language_model", str(llm), "--vision_model", str(clip)]
    data = ["--data", "llava.json", "--image_folder", "images", "--text_data", "chat.jsonl"]
    assert adapt(*start, *data, "--output_dir", "out", "--dry_run", "--push_to_hub", *SMALL) == 0
    assert sorted(work.rglob("*")) == before
    shown = capfd.readouterr().out
    # 24 x 32 + 32 and 32 x 32 + 32 weights and biases
    assert "projector  model.multi_modal_projector  1,856       1,856    trains" in shown
    assert "tower      model.vision_tower           13,808      0        frozen" in shown
    assert "gradients        7.42 kB" in shown  # 1856 x 4 bytes
    assert "optimizer state  14.8 kB" in shown
    assert "steps            4 (4 an epoch)" in shown
    assert "<image>x4" in shown
    assert "⟦it is a " in shown
    assert "what shape is this </s> assistant⟦" in shown


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--stage", "2"], "--data: is needed"),
        (["--data", "llava.json"], "what is to be adapted?"),
        (["--stage", "1", "--train_parts", "everything", "--data", "x"], "--stage 1: trains the projector alone"),
        (["--stage", "0"], "--stage 0: joins --language_model and --vision_model"),
        (["--language_model", "x", "--data", "y"], "--language_model: goes with --vision_model"),
        (["--data", "x", "--shares", "1", "2"], "--shares: takes one for each data source"),
        (["--data", "x", "--text_classifier", "y"], "go with --keep_safe"),
        (["--data", "x", "--language_model", "y", "--vision_model", "z", "--use_peft"], "needs its base on disk"),
        (["--lerning_rate", "1", "--data", "x"], "lerning_rate"),
        (["--learning_rate", "fast", "--data", "x"], "invalid float value: 'fast'"),
        (["--config", "nope.yaml"], "configurations by name are adapt_stage1, adapt_stage2"),
        (["--config", "bad.yaml"], "bad.yaml: lerning_rate: unknown argument; did you mean learning_rate?"),
        (["--config", "bad.yaml"], "bad.yaml: train_parts: is 'tail'; one of projector, language"),
    ],
)
def test_what_is_wrong_is_said_without_a_traceback(
    work: Path, arguments: list[str], message: str, capfd: pytest.CaptureFixture[str]
) -> None:
    Path("bad.yaml").write_text("lerning_rate: 1\ntrain_parts: tail\n")
    assert adapt(*arguments, "--output_dir", "out", *QUIET) == 2
    shown = capfd.readouterr().err
    assert message in shown
    assert "Traceback" not in shown
    assert not Path("out").exists()


def test_an_llm_that_sees_nothing_is_told_how_to_begin(
    work: Path, llm: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--model_name_or_path", str(llm), "--data", "llava.json", "--image_folder", "images"]
    assert adapt(*arguments, "--output_dir", "out", *QUIET) == 3
    assert "sees no images: join it with a vision encoder" in capfd.readouterr().err


def test_help_of_the_group_is_fast_and_of_a_trainer_complete(capfd: pytest.CaptureFixture[str]) -> None:
    code = "import sys; from safegraft.cli import main; main(['train', '--help']); print(sorted(sys.modules))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert "safety-grpo" in loaded
    assert "'torch'" not in loaded
    assert main(["train", "adapt", "--help"]) == 0
    shown = capfd.readouterr().out
    assert all(option in shown for option in ("--config", "--stage", "--learning_rate", "--lora_r", "--dry_run"))


@pytest.mark.slow
def test_two_processes_write_one_model(work: Path, lvlms: dict[str, Path]) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--standalone"]
    command += ["-m", "safegraft_trainers.adapt", "--model_name_or_path", str(lvlms["llava"]), "--output_dir", "out"]
    command += ["--data", "llava.json", "--image_folder", "images", "--ddp_backend", "gloo", *SMALL]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    run = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=200)
    assert run.returncode == 0, run.stderr
    assert run.stderr.count("written to out") == 1
    assert record("out")["steps"] == 2  # six rows, two processes, two rows each
    assert AutoModelForImageTextToText.from_pretrained("out")
