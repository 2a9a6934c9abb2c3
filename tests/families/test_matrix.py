"""Every family that transformers can build from a small config, merged with its LLM."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForMultimodalLM
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

from safegraft.errors import AlignmentError

LLM_WEIGHT, HOST_WEIGHT = 1.0, 2.0  # powers of two: their products are exact, fused or not


def blend(ours: torch.Tensor, theirs: torch.Tensor) -> torch.Tensor:
    """What `linear` must give, to the bit: summed and divided in float32, then rounded to the dtype."""
    return ((LLM_WEIGHT * theirs.float() + HOST_WEIGHT * ours.float()) / (LLM_WEIGHT + HOST_WEIGHT)).to(ours.dtype)


def test_merge(family: Any, zoo: Any, merge: Callable[..., Any], tmp_path: Path) -> None:
    host = zoo.host(family)
    other = zoo.host(family, seed=2) if family.llm is None else zoo.llm(family)
    recipe: dict[str, Any] = {
        "merge_method": "linear",
        "models": [
            {"model": other.reference, "parameters": {"weight": LLM_WEIGHT}},
            {"model": host.reference, "parameters": {"weight": HOST_WEIGHT}},
        ],
    }
    if family.llm is None:
        recipe["host_model"] = host.reference
    if family.refused:
        with pytest.raises(AlignmentError, match=family.refused):
            merge(recipe, tmp_path / "out")
        return

    plan = merge(recipe, tmp_path / "out")

    expected = zoo.mixed(host, other, blend) if family.llm is None else zoo.grafted(family, host, other, blend)
    zoo.save(expected, tmp_path / "expected", family.on_disk, None)
    result, before, wanted = map(zoo.bytes_of, (tmp_path / "out", host.folder, tmp_path / "expected"))
    assert result.keys() == before.keys() == wanted.keys()
    assert [name for name in wanted if result[name] != wanted[name]] == []
    merged = {name for name in wanted if wanted[name] != before[name]}
    assert {task.name for task in plan.tensors if task.action == "merge"} == merged
    for sidecar in host.folder.glob("*.json"):
        assert (tmp_path / "out" / sidecar.name).read_bytes() == sidecar.read_bytes()

    loaded, info = AutoModelForMultimodalLM.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert {problem: keys for problem, keys in info.items() if keys} == {}
    state = loaded.state_dict()
    assert state.keys() == expected.state_dict().keys()
    assert [name for name, tensor in expected.state_dict().items() if not torch.equal(state[name], tensor)] == []
    logits = zoo.logits(family, loaded.eval())
    assert logits.isfinite().all()
    torch.testing.assert_close(logits, zoo.logits(family, expected))


def test_the_documentation_names_every_family(families: Any) -> None:
    """Those of the matrix, and those that transformers has and the matrix has not, with a reason."""
    known = {family.host for family in families.values()}
    text = (Path(__file__).parents[2] / "docs" / "families.md").read_text()
    table, _, left_out = text.partition("\n## Left out\n")
    assert {name for name in known if f"| `{name}` |" not in table} == set()
    others = set(MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES) - known
    assert {name for name in others if f"`{name}`" not in left_out} == set()
