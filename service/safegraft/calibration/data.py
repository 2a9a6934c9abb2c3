"""A recipe's data set: read once when planning, every field checked, the samples drawn.

Holds text and images as they stand in the file. What a model makes of them is wording.py's business.
"""

import hashlib
import heapq
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from safegraft.calibration.rows import Row, read_rows
from safegraft.checkpoint.files import explained
from safegraft.checkpoint.findings import listed, shown
from safegraft.checkpoint.strict_json import as_object
from safegraft.errors import CheckpointError, InputChangedError, InputError, Problem
from safegraft.recipe.model import CalibrationSet

IMAGE_PLACEHOLDER = "<image>"  # LLaVA's data says with it where the image goes
MAX_IMAGE_BYTES = 64 << 20
MAX_PROBLEMS = 5  # of rows; the reader knows by then what is wrong with the file


@dataclass(frozen=True, slots=True)
class Image:
    """An image file's bytes: in the data itself, or in a file beside it."""

    sha256: str
    content: bytes | None
    path: Path | None
    where: str

    def read(self) -> bytes:
        """Raises InputChangedError when the file is no longer the one that was drawn."""
        content = self.content if self.content is not None else _read_image(self.path or Path(), self.where)
        if hashlib.sha256(content).hexdigest() != self.sha256:
            raise InputChangedError(Problem(self.where, "the image changed after the merge was planned: plan again"))
        return content


@dataclass(frozen=True, slots=True)
class Sample:
    """A row: its texts by field ("text", "prompt", "response", "chosen", "rejected"), and its image."""

    where: str  # for messages: the set and the row
    texts: Mapping[str, str]
    image: Image | None


@dataclass(frozen=True, slots=True)
class DataSet:
    """The samples that were drawn, in the file's order.

    digest: sha256 (hex) of their content, of which fields there are and of max_length: of all that a
    statistic can depend on, and nothing else. notes: what the reader of a plan should know.
    """

    name: str
    digest: str
    samples: tuple[Sample, ...]
    fields: frozenset[str]
    max_length: int
    notes: tuple[str, ...]

    @property
    def count(self) -> int:
        return len(self.samples)

    @property
    def has_images(self) -> bool:
        return any(sample.image is not None for sample in self.samples)


def open_data(spec: CalibrationSet, path: Path, where: str) -> DataSet:
    """Read a set's file, check every row and draw `spec.samples` of them.

    Which rows are drawn depends on (seed, row number) alone: the rows whose hashes are smallest. So a larger draw
    holds a smaller one, and the same file gives the same samples everywhere. Rows with an empty text are left out,
    with a note; so is the placeholder "<image>" where there is an image column.
    `where` is the set's place for messages. Raises InputError with the problems found.
    """
    drawn: list[tuple[int, int, _Draft]] = []  # a heap: the row that goes next comes first
    found = _Tally()
    for number, row in read_rows(path, list(spec.fields.values()), where):
        draft = _draft(spec, row, f"{where}: {path.name} row {number}", found)
        if draft is None:
            continue
        heapq.heappush(drawn, (-_score(spec.seed, number), number, draft))
        if len(drawn) > spec.samples:
            heapq.heappop(drawn)
    found.raise_if_any()
    if not drawn:
        reason = f"all {found.empty:,} of its rows have an empty text" if found.empty else "it has no rows"
        raise InputError(Problem(where, f"{path.name} holds nothing to show a model: {reason}"))
    drafts = [draft for _, _, draft in sorted(drawn, key=lambda entry: entry[1])]
    samples = tuple(_finished(draft, path.parent, found) for draft in drafts)
    found.raise_if_any()
    return DataSet(
        name=spec.name,
        digest=_digest(spec, samples),
        samples=samples,
        fields=frozenset(spec.fields),
        max_length=spec.max_length,
        notes=tuple(_notes(spec, samples, found.empty)),
    )


@dataclass(frozen=True, slots=True)
class _Draft:
    where: str
    texts: Mapping[str, str]
    image: Any


class _Tally:
    def __init__(self) -> None:
        self.empty = 0
        self.problems: list[Problem] = []

    def add(self, where: str, message: str) -> None:
        self.problems.append(Problem(where, message))
        if len(self.problems) >= MAX_PROBLEMS:
            self.raise_if_any()

    def raise_if_any(self) -> None:
        if self.problems:
            raise InputError(self.problems)


def _score(seed: int, number: int) -> int:
    return int.from_bytes(hashlib.sha256(f"{seed} {number}".encode()).digest()[:8], "big")


