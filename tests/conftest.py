"""Fixtures for every room: tiny checkpoints, and recipes that name them."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from safegraft.testing import tiny_llm, tiny_lvlm


@dataclass(frozen=True, slots=True)
class Models:
    """An aligned LLM, its base, and two LVLMs around such LLMs; the LVLMs have four more tokens."""

    base: Path
    llm: Path
    lvlm: Path
    other_lvlm: Path

    def linear(self, share: float = 0.25, **more: Any) -> dict[str, Any]:
        """LLM x LVLM."""
        models = [
            {"model": str(self.llm), "parameters": {"weight": share}},
            {"model": str(self.lvlm), "parameters": {"weight": 1 - share}},
        ]
        return {"models": models, "merge_method": "linear", **more}

    def slerp(self, t: float = 0.3, **more: Any) -> dict[str, Any]:
        """LVLM x LVLM."""
        models = [{"model": str(self.lvlm)}, {"model": str(self.other_lvlm)}]
        asked = {"models": models, "merge_method": "slerp", "base_model": str(self.lvlm), "parameters": {"t": t}}
        return {**asked, **more}

    def task_arithmetic(self, **more: Any) -> dict[str, Any]:
        """Base LLM + LLM + LVLM."""
        models = [
            {"model": str(self.llm), "parameters": {"weight": 0.5}},
            {"model": str(self.lvlm), "parameters": {"weight": 0.7}},
        ]
        return {"models": models, "merge_method": "task_arithmetic", "base_model": str(self.base), **more}


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Models:
    root = tmp_path_factory.mktemp("models")
    return Models(
        base=tiny_llm(root / "base-llm", seed=1),
        llm=tiny_llm(root / "aligned-llm", seed=2),
        lvlm=tiny_lvlm(root / "adapted-lvlm", seed=3, shards=2),
        other_lvlm=tiny_lvlm(root / "safety-lvlm", seed=4),
    )


@pytest.fixture
def in_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], Path]:
    """Work in an empty folder."""

    def enter() -> Path:
        monkeypatch.chdir(tmp_path)
        return tmp_path

    return enter
