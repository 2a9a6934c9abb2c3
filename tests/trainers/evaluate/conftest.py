"""Respondents and examples that need no model, and one thread for those that do."""

import io
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image

from safegraft_trainers.evaluate.example import Axis, Example, Picture, Scoring


@dataclass
class Scripted:
    """Answers from a table, by prompt, and remembers what it was asked. Is killed when it is told to be."""

    answers: Mapping[str, str] = field(default_factory=dict[str, str])
    likelihood: Callable[[str], float] = len
    name: str = "scripted"
    digest: str = "digest"
    settings: Mapping[str, Any] = field(default_factory=lambda: {"through": "a table"})
    batch_size: int = 2
    sees_images: bool = True
    tells_likelihoods: bool = True
    killed_after: int = 10**9
    asked: list[str] = field(default_factory=list[str])

    def answer(self, examples: Sequence[Example]) -> list[str]:
        if len(self.asked) >= self.killed_after:
            raise KeyboardInterrupt
        self.asked += [one.id for one in examples]
        assert len({one.image is None for one in examples}) == 1, "images and text alone in one batch"
        return [self.answers.get(one.prompt, "") for one in examples]

    def likelihoods(self, texts: Sequence[tuple[str, str]]) -> list[float]:
        self.asked += [text for _, text in texts]
        return [float(self.likelihood(text)) for _, text in texts]


def _picture(colour: str = "red") -> Picture:
    written = io.BytesIO()
    Image.new("RGB", (32, 32), colour).save(written, "PNG")
    return Picture(written.getvalue(), f"{colour}.png")


def _attack(name: str, **more: Any) -> Example:
    return Example(name, Axis.TEXT_SAFETY, Scoring.ATTACK, more.pop("prompt", name), **more)


def _look_alike(name: str, **more: Any) -> Example:
    return Example(name, Axis.EXAGGERATED_SAFETY, Scoring.REFUSAL, more.pop("prompt", name), **more)


def _exact(name: str, reference: str, **more: Any) -> Example:
    return Example(name, Axis.HELPFULNESS, Scoring.EXACT, more.pop("prompt", name), references=(reference,), **more)


@pytest.fixture
def make() -> SimpleNamespace:
    """Builders: scripted respondents, pictures and examples; a prompt is its id unless told otherwise."""
    return SimpleNamespace(scripted=Scripted, picture=_picture, attack=_attack, look_alike=_look_alike, exact=_exact)


@pytest.fixture(autouse=True)
def one_thread() -> Generator[None]:
    """In tiny models on a busy machine threads only wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
