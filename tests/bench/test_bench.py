"""The benchmark measures what it says: models from a seed, a process's figures, a run from end to end, targets.

Nothing here depends on how fast the machine is.
"""

import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import safegraft

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))  # the benchmark is no installed package

from bench import cases, measure, report, run, served, targets  # noqa: E402
from bench.results import Recorder, Results  # noqa: E402
from bench.sets import BASE, LVLM, Sets  # noqa: E402
from bench.shapes import EXTRA_TOKENS, LANGUAGE, SIZES  # noqa: E402

MB = 10**6


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> Sets:
    return Sets(tmp_path_factory.mktemp("sets"))


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return {name: tensor for file in folder.glob("*.safetensors") for name, tensor in load_file(file).items()}


# -- models --------------------------------------------------------------------------------------


def test_a_seed_gives_the_same_bytes_and_another_seed_others(sets: Sets, tmp_path: Path) -> None:
    def content(folder: Path) -> dict[str, bytes]:
        return {file.name: file.read_bytes() for file in folder.iterdir()}

    first = content(sets.model("tiny", "model-1"))
    assert content(Sets(tmp_path / "again").model("tiny", "model-1")) == first
    other = content(Sets(tmp_path / "other", seed=1).model("tiny", "model-1"))
    assert other.keys() == first.keys()
    assert all((other[name] == first[name]) == (not name.endswith("tensors")) for name in first)


def test_models_differ_from_their_base_by_small_task_vectors(sets: Sets) -> None:
    base, model = weights(sets.model("tiny", BASE)), weights(sets.model("tiny", "model-1"))
    name = "model.layers.1.mlp.up_proj.weight"
    assert {one.dtype for one in base.values()} == {torch.bfloat16}
    assert float(base[name].float().std()) == pytest.approx(0.02, rel=0.05)
    # The rounding to bfloat16 adds to what fine-tuning is said to change.
    assert float((model[name].float() - base[name].float()).std()) == pytest.approx(0.001, rel=0.05)
    other = weights(sets.model("tiny", "model-2"))
    tasks = [(one[name].float() - base[name].float()).flatten().numpy() for one in (model, other)]
    assert abs(np.corrcoef(*tasks)[0, 1]) < 0.05  # independent of each other


def test_an_lvlm_holds_such_a_model_and_more(sets: Sets) -> None:
    language, whole = weights(sets.model("tiny", "model-1")), weights(sets.model("tiny", LVLM))
    inner = {name.removeprefix(LANGUAGE): one for name, one in whole.items() if name.startswith(LANGUAGE)}
    assert inner.keys() == language.keys()
    assert len(inner["lm_head.weight"]) == len(language["lm_head.weight"]) + EXTRA_TOKENS
    assert any(name.startswith("vision_tower.") for name in whole)


def test_safegraft_merges_the_models(sets: Sets, tmp_path: Path) -> None:
    for case in (cases.merge("ties", "tiny", 2, {}), cases.into_lvlm("tiny", {})):
        recipe = case.recipe({name: str(sets.model("tiny", name)) for name in case.folders})
        with safegraft.open(recipe) as merged:
            actions = {task.name: task.action for task in merged.plan.tensors}
            assert actions.keys() == weights(sets.model("tiny", case.host)).keys()
            assert {actions[name] for name in actions if "vision" not in name and "projector" not in name} == {"merge"}


def test_headers_alone_take_no_space_and_can_be_planned(sets: Sets) -> None:
    models = [sets.headers("70B", name) for name in ("model-1", LVLM)]
    files = [file for folder in models for file in folder.glob("*.safetensors")]
    assert sum(file.stat().st_size for file in files) > 270 * 10**9
    assert sum(512 * file.stat().st_blocks for file in files) < 2 * MB
    plan = safegraft.plan(
        {"merge_method": "linear", "models": [{"model": str(one), "parameters": {"weight": 0.5}} for one in models]}
    )
    plan.close()
    assert sum(task.action == "merge" for task in plan.tensors) == len(list(SIZES["70B"].llm()))


