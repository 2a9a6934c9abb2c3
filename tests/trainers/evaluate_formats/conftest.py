"""Small files in the public layouts, written by the tests."""

# pyarrow is not typed.
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false

import csv
import io
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

Write = Callable[[str, Any], Path]


@pytest.fixture
def png() -> Callable[[int], bytes]:
    """A small PNG, another one for each number."""

    def make(number: int) -> bytes:
        buffer = io.BytesIO()
        Image.new("RGB", (4, 4), (number % 256, 10, 20)).save(buffer, format="PNG")
        return buffer.getvalue()

    return make


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Write a file below tmp_path in the way that its ending says: rows, an object, text or bytes."""

    def make(name: str, content: Any) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, bytes):
            path.write_bytes(content)
        elif isinstance(content, str):
            path.write_text(content, encoding="utf-8")
        elif path.suffix == ".parquet":
            _parquet(path, content)
        elif path.suffix == ".json":
            path.write_text(json.dumps(content))
        elif path.suffix == ".jsonl":
            path.write_text("".join(json.dumps(row) + "\n" for row in content))
        else:
            _csv(path, content, "\t" if path.suffix == ".tsv" else ",")
        return path

    return make


def _csv(path: Path, rows: Sequence[Mapping[str, Any]], delimiter: str) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]), delimiter=delimiter)
        writer.writeheader()
        writer.writerows(rows)


def _parquet(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    table: Any = pa
    columns = dict[str, Any].fromkeys(name for row in rows for name in row)  # the first row may lack some
    pq.write_table(table.Table.from_pylist([{**columns, **row} for row in rows]), path)
