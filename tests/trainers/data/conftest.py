"""Pictures in a folder, data files beside them, and a cache of datasets that is the test's own."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import datasets
import pytest
from PIL import Image

COLOURS = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255)}


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    cache = tmp_path / "hf-cache"
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", cache)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    return cache


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """red.png, green.png and sub/blue.jpg, 8 x 8."""
    folder = tmp_path / "pictures"
    (folder / "sub").mkdir(parents=True)
    for name, file in (("red", "red.png"), ("green", "green.png"), ("blue", "sub/blue.jpg")):
        Image.new("RGB", (8, 8), COLOURS[name]).save(folder / file)
    return folder


@pytest.fixture
def write_rows(pictures: Path) -> Callable[..., Path]:
    """Rows as a JSON file beside the pictures, or JSONL or parquet by the suffix of `name`."""

    def write(rows: Sequence[Any], name: str = "data.json") -> Path:
        path = pictures / name
        if path.suffix == ".parquet":
            datasets.Dataset.from_list(list(rows)).to_parquet(path)
        elif path.suffix == ".jsonl":
            path.write_text("\n".join(json.dumps(row) for row in rows))
        else:
            path.write_text(json.dumps(rows))
        return path

    return write
