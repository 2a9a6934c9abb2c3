"""What a data set holds, as one number: for model cards and caches.

Knows no format: any Dataset will do.
"""

# datasets and pyarrow type their functions in part, or not at all.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false, reportMissingTypeStubs=false

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from datasets import Dataset

from safegraft.errors import InputChangedError, Problem

ROWS_AT_ONCE = 64


def digest(dataset: Dataset) -> str:
    """sha256 (hex) of the rows in their order: column names, values, and the bytes of every image file.

    Where an image lies, how arrow cuts the table and the order of columns do not matter. Every image file is read
    once. Raises InputChangedError when one is gone.
    """
    total = hashlib.sha256()
    images: dict[str, str] = {}
    stored: Any = dataset.with_format("arrow")
    for batch in stored.iter(batch_size=ROWS_AT_ONCE):
        for row in batch.to_pylist():
            plain = _plain(row, images)
            total.update(json.dumps(plain, sort_keys=True, ensure_ascii=True).encode() + b"\n")
    return total.hexdigest()


def _plain(value: Any, images: dict[str, str]) -> Any:
    """The value as JSON, with the sha256 of bytes and of image files in their place."""
    if isinstance(value, bytes):
        return {"sha256": hashlib.sha256(value).hexdigest()}
    if isinstance(value, list):
        return [_plain(entry, images) for entry in cast("list[Any]", value)]
    if isinstance(value, dict):
        entry = cast("dict[str, Any]", value)
        if entry.keys() == {"bytes", "path"}:
            return _image(entry, images)
        return {name: _plain(inner, images) for name, inner in entry.items()}
    return value


def _image(entry: Mapping[str, Any], images: dict[str, str]) -> Any:
    if entry["bytes"] is not None:
        return _plain(entry["bytes"], images)
    path = str(entry["path"])
    if path not in images:
        try:
            images[path] = hashlib.sha256(Path(path).read_bytes()).hexdigest()
        except OSError as error:
            message = f"the image cannot be read any more: {error.strerror}; load the data again"
            raise InputChangedError(Problem(path, message)) from error
    return {"sha256": images[path]}
