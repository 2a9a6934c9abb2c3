"""Rows of a data set, wherever it lies: a JSON, JSONL or parquet file, a folder saved by `datasets`, or the Hub.

JSON and parquet are told apart by content. Knows nothing of what a row means; of images only where they stand.
"""

# datasets and pyarrow type their functions in part, or not at all.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false, reportMissingTypeStubs=false

import re
from codecs import BOM_UTF8
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.compute
from datasets import Dataset, Image, exceptions

from safegraft.checkpoint.files import explained
from safegraft.checkpoint.findings import listed
from safegraft.checkpoint.strict_json import as_list, as_object, parse_json
from safegraft.errors import CheckpointError, InputError, Problem
from safegraft_trainers.data.faults import Unusable

IMAGE_COLUMNS = ("image", "images")
FILE_SUFFIXES = (".json", ".jsonl", ".parquet")
HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+(:[\w.\[\]:%+-]+)?")
PARQUET_MAGIC = b"PAR1"

Row = Mapping[str, Any]
Reference = str | Path | Dataset


@dataclass(frozen=True, slots=True)
class Slot:
    """The number of an image among those that `datasets` stores."""

    number: int


@dataclass(frozen=True, slots=True)
class Stored:
    """Images as `datasets` stores them, {bytes, path}, in chunks that lie on the disk until they are read.

    No row's images are in two chunks. fingerprint: of the data set, equal for equal content.
    """

    chunks: tuple[Any, ...]  # pa.StructArray
    fingerprint: str


@dataclass(frozen=True, slots=True)
class Source:
    """rows: (number from 1, row), read once; an Unusable in place of one that is no object. unit: "row" or "line".

    folder: what image paths are relative to; None when nothing says it. stored: the images that rows name by Slot.
    """

    name: str
    unit: str
    rows: Iterator[tuple[int, Row | Unusable]]
    folder: Path | None
    stored: Stored | None = None


def open_source(reference: Reference, image_folder: str | Path | None) -> Source:
    """Open a file, a folder saved by `datasets`, a Hub data set `org/name[:split]` (default: train) or a Dataset.

    image_folder: default is the file's folder. Raises InputError when there is nothing to read.
    """
    folder = Path(image_folder) if image_folder is not None else None
    if folder is not None and not folder.is_dir():
        raise InputError(Problem(str(folder), "there is no such folder of images"))
    if isinstance(reference, Dataset):
        return _of_dataset(reference, "data set", folder)
    path = Path(reference)
    if path.is_dir():
        return _of_dataset(_saved(path), path.name, folder or path)
    if path.exists():
        return _of_file(path, folder or path.parent)
    if path.suffix not in FILE_SUFFIXES and HUB_NAME.fullmatch(str(reference)):
        return _of_dataset(_from_hub(str(reference)), str(reference), folder)
    message = "there is no such file or folder, nor is it the name of a Hub data set (org/name or org/name:split)"
    raise InputError(Problem(str(reference), message))


def _of_file(path: Path, folder: Path) -> Source:
    try:
        with explained(path.name), path.open("rb") as file:
            if file.read(len(PARQUET_MAGIC)) == PARQUET_MAGIC:
                return _of_dataset(_from_parquet(path), path.name, folder)
            file.seek(0)
            if file.read(4096).removeprefix(BOM_UTF8).lstrip()[:1] != b"[":
                return Source(path.name, "line", _lines(path), folder)
            file.seek(0)
            rows = as_list(parse_json(file.read().removeprefix(BOM_UTF8), path.name)) or []
    except CheckpointError as error:  # the helpers speak of checkpoints; this is a file of data
        raise InputError(error.problems) from error
    return Source(path.name, "row", ((number, _object(row)) for number, row in enumerate(rows, 1)), folder)


def _lines(path: Path) -> Iterator[tuple[int, Row | Unusable]]:
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            content = line.removeprefix(BOM_UTF8).strip()
            if content:
                try:
                    yield number, _object(parse_json(content, ""))
                except CheckpointError as error:
                    yield number, Unusable(str(error))


