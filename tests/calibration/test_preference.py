"""preference_mask: it is DPO on the mask's logits, it learns, and it is drawn from a seed."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional

from safegraft.calibration import gather, notes, problems
from safegraft.methods.contract import Statistic

MASK = Statistic.PREFERENCE_MASK
ROWS = [
    {"prompt": "w1 w2", "chosen": "w3 w4", "rejected": "w5"},
    {"prompt": "w6", "chosen": "w7", "rejected": "w8 w9 w10"},
]
FIELDS = {"prompt": "prompt", "chosen": "chosen", "rejected": "rejected"}


def log_probability(model: Any, parameters: dict[str, torch.Tensor], inputs: Any, begin: int) -> torch.Tensor:
    logits = torch.func.functional_call(model.plain, parameters, (), {**inputs, "use_cache": False}).logits[0]
    tokens = inputs["input_ids"][0]
    return functional.log_softmax(logits, -1)[range(begin - 1, len(tokens) - 1), tokens[begin:]].sum()


def test_it_is_dpo_on_the_logits_of_a_relaxed_mask(
    llm: Any, other_llm: Any, data: Any, tokens_of: Any, request_of: Any, tmp_path: Path
) -> None:
    request = request_of(llm, MASK, data.open(ROWS, fields=FIELDS), reference=other_llm.checkpoint)
    assert problems(request) == []
    gathered = gather(request, tmp_path)

    # The same again: noise in the order of the checkpoint's parameters, Adam, one sample at a time, three epochs.
    tuned, aligned = dict(llm.plain.named_parameters()), dict(other_llm.plain.named_parameters())
    names = sorted(tuned, key=lambda name: (name.startswith("model.layers."), name))
    logits = {name: torch.zeros_like(tuned[name], requires_grad=True) for name in names}
    noise = torch.Generator().manual_seed(int(request.digest[:15], 16))
    optimizer = torch.optim.Adam(logits.values(), lr=1e-3)

    def pair(parameters: dict[str, torch.Tensor], row: dict[str, str]) -> torch.Tensor:
        begin = f"<user> {row['prompt']} <end> <assistant>"
        chosen, rejected = (tokens_of(f"{begin} {row[field]} <end>") for field in ("chosen", "rejected"))
        length = len(begin.split())
        return log_probability(llm, parameters, chosen, length) - log_probability(llm, parameters, rejected, length)

    with torch.no_grad():
        margins = [pair(aligned, row) for row in ROWS]
    for _ in range(3):
        for row, margin in zip(ROWS, margins, strict=True):
            theta = {}
            for name in names:
                drawn = torch.rand(tuned[name].shape, generator=noise).clamp(1e-6, 1 - 1e-6)
                mask = torch.sigmoid((logits[name] + torch.log(drawn / (1 - drawn))) / 0.5)
                theta[name] = aligned[name].detach() + mask * (tuned[name] - aligned[name]).detach()
            optimizer.zero_grad()
            functional.softplus(-0.1 * (pair(theta, row) - margin)).backward()
            optimizer.step()
    for name in names:
        expected = torch.sigmoid(logits[name].detach())
        # Adam's first steps are all of one size: where a gradient is next to nothing, its sign decides.
        close = (gathered.whole(llm.names[name]) - expected).abs() < 1e-5
        assert close.float().mean() > 0.99, name
        assert (expected - 0.5).abs().max() > 5e-4


def test_its_cost_is_told(
    llm: Any, other_llm: Any, data: Any, request_of: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("safegraft.calibration.request.WORTH_A_NOTE", 0)
    request = request_of(llm, MASK, data.open(ROWS, fields=FIELDS), reference=other_llm.checkpoint)
    (note,) = notes(request)
    assert "whole in memory" in note


def test_a_reference_of_another_shape_is_refused(llm: Any, lvlm: Any, data: Any, request_of: Any) -> None:
    opened = data.open(ROWS, fields=FIELDS)
    assert "needs the aligned model" in problems(request_of(llm, MASK, opened))[0]
    (problem,) = problems(request_of(llm, MASK, opened, reference=lvlm.checkpoint))
    assert "needs two models of one architecture" in problem
