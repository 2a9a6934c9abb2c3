"""Rows and images out of files, whatever wrote them: JSON, JSONL, CSV, TSV, parquet, `save_to_disk`, the Hub's cache.

Knows what a table is, not what its columns mean, and never goes to the network.
"""

# pyarrow is not typed and datasets is typed in part.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportMissingTypeStubs=false
# pyright: reportUnknownArgumentType=false

import base64
import binascii
import csv
import io
import json
import re
import sys
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from safegraft.errors import InputError, Problem
from safegraft_trainers.evaluate.example import Picture

Values = Mapping[str, Any]

_HUB_NAME = re.compile(r"(?P<repo>[\w.-]+/[\w.-]+?)(?:@(?P<revision>[\w./-]+?))?(?::(?P<path>.+))?\Z")
_CSV_LIMIT = threading.Lock()  # the csv module's limit on a field's length is one for the whole process


@dataclass(frozen=True, slots=True)
class RawRow:
    """where: for messages. values: by column. folder: where relative paths start. key: of a row of a JSON object."""

    where: str
    values: Values
    folder: Path
    key: str = ""


def locate(source: str) -> list[Path]:
    """The files or the folder behind a path or `ORG/NAME[@REVISION][:PATH]`, a data set in the local Hub cache.

    PATH, within the data set, may be a pattern (`data/test-*.parquet`); without it the whole folder is meant.
    Raises InputError when there is nothing.
    """
    path = Path(source).expanduser()
    if path.exists():
        return [path]
    matched = _HUB_NAME.match(source)
    if matched is None or source.startswith((".", "/", "~")):
        raise InputError(Problem(source, "there is no such file or folder"))
    folder = _snapshot(source, matched["repo"], matched["revision"])
    pattern = matched["path"]
    if pattern is None:
        return [folder]
    found = sorted(folder.glob(pattern))
    if not found:
        message = f"the local copy of {matched['repo']} has nothing at {pattern!r}; {_download(matched['repo'])}"
        raise InputError(Problem(source, message))
    return found


def root_of(source: str) -> Path:
    """The one folder that a format of several files lies in. Raises InputError when `source` is none."""
    found = locate(source)
    if len(found) != 1 or not found[0].is_dir():
        raise InputError(Problem(source, "must be the folder that holds the benchmark's files"))
    return found[0]


def read_rows(source: str, *, inside: str | None = None) -> list[RawRow]:
    """All rows, in order; of several files one after the other, by name.

    inside: the key of a JSON document that holds its rows (`{"questions": [...]}`).
    Raises InputError with all that is wrong with the files themselves.
    """
    paths = [file for path in locate(source) for file in (_data_files(path) if path.is_dir() else [path])]
    rows: list[RawRow] = []
    problems: list[Problem] = []
    for path in paths:
        try:
            rows += _saved(path) if path.is_dir() else _file(path, inside)
        except InputError as error:
            problems += error.problems
    if problems:
        raise InputError(problems)
    if not rows:
        raise InputError(Problem(source, "holds no rows"))
    return rows


def picture(value: Any, where: str, folders: Sequence[Path]) -> Picture:
    """An image as data sets hold it: bytes, `{bytes, path}`, base64 (with or without `data:`) or a path.

    folders: where a relative path is looked for, in order. Raises InputError when it is none of these.
    """
    content, place = _content(value, where, folders)
    _must_be_image(content, place)
    return Picture(content, place)


# Where rows are


def _snapshot(source: str, repo: str, revision: str | None) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(repo, repo_type="dataset", revision=revision, local_files_only=True))
    except HFValidationError as error:
        raise InputError(Problem(source, "there is no such file or folder")) from error
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
        message = f"is no file or folder, and the local Hub cache has no such data set; {_download(repo, revision)}"
        raise InputError(Problem(source, message)) from error


def _download(repo: str, revision: str | None = None) -> str:
    pinned = f" --revision {revision}" if revision else ""
    return f"fetch it with `hf download --repo-type dataset {repo}{pinned}`"