def _object(value: Any) -> Row | Unusable:
    row = as_object(value)
    return Unusable('must be one JSON object, {"column": value, ...}') if row is None else row


def _from_parquet(path: Path) -> Dataset:
    try:
        return Dataset.from_parquet(str(path))  # pyright: ignore[reportReturnType] (no split is asked for)
    except (exceptions.DatasetGenerationError, pa.ArrowException) as error:
        message = f"is not a sound parquet file: {error.__cause__ or error}"
        raise InputError(Problem(path.name, message)) from error


def _saved(path: Path) -> Dataset:
    if (path / "dataset_dict.json").is_file():
        splits = sorted(entry.name for entry in path.iterdir() if (entry / "state.json").is_file())
        raise InputError(Problem(path.name, f"holds the splits {listed(splits, most=9)}: name one of these folders"))
    try:
        return datasets.load_from_disk(str(path))  # pyright: ignore[reportReturnType] (splits are refused above)
    except (OSError, ValueError, KeyError, pa.ArrowException) as error:
        message = f"is no folder that datasets saved (Dataset.save_to_disk): {error}; or name a file inside it"
        raise InputError(Problem(path.name, message)) from error


def _from_hub(reference: str) -> Dataset:
    name, _, split = reference.partition(":")
    try:
        return datasets.load_dataset(name, split=split or "train")  # pyright: ignore[reportReturnType] (it has a split)
    except (OSError, ValueError, exceptions.DatasetsError) as error:
        advice = "without a network, only data sets of the local cache can be used"
        raise InputError(Problem(reference, f"cannot be loaded from the Hub: {error}; {advice}")) from error


def _of_dataset(dataset: Dataset, name: str, folder: Path | None) -> Source:
    if dataset._indices is not None:  # pyright: ignore[reportPrivateUsage] (nothing public tells rows from their table)
        dataset = dataset.flatten_indices()
    table: Any = dataset.data.table
    chunks: list[Any] = []
    slots: dict[str, list[Any]] = {}
    first = 0
    for column in IMAGE_COLUMNS:
        if column in table.column_names:
            images, slots[column] = _images(table.column(column), first, f"{name}, column {column}")
            chunks += images
            first += sum(map(len, images))
    stored = Stored(tuple(chunks), dataset._fingerprint) if chunks else None  # pyright: ignore[reportPrivateUsage]
    return Source(name, "row", _table_rows(table, slots), folder, stored)


def _table_rows(table: Any, slots: Mapping[str, list[Any]]) -> Iterator[tuple[int, Row]]:
    number = 0
    for batch in table.drop_columns(list(slots)).to_batches(max_chunksize=256):
        for row in batch.to_pylist() if batch.num_columns else [{} for _ in range(batch.num_rows)]:
            yield number + 1, {**row, **{column: entries[number] for column, entries in slots.items()}}
            number += 1


def _images(column: Any, first: int, where: str) -> tuple[list[Any], list[Any]]:
    """The images of a column in one row of chunks, and what each row has: a Slot, a list of them, or None."""
    chunks: list[Any] = []
    rows: list[Any] = []
    for chunk in column.chunks:
        is_list = pa.types.is_list(chunk.type) or pa.types.is_large_list(chunk.type)
        try:
            images = Image().cast_storage(chunk.flatten() if is_list else chunk)
        except (TypeError, ValueError, pa.ArrowException) as error:
            raise InputError(Problem(where, f"holds no images but {chunk.type}")) from error
        there = [bool(stored) for stored in _has_content(images)]
        if is_list:
            at = first
            for length in chunk.value_lengths().to_pylist():
                rows.append([Slot(at + n) for n in range(length or 0) if there[at + n - first]])
                at += length or 0
        else:
            rows.extend(Slot(first + n) if full else None for n, full in enumerate(there))
        chunks.append(images)
        first += len(images)
    return chunks, rows


def _has_content(images: Any) -> list[bool]:
    compute: Any = pyarrow.compute  # its functions are made when it is imported
    content = compute.or_(compute.is_valid(images.field("bytes")), compute.is_valid(images.field("path")))
    return compute.and_(compute.is_valid(images), content).to_pylist()
