"""From a source to a Dataset: every row through a format's conversion, all faults at once, texts and images joined.

Knows no format.
"""

# pyarrow comes without types, datasets with some.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false, reportMissingTypeStubs=false

import secrets
from array import array
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from datasets import Dataset, Features

from safegraft_trainers.data.album import Album
from safegraft_trainers.data.faults import Faults, Unusable
from safegraft_trainers.data.sources import Reference, Row, Source, open_source

ROWS_AT_ONCE = 2048  # as Python objects; arrow keeps them in a tenth of the space

# (row, its number from 1, its images' numbers from the value of a column) -> rows with `features`' columns, where
# `images` is a list of such numbers. Raises Unusable before it returns anything.
Convert = Callable[[Row, int, Callable[[Any], list[int]]], list[dict[str, Any]]]


def read(
    reference: Reference,
    image_folder: str | Path | None,
    convert: Convert,
    features: Features,
    *,
    verify: bool,
    skip_faulty: bool,
) -> Dataset:
    """All rows of a source. Raises InputError with what is wrong with it, of each kind the first faults and a count."""
    source = open_source(reference, image_folder)
    faults = Faults(source.name, skip=skip_faulty)
    album = Album(source, verify=verify)
    flat, lengths = array("q"), array("q")
    schema: Any = Features({name: kind for name, kind in features.items() if name != "images"}).arrow_schema
    tables: list[Any] = []
    rows = _converted(source, convert, album, faults)
    while some := list(islice(rows, ROWS_AT_ONCE)):
        for row in some:
            images: list[int] = row.pop("images")
            flat.extend(images)
            lengths.append(len(images))
        tables.append(pa.Table.from_pylist(some, schema=schema))
    faults.report(folder=str(source.folder or "the image folder"), used=len(lengths))
    images = album.column(_int64(flat), _int64(lengths))
    table = pa.concat_tables(tables).append_column("images", images).select(list(features))
    # Without a fingerprint, datasets would hash all content, images included.
    typed: Any = table.replace_schema_metadata(features.arrow_schema.metadata)
    return Dataset(typed, fingerprint=secrets.token_hex(8))


def _converted(source: Source, convert: Convert, album: Album, faults: Faults) -> Iterator[dict[str, Any]]:
    for number, row in source.rows:
        made: list[dict[str, Any]] = []
        with faults.of_row(f"{source.unit} {number}"):
            if isinstance(row, Unusable):
                raise row
            made = convert(row, number, album.numbers)
        yield from made


def _int64(values: "array[int]") -> Any:
    return np.frombuffer(values, dtype=np.int64) if values else np.zeros(0, dtype=np.int64)