def _draft(spec: CalibrationSet, row: Row, where: str, found: _Tally) -> _Draft | None:
    """What a row holds for the set's fields; None, and noted in `found`, when it cannot be used."""
    texts: dict[str, str] = {}
    for field, column in spec.fields.items():
        if field == "image":
            continue
        if column not in row:
            found.add(where, f"has no column {shown(column)} (for `{field}`); it has {listed(row, most=10)}")
            return None
        value = row[column]
        if value is not None and not isinstance(value, str):
            found.add(where, f"column {shown(column)} (for `{field}`) holds {_kind(value)}, not a text")
            return None
        if value is not None and not _is_unicode(value):
            found.add(
                where, f"column {shown(column)} (for `{field}`) holds half a surrogate pair, which is no character"
            )
            return None
        texts[field] = value or ""
    if "image" in spec.fields:
        texts = {field: text.replace(IMAGE_PLACEHOLDER, "").strip() for field, text in texts.items()}
    if not all(text.strip() for text in texts.values()):
        found.empty += 1
        return None
    return _Draft(where, texts, row.get(spec.fields["image"]) if "image" in spec.fields else None)


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _kind(value: Any) -> str:
    names = {"list": "a list", "dict": "an object", "bool": "true or false", "int": "a number", "float": "a number"}
    kind = type(value).__name__
    return names.get(kind, kind)


def _finished(draft: _Draft, folder: Path, found: _Tally) -> Sample:
    image: Image | None = None
    try:
        image = _image(draft, folder)
    except InputError as error:
        for problem in error.problems:
            found.add(problem.where, problem.message)
    return Sample(draft.where, draft.texts, image)


def _image(draft: _Draft, folder: Path) -> Image | None:
    """From a path beside the data, from bytes, or from the {bytes, path} that Hugging Face's data sets hold."""
    value: Any = draft.image
    entry = as_object(value)
    if entry is not None:
        value = entry.get("bytes") or entry.get("path")
    if value is None or value == "":
        return None
    if isinstance(value, bytes):
        return Image(hashlib.sha256(value).hexdigest(), value, None, draft.where)
    if not isinstance(value, str):
        raise InputError(Problem(draft.where, f"its image is {_kind(value)}, neither a path nor bytes"))
    inside = PurePosixPath(value)
    if inside.is_absolute() or ".." in inside.parts or "\0" in value:
        message = f"its image {shown(value)} must be a path inside the folder of the data file"
        raise InputError(Problem(draft.where, message))
    path = folder / inside
    if not any(path.resolve().is_relative_to(place) for place in _places(folder)):
        message = f"its image {shown(value)} leaves the folder of the data file through a symbolic link"
        raise InputError(Problem(draft.where, message))
    return Image(hashlib.sha256(_read_image(path, draft.where)).hexdigest(), None, path, draft.where)


def _places(folder: Path) -> list[Path]:
    """Where images may really lie: below the data's folder; in the Hub's cache, whose files are links, in its blobs."""
    snapshot = next((one for one in (folder, *folder.parents) if one.parent.name == "snapshots"), None)
    return [folder.resolve(), *([snapshot.parents[1].resolve() / "blobs"] if snapshot else [])]


def _read_image(path: Path, where: str) -> bytes:
    try:
        with explained(where, missing=f"there is no image {path.name} where its row says, relative to the data file"):
            size = path.stat().st_size
            if size > MAX_IMAGE_BYTES or not path.is_file():
                message = f"its image {path.name} is no file of at most {MAX_IMAGE_BYTES:,} bytes"
                raise InputError(Problem(where, message))
            return path.read_bytes()
    except CheckpointError as error:
        raise InputError(error.problems) from error


def _digest(spec: CalibrationSet, samples: tuple[Sample, ...]) -> str:
    digest = hashlib.sha256()
    for entry in (
        ["safegraft data", 1, sorted(spec.fields), spec.max_length],
        *([sorted(sample.texts.items()), sample.image.sha256 if sample.image else None] for sample in samples),
    ):
        digest.update(json.dumps(entry).encode() + b"\n")
    return digest.hexdigest()


def _notes(spec: CalibrationSet, samples: tuple[Sample, ...], empty: int) -> Iterator[str]:
    if empty:
        yield f"{spec.name}: {empty:,} rows with an empty text are left out"
    if len(samples) < spec.samples:
        yield f"{spec.name}: {spec.samples:,} samples are asked for and the data has {len(samples):,}: all are used"
    if any(sample.image is not None for sample in samples):
        yield f"{spec.name}: a text-only model is shown the texts without their images"