def test_an_unfinished_folder_is_made_anew(tmp_path: Path) -> None:
    folder = Sets(tmp_path).model("tiny", BASE)
    draft = folder.with_name(f".{folder.name}.draft")
    folder.rename(draft)
    (draft / "left.json").touch()
    assert not (Sets(tmp_path).model("tiny", BASE) / "left.json").exists()


# -- figures -------------------------------------------------------------------------------------


@pytest.fixture
def measured(tmp_path: Path) -> Callable[[str], measure.Figures]:
    def of(code: str) -> measure.Figures:
        return measure.run([sys.executable, "-c", code], log=tmp_path / "log")

    return of


def test_memory_is_seen(measured: Callable[[str], measure.Figures]) -> None:
    nothing, much = measured("import time; time.sleep(0.1)"), measured("import time; x = b'x' * 10**8; time.sleep(0.1)")
    assert 95 * MB < much.peak_anonymous - nothing.peak_anonymous < 120 * MB
    assert 95 * MB < much.peak_rss - nothing.peak_rss < 120 * MB


def test_memory_of_children_adds_up(measured: Callable[[str], measure.Figures]) -> None:
    child = "import time; x = b'x' * 5 * 10**7; time.sleep(0.6)"
    start = (
        f"import subprocess, sys; children = [subprocess.Popen([sys.executable, '-c', {child!r}]) for _ in range(2)]"
    )
    assert measured(f"{start}; [one.wait() for one in children]").peak_anonymous > 100 * MB


def test_cpu_time_counts_the_children_and_not_the_waiting(measured: Callable[[str], measure.Figures]) -> None:
    burn = "import time\nwhile time.process_time() < 0.3: pass"
    child = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {burn!r}])"
    assert measured(child).cpu >= 0.3
    idle = measured("import time; time.sleep(0.5)")
    assert idle.wall >= 0.5
    assert idle.cpu < idle.wall


def test_bytes_are_counted(measured: Callable[[str], measure.Figures], tmp_path: Path) -> None:
    file = str(tmp_path / "file")
    written = measured(f"open({file!r}, 'wb').write(bytes({5 * MB}))")
    assert 5 * MB <= written.bytes_written < 5.1 * MB
    nothing, read = measured("pass"), measured(f"open({file!r}, 'rb').read()")
    assert 5 * MB <= read.bytes_read - nothing.bytes_read < 5.1 * MB


def test_a_command_that_fails_or_hangs_is_an_error_with_its_last_words(tmp_path: Path) -> None:
    with pytest.raises(measure.CommandFailedError, match=r"exit code 3.*\n.*sorry"):
        measure.run(["sh", "-c", "echo sorry; exit 3"], log=tmp_path / "log")
    with pytest.raises(measure.CommandFailedError, match="out of time"):
        measure.run(["sleep", "60"], log=tmp_path / "log", timeout=0.2)


# -- a run ---------------------------------------------------------------------------------------


@pytest.fixture
def profile(monkeypatch: pytest.MonkeyPatch) -> str:
    """One merge of the smallest models, by safegraft and the floor."""
    case = cases.merge("linear", "tiny", 2, {cases.OURS_2: 1, cases.OURS_1: 2, cases.FLOOR: 2})
    profiles = {"test": replace(cases.PROFILES["tiny"], merges=(case,))}
    monkeypatch.setattr(cases, "PROFILES", profiles)
    monkeypatch.setattr(run, "PROFILES", profiles)
    return "test"