def _data_files(folder: Path) -> list[Path]:
    """What a folder holds as one table: itself when `datasets` saved it, else its files of the one kind it has."""
    if (folder / "state.json").is_file():
        return [folder]
    if (folder / "dataset_dict.json").is_file():
        names = json.loads((folder / "dataset_dict.json").read_text())["splits"]
        if len(names) != 1:
            message = f"holds the splits {', '.join(names)}; name one: {folder / names[0]}"
            raise InputError(Problem(str(folder), message))
        return [folder / names[0]]
    files = sorted(file for file in folder.rglob("*") if file.suffix.lower() in _READERS and file.is_file())
    kinds = {file.suffix.lower() for file in files}
    if len(kinds) == 1:
        return files
    if not files:
        raise InputError(Problem(str(folder), f"holds no {', '.join(sorted(_READERS))} file"))
    listed = ", ".join(str(file.relative_to(folder)) for file in files[:8])
    raise InputError(Problem(str(folder), f"holds files of several kinds; name the one to read ({listed}, ...)"))


# What a file holds


def _file(path: Path, inside: str | None) -> list[RawRow]:
    reader = _READERS.get(path.suffix.lower())
    if reader is None:
        raise InputError(Problem(str(path), f"is of no kind that is read here: {', '.join(sorted(_READERS))}"))
    try:
        return reader(path, inside)
    except UnicodeDecodeError as error:
        raise InputError(Problem(str(path), f"is not UTF-8 at byte {error.start}; save it as UTF-8")) from error
    except OSError as error:
        raise InputError(Problem(str(path), f"cannot be read: {error.strerror or error}")) from error


def _json(path: Path, inside: str | None) -> list[RawRow]:
    try:
        document = json.loads(path.read_text(encoding="utf-8-sig"))
    except json.JSONDecodeError as error:
        raise InputError(Problem(f"{path.name}, line {error.lineno}", f"is not JSON: {error.msg}")) from error
    if inside is not None:
        if not isinstance(document, dict) or inside not in document:
            raise InputError(Problem(str(path), f"must be an object with a list under {inside!r}"))
        document = cast("dict[str, Any]", document)[inside]
    if isinstance(document, list):
        return _objects(path, [(f"row {number}", "", one) for number, one in enumerate(document, 1)])
    if isinstance(document, dict):
        return _objects(path, [(f"entry {key!r}", str(key), one) for key, one in document.items()])
    raise InputError(Problem(str(path), "must be a list of objects, or an object of objects"))


def _jsonl(path: Path, _: str | None) -> list[RawRow]:
    objects: list[tuple[str, str, Any]] = []
    problems: list[Problem] = []
    # Not splitlines(): a JSON string may hold U+2028 and its like, which splitlines takes for line ends.
    for number, line in enumerate(path.read_text(encoding="utf-8-sig").split("\n"), 1):
        if not line.strip():
            continue
        try:
            objects.append((f"line {number}", "", json.loads(line)))
        except json.JSONDecodeError as error:
            problems.append(Problem(f"{path.name}, line {number}", f"is not JSON: {error.msg} (column {error.colno})"))
    if problems:
        raise InputError(problems)
    return _objects(path, objects)


def _objects(path: Path, found: Iterable[tuple[str, str, Any]]) -> list[RawRow]:
    rows: list[RawRow] = []
    problems: list[Problem] = []
    for place, key, values in found:
        where = f"{path.name}, {place}"
        if isinstance(values, dict):
            rows.append(RawRow(where, cast("dict[str, Any]", values), path.parent, key))
        else:
            problems.append(Problem(where, f"must be an object, not {type(values).__name__}"))
    if problems:
        raise InputError(problems)
    return rows


def _csv(path: Path, _: str | None) -> list[RawRow]:
    delimiter = "\t" if path.suffix.lower() == ".tsv" else ","
    with _CSV_LIMIT, path.open(encoding="utf-8-sig", newline="") as lines:
        before = csv.field_size_limit(sys.maxsize)  # an image in base64 is one field
        try:
            header, *records = list(csv.reader(lines, delimiter=delimiter, strict=True)) or [[]]
        except csv.Error as error:
            raise InputError(Problem(str(path), f"is not well-formed: {error}; quote fields as CSV does")) from error
        finally:
            csv.field_size_limit(before)
    return _records(path, header, records)


