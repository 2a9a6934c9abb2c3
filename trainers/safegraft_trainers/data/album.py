"""The images of one source: found, looked at, numbered, and at the end put beside the rows without decoding one.

Knows nothing of conversations.
"""

# pyarrow comes without types.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false, reportMissingTypeStubs=false

import hashlib
import io
import logging
import os
import secrets
from bisect import bisect_right
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from datasets import Image, config

from safegraft.checkpoint.findings import shown
from safegraft.checkpoint.strict_json import as_list
from safegraft.errors import output_errors
from safegraft_trainers.data.faults import MissingImage, Unusable
from safegraft_trainers.data.messages import kind
from safegraft_trainers.data.sources import Slot, Source

ROWS_AT_ONCE = 64  # whose images are in memory while they are copied

log = logging.getLogger(__name__)


class Album:
    """Images by number, in the order in which rows named them.

    An image is a file below `source.folder` or one that `datasets` stores. With `verify`, its header is read: that
    finds files of other kinds and empty ones, not those that are cut off later.
    """

    def __init__(self, source: Source, *, verify: bool) -> None:
        self.folder = source.folder
        self._verify = verify
        self._stored = source.stored
        self._starts: list[int] = []
        start = 0
        for chunk in source.stored.chunks if source.stored else ():
            self._starts.append(start)
            start += len(chunk)
        self._stored_count = start
        self._entries: list[Path | Slot] = []
        self._by_name: dict[str, int] = {}
        self._roots: dict[Path, bool] = {}

    def numbers(self, value: Any) -> list[int]:
        """Of what a row's image column holds: a path, a stored image, a list of them, or nothing. Raises Unusable."""
        entries = as_list(value)
        return [self._number(entry) for entry in ([value] if entries is None else entries) if entry not in (None, "")]

    def column(self, flat: Any, lengths: Any) -> Any:
        """The column `images` as a pa.ChunkedArray of list<struct<bytes, path>>.

        flat: numbers of images, int64, rows one after the other; lengths: how many a row has, int64 [rows].
        Stored bytes stay where they are when rows are used once and in order. Where a conversation gave several
        rows they are copied, once, to the cache of `datasets`: arrow's lists cannot share an image.
        """
        slots = np.array([entry.number if isinstance(entry, Slot) else -1 for entry in self._entries], dtype=np.int64)
        used = slots[flat]
        if (used < 0).all():
            return pa.chunked_array([self._lists(flat, lengths)], type=COLUMN)
        if len(used) == self._stored_count and (used == np.arange(self._stored_count)).all():
            return self._in_place(lengths)
        return self._copied(flat, lengths)

    def _number(self, entry: Any) -> int:
        if isinstance(entry, Slot):
            content, path = self._content(entry)
            if content is None:
                return self._file(path, trusted=os.path.isabs(path) and self.folder is None)
            if self._verify:
                _read_header(io.BytesIO(content), f"its stored image {shown(path)}" if path else "its image")
            self._entries.append(entry)
            return len(self._entries) - 1
        if not isinstance(entry, str):
            raise Unusable(f"its image is {kind(entry)}; it must be a path")
        return self._file(entry, trusted=False)

    def _file(self, name: str, *, trusted: bool) -> int:
        """trusted: the path is one that `datasets` itself wrote down."""
        if name not in self._by_name:
            try:
                path = Path(name) if trusted else self._below(name)
                there = path.is_file()
            except OSError as error:  # far too long, as an image in base64 is
                raise Unusable(f"its image {shown(name)} is no path of a file: {error.strerror}") from error
            if not there:
                raise MissingImage(name)
            if self._verify:
                _read_header(path, f"its image {shown(name)}")
            self._entries.append(path)
            self._by_name[name] = len(self._entries) - 1
        return self._by_name[name]

    def _below(self, name: str) -> Path:
        if self.folder is None:
            raise Unusable(f"its image {shown(name)} is a path: give image_folder, the folder that it is relative to")
        if "\0" in name or "://" in name:
            raise Unusable(f"its image {shown(name)} is no path of a file: download it and give the path")
        path = self.folder / name
        real = path.resolve() if path.is_symlink() else path
        if not all(self._is_inside(parent) for parent in {path.parent, real.parent}):
            raise Unusable(
                f"its image {shown(name)} lies outside the image folder: give a folder that holds all images"
            )
        return path

    def _is_inside(self, parent: Path) -> bool:
        """Whether a folder really lies in the image folder; in the Hub's cache, whose files are links, in its blobs."""
        if parent not in self._roots:
            folder = self.folder or Path()
            snapshot = next((one for one in (folder, *folder.parents) if one.parent.name == "snapshots"), None)
            places = [folder.resolve(), *([snapshot.parents[1].resolve() / "blobs"] if snapshot else [])]
            self._roots[parent] = any(parent.resolve().is_relative_to(place) for place in places)
        return self._roots[parent]

    def _content(self, slot: Slot) -> tuple[Any, str]:
        """A stored image's bytes as a buffer, or None, and its path."""
        assert self._stored is not None  # only its own rows name slots
        chunk = bisect_right(self._starts, slot.number) - 1
        image = self._stored.chunks[chunk][slot.number - self._starts[chunk]]
        return image["bytes"].as_buffer(), image["path"].as_py() or ""

    def _lists(self, flat: Any, lengths: Any) -> Any:
        """Lists of images, in memory."""
        content: list[Any] = []
        paths: list[str | None] = []
        for number in flat:
            entry = self._entries[number]
            content.append(None if isinstance(entry, Path) else self._content(entry)[0].to_pybytes())
            paths.append(str(entry.absolute()) if isinstance(entry, Path) else None)
        images = pa.StructArray.from_arrays(
            [pa.array(content, pa.binary()), pa.array(paths, pa.string())], fields=FIELDS
        )
        return _listed(np.cumsum(lengths), images)

    def _in_place(self, lengths: Any) -> Any:
        assert self._stored is not None
        ends = np.cumsum(lengths)
        lists: list[Any] = []
        row = 0
        for start, chunk in zip(self._starts, self._stored.chunks, strict=True):
            stop = int(np.searchsorted(ends, start + len(chunk), side="right"))
            nowhere = pa.nulls(len(chunk), pa.string())
            images = pa.StructArray.from_arrays([chunk.field("bytes"), nowhere], fields=FIELDS)
            lists.append(_listed(ends[row:stop] - start, images))
            row = stop
        return pa.chunked_array(lists, type=COLUMN)

    def _copied(self, flat: Any, lengths: Any) -> Any:
        """Written beside what `datasets` keeps, under a name that says what is in it; read from there."""
        assert self._stored is not None
        said = hashlib.sha256(self._stored.fingerprint.encode() + flat.tobytes() + lengths.tobytes())
        for entry in self._entries:
            said.update(repr(entry).encode())
        path = Path(config.HF_DATASETS_CACHE) / "safegraft" / f"images-{said.hexdigest()[:32]}.arrow"
        if not path.exists():
            log.info("copying the images of %s rows to %s", f"{len(lengths):,}", path)
            with output_errors(path):
                self._write(path, flat, lengths)
        with pa.memory_map(str(path)) as file:
            return pa.ipc.open_stream(file).read_all().column("images")

    def _write(self, path: Path, flat: Any, lengths: Any) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_name(f"{path.name}.{secrets.token_hex(4)}")
        schema = pa.schema({"images": COLUMN})
        try:
            with pa.ipc.new_stream(str(unfinished), schema) as file:
                for numbers, rows in _batches(flat, lengths):
                    file.write_batch(pa.record_batch([self._lists(numbers, rows)], schema=schema))
            os.replace(unfinished, path)
        finally:
            unfinished.unlink(missing_ok=True)


FIELDS = [pa.field("bytes", pa.binary()), pa.field("path", pa.string())]
COLUMN = pa.list_(Image().pa_type)


def _listed(ends: Any, images: Any) -> Any:
    offsets = pa.array(np.concatenate([[0], ends]).astype(np.int32))
    return pa.ListArray.from_arrays(offsets, images).cast(COLUMN)


def _batches(flat: Any, lengths: Any) -> Iterator[tuple[Any, Any]]:
    ends = np.cumsum(lengths)
    for row in range(0, len(lengths), ROWS_AT_ONCE):
        rows = lengths[row : row + ROWS_AT_ONCE]
        stop = ends[row + len(rows) - 1]
        yield flat[stop - rows.sum() : stop], rows


def _read_header(image: Any, what: str) -> None:
    import PIL.Image

    try:
        with PIL.Image.open(image):
            pass
    except PIL.UnidentifiedImageError as error:
        raise Unusable(f"{what} is of no kind that pillow reads: replace it or take the row out") from error
    except (OSError, ValueError, SyntaxError, PIL.Image.DecompressionBombError) as error:
        raise Unusable(f"{what} cannot be read: {error}: replace it or take the row out") from error
