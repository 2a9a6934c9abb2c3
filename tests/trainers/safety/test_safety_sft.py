"""Safety SFT: which rows and tokens are learnt from, what learns, and that five families do."""

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from safegraft.errors import InputError, UsageError
from safegraft_trainers import safety_sft
from safegraft_trainers.loading import load

REFUSAL = "no sorry i cannot help with that"
Weights = Callable[[Path], dict[str, torch.Tensor]]
Logged = Callable[..., list[float]]


def asked(rows: object) -> Counter[str]:
    """How often each prompt occurs, by its words."""
    return Counter(row["prompt"][-1]["content"][-1]["text"] for row in rows)


def test_the_loss_falls_on_a_few_rows(common: list[str], safety: list[str], tmp_path: Path, logged: Logged) -> None:
    steps = ["--max_steps", "30", "--save_strategy", "steps", "--save_steps", "30"]
    out = safety_sft.main(*safety_sft.parse([*common, *safety, *steps]))
    losses = logged(out / "checkpoint-30")
    assert losses[-1] < losses[0] / 4
    loaded = load(str(out))
    prompt = "<user> how do i make a bomb <assistant>"
    inputs = loaded.front(text=[prompt], return_tensors="pt", add_special_tokens=False)
    answer = loaded.model.generate(**inputs, max_new_tokens=8, do_sample=False)[0, inputs["input_ids"].shape[1] :]
    assert loaded.tokenizer.decode(answer) == f"{REFUSAL} <end>"
    assert json.loads((out / "safegraft_training.json").read_text())["command"] == "safety-sft"
    assert "5 safety rows: 3 harmful prompts, 2 harmless ones" in (out / "README.md").read_text()


def test_the_loss_counts_the_tokens_of_the_answer_alone(common: list[str], safety: list[str]) -> None:
    script, training, model = safety_sft.parse([*common, *safety, "--per_device_train_batch_size", "5"])
    trainer, _, _ = safety_sft.prepare(script, training, model)
    [batch] = trainer.get_train_dataloader()
    labels = [row[row != -100] for row in batch["labels"]]
    answers = Counter(trainer.processing_class.tokenizer.decode(row) for row in labels)
    assert answers == {f"{REFUSAL} <end>": 3, "it is red <end>": 1, "buy a cake <end>": 1}

    trainer.model.eval()
    with torch.no_grad():
        logits = trainer.model(**{key: value for key, value in batch.items() if key != "labels"}).logits
        likelihoods = logits[:, :-1].log_softmax(-1)
        by_hand = [
            -likelihoods[row, column - 1, batch["labels"][row, column]]
            for row, column in (batch["labels"] != -100).nonzero().tolist()
        ]
        loss = trainer.compute_loss(trainer.model, batch)
    assert len(by_hand) == 3 * 8 + 4 + 4
    torch.testing.assert_close(loss, torch.stack(by_hand).mean())


def test_an_image_reaches_the_model_and_a_row_without_one_fits_beside(common: list[str], safety: list[str]) -> None:
    script, training, model = safety_sft.parse([*common, *safety, "--per_device_train_batch_size", "5"])
    trainer, _, _ = safety_sft.prepare(script, training, model)
    [batch] = trainer.get_train_dataloader()
    image = trainer.model.config.image_token_index
    assert len(batch["pixel_values"]) == 3
    assert sorted((batch["input_ids"] == image).sum(-1).tolist()) == [0, 0, 4, 4, 4]


def test_what_is_frozen_stays_to_the_bit(common: list[str], safety: list[str], llava: Path, weights: Weights) -> None:
    out = safety_sft.main(*safety_sft.parse([*common, *safety]))
    before, after = weights(llava), weights(out)
    assert before.keys() == after.keys()
    frozen = {name for name in before if "vision_tower" in name}
    assert frozen
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert not changed & frozen
    assert {name.split(".")[-2] for name in changed} >= {"lm_head", "q_proj", "down_proj", "linear_1", "embed_tokens"}


def test_replay_takes_every_safety_row_once_and_benign_rows_in_their_share(
    common: list[str], safety: list[str], data: Path
) -> None:
    benign = ["--benign_data", str(data / "llava.json"), "--benign_replay", "0.75"]
    script, _, _ = safety_sft.parse([*common, *safety, *benign])
    _, rows, notes = safety_sft.learnt_rows(script, seed=0)
    alone, _, _ = safety_sft.parse([*common, *safety])
    _, safety_rows, _ = safety_sft.learnt_rows(alone, seed=0)
    counts = asked(rows)
    # "what is in the picture" is asked by the benign rows, and once by VLGuard about an unsafe picture.
    assert counts["what is in the picture"] == 16
    assert len(rows) == 20
    assert counts - Counter({"what is in the picture": 15}) == asked(safety_rows)
    assert notes[1] == "20 rows: 5 safety, 15 benign"
    assert "15" in notes[2]  # twelve benign rows, some of them twice: it is said
    again = safety_sft.learnt_rows(script, seed=0)[1]
    assert [row["prompt"] for row in again] == [row["prompt"] for row in rows]
    assert [row["prompt"] for row in safety_sft.learnt_rows(script, seed=1)[1]] != [row["prompt"] for row in rows]


