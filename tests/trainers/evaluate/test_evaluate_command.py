"""`safegraft evaluate`, from the command line to the files it leaves, on trained miniature checkpoints."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from safegraft.cli import main
from safegraft_trainers.evaluate.formats import own
from safegraft_trainers.evaluate.results import read_evaluations
from safegraft_trainers.lab.shipped import CHECKPOINTS, questions

LLM, LVLM = str(CHECKPOINTS / "aligned-llm"), str(CHECKPOINTS / "adapted-lvlm")
QUICK = ["--max-new-tokens", "24", "--batch-size", "64", "--threads", "1"]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SAFEGRAFT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def probes(tmp_path: Path) -> Path:
    """Every seventh of the miniature world's questions, 8 or 9 of each of the eight sets: 69, with an image 42."""
    own.save(questions().examples[::7], tmp_path / "probes.jsonl")
    return tmp_path / "probes.jsonl"


def printed(capsys: pytest.CaptureFixture[str]) -> Any:
    return json.loads(capsys.readouterr().out)["evaluations"]


def test_models_side_by_side(probes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A text model, an LVLM, and a merge of both that no disk has seen."""
    recipe = tmp_path / "blend.yml"
    recipe.write_text(
        f"merge_method: linear\nmodels:\n- {{model: {LVLM}, parameters: {{weight: 0.75}}}}\n"
        f"- {{model: {LLM}, parameters: {{weight: 0.25}}}}\n"
    )
    out = tmp_path / "results"
    options = ["--suite", f"safegraft={probes}", "--judge", "patterns", "--judge", "knowledge", "--out", str(out)]
    before = {file.name for file in tmp_path.iterdir()}
    assert main(["evaluate", LLM, LVLM, str(recipe), *options, *QUICK]) == 0
    assert {file.name for file in tmp_path.iterdir()} - before == {"results", "cache"}, "a merge is on the disk"

    shown = capsys.readouterr()
    head = shown.out.splitlines()[1].split()
    assert head == ["better", "n", "aligned-llm", "adapted-lvlm", "blend"]
    assert "aligned-llm: 42 of 69 prompts were not asked: the model sees no images" in shown.out
    assert "asking" in shown.err

    llm, lvlm, merged = read_evaluations(out / "results.json")
    assert llm.find("multimodal_safety") is None
    assert lvlm.metric("multimodal_safety").value > 0.8
    assert merged.model == "blend"
    assert len(merged.answers) == 69
    assert all(one.text is not None for one in merged.answers)
    assert merged.digest not in (llm.digest, lvlm.digest)
    assert "| attacks by text | lower | 9 |" in (out / "table.md").read_text()
    for name in ("four-axes.png", "trade-off.png"):
        with Image.open(out / name) as plot:
            assert plot.width > 1200
            assert len(plot.convert("RGB").getcolors(1 << 24) or []) > 50


def test_a_second_run_is_the_same_and_asks_nothing(
    probes: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ["evaluate", LVLM, "--suite", f"safegraft={probes}", "--split", "dev", "--json", *QUICK]
    assert main(arguments) == 0
    first = printed(capsys)
    from safegraft_trainers.evaluate.respondents import TransformersRespondent

    monkeypatch.delattr(TransformersRespondent, "answer")
    assert main(arguments) == 0
    assert printed(capsys) == first
    assert "answers" not in first[0]
    assert 20 < first[0]["suites"][0]["n"] < 60


def test_the_card_of_a_folder(probes: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(LVLM, folder)
    assert main(["evaluate", str(folder), LLM, "--suite", f"safegraft={probes}", "--card", str(folder), *QUICK]) == 0
    text = (folder / "README.md").read_text()
    assert "attack_success_rate" in text
    assert "| attacks with an image | lower | 17 |" in text
    assert not (Path(LLM) / "README.md").exists()


def test_an_adapter_is_evaluated_on_its_model(probes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The whole difference of two models as an adapter: it answers as the second model does."""
    adapter = tmp_path / "adapter"
    safety = str(CHECKPOINTS / "safety-sft-lvlm")
    assert main(["extract-lora", safety, "--base", LVLM, "--out", str(adapter), "--rank", "64", "--save-modules"]) == 0
    capsys.readouterr()
    options = ["--suite", f"safegraft={probes}", "--json", "--dtype", "float32", *QUICK]
    assert main(["evaluate", f"{LVLM}+{adapter}", safety, LVLM, *options]) == 0
    adapted, tuned, plain = ({one["name"]: one["value"] for one in document["scores"]} for document in printed(capsys))
    assert adapted["multimodal_safety"] == pytest.approx(tuned["multimodal_safety"], abs=0.11)
    assert plain["multimodal_safety"] - adapted["multimodal_safety"] > 0.5


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        ([LLM, LLM, "--suite", "SUITE"], 2, "is named twice"),
        ([LLM, "--suite", "SUITE", "--card", "elsewhere"], 2, "--card elsewhere: is none of the models"),
        (["org/model", "--suite", "SUITE", "--card", "org/model"], 2, "--card org/model: is no folder"),
        ([LLM, "--suite", "SUITE", "--no-images"], 2, "--no-images is for --endpoint"),
        (["m", "--suite", "lm-eval=arc", "--endpoint", "http://x/v1"], 2, "lm-eval tasks are asked of models here"),
        ([LLM, "--suite", "lm-eval=arc", "--split", "dev"], 2, "have splits of their own"),
        ([LLM, "--suite", "nope"], 2, "'nope' is no format of prompts"),
        ([LLM, "--suite", "SUITE", "--judge", "magic"], 2, "'magic' names no judge"),
        ([LLM, "--suite", "SUITE", "--judge", "knowledge"], 2, "nobody judges refusal examples"),
        (["nowhere", "--suite", "SUITE"], 3, "no such folder"),
        (["nowhere.yml", "--suite", "SUITE"], 2, "nowhere.yml"),
        ([LLM, "--suite", "safegraft=none.jsonl"], 3, "none.jsonl: cannot be read"),
        ([LLM, "--suite", "SUITE", "--out", str(CHECKPOINTS)], 2, "holds something else than results"),
    ],
)
def test_what_cannot_be_done_is_said(
    arguments: list[str], code: int, message: str, probes: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [f"safegraft={probes}" if one == "SUITE" else one for one in arguments]
    assert main(["evaluate", *arguments]) == code
    shown = capsys.readouterr()
    assert message in shown.err
    assert "Traceback" not in shown.err
    assert shown.out == ""


def test_a_run_without_any_answer_is_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    own.save([one for one in questions().examples if one.image is not None][:3], tmp_path / "images.jsonl")
    out = tmp_path / "out"
    assert main(["evaluate", LLM, "--suite", f"safegraft={tmp_path / 'images.jsonl'}", "--out", str(out)]) == 3
    assert "no model could be asked any prompt" in capsys.readouterr().err
    assert not out.exists()


def test_recipes_of_one_name_are_told_apart(probes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipes = [tmp_path / folder / "recipe.yml" for folder in ("a", "b")]
    for weight, path in enumerate(recipes):
        path.parent.mkdir()
        path.write_text(
            f"merge_method: linear\nmodels:\n- {{model: {LVLM}, parameters: {{weight: 1}}}}\n"
            f"- {{model: {LLM}, parameters: {{weight: {weight}}}}}\n"
        )
    arguments = ["evaluate", *map(str, recipes), "--suite", f"safegraft={probes}", "--limit", "4", "--json", *QUICK]
    assert main(arguments) == 0
    assert [one["model"] for one in printed(capsys)] == [str(path) for path in recipes]


def test_ctrl_c_says_that_nothing_is_lost(
    probes: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from safegraft_trainers.evaluate.respondents import TransformersRespondent

    answer, batches = TransformersRespondent.answer, 0

    def interrupted(self: TransformersRespondent, examples: Any) -> list[str]:
        nonlocal batches
        batches += 1
        if batches == 2:
            raise KeyboardInterrupt
        return answer(self, examples)

    monkeypatch.setattr(TransformersRespondent, "answer", interrupted)
    arguments = ["evaluate", LLM, "--suite", f"safegraft={probes}", "--batch-size", "10", "--max-new-tokens", "8"]
    assert main(arguments) == 1
    assert "what was answered is kept: the same command goes on from there" in capsys.readouterr().err
    assert main(arguments) == 0
    assert batches == 4  # 27 prompts are three batches, one of which was asked in vain


def test_harness_scores_stand_beside_ours_and_are_kept(
    probes: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the harness itself does is its own test's; here it is a stand-in."""
    from safegraft_trainers.evaluate import harness
    from safegraft_trainers.evaluate.results import Score

    calls: list[tuple[list[str], int | None]] = []

    def run(loaded: Any, tasks: list[str], limit: int | None = None, **_: Any) -> list[Score]:
        calls.append((tasks, limit))
        return [Score(f"harness/{tasks[0]}/acc", 0.25, 0.2, 0.3, 100, lower_is_better=False)]

    monkeypatch.setattr(harness, "run", run)
    arguments = ["evaluate", LLM, "--suite", "lm-eval=arc", "--suite", f"safegraft={probes}", "--limit", "5", "--json"]
    for _ in range(2):
        assert main([*arguments, *QUICK]) == 0
        (found,) = printed(capsys)
        assert found["measured"][0]["name"] == "harness/arc/acc"
        assert found["suites"][0]["n"] == 5
    assert calls == [(["arc"], 5)]
