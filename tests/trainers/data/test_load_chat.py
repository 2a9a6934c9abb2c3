"""Text alone, in each of the ways people write it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pytest

from safegraft.errors import InputError
from safegraft_trainers.data.columns import text_only
from safegraft_trainers.data.llava import load_llava
from safegraft_trainers.data.text_chat import load_chat

Write = Callable[..., Path]

ASKED = [{"role": "user", "content": "a"}]
TOLD = [{"role": "assistant", "content": "b"}]
SAME = {
    "prompt and response": {"prompt": "a", "response": "b"},
    "prompt and completion": {"prompt": "a", "completion": "b"},
    "instruction and output": {"instruction": "a", "output": "b", "input": ""},
    "messages": {"messages": ASKED + TOLD},
    "conversations": {"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]},
    "lists": {"prompt": ASKED, "completion": TOLD},
}


@pytest.mark.parametrize("name", ["data.json", "data.jsonl", "data.parquet"])
@pytest.mark.parametrize("row", SAME.values(), ids=SAME)
def test_the_same_row(row: dict[str, Any], name: str, write_rows: Write) -> None:
    data = load_chat(write_rows([row], name))
    assert data[0] == {
        "id": "1",
        "images": [],
        "prompt": [{"role": "user", "content": [{"type": "text", "text": "a"}]}],
        "completion": [{"role": "assistant", "content": [{"type": "text", "text": "b"}]}],
    }


def test_instruction_with_input(write_rows: Write) -> None:
    data = load_chat(write_rows([{"instruction": "Translate.", "input": "Hallo", "output": "Hello"}]))
    assert data[0]["prompt"][0]["content"][0]["text"] == "Translate.\n\nHallo"


def test_it_has_the_columns_of_rows_with_images(write_rows: Write) -> None:
    row = {"conversations": [{"from": "human", "value": "<image>"}, {"from": "gpt", "value": "b"}], "image": "red.png"}
    pictured = load_llava(write_rows([row], "pictured.json"))
    assert load_chat(write_rows([SAME["messages"]])).features == pictured.features
    with pytest.raises(InputError, match="1 of its rows have images"):
        text_only(pictured)
    both = datasets.concatenate_datasets([pictured, load_chat(write_rows([SAME["messages"]]))])
    assert text_only(both.select([1]))[0]["completion"] == TOLD


def test_text_only(write_rows: Write) -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    rows = [{"messages": [{"role": "system", "content": "s"}, {"role": "user", "content": parts}, *TOLD]}]
    data = text_only(load_chat(write_rows(rows)))
    assert data.column_names == ["id", "prompt", "completion"]
    assert data[0]["prompt"] == [{"role": "system", "content": "s"}, {"role": "user", "content": "a\nb"}]
    assert data[0]["completion"] == TOLD


FAULTS = {
    "empty prompt": ({"prompt": "", "response": "b"}, "`prompt` is empty"),
    "response missing": ({"prompt": "a", "response": None}, "`response` is missing, not a text"),
    "input is a list": ({"instruction": "a", "input": ["x"], "output": "b"}, "`input` is a list"),
    "half a list": ({"prompt": ASKED, "completion": "b"}, "`completion` is a text and `prompt` a list"),
    "two answers": ({"prompt": ASKED, "completion": TOLD + ASKED + TOLD}, "the answer holds 3 messages"),
    "an image": ({"prompt": "a", "response": "b", "image": "red.png"}, "load it as LLaVA data"),
    "a place": ({"prompt": "<image>a", "response": "b"}, "for 1 and has no image"),
    "half a pair": ({"prompt": "a"}, "has no conversation: .* it has prompt"),
}


@pytest.mark.parametrize(("faulty", "message"), FAULTS.values(), ids=FAULTS)
def test_a_faulty_row(faulty: dict[str, Any], message: str, write_rows: Write) -> None:
    path = write_rows([SAME["messages"], {}, faulty], "data.jsonl")
    with pytest.raises(InputError, match=rf"data\.jsonl line 3: .*{message}"):
        load_chat(path)
