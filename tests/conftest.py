"""Fixtures for every room: tiny checkpoints, and recipes that name them."""

import fnmatch
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import pytest
import torch
from safetensors.torch import load_file, save_file

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


class WriteLora(Protocol):
    """Writes a PEFT adapter with random factors for the linear weights of `base` whose names match `targets`."""

    def __call__(
        self, folder: Path, base: Path, targets: str = "*.self_attn.*", seed: int = 1, **config: Any
    ) -> Path: ...


@pytest.fixture(scope="session")
def write_lora() -> WriteLora:
    def write(folder: Path, base: Path, targets: str = "*.self_attn.*", seed: int = 1, **config: Any) -> Path:
        settings = {"peft_type": "LORA", "r": 2, "lora_alpha": 3, **config}
        generator = torch.Generator().manual_seed(seed)
        factors: dict[str, torch.Tensor] = {}
        for file in sorted(base.glob("*.safetensors")):
            for name, weight in load_file(file).items():
                if weight.ndim == 2 and fnmatch.fnmatchcase(name, targets):
                    module = f"base_model.model.{name.removesuffix('.weight')}"
                    rows, columns = weight.shape
                    factors[f"{module}.lora_A.weight"] = torch.randn(settings["r"], columns, generator=generator)
                    factors[f"{module}.lora_B.weight"] = torch.randn(rows, settings["r"], generator=generator)
        assert factors
        folder.mkdir()
        (folder / "adapter_config.json").write_text(json.dumps(settings))
        save_file(factors, folder / "adapter_model.safetensors", {"format": "pt"})
        return folder

    return write


@pytest.fixture(autouse=True)
def _no_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing asks the real Hub, nor does a process that a test starts. A test with a Hub of its own points there."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


@pytest.fixture
def in_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], Path]:
    """Work in an empty folder."""

    def enter() -> Path:
        monkeypatch.chdir(tmp_path)
        return tmp_path

    return enter
