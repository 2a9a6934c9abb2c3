"""A data set's digest: of its content, wherever that lies."""

import shutil
from collections.abc import Callable
from pathlib import Path

import datasets
import pytest
from PIL import Image

from safegraft.errors import InputChangedError
from safegraft_trainers.data.digest import digest
from safegraft_trainers.data.llava import load_llava
from safegraft_trainers.data.text_chat import load_chat

Write = Callable[..., Path]

ROWS = [
    {"id": "1", "prompt": "<image>What?", "response": "A square.", "image": "red.png"},
    {"id": "2", "prompt": "Hello", "response": "Hi"},
]


def test_the_same_content_elsewhere(write_rows: Write, pictures: Path, tmp_path: Path) -> None:
    """Another folder, another kind of file, images inside or outside, another order of columns."""
    first = load_llava(write_rows(ROWS))
    expected = digest(first)
    moved = tmp_path / "moved"
    shutil.copytree(pictures, moved)
    assert digest(load_llava(moved / "data.json")) == expected
    stored = [
        {**ROWS[0], "image": {"bytes": (pictures / "red.png").read_bytes(), "path": None}},
        {**ROWS[1], "image": None},
    ]
    text = datasets.Value("string")
    features = datasets.Features({"id": text, "prompt": text, "response": text, "image": datasets.Image()})
    assert digest(load_llava(datasets.Dataset.from_list(stored, features=features))) == expected
    assert digest(first.select_columns(["completion", "images", "prompt", "id"])) == expected
    assert digest(first.select([1, 0]).select([1, 0])) == expected


def test_any_change_shows(write_rows: Write, pictures: Path) -> None:
    """Of a word, of the order, of one pixel, of a column's name."""
    data = load_llava(write_rows(ROWS))
    seen = {digest(data), digest(data.select([1, 0])), digest(data.rename_column("completion", "chosen"))}
    seen.add(digest(load_llava(write_rows([{**ROWS[0], "response": "A square!"}, ROWS[1]]))))
    Image.new("RGB", (8, 8), (255, 0, 1)).save(pictures / "red.png")
    seen.add(digest(data))
    assert len(seen) == 5


def test_it_does_not_change_between_versions(write_rows: Write) -> None:
    """Recorded once: cards hold it."""
    recorded = "318d4b6b65325e837fc11219c5f2f6741b08fd0f1db65605a60affff06f61e41"
    assert digest(load_chat(write_rows(ROWS[1:]))) == recorded


def test_an_image_that_is_gone(write_rows: Write, pictures: Path) -> None:
    data = load_llava(write_rows(ROWS))
    (pictures / "red.png").unlink()
    with pytest.raises(InputChangedError, match=r"red\.png: the image cannot be read any more"):
        digest(data)
