"""Puts together what the files of a checkpoint say: config, sidecars, tensors, licence; all problems at once.

The same for every place that files can lie in: reads them through `Files`, and opens nothing itself.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from safegraft.checkpoint.adapter import is_adapter
from safegraft.checkpoint.config import CONFIG_FILE, read_config
from safegraft.checkpoint.findings import Findings
from safegraft.checkpoint.header import Header
from safegraft.checkpoint.licence import CARD_FILE, MAX_CARD_BYTES, Licence, read_licence
from safegraft.checkpoint.sidecars import CHAT_TEMPLATES, MAX_SIDECAR_BYTES, MAX_SIDECARS_BYTES, collect_sidecars
from safegraft.checkpoint.types import TensorInfo
from safegraft.checkpoint.weights import INDEX_FILE, MAX_INDEX_BYTES, SINGLE_FILE, find_layout, join_shards, parse_index
from safegraft.errors import CheckpointError, Problem


class Files(Protocol):
    """The files of one folder, wherever that is. Methods raise CheckpointError."""

    name: str  # stands for the folder in messages
    names: tuple[str, ...]  # of the files right in it

    def subfolder(self, name: str) -> tuple[str, ...]:
        """The names in one folder below; () when there is none."""
        ...

    def read(self, file: str, limit: int) -> bytes:
        """The whole content of a file ("name" or "subfolder/name") of at most `limit` bytes."""
        ...

    def read_start(self, file: str, length: int) -> bytes:
        """A file's first `length` bytes, or all of them."""
        ...


# The headers of these weight files; the problems of a file are kept in the findings, and the file left out.
ReadHeaders = Callable[[Sequence[str], Findings], Mapping[str, Header]]


@dataclass(frozen=True, slots=True)
class Contents:
    """What is said by the files of a sound checkpoint. headers: by weight file."""

    config: Mapping[str, Any]
    sidecars: Mapping[str, bytes]
    licence: Licence | None
    headers: Mapping[str, Header]
    tensors: Mapping[str, TensorInfo]


def read_contents(files: Files, read_headers: ReadHeaders) -> Contents:
    """Read everything but weights. Raises one CheckpointError with every problem of the folder."""
    if is_adapter(files.names):
        message = (
            "is a PEFT adapter, not a model: name it together with the model that it belongs to, as BASE+ADAPTER. "
            "(A recipe of adapters alone is merged on your own machine, and not planned.)"
        )
        raise CheckpointError(Problem(files.name, message))
    findings = Findings(files.name)
    sidecars = _read_sidecars(files, findings)
    config: dict[str, Any] = {}
    headers: Mapping[str, Header] = {}
    tensors: dict[str, TensorInfo] = {}
    licence: Licence | None = None
    with findings.catching():
        if CONFIG_FILE in sidecars or CONFIG_FILE not in files.names:  # else its problem is known already
            config = read_config(sidecars, files.name)
    with findings.catching():
        headers, tensors = _read_weights(files, read_headers)
    with findings.catching():
        if CARD_FILE in files.names:
            licence = read_licence(files.read_start(CARD_FILE, MAX_CARD_BYTES))
    findings.raise_if_any()
    return Contents(config, sidecars, licence, headers, tensors)


def _read_weights(files: Files, read_headers: ReadHeaders) -> tuple[Mapping[str, Header], dict[str, TensorInfo]]:
    findings = Findings(files.name)
    weight_map: dict[str, str] | None = None
    if find_layout(files.names, files.name) == INDEX_FILE:
        weight_map = parse_index(files.read(INDEX_FILE, MAX_INDEX_BYTES), files.names, files.name)
    headers = read_headers(sorted(set(weight_map.values())) if weight_map else [SINGLE_FILE], findings)
    findings.raise_if_any()
    return headers, join_shards(headers, weight_map, files.name)


def _read_sidecars(files: Files, findings: Findings) -> dict[str, bytes]:
    sidecars: dict[str, bytes] = {}
    listing = list(files.names)
    with findings.catching():
        listing += [f"{CHAT_TEMPLATES}/{file}" for file in files.subfolder(CHAT_TEMPLATES)]
    total = 0
    for file in collect_sidecars(listing):
        with findings.catching():
            sidecars[file] = files.read(file, MAX_SIDECAR_BYTES)
            total += len(sidecars[file])
        if total > MAX_SIDECARS_BYTES:
            findings.add(
                f"has more than {MAX_SIDECARS_BYTES:,} bytes of files beside its weights: remove what is not needed"
            )
            break
    return sidecars
