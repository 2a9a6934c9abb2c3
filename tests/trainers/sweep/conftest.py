"""The miniature checkpoints and some of their questions, as a sweep's user would have them."""

from pathlib import Path
from typing import Any

import pytest
import torch

from safegraft_trainers.evaluate.example import Axis, Example
from safegraft_trainers.evaluate.formats.own import load, save
from safegraft_trainers.lab.shipped import CHECKPOINTS

QUESTIONS = CHECKPOINTS / "questions" / "test.jsonl"
PER_SUBSET = 10  # enough that both halves have some


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def probes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three suites in a folder: text.jsonl, images.jsonl (harmful requests) and benign.jsonl."""
    folder = tmp_path_factory.mktemp("probes")
    taken: dict[str, int] = {}
    few: list[Example] = []
    for example in load(str(QUESTIONS)):
        taken[example.subset] = taken.get(example.subset, 0) + 1
        if taken[example.subset] <= PER_SUBSET:
            few.append(example)
    axes = {"text": {Axis.TEXT_SAFETY}, "images": {Axis.MULTIMODAL_SAFETY}}
    for name, wanted in {**axes, "benign": {Axis.HELPFULNESS, Axis.EXAGGERATED_SAFETY}}.items():
        save([one for one in few if one.axis in wanted], folder / f"{name}.jsonl")
    return folder


@pytest.fixture
def sweep_document(probes: Path) -> dict[str, Any]:
    """A small sweep of two pairings, as SWEEP.yml would say it."""
    names = ("aligned-llm", "adapted-lvlm", "safety-sft-lvlm")
    return {
        "models": {name: str(CHECKPOINTS / name) for name in names},
        "pairings": [
            {"name": "restore", "models": ["aligned-llm", "adapted-lvlm"]},
            {"name": "temper", "models": ["safety-sft-lvlm", "adapted-lvlm"]},
        ],
        "methods": ["linear"],
        "strengths": [0, 0.5],
        "suites": [f"safegraft={probes / name}.jsonl" for name in ("text", "images", "benign")],
        "judges": ["patterns", "knowledge"],
        "generation": {"max_new_tokens": 8, "batch_size": 64, "threads": 1},
        "objectives": [
            {"metric": "multimodal_safety", "direction": "lower"},
            {"metric": "helpfulness", "direction": "higher"},
        ],
        "baselines": ["aligned-llm", "adapted-lvlm", "safety-sft-lvlm"],
    }