def _records(path: Path, header: list[str], records: list[list[str]]) -> list[RawRow]:
    twice = sorted({name for name in header if header.count(name) > 1})
    if twice:
        raise InputError(Problem(str(path), f"has a column twice: {', '.join(map(repr, twice))}"))
    rows: list[RawRow] = []
    problems: list[Problem] = []
    for number, record in enumerate(records, 1):
        where = f"{path.name}, row {number}"
        if not record:
            continue  # a blank line
        if len(record) != len(header):
            message = f"has {len(record)} fields where the header has {len(header)}; quote fields that hold a separator"
            problems.append(Problem(where, message))
        rows.append(RawRow(where, dict(zip(header, record, strict=False)), path.parent))
    if problems:
        raise InputError(problems)
    return rows


def _parquet(path: Path, _: str | None) -> list[RawRow]:
    import pyarrow
    import pyarrow.parquet as parquet

    try:
        table: Any = parquet.read_table(path)
    except pyarrow.ArrowException as error:
        raise InputError(Problem(str(path), f"is not a parquet file: {error}")) from error
    return _table(path.name, path.parent, table)


def _saved(folder: Path) -> list[RawRow]:
    try:
        import datasets
    except ImportError as error:
        message = "was saved by `datasets`, which is not installed: pip install 'safegraft[train]'"
        raise InputError(Problem(str(folder), message)) from error
    try:
        # As Arrow, images stay encoded.
        table: Any = datasets.load_from_disk(str(folder)).with_format("arrow")[:]
    except (OSError, ValueError, KeyError) as error:
        raise InputError(Problem(str(folder), f"`datasets` cannot load it: {error}")) from error
    return _table(folder.name, folder, table)


def _table(name: str, folder: Path, table: Any) -> list[RawRow]:
    return [RawRow(f"{name}, row {number}", values, folder) for number, values in enumerate(table.to_pylist(), 1)]


_READERS: Mapping[str, Callable[[Path, str | None], list[RawRow]]] = {
    ".json": _json,
    ".jsonl": _jsonl,
    ".csv": _csv,
    ".tsv": _csv,
    ".parquet": _parquet,
}


# What an image is


def _content(value: Any, where: str, folders: Sequence[Path]) -> tuple[bytes, str]:
    """Its bytes, and where they came from."""
    if isinstance(value, dict):
        fields = cast("dict[str, Any]", value)
        value = fields.get("bytes") or fields.get("path")
    if isinstance(value, bytes | bytearray):
        return bytes(value), where
    if not isinstance(value, str) or not value.strip():
        raise InputError(Problem(where, "must be an image: a path, bytes, {bytes, path} or base64"))
    path = _existing(value, folders)
    if path is not None:
        return path.read_bytes(), str(path)
    decoded = _base64(value)
    if decoded is not None:
        return decoded, where
    looked = ", ".join(str(folder) for folder in folders)
    raise InputError(Problem(where, f"there is no image {_short(value)!r}; looked in {looked}"))


def _existing(value: str, folders: Sequence[Path]) -> Path | None:
    if len(value) > 1024:  # longer than any path: base64
        return None
    try:
        return next((folder / value for folder in folders if (folder / value).is_file()), None)
    except (OSError, ValueError):  # a name that the file system does not take
        return None


def _base64(value: str) -> bytes | None:
    encoded = re.sub(r"\Adata:[^,]*,", "", value.strip())
    try:
        return base64.b64decode("".join(encoded.split()), validate=True) if len(encoded) >= 64 else None
    except (binascii.Error, ValueError):
        return None


def _must_be_image(content: bytes, where: str) -> None:
    """Looks at the header only: pixels are decoded when they are asked for."""
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(io.BytesIO(content)):
            pass
    except (UnidentifiedImageError, OSError, ValueError, Image.DecompressionBombError) as error:
        raise InputError(Problem(where, "is no image that pillow reads")) from error


def _short(value: str) -> str:
    return value if len(value) <= 60 else f"{value[:57]}..."