def test_a_run_from_end_to_end(profile: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "results"
    Recorder(out, "earlier").add("stale/tiny/2", cases.FLOOR, {"whole_wall": 1.0})
    benchmark = run.Run(out, profile, only="linear/*", build=tmp_path / "build")
    benchmark.run()
    assert not benchmark.failed, capsys.readouterr().out
    assert not (tmp_path / "build/scratch").exists()

    results = Results(out)
    assert results.cases() == ["linear/tiny/2"]
    for side, rounds in {cases.OURS_2: 1, cases.OURS_1: 2, cases.FLOOR: 2}.items():
        assert results.rounds("linear/tiny/2", side) == rounds
    ours = {name: results.median("linear/tiny/2", cases.OURS_1, name) or 0 for name in ("whole_wall", "merge_wall")}
    assert 0 < ours["merge_wall"] < ours["whole_wall"]
    written = results.median("linear/tiny/2", cases.OURS_1, "whole_bytes_written") or 0
    weights = sum(2 * np.prod(shape) for _, shape in SIZES["tiny"].llm())
    assert weights < written < 1.2 * weights

    report.write_report(out)
    assert json.loads((out / "results.json").read_text())["figures"].keys() == {"linear/tiny/2"}
    assert_tables((out / "table.md").read_text())
    for file in out.iterdir():
        assert str(ROOT).encode() not in file.read_bytes()


def test_a_side_that_fails_is_told_and_the_others_go_on(
    profile: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bench.sides.Arena._command", lambda *_: ["sh", "-c", "echo no such luck; exit 1"])
    benchmark = run.Run(tmp_path / "results", profile, only="linear/*", rounds=1, build=tmp_path / "build")
    benchmark.run()
    assert benchmark.failed == 2
    assert "no such luck" in capsys.readouterr().out
    assert Results(tmp_path / "results").rounds("linear/tiny/2", cases.FLOOR) == 1


def test_profiles_measure_what_they_promise() -> None:
    full = cases.PROFILES["full"].merges
    names = [case.name for case in full]
    assert len(set(names)) == len(names)
    assert {case.method for case in full} == set(cases.METHODS)
    assert {case.size for case in full} == {"0.3GB", "1GB", "4GB"}
    assert {len(case.models) for case in full} == {2, 3, 5}
    # Everything that has a target is compared with mergekit, and with one thread and two.
    for method in targets.LESS_CPU:
        assert any(case.method == method and {*cases.OURS, cases.THEIRS_1} <= set(case.rounds) for case in full)


# -- the report ----------------------------------------------------------------------------------


def test_ratios_decide_what_is_met(tmp_path: Path) -> None:
    found = outcomes(
        tmp_path,
        ("linear/1GB/2", cases.OURS_1, {"merge_cpu": 1.0, "whole_wall": 3.0, "whole_peak_rss": 200 * MB}),
        ("linear/1GB/2", cases.OURS_2, {"merge_cpu": 1.2, "whole_wall": 2.0, "whole_peak_rss": 301 * MB}),
        ("linear/1GB/2", cases.THEIRS, {"merge_cpu": 4.0, "whole_wall": 9.0}),
        ("linear/1GB/2", cases.THEIRS_1, {"merge_cpu": 2.4, "whole_wall": 11.0}),
        ("linear/1GB/2", cases.FLOOR, {"whole_cpu": 0.8}),
        ("start/help", served.SAFEGRAFT, {"whole_wall": 0.1}),
    )
    assert measured_as(found, "linear, 2 inputs, whole process") == (4.5, False)  # 9 / 2, and not 11 / 2
    assert measured_as(found, "linear, merge CPU: mergekit") == (2.4, False)
    assert measured_as(found, "linear, merge CPU: safegraft / floor") == (1.25, True)
    assert measured_as(found, "peak RSS, element-wise") == (301.0, False)
    assert measured_as(found, "`safegraft --help`") == (0.1, True)
    assert next(one for one in found if one.target.what.startswith("ties")).met is None


def test_served_figures_are_held_against_raw_grpc(tmp_path: Path) -> None:
    found = outcomes(
        tmp_path,
        (served.KEPT, served.SAFEGRAFT, {"first_merged_byte": 0.02, "mb_per_s": 300.0}),
        (served.COMPUTED, served.SAFEGRAFT, {"first_merged_byte": 0.06, "mb_per_s": 500.0}),
        (served.KEPT, served.RAW, {"mb_per_s": 800.0}),
    )
    assert measured_as(found, "served, kept: first") == (20.0, True)
    assert measured_as(found, "served, kept: bytes") == (37.5, False)
    assert measured_as(found, "served, computed for the call: first") == (60.0, False)
    assert measured_as(found, "served, computed for the call: bytes") == (62.5, True)


def test_only_compute_bound_methods_need_a_second_thread(tmp_path: Path) -> None:
    found = outcomes(
        tmp_path,
        ("ties/1GB/2", cases.OURS_1, {"merge_cpu": 9.0, "merge_wall": 9.0}),
        ("ties/1GB/2", cases.OURS_2, {"merge_cpu": 9.0, "merge_wall": 5.0}),
        ("ties/1GB/2", cases.FLOOR, {"whole_cpu": 1.0}),
        ("linear/1GB/2", cases.OURS_1, {"merge_cpu": 1.2, "merge_wall": 1.2}),
        ("linear/1GB/2", cases.OURS_2, {"merge_cpu": 1.2, "merge_wall": 1.2}),
        ("linear/1GB/2", cases.FLOOR, {"whole_cpu": 1.0}),
    )
    assert measured_as(found, "second thread") == (1.8, True)


def test_memory_that_grows_with_the_model_is_a_miss(tmp_path: Path) -> None:
    memory = {"0.3GB": 200, "1GB": 210, "4GB": 240}
    runs = [(f"ties/{size}/2", cases.OURS_2, {"whole_peak_rss": peak * MB}) for size, peak in memory.items()]
    assert measured_as(outcomes(tmp_path, *runs), "peak RSS, largest model / smallest") == (1.2, False)


def test_the_table_marks_what_is_missed(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path, "test")
    for wall in (0.2, 0.9, 0.5):
        recorder.add("start/help", served.SAFEGRAFT, {"whole_wall": wall})
    recorder.add("start/plan 7B", served.SAFEGRAFT, {"whole_wall": 0.5})
    text = report.main_tables(Results(tmp_path))
    assert_tables(text)
    assert "| `safegraft --help` | ≤ 0.3 s | 0.50 s | **missed** |" in text
    assert "| `safegraft plan` of a 7B pair | ≤ 1 s | 0.50 s | met |" in text
    assert "| help | safegraft | 0.50 (0.20 to 0.90) |" in text


def test_the_readme_takes_the_tables_between_its_markers() -> None:
    text = report.README.read_text()
    once = report.with_results(text, "| new |\n")
    assert report.with_results(once, "| new |\n") == once
    assert once.partition(report.BEGIN)[0] == text.partition(report.BEGIN)[0]
    assert once.partition(report.END)[2] == text.partition(report.END)[2]
    with pytest.raises(ValueError, match="no <!-- results"):
        report.with_results("no markers", "")


def outcomes(folder: Path, *runs: tuple[str, str, Mapping[str, float]]) -> list[targets.Outcome]:
    recorder = Recorder(folder, "test")
    for case, side, figures in runs:
        recorder.add(case, side, figures)
    return targets.outcomes(Results(folder))


def measured_as(found: list[targets.Outcome], what: str) -> tuple[Any, bool | None]:
    (one,) = [outcome for outcome in found if outcome.target.what.startswith(what)]
    assert one.measured is not None
    return pytest.approx(one.measured[0]), one.met


def assert_tables(text: str) -> None:
    """Every table has as many columns in each row as in its head."""
    columns = 0
    for line in text.splitlines():
        if line.startswith("|"):
            columns = columns or line.count("|")
            assert line.count("|") == columns, line
        else:
            columns = 0
    assert "### Targets" in text
