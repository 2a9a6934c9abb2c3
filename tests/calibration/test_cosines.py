"""layer_cosines against the states of the whole model and every pair of them."""

from itertools import combinations, product
from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import cosine_similarity

from safegraft.calibration import gather
from safegraft.methods.contract import Statistic

NORMAL = ["w1 w2 w3", "w4 w5", "w6 w7 w8 w9"]
MALICIOUS = ["w20 w21", "w22 w23 w24 w25 w26"]


def states(model: Any, decoder: Any, inputs: dict[str, torch.Tensor]) -> list[torch.Tensor]:
    """What each layer gives for the last token."""
    found: list[torch.Tensor] = []
    hooks = [
        layer.register_forward_hook(lambda _, args, output: found.append(output[0, -1].double()))
        for layer in decoder.layers
    ]
    with torch.no_grad():
        model.plain(**inputs)
    for hook in hooks:
        hook.remove()
    return found


def expected(model: Any, decoder: Any, normal: list[Any], malicious: list[Any]) -> torch.Tensor:
    ours = [states(model, decoder, inputs) for inputs in normal]
    theirs = [states(model, decoder, inputs) for inputs in malicious]
    layers = range(len(decoder.layers))
    alike = [torch.stack([cosine_similarity(p[i], q[i], 0) for p, q in combinations(ours, 2)]).mean() for i in layers]
    apart = [torch.stack([cosine_similarity(p[i], q[i], 0) for p, q in product(ours, theirs)]).mean() for i in layers]
    return torch.stack([torch.stack(alike), torch.stack(apart)], 1).float()


def test_of_texts(llm: Any, data: Any, tokens_of: Any, request_of: Any, tmp_path: Path) -> None:
    sets = [data.open([{"text": text} for text in texts], name) for name, texts in (("n", NORMAL), ("m", MALICIOUS))]
    gathered = gather(request_of(llm, Statistic.LAYER_COSINES, *sets), tmp_path)
    wanted = expected(llm, llm.plain.model, list(map(tokens_of, NORMAL)), list(map(tokens_of, MALICIOUS)))
    assert set(gathered.tensors) == {name for name in llm.checkpoint.tensors if name.startswith("model.layers.")}
    for name in gathered.tensors:
        torch.testing.assert_close(gathered.whole(name), wanted, rtol=1e-4, atol=1e-6)


def test_prompts_are_shown_without_their_responses(
    lvlm: Any, data: Any, tokens_of: Any, request_of: Any, tmp_path: Path
) -> None:
    def opened(name: str, texts: list[str]) -> Any:
        rows = [{"q": text, "a": "w9"} for text in texts]
        return data.open(rows, name, fields={"prompt": "q", "response": "a"})

    def asked(texts: list[str]) -> list[Any]:
        return [tokens_of(f"<user> {text} <end> <assistant>") for text in texts]

    sets = [opened("n", NORMAL), opened("m", MALICIOUS)]
    gathered = gather(request_of(lvlm, Statistic.LAYER_COSINES, *sets), tmp_path)
    wanted = expected(lvlm, lvlm.plain.model.language_model, asked(NORMAL), asked(MALICIOUS))
    assert set(gathered.tensors) == {name for name in lvlm.checkpoint.tensors if "language_model.model.layers." in name}
    torch.testing.assert_close(gathered.whole(next(iter(gathered.tensors))), wanted, rtol=1e-4, atol=1e-6)
