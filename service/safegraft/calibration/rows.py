"""Rows of a data file, JSONL or parquet by its content; knows nothing of what they hold."""

# pyarrow comes without types.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false, reportMissingTypeStubs=false

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from safegraft.checkpoint.files import explained
from safegraft.checkpoint.findings import listed
from safegraft.checkpoint.strict_json import as_object, parse_json
from safegraft.errors import CheckpointError, InputError, Problem

PARQUET_MAGIC = b"PAR1"
MAX_LINE_BYTES = 64 << 20

Row = Mapping[str, Any]


def read_rows(path: Path, columns: Sequence[str], where: str) -> Iterator[tuple[int, Row]]:
    """(row number from 1, row) in the file's order, with at least those of `columns` that the row has.

    Raises InputError when the file is not there, is neither JSONL nor parquet, or a line of it is broken.
    """
    try:
        with explained(where, missing=f"there is no file {path.name}"), path.open("rb") as file:
            is_parquet = file.read(len(PARQUET_MAGIC)) == PARQUET_MAGIC
            file.seek(0)
            yield from _parquet_rows(path, columns, where) if is_parquet else _json_rows(file, path.name, where)
    except CheckpointError as error:  # the helpers speak of checkpoints; this is a file of data
        raise InputError(error.problems) from error


def _json_rows(file: Any, name: str, where: str) -> Iterator[tuple[int, Row]]:
    number = 0
    while line := file.readline(MAX_LINE_BYTES + 1):
        number += 1
        place = f"{where}: {name} line {number}"
        if len(line) > MAX_LINE_BYTES:
            raise InputError(Problem(place, f"is longer than {MAX_LINE_BYTES:,} bytes: is this a JSONL file?"))
        if not line.strip():
            continue
        row = as_object(parse_json(line, place))
        if row is None:
            raise InputError(Problem(place, 'must hold one JSON object, {"column": value, ...}'))
        yield number, row


def _parquet_rows(path: Path, columns: Sequence[str], where: str) -> Iterator[tuple[int, Row]]:
    try:
        from pyarrow import ArrowException
        from pyarrow.parquet import ParquetFile
    except ImportError as error:
        advice = "needs pyarrow: pip install 'safegraft[calibration]', or give a JSONL file"
        raise InputError(Problem(where, f"{path.name} is a parquet file, which {advice}")) from error
    try:
        with ParquetFile(path) as file:
            there: list[str] = file.schema_arrow.names
            missing = [column for column in columns if column not in there]
            if missing:
                message = f"{path.name} has no column {listed(missing)}; it has {listed(there, most=10)}"
                raise InputError(Problem(where, message))
            number = 0
            for batch in file.iter_batches(batch_size=256, columns=list(columns)):
                for row in batch.to_pylist():
                    number += 1
                    yield number, row
    except ArrowException as error:
        raise InputError(Problem(where, f"{path.name} is not a sound parquet file: {error}")) from error
