"""Rows and images, from every kind of file."""

# datasets is typed in part.
# pyright: reportMissingTypeStubs=false

import base64
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from safegraft.errors import InputError
from safegraft_trainers.evaluate.reading import picture, read_rows

ROWS = [{"id": "1", "text": 'a "quoted", one'}, {"id": "2", "text": "two\nlines \u2028 of it"}]
Write = Callable[[str, Any], Path]
Png = Callable[[int], bytes]


@pytest.mark.parametrize("name", ["a.json", "a.jsonl", "a.csv", "a.tsv", "a.parquet"])
def test_every_kind_of_file_gives_the_same_rows(write: Write, name: str) -> None:
    rows = read_rows(str(write(name, ROWS)))
    assert [row.values for row in rows] == ROWS
    assert [row.where for row in rows] == [f"{name}, {'line' if name == 'a.jsonl' else 'row'} {n}" for n in (1, 2)]


def test_a_folder_is_its_files_in_order_when_they_are_of_one_kind(write: Write) -> None:
    folder = write("data/b.jsonl", [ROWS[1]]).parent
    write("data/a.jsonl", [ROWS[0]])
    assert [row.values["id"] for row in read_rows(str(folder))] == ["1", "2"]
    write("data/c.csv", ROWS)
    with pytest.raises(InputError, match=r"several kinds.*a\.jsonl, b\.jsonl, c\.csv"):
        read_rows(str(folder))


def test_what_datasets_saved_is_read_with_its_images_still_encoded(tmp_path: Path, png: Png) -> None:
    import datasets

    features: Any = datasets.Features({"id": datasets.Value("string"), "image": datasets.Image()})
    kind: Any = datasets.Dataset
    kind.from_dict({"id": ["x"], "image": [{"bytes": png(1), "path": None}]}, features).save_to_disk(tmp_path / "saved")
    (row,) = read_rows(str(tmp_path / "saved"))
    assert picture(row.values["image"], row.where, [row.folder]).content == png(1)


def test_a_data_set_in_the_local_hub_cache_by_name_revision_and_pattern(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    repo = tmp_path / "datasets--org--name"
    for commit, branch, number in (("a" * 40, "main", 1), ("b" * 40, "v2", 2)):
        folder = repo / "snapshots" / commit / "data"
        folder.mkdir(parents=True)
        (folder / "test-0.jsonl").write_text(json.dumps({"n": number}))
        (folder / "other.csv").write_text("n\n0\n")
        (repo / "refs").mkdir(exist_ok=True)
        (repo / "refs" / branch).write_text(commit)
    assert [row.values for row in read_rows("org/name:data/test-*.jsonl")] == [{"n": 1}]
    assert [row.values for row in read_rows("org/name@v2:data/test-*.jsonl")] == [{"n": 2}]
    with pytest.raises(InputError, match=r"nothing at 'train\.jsonl'.*hf download --repo-type dataset org/name"):
        read_rows("org/name:train.jsonl")
    with pytest.raises(InputError, match="hf download --repo-type dataset org/other --revision v1"):
        read_rows("org/other@v1")


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.json", "[1, {}, 2]", ["row 1: must be an object, not int", "row 3"]),
        ("a.json", '{"x": ', ["line 1: is not JSON"]),
        ("a.json", '"text"', ["must be a list of objects"]),
        ("a.jsonl", '{"a": 1}\n{\n\n[]', ["line 2: is not JSON"]),
        ("a.jsonl", "{}\n[]\n3\n", ["line 2: must be an object, not list", "line 3"]),
        ("a.csv", "a,b\n1\n1,2\n1,2,3\n", ["row 1: has 1 fields where the header has 2", "row 3: has 3 fields"]),
        ("a.csv", "a,a\n1,2\n", ["a column twice: 'a'"]),
        ("a.csv", 'a\n"open\n', ["is not well-formed"]),
        ("a.csv", "", ["holds no rows"]),
        ("a.csv", b"a\n\xff\n", ["is not UTF-8"]),
        ("a.parquet", b"none", ["is not a parquet file"]),
        ("a.xlsx", b"", ["of no kind that is read here"]),
    ],
)
def test_a_broken_file_is_described_with_every_fault(write: Write, name: str, content: Any, said: list[str]) -> None:
    with pytest.raises(InputError) as raised:
        read_rows(str(write(name, content)))
    assert len(raised.value.problems) == len(said)
    for problem, words in zip(raised.value.problems, said, strict=True):
        assert words in str(problem)


def test_a_field_may_be_as_long_as_an_image(write: Write) -> None:
    (row,) = read_rows(str(write("a.tsv", [{"image": "x" * 200_000}])))
    assert len(row.values["image"]) == 200_000


def test_an_image_in_each_form(write: Write, png: Png, tmp_path: Path) -> None:
    path = write("images/one.png", png(1))
    encoded = base64.b64encode(png(1)).decode()
    forms: list[Any] = [
        "one.png",
        str(path),
        png(1),
        {"bytes": png(1), "path": "elsewhere.png"},
        {"bytes": None, "path": "one.png"},
        encoded,
        f"data:image/png;base64,{encoded}",
    ]
    for form in forms:
        assert picture(form, "here", [tmp_path, tmp_path / "images"]).content == png(1)
    for wrong in (None, "", 3, {"bytes": None, "path": None}, "two.png", b"no image", "A" * 64, "x\0y"):
        with pytest.raises(InputError, match="image"):
            picture(wrong, "here", [tmp_path])
