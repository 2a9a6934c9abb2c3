"""Where rows come from, and what is said when there are none."""

from collections.abc import Callable
from pathlib import Path

import datasets
import pytest

from safegraft.errors import InputError
from safegraft_trainers.data.text_chat import load_chat

Write = Callable[..., Path]

ROWS = [{"prompt": f"question {number}", "response": "answer"} for number in range(3)]


def first_texts(data: datasets.Dataset) -> list[str]:
    return [prompt[0]["content"][0]["text"] for prompt in data["prompt"]]


def test_content_decides_not_the_name(write_rows: Write, tmp_path: Path) -> None:
    """JSON, JSON lines (with blank ones, and after a byte order mark) and parquet under each other's names."""
    expected = [row["prompt"] for row in ROWS]
    for name, other in (("a.json", "a.parquet"), ("a.jsonl", "a.json"), ("a.parquet", "a.jsonl")):
        renamed = write_rows(ROWS, name).rename(tmp_path / other)
        assert first_texts(load_chat(renamed)) == expected
    lines = write_rows(ROWS, "b.jsonl")
    lines.write_text("\ufeff\n" + lines.read_text().replace("\n", "\n\n") + "\n")
    assert first_texts(load_chat(lines)) == expected


def test_a_dataset_as_it_is_seen(write_rows: Write) -> None:
    """Selected and reordered rows are numbered and read as the dataset shows them."""
    data = datasets.Dataset.from_list(ROWS).select([2, 0])
    assert first_texts(load_chat(data)) == ["question 2", "question 0"]
    with pytest.raises(InputError, match="data set row 2: `prompt` is empty"):
        load_chat(datasets.Dataset.from_list([{"prompt": "", "response": "b"}, ROWS[0]]).select([1, 0]))


def test_saved_splits(tmp_path: Path) -> None:
    data = datasets.Dataset.from_list(ROWS)
    datasets.DatasetDict({"train": data, "test": data}).save_to_disk(tmp_path / "saved")
    with pytest.raises(InputError, match="holds the splits 'test', 'train': name one of these folders"):
        load_chat(tmp_path / "saved")
    assert len(load_chat(tmp_path / "saved" / "train")) == 3


def test_broken_lines_are_reported_together(tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    path.write_text('{"prompt": "a", "response": "b"}\n{"prompt": \n[]\n{"prompt": "a", "prompt": "b"}\n')
    with pytest.raises(InputError) as caught:
        load_chat(path)
    said = [str(problem) for problem in caught.value.problems]
    assert said[0].startswith("data.jsonl line 2: is not valid JSON")
    assert said[1] == 'data.jsonl line 3: must be one JSON object, {"column": value, ...}'
    assert "line 4" in said[2]
    assert "stands twice" in said[2]


def test_what_cannot_be_read(tmp_path: Path, write_rows: Write) -> None:
    broken = tmp_path / "broken.json"
    broken.write_text('[{"prompt": "a"')
    with pytest.raises(InputError, match=r"broken.json: is not valid JSON"):
        load_chat(broken)
    cut = write_rows(ROWS, "cut.parquet")
    cut.write_bytes(cut.read_bytes()[:-20])
    with pytest.raises(InputError, match=r"cut.parquet: is not a sound parquet file"):
        load_chat(cut)
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="empty: is no folder that datasets saved"):
        load_chat(tmp_path / "empty")
    with pytest.raises(InputError, match=r"no/such.json: there is no such file"):
        load_chat("no/such.json")
    (tmp_path / "nothing.json").touch()
    with pytest.raises(InputError, match=r"nothing.json: holds no rows"):
        load_chat(tmp_path / "nothing.json")


def test_hub_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """The split is `train` unless one is named."""
    asked: list[tuple[str, str]] = []

    def load_dataset(name: str, split: str) -> datasets.Dataset:
        asked.append((name, split))
        return datasets.Dataset.from_list(ROWS)

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    assert len(load_chat("org/name")) == len(load_chat("org/name:test[:10%]")) == 3
    assert asked == [("org/name", "train"), ("org/name", "test[:10%]")]


def test_hub_name_without_a_network() -> None:
    with pytest.raises(InputError) as caught:
        load_chat("org/name-that-nobody-has:test")
    assert "org/name-that-nobody-has:test: cannot be loaded from the Hub" in str(caught.value)
    assert "only data sets of the local cache" in str(caught.value)
