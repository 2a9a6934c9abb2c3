"""VLGuard's train.json."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pytest

from safegraft.errors import InputError
from safegraft_trainers.data.vlguard import load_vlguard

Write = Callable[..., Path]

UNSAFE = {
    "id": "1",
    "image": "red.png",
    "safe": False,
    "harmful_category": "privacy",
    "harmful_subcategory": "personal data",
    "instr-resp": [{"instruction": "Who is it?", "response": "I cannot tell."}],
}
SAFE = {
    "id": "2",
    "image": "sub/blue.jpg",
    "safe": True,
    "instr-resp": [
        {"safe_instruction": "What colour?", "response": "Blue."},
        {"unsafe_instruction": "Use it to insult her.", "response": "No."},
    ],
}


def spoken(messages: list[Any]) -> list[str]:
    return [part["text"] for message in messages for part in message["content"]]


@pytest.mark.parametrize("name", ["train.json", "train.jsonl", "train.parquet"])
def test_a_row_for_each_instruction(name: str, write_rows: Write, pictures: Path) -> None:
    data = load_vlguard(write_rows([UNSAFE, SAFE], name), pictures)
    assert data["id"] == ["1", "2/1", "2/2"]
    assert data["unsafe"] == [True, False, True]
    assert [spoken(prompt) for prompt in data["prompt"]] == [
        ["", "Who is it?"],
        ["", "What colour?"],
        ["", "Use it to insult her."],
    ]
    assert [spoken(completion) for completion in data["completion"]] == [["I cannot tell."], ["Blue."], ["No."]]
    assert [part["type"] for part in data[0]["prompt"][0]["content"]] == ["image", "text"]
    assert [images[0].getpixel((0, 0))[2] > 200 for images in data["images"]] == [False, True, True]


def test_folder_saved_by_datasets(write_rows: Write, pictures: Path, tmp_path: Path) -> None:
    path = write_rows([UNSAFE, SAFE])
    columns = datasets.Dataset.from_list(json.loads(path.read_text()))
    columns.save_to_disk(tmp_path / "saved")
    assert load_vlguard(tmp_path / "saved", pictures)["unsafe"] == [True, False, True]


FAULTS = {
    "safe is missing": ({"safe": None}, "`safe` is missing; it must be true or false"),
    "safe is a text": ({"safe": "yes"}, "`safe` is a text"),
    "no image": ({"image": None}, "has 0 images"),
    "two images": ({"image": ["red.png", "green.png"]}, "has 2 images"),
    "no pairs": ({"instr-resp": []}, "`instr-resp` is empty"),
    "pairs missing": ({"instr-resp": None}, "`instr-resp` is missing"),
    "pair is a text": ({"instr-resp": ["a"]}, "`instr-resp` 1 must be an object"),
    "no instruction": ({"instr-resp": [{"response": "b"}]}, "`instr-resp` 1 has 0 of instruction, safe_instruction"),
    "two instructions": (
        {"instr-resp": [{"safe_instruction": "a", "unsafe_instruction": "b", "response": "c"}]},
        "`instr-resp` 1 has 2 of",
    ),
    "empty instruction": ({"instr-resp": [{"instruction": " ", "response": "b"}]}, "its `instruction` is empty"),
    "empty response": ({"instr-resp": [{"instruction": "a", "response": ""}]}, "its `response` is empty"),
    "place in the response": (
        {"instr-resp": [{"instruction": "a", "response": "<image>"}]},
        "the assistant says <image>",
    ),
    "two places": ({"instr-resp": [{"instruction": "<image><image>a", "response": "b"}]}, "for 2 and has 1 image"),
}


@pytest.mark.parametrize(("change", "message"), FAULTS.values(), ids=FAULTS)
def test_a_faulty_row(change: dict[str, Any], message: str, write_rows: Write) -> None:
    path = write_rows([SAFE, {**UNSAFE, **change}])
    with pytest.raises(InputError) as caught:
        load_vlguard(path)
    assert len(caught.value.problems) == 1
    assert caught.value.problems[0].where == "data.json row 2"
    assert message in caught.value.problems[0].message
    assert load_vlguard(path, skip_faulty=True)["id"] == ["2/1", "2/2"]
