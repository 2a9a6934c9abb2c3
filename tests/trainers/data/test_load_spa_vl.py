"""SPA-VL's preferences."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pytest

from safegraft.errors import InputError
from safegraft_trainers.data.spa_vl import load_spa_vl

Write = Callable[..., Path]

ROW = {"image": "red.png", "question": "How?", "chosen": "I will not.", "rejected": "So.", "rejected_model": "x"}


def stored(pictures: Path, images: list[Any]) -> datasets.Dataset:
    """As the Hub has it: images inside."""
    columns = {name: [ROW[name]] * len(images) for name in ("question", "chosen", "rejected")}
    text = datasets.Value("string")
    features = datasets.Features({"image": datasets.Image(), "question": text, "chosen": text, "rejected": text})
    return datasets.Dataset.from_dict({"image": images, **columns}, features=features)


def test_columns(write_rows: Write) -> None:
    data = load_spa_vl(write_rows([ROW, {**ROW, "image": None, "id": "text"}]))
    assert data["id"] == ["1", "text"]
    image, said = {"type": "image", "text": ""}, {"type": "text", "text": "How?"}
    assert data["prompt"] == [[{"role": "user", "content": [image, said]}], [{"role": "user", "content": [said]}]]
    assert data[0]["chosen"] == [{"role": "assistant", "content": [{"type": "text", "text": "I will not."}]}]
    assert data[0]["rejected"] == [{"role": "assistant", "content": [{"type": "text", "text": "So."}]}]
    assert [len(images) for images in data["images"]] == [1, 0]


def test_stored_images_stay_where_they_are(pictures: Path, tmp_path: Path, own_cache: Path) -> None:
    """A saved set is read through the operating system: its images are neither copied nor held in memory."""
    contents = [(pictures / name).read_bytes() for name in ("red.png", "green.png", "sub/blue.jpg")]
    stored(pictures, [{"bytes": content, "path": None} for content in contents]).save_to_disk(
        tmp_path / "in", num_shards=2
    )
    opened = datasets.load_from_disk(tmp_path / "in")
    data = load_spa_vl(tmp_path / "in")
    assert not own_cache.exists()
    assert [images[0]["bytes"] for images in data.data.column("images").to_pylist()] == contents
    assert opened.data.column("image").num_chunks == data.data.column("images").num_chunks == 2
    images = load_spa_vl(opened).data.column("images")
    there = opened.data.column("image").chunk(1).field("bytes").buffers()[2].address
    assert images.chunk(1).values.field("bytes").buffers()[2].address == there


def test_some_rows_have_no_image(pictures: Path) -> None:
    red = {"bytes": (pictures / "red.png").read_bytes(), "path": None}
    data = load_spa_vl(stored(pictures, [None, red, None]))
    assert [len(images) for images in data["images"]] == [0, 1, 0]
    assert data[1]["images"][0].getpixel((0, 0)) == (255, 0, 0)


def test_bytes_and_paths_in_a_parquet_file(pictures: Path) -> None:
    red = (pictures / "red.png").read_bytes()
    texts = {name: ["a", "b"] for name in ("question", "chosen", "rejected")}
    for name, images in {"bytes": [red, red], "path": ["red.png", "green.png"]}.items():
        path = pictures / f"{name}.parquet"
        datasets.Dataset.from_dict({"image": images, **texts}).to_parquet(path)
        assert load_spa_vl(path)[0]["images"][0].getpixel((0, 0)) == (255, 0, 0)


def test_some_images_are_stored_and_some_are_files(pictures: Path) -> None:
    red = {"bytes": (pictures / "red.png").read_bytes(), "path": None}
    mixed = stored(pictures, [red, {"bytes": None, "path": "green.png"}, red])
    data = load_spa_vl(mixed, pictures)
    assert [images[0].getpixel((0, 0)) for images in data["images"]] == [(255, 0, 0), (0, 255, 0), (255, 0, 0)]
    with pytest.raises(InputError, match=r"row 2: its image 'green.png' is a path: give image_folder"):
        load_spa_vl(mixed)


@pytest.mark.parametrize("column", ["question", "chosen", "rejected"])
@pytest.mark.parametrize(("value", "message"), [("", "is empty"), (None, "is missing"), ([1], "is a list, not a text")])
def test_a_faulty_row(column: str, value: Any, message: str, write_rows: Write) -> None:
    with pytest.raises(InputError, match=rf"data.json row 2: `{column}` {message}"):
        load_spa_vl(write_rows([ROW, {**ROW, column: value}]))
