"""Memory is bounded by a layer, not by the model; waves and turns change nothing that is gathered."""

import threading
from pathlib import Path
from typing import Any

import pytest
import torch

from safegraft.calibration import gather, sweep
from safegraft.calibration.model import WorkingModel
from safegraft.calibration.progress import never
from safegraft.calibration.turns import Turns
from safegraft.methods.contract import Statistic

STATISTICS = (Statistic.GRADIENT_SQUARE, Statistic.SALIENCY, Statistic.INPUT_NORM, Statistic.INPUT_GRAM)


def layers_in_memory(model: WorkingModel) -> list[int]:
    return [part.place for part in model.layers if any(not model.parameter(name).is_meta for name in part.parameters)]


@pytest.mark.parametrize("statistic", STATISTICS)
def test_one_layer_is_in_memory_at_a_time(
    statistic: Statistic, lvlm: Any, data: Any, request_of: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[list[int]] = []
    load, release = WorkingModel.load, WorkingModel.release

    def watched_load(model: WorkingModel, part: Any) -> None:
        load(model, part)
        seen.append(layers_in_memory(model))

    def watched_release(model: WorkingModel, part: Any) -> None:
        release(model, part)
        seen.append(layers_in_memory(model))

    monkeypatch.setattr(WorkingModel, "load", watched_load)
    monkeypatch.setattr(WorkingModel, "release", watched_release)
    gather(request_of(lvlm, statistic, data.pictures()), tmp_path)
    there = [0, 1, 2, 3, 4, 5]  # the tower's three layers, then the language model's, each once for all samples
    # On the way back the language model's last layer is still there, and the tower's last is never needed: LLaVA
    # does not use what it gives.
    back = [4, 3, 1, 0] if statistic in (Statistic.GRADIENT_SQUARE, Statistic.SALIENCY) else []
    assert max(map(len, seen)) == 1
    assert [layers[0] for layers in seen if layers] == there + back
    assert seen[-1] == []


def test_no_gradient_of_a_layer_outlives_its_visit(
    llm: Any, data: Any, request_of: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    left: list[str] = []
    release = WorkingModel.release

    def watched(model: WorkingModel, part: Any) -> None:
        left.extend(name for name in part.parameters if model.parameter(name).grad is not None)
        release(model, part)

    monkeypatch.setattr(WorkingModel, "release", watched)
    gather(request_of(llm, Statistic.GRADIENT_SQUARE, data.prompts()), tmp_path)
    assert left == []


@pytest.mark.parametrize("statistic", STATISTICS)
def test_waves_change_nothing_but_rounding(
    statistic: Statistic, lvlm: Any, data: Any, request_of: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = request_of(lvlm, statistic, data.pictures())
    together = gather(request, tmp_path / "together")
    monkeypatch.setattr(sweep, "KEPT_BYTES", 1)  # one sample a wave
    apart = gather(request, tmp_path / "apart")
    for name in together.tensors:
        torch.testing.assert_close(apart.whole(name), together.whole(name), rtol=1e-5, atol=1e-7)


def test_the_model_is_as_it_was_afterwards(llm: Any, data: Any, request_of: Any, tmp_path: Path) -> None:
    threads, state = torch.get_num_threads(), torch.get_rng_state()
    gather(request_of(llm, Statistic.GRADIENT_SQUARE, data.prompts()), tmp_path)
    assert torch.get_num_threads() == threads
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.is_grad_enabled()


def test_passes_take_turns() -> None:
    log: list[str] = []
    turns: Turns[int] = Turns(
        lambda stop: log.append(f"begin {stop}"), lambda stop: log.append(f"end {stop}"), lambda stop: (0, stop), never
    )

    def work(name: str, stops: list[int]) -> Any:
        def run() -> None:
            for stop in stops:
                turns.wait_for(stop)
                log.append(f"{name}{stop}")

        return run

    turns.run([work("a", [1, 2]), work("b", [2]), work("c", [])])
    assert log == ["begin 1", "a1", "end 1", "begin 2", "a2", "b2", "end 2"]


def test_an_error_in_a_pass_unwinds_the_others() -> None:
    turns: Turns[int] = Turns(lambda stop: None, lambda stop: None, lambda stop: (0, stop), never)
    unwound: list[str] = []

    def waits() -> None:
        try:
            turns.wait_for(2)
        finally:
            unwound.append("waits")

    def fails() -> None:
        turns.wait_for(1)
        raise ValueError("as it happens")

    threads = threading.active_count()
    with pytest.raises(ValueError, match="as it happens"):
        turns.run([waits, fails])
    assert unwound == ["waits"]
    assert threading.active_count() == threads
