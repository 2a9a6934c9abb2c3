"""Gradients gathered layer by layer are those of plain autograd, for every family and its LLM."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional

from safegraft.calibration.cache import Drawer
from safegraft.calibration.gradients import SCORES, Gradients, shapes
from safegraft.calibration.model import WorkingModel
from safegraft.calibration.progress import never, unreported
from safegraft.calibration.sweep import sweep
from safegraft.calibration.wording import Worded
from safegraft.local import open_model
from safegraft.methods.contract import Statistic

UNLIKE = {"diffusion_gemma"}  # it answers with another number of tokens than it is asked with


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["host", "llm"])
def test_gradients_of_every_family(family: Any, kind: str, zoo: Any, tmp_path: Path) -> None:
    if (kind == "llm" and family.llm is None) or family.name in UNLIKE:
        pytest.skip("there is none")
    specimen = zoo.host(family) if kind == "host" else zoo.llm(family)
    model = WorkingModel(open_model(str(specimen.folder)))
    samples = [worded(family, kind, tokens) for tokens in (torch.arange(3, 11), torch.arange(12, 4, -1))]
    drawer = Drawer(tmp_path, "digest", "here", 0)
    with drawer.filled(shapes(model, set(model.checkpoint.tensors))) as sheet:
        observer = Gradients(model, SCORES[Statistic.GRADIENT_SQUARE], sheet, len(samples))
        makers: list[Callable[[], Worded]] = [lambda one=one: one for one in samples]
        sweep(model, observer, makers, never, unreported)
    gathered = drawer.find()
    assert gathered is not None
    expected = plainly(specimen.model.float(), samples)
    assert any(value.any() for value in expected.values())
    for part in model.parts:
        for group in part.groups:
            known = {
                target: expected[model.canonical(target)]
                for target in group.targets
                if model.canonical(target) in expected
            }
            for name, value in group.taken_back(known).items():
                largest = float(value.abs().max())
                torch.testing.assert_close(gathered.whole(name), value, rtol=1e-3, atol=1e-6 * largest + 1e-10)
    gathered.close()


def worded(family: Any, kind: str, tokens: torch.Tensor) -> Worded:
    inputs: dict[str, Any] = {"input_ids": tokens[None], "attention_mask": torch.ones(1, len(tokens), dtype=torch.long)}
    for name, value in family.inputs.items() if kind == "host" else ():
        if isinstance(value, list):
            inputs[name] = torch.linspace(-1, 1, torch.Size(value).numel()).reshape(value)
        else:
            inputs[name] = torch.tensor(value["values"])
    return Worded(family.name, inputs, torch.arange(1, len(tokens)))


def plainly(model: Any, samples: list[Worded]) -> dict[str, torch.Tensor]:
    sums: dict[str, torch.Tensor] = {}
    for one in samples:
        model.zero_grad()
        logits = model(**one.inputs, use_cache=False).logits[0]
        functional.cross_entropy(logits[:-1], one.tokens[1:]).backward()
        for name, parameter in model.named_parameters():
            if parameter.grad is not None:
                sums[name] = sums.get(name, 0) + parameter.grad**2 / len(samples)
    model.zero_grad()
    return sums