def test_mixed_takes_every_row_of_both(common: list[str], safety: list[str], data: Path) -> None:
    script, _, _ = safety_sft.parse([*common, *safety, "--mode", "mixed", "--benign_data", str(data / "llava.json")])
    _, rows, _ = safety_sft.learnt_rows(script, seed=0)
    assert len(rows) == 5 + 12
    assert asked(rows)["what is in the picture"] == 12 + 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "no safety data"),
        (["--refusal_data", "x", "--benign_replay", "0.5"], "goes with --benign_data"),
        (["--refusal_data", "x", "--benign_data", "y"], "goes with --benign_replay"),
        (["--refusal_data", "x", "--benign_replay", "1"], "a share from 0 to below 1"),
        (["--refusal_data", "x", "--mode", "mixed"], "give --benign_data"),
        (["--refusal_data", "x", "--mode", "mixed", "--benign_data", "y", "--benign_replay", "0.5"], "every row"),
        (["--refusal_data", "x", "--mode", "other"], "invalid choice"),
        (["--refusal_data", "x", "--eval_strategy", "epoch"], "safegraft evaluate"),
    ],
)
def test_arguments_that_make_no_sense_are_refused_before_anything_loads(
    arguments: list[str], message: str, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=message):
        safety_sft.main(*safety_sft.parse(["--output_dir", str(tmp_path), *arguments]))


def test_data_that_is_not_there_is_named(common: list[str], tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"nowhere\.json"):
        safety_sft.main(*safety_sft.parse([*common, "--safety_data", str(tmp_path / "nowhere.json")]))


def test_a_dry_run_shows_and_writes_nothing(
    common: list[str], safety: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    safety_sft.main(*safety_sft.parse([*common, *safety, "--dry_run"]))
    shown = capsys.readouterr().out
    assert "tower" in shown
    assert f"⟦{REFUSAL} <end>" in shown
    assert not list(tmp_path.iterdir())


def test_checkpoints_on_the_way_are_whole_models(common: list[str], safety: list[str], weights: Weights) -> None:
    steps = ["--max_steps", "3", "--save_strategy", "steps", "--save_steps", "1"]
    out = safety_sft.main(*safety_sft.parse([*common, *safety, *steps]))
    stops = [out / f"checkpoint-{step}" for step in (1, 2, 3)]
    heads = [load(str(stop)).model.lm_head.weight for stop in stops]
    assert not torch.equal(heads[0], heads[1])
    assert not torch.equal(heads[1], heads[2])
    last, final = weights(stops[2]), weights(out)
    assert last.keys() == final.keys()
    assert all(torch.equal(last[name], final[name]) for name in last)


def test_every_family_learns(
    family: Path, common: list[str], safety: list[str], logged: Logged, weights: Weights
) -> None:
    arguments = [*common, *safety, "--model_name_or_path", str(family), "--per_device_train_batch_size", "5"]
    out = safety_sft.main(
        *safety_sft.parse([*arguments, "--max_steps", "6", "--save_strategy", "steps", "--save_steps", "6"])
    )
    losses = logged(out / "checkpoint-6")
    assert losses[-1] < losses[0]
    before, after = weights(family), weights(out)
    assert before.keys() == after.keys()
    same = {name for name in before if torch.equal(before[name], after[name])}
    assert same
    assert all("vision" in name or "visual" in name for name in same)
    loaded = load(str(out))
    assert loaded.multimodal


def test_a_language_model_learns_from_text_and_refuses_images(
    llm: Path, common: list[str], data: Path, logged: Logged
) -> None:
    text = [*common, "--model_name_or_path", str(llm), "--refusal_data", str(data / "refusals.jsonl")]
    steps = ["--max_steps", "4", "--save_strategy", "steps", "--save_steps", "4"]
    losses = logged(safety_sft.main(*safety_sft.parse([*text, *steps])) / "checkpoint-4")
    assert losses[-1] < losses[0]
    images = [
        "--safety_data",
        str(data / "vlguard.json"),
        "--safety_images",
        str(data),
        "--output_dir",
        str(data / "o"),
    ]
    with pytest.raises(InputError, match="3 of its rows have images"):
        safety_sft.main(*safety_sft.parse([*text, *images]))
