"""A model's files below an http(s) URL.

There is nothing that lists them, so they are looked for by name: the index and the shards that it names, or the single
weight file, and the names that files beside weights usually have. Knows no checkpoints beyond their names.
"""

import secrets
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import quote, urlsplit, urlunsplit

import httpx2

from safegraft.checkpoint.adapter import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from safegraft.checkpoint.licence import CARD_FILE
from safegraft.checkpoint.strict_json import as_object, parse_object
from safegraft.checkpoint.weights import INDEX_FILE, MAX_INDEX_BYTES, MAX_SHARDS, SINGLE_FILE, SUFFIX
from safegraft.errors import CheckpointError, Problem
from safegraft.remote.http_ranges import Clock, HttpRanges, Patience, Probe, Resource
from safegraft.remote.store import Listing, RemoteFile, Store
from safegraft.remote.url_names import shown_url

# fmt: off
USUAL_NAMES = (
    INDEX_FILE, SINGLE_FILE, ADAPTER_CONFIG, ADAPTER_WEIGHTS, CARD_FILE,
    "config.json", "generation_config.json",
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
    "tokenizer.model", "tokenizer.model.v3", "spiece.model", "sentencepiece.bpe.model", "tiktoken.model",
    "vocab.json", "vocab.txt", "merges.txt", "tekken.json", "normalizer.json",
    "preprocessor_config.json", "processor_config.json", "video_preprocessor_config.json",
    "image_processor_config.json", "chat_template.jinja", "chat_template.json",
    "LICENSE", "LICENSE.txt", "LICENSE.md", "LICENCE", "NOTICE", "NOTICE.txt", "COPYING", "USE_POLICY.md",
)
# fmt: on
PARALLEL_PROBES = 8
_ABSENT = (404, 410)


class HttpFolder(Store):
    """Looks for the files at once. `close` it in any case.

    may_visit: raises for URLs that must not be asked. transport: how to connect.

    Raises CheckpointError when nothing is there, or it cannot be told what is.
    """

    def __init__(
        self,
        url: str,
        *,
        may_visit: Callable[[str], None] | None = None,
        transport: httpx2.BaseTransport | None = None,
        patience: Patience | None = None,
        clock: Clock | None = None,
    ) -> None:
        self._parts = urlsplit(url)
        self._name = shown_url(url)
        self._may_visit = may_visit
        self._lock = threading.Lock()
        self._resources: dict[str, Resource] = {}
        self._ranges = HttpRanges(transport=transport, patience=patience, clock=clock, received=self._count)
        try:
            self.listing = self._look()
        except BaseException:
            self.close()
            raise

    def read(self, file: RemoteFile, start: int, stop: int) -> bytes:
        return self._ranges.read(self._resources[file.name], start, stop, file.size)

    def interrupt(self) -> None:
        self._ranges.interrupt()

    def close(self) -> None:
        self._ranges.close()

    def _look(self) -> Listing:
        absent = self._absent()
        probes = self._probe(USUAL_NAMES, absent)
        if INDEX_FILE in probes:
            probes |= self._probe(self._shards(probes[INDEX_FILE]), absent)
        files = {name: RemoteFile(name, probe.size, None, _version(probe)) for name, probe in probes.items()}
        modified = max((probe.modified for probe in probes.values()), default=0.0)
        return Listing(self._name, files, int(modified * 1e9))

    def _absent(self) -> tuple[int, ...]:
        """How this server says that a file is not there. Asked for a name that nothing has.

        A bucket whose content may be read but not listed says 403, which means something else elsewhere.
        """
        name = f"safegraft-{secrets.token_hex(8)}"
        if self._ranges.probe(self._resource(name), (*_ABSENT, 403)) is not None:
            message = "is answered with a page for any name, so it cannot be told which files are there"
            raise CheckpointError(Problem(self._name, message))
        try:
            self._ranges.probe(self._resource(name), _ABSENT)
        except CheckpointError:
            return (*_ABSENT, 403)
        return _ABSENT

    def _probe(self, names: Iterable[str], absent: tuple[int, ...]) -> dict[str, Probe]:
        """What is there of these names."""
        resources = {name: self._resource(name) for name in names}
        with ThreadPoolExecutor(PARALLEL_PROBES, "safegraft-probe") as pool:
            tasks = {name: pool.submit(self._ranges.probe, one, absent) for name, one in resources.items()}
            try:
                found = {name: task.result() for name, task in tasks.items()}
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise
        self._resources |= resources
        return {name: probe for name, probe in found.items() if probe is not None}

    def _shards(self, index: Probe) -> list[str]:
        """Files that the index names. What is wrong with it, or with them, is for those to say who read it whole."""
        if index.size > MAX_INDEX_BYTES:
            return []
        content = self._ranges.read(self._resources[INDEX_FILE], 0, index.size, index.size)
        weight_map: dict[str, Any] = (
            as_object(parse_object(content, f"{self._name}/{INDEX_FILE}").get("weight_map")) or {}
        )
        names = {str(file) for file in weight_map.values()}
        usable = [name for name in sorted(names) if name.endswith(SUFFIX) and "/" not in name and name.isprintable()]
        return [name for name in usable[:MAX_SHARDS] if name != SINGLE_FILE]

    def _resource(self, name: str) -> Resource:
        parts = self._parts
        path = f"{parts.path.rstrip('/')}/{quote(name)}"
        url = urlunsplit((parts.scheme, parts.netloc, path, parts.query, ""))
        where = f"{self._name}/{name}"
        return Resource(where, url) if self._may_visit is None else Resource(where, url, may_visit=self._may_visit)

    def _count(self, received: int) -> None:
        with self._lock:
            self.bytes_read += received


def _version(probe: Probe) -> str:
    return probe.etag or f"{probe.modified:.0f}/{probe.size}"
