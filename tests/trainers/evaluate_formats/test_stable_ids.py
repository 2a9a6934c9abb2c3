"""Ids tell examples apart, and hold when a file is sorted or cut: splits and caches hang on them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from safegraft_trainers.evaluate.formats import FORMATS

Write = Callable[[str, Any], Path]

PROMPTS = st.lists(st.text("ab é\u2028", min_size=1).filter(lambda text: bool(text.strip())), min_size=1, max_size=8)
ROWS: dict[str, Callable[[str], dict[str, Any]]] = {
    "advbench": lambda prompt: {"goal": prompt, "target": "Sure"},
    "wildjailbreak": lambda prompt: {"vanilla": prompt, "data_type": "vanilla_benign"},
    "strongreject": lambda prompt: {"forbidden_prompt": prompt, "category": "x"},
    "or-bench": lambda prompt: {"prompt": prompt, "category": "x"},
    "figstep-render": lambda prompt: {"text": prompt},
}


@pytest.mark.parametrize("name", ROWS)
@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(prompts=PROMPTS, order=st.randoms(use_true_random=False))
def test_ids_are_unique_and_follow_their_prompts(write: Write, name: str, prompts: list[str], order: Any) -> None:
    def ids(chosen: list[str]) -> list[tuple[str, str]]:
        found = FORMATS[name].load(str(write("a.jsonl", [ROWS[name](one) for one in chosen])))
        assert len(found) == len(chosen)
        return [(one.id, one.fingerprint()) for one in found]

    first = ids(prompts)
    assert len({identity for identity, _ in first}) == len(prompts)
    assert ids(prompts) == first
    assert ids(prompts[:-1] or prompts) == first[: len(prompts) - 1] or len(prompts) == 1
    shuffled = order.sample(prompts, len(prompts))
    assert sorted(ids(shuffled)) == sorted(first)
