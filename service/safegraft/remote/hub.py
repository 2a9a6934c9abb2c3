"""A model's files on a Hugging Face Hub: the listing of one commit, and ranges of its files.

A branch or tag is turned into its commit when the store is opened; everything is read from that commit. Knows no
checkpoints and writes nothing, neither there nor into the cache.
"""

import re
import threading
from typing import Any
from urllib.parse import quote

import httpx2
from huggingface_hub.errors import HfHubHTTPError
from huggingface_hub.utils import hf_raise_for_status

from safegraft.checkpoint.hub_cache import HUB_NAME
from safegraft.checkpoint.sidecars import CHAT_TEMPLATES
from safegraft.errors import CheckpointError, Problem, SafegraftError
from safegraft.remote.access import HubAccess
from safegraft.remote.errors import MAY_PASS, hub_errors
from safegraft.remote.http_ranges import (
    OPENING_ATTEMPTS,
    Clock,
    HttpRanges,
    Patience,
    Resource,
    Tries,
    asked_pause,
)
from safegraft.remote.store import Listing, RemoteFile, Store

_COMMIT = re.compile(r"[0-9a-f]{40}")
_SHA256 = re.compile(r"[0-9a-f]{64}")


def open_hub(
    name: str,
    revision: str | None,
    access: HubAccess,
    *,
    patience: Patience | None = None,
    clock: Clock | None = None,
) -> "HubStore":
    """The model `name` ("org/name") as it is at `revision`: a branch, a tag or a commit; None: its default branch.

    One request; the listing is called "org/name@commit". Raises CheckpointError: not there, private, gated, no
    answer, all in words.
    """
    where = name if revision is None else f"{name}@{revision}"
    if HUB_NAME.fullmatch(name) is None:
        raise CheckpointError(Problem(where, "is not a name that the Hub can have; write ORG/NAME"))
    patience, clock = patience or Patience(), clock or Clock()
    info = _ask(name, revision, where, access, patience, clock)
    commit = info.sha
    if not isinstance(commit, str) or _COMMIT.fullmatch(commit) is None:
        raise CheckpointError(Problem(where, "the Hub does not say which commit this is: check HF_ENDPOINT"))
    if revision is not None and _COMMIT.fullmatch(revision) and commit != revision:
        raise CheckpointError(Problem(where, "the Hub gives another commit than the one that was asked for"))
    pinned = f"{name}@{commit}"
    siblings: list[Any] = info.siblings or []
    files = _files(siblings, pinned)
    others = [one.rfilename for one in siblings if one.rfilename not in files]
    return HubStore(Listing(pinned, files, others=others), access, patience, clock)


class HubStore(Store):
    """Reads by range. `commit`: 40 hex digits."""

    def __init__(self, listing: Listing, access: HubAccess, patience: Patience, clock: Clock) -> None:
        self.listing = listing
        self.repository, _, self.commit = listing.name.rpartition("@")
        self._access = access
        self._lock = threading.Lock()
        self._resources: dict[str, Resource] = {}
        self._ranges = HttpRanges(patience=patience, clock=clock, received=self._count)

    def read(self, file: RemoteFile, start: int, stop: int) -> bytes:
        return self._ranges.read(self._resource(file), start, stop, file.size)

    def interrupt(self) -> None:
        self._ranges.interrupt()

    def close(self) -> None:
        self._ranges.close()

    def _resource(self, file: RemoteFile) -> Resource:
        with self._lock:
            known = self._resources.get(file.name)
            if known is None:
                where = f"{self.listing.name}/{file.name}"
                url = f"{self._access.url}/{self.repository}/resolve/{self.commit}/{quote(file.name)}"
                known = Resource(where, url, self._access.headers(), refused=lambda answer: _refusal(answer, where))
                self._resources[file.name] = known
            return known

    def _count(self, received: int) -> None:
        with self._lock:
            self.bytes_read += received


def _ask(name: str, revision: str | None, where: str, access: HubAccess, patience: Patience, clock: Clock) -> Any:
    """The model's info with all its files, tried again where the Hub is only busy."""
    timeout: Any = patience.timeout  # declared as a number; it goes to the HTTP client, which takes more
    attempts = min(patience.attempts, OPENING_ATTEMPTS)
    tries = Tries(where, Patience(attempts, patience.without_progress), clock, clock.sleep)
    with hub_errors(where):
        api = access.api()
        while True:
            try:
                return api.model_info(name, revision=revision, files_metadata=True, timeout=timeout)
            except HfHubHTTPError as error:
                if error.response.status_code not in MAY_PASS:
                    raise
                tries.pause(
                    error,
                    f"the Hub answers with status {error.response.status_code}",
                    asked_pause(error.response, clock),
                )
            except (httpx2.ReadTimeout, httpx2.ReadError, httpx2.RemoteProtocolError) as error:
                tries.pause(error, "the connection to the Hub broke off")


def _files(siblings: list[Any], where: str) -> dict[str, RemoteFile]:
    """Of the repository's files those that a checkpoint can have. Raises CheckpointError when sizes are missing."""
    files: dict[str, RemoteFile] = {}
    for sibling in siblings:
        name = sibling.rfilename
        folder, slash, bare = name.rpartition("/")
        if not bare.isprintable() or (slash and folder != CHAT_TEMPLATES):
            continue
        sha256 = sibling.lfs.sha256 if sibling.lfs is not None else None
        if sha256 is not None and _SHA256.fullmatch(sha256) is None:
            sha256 = None
        if not isinstance(sibling.size, int) or sibling.size < 0:
            message = "the Hub does not tell the size of this file: a mirror has to answer as the Hub does"
            raise CheckpointError(Problem(f"{where}/{name}", message))
        blob = sibling.blob_id if isinstance(sibling.blob_id, str) else ""
        git_id = blob if sibling.lfs is None and _COMMIT.fullmatch(blob) else None  # of LFS files it is the pointer's
        files[name] = RemoteFile(name, sibling.size, sha256, sha256 or blob, git_id)
    return files


def _refusal(response: httpx2.Response, where: str) -> SafegraftError:
    """The error for an answer of the Hub itself."""
    try:
        with hub_errors(where):
            hf_raise_for_status(response)
    except SafegraftError as error:
        return error
    return CheckpointError(Problem(where, f"the Hub answers with status {response.status_code} to a range request"))
