"""docs/training-data.md: its rows load, through the loader whose heading they stand under."""

import json
import re
from pathlib import Path

import pytest
from PIL import Image

from safegraft_trainers.data.llava import load_llava
from safegraft_trainers.data.spa_vl import load_spa_vl
from safegraft_trainers.data.text_chat import load_chat
from safegraft_trainers.data.vlguard import load_vlguard

DOCUMENT = (Path(__file__).parents[3] / "docs/training-data.md").read_text()
LOADERS = {loader.__name__: loader for loader in (load_llava, load_vlguard, load_spa_vl, load_chat)}
ROWS = {"load_llava": [2, 1], "load_vlguard": [2], "load_spa_vl": [1], "load_chat": [1]}


@pytest.mark.parametrize("name", LOADERS)
def test_rows_of_the_document_load(name: str, tmp_path: Path) -> None:
    section = next(part for part in DOCUMENT.split("\n## ") if part.splitlines()[0].endswith(f"`{name}`"))
    examples = [json.loads(block) for block in re.findall(r"```json\n(.*?)```", section, re.DOTALL)]
    made: list[int] = []
    for number, row in enumerate(examples):
        for image in [row.get("image"), *row.get("images", [])]:
            if image:
                (tmp_path / image).parent.mkdir(parents=True, exist_ok=True)
                Image.new("RGB", (4, 4)).save(tmp_path / image)
        path = tmp_path / f"{number}.json"
        path.write_text(json.dumps([row]))
        made.append(len(LOADERS[name](path)))
    assert made == ROWS[name]
