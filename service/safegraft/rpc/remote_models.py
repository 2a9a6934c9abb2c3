"""Opens a server's models from the Hub and from URLs, where its owner allows them (remote_policy.py).

Knows no recipes, roots and jobs. Plain data, so that it travels to worker processes: tokens stay in their files.
"""

import re
from collections.abc import Callable, Generator, MutableMapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from safegraft.checkpoint.adapter import Adapter, AdapterFolder
from safegraft.checkpoint.folder import FolderCheckpoint
from safegraft.checkpoint.hub_cache import HUB_NAME
from safegraft.checkpoint.licence import CARD_FILE
from safegraft.checkpoint.types import Checkpoint
from safegraft.checkpoint.weights import INDEX_FILE
from safegraft.errors import CheckpointError, Problem, UsageError
from safegraft.recipe.reference import Source, is_url
from safegraft.remote.access import HubAccess
from safegraft.rpc.remote_policy import HubCredential, matches

if TYPE_CHECKING:
    from safegraft.remote.hub import HubStore
    from safegraft.remote.store import Store

_REVISION = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/-]{0,199}")  # of git's names those that lead nowhere as a path

Opened = TypeVar("Opened", bound=Checkpoint)
# Commit by ORG/NAME[@REVISION], as recipes have it.
Pins = MutableMapping[str, str]


@dataclass(frozen=True, slots=True)
class RemoteModels:
    """What of ServerOptions concerns reading over the network; by default nothing is read."""

    hub: tuple[str, ...] = ()
    credentials: tuple[HubCredential, ...] = ()
    anonymous: bool = False
    cache: bool = False
    urls: tuple[str, ...] = ()

    def access(self, credential: str | None = None) -> HubAccess:
        """The way to the Hub with a credential, by its name; None: the server's own login, if it may be used.

        Raises UsageError when there is none of that name, ServerError when its file cannot be used any more.
        """
        if not credential:
            return HubAccess(token=False if self.anonymous else None)
        for one in self.credentials:
            if one.name == credential:
                return HubAccess(token=one.token())
        message = f"this server has no credential {credential!r}; {self._credential_hint()}"
        raise UsageError(Problem("hub_credential", message))

    def allows(self, path: str) -> bool:
        """Whether a reference that is no path here may mean something on the network. What it is shows when opened."""
        return is_url(path) or matches(path, self.hub)

    def hint(self, path: str) -> str:
        """What this server reads of the kind of place that a path may mean; "" for a path that means none."""
        if is_url(path):
            which = f"those below {_listed(self.urls)}" if self.urls else "none"
            return f"of URLs this server reads {which}; its owner can allow more with --url"
        if HUB_NAME.fullmatch(path):
            return f"of the Hugging Face Hub this server reads {_listed(self.hub)}; its owner can allow more with --hub"
        return ""

    def open_model(self, source: Source, credential: str | None, pins: Pins) -> Checkpoint:
        """A model that `allows` says may be read.

        pins: as for Models.open. Raises CheckpointError, and what `access` raises.
        """
        if is_url(source.path):
            from safegraft.remote.checkpoint import RemoteCheckpoint

            return RemoteCheckpoint(self._open_url(source.path))
        access = self.access(credential)
        if _is_offline():
            return self._cached(FolderCheckpoint, source, access, pins)
        with self._in_words_for_clients():
            return self._model(_open_hub(source, access, pins), access)

    def open_adapter(self, source: Source, credential: str | None, pins: Pins) -> Adapter:
        """As open_model. An adapter is small: it is not brought into the Hub cache."""
        from safegraft.remote.adapter import RemoteAdapter

        if is_url(source.path):
            return RemoteAdapter(self._open_url(source.path))
        access = self.access(credential)
        if _is_offline():
            return self._cached(AdapterFolder, source, access, pins)
        with self._in_words_for_clients():
            return RemoteAdapter(_open_hub(source, access, pins))

    def _model(self, store: "HubStore", access: HubAccess) -> Checkpoint:
        """Read by range; from the Hub cache when all of it is there, or is to be brought there.

        In any case the Hub is asked first, in the name of this request: what the cache has may be there because
        somebody else was allowed to read it.
        """
        from safegraft.remote.cached import cache_hub, cached_snapshot
        from safegraft.remote.checkpoint import RemoteCheckpoint

        remote = RemoteCheckpoint(store)
        try:
            names = {tensor.file for tensor in remote.tensors.values()} | {*remote.sidecars, INDEX_FILE, CARD_FILE}
            files = [file for name, file in store.listing.files.items() if name in names]
            if self.cache:
                folder = cache_hub(store.repository, store.commit, files, access)
            else:
                folder = cached_snapshot(store.repository, store.commit, files)
            checkpoint = remote if folder is None else FolderCheckpoint(folder, remote.name)
        except BaseException:
            remote.close()
            raise
        if checkpoint is not remote:
            remote.close()
        return checkpoint

    def _cached(self, kind: Callable[[Path, str], Opened], source: Source, access: HubAccess, pins: Pins) -> Opened:
        """While HF_HUB_OFFLINE is set: what the Hub cache has, whoever asks.

        That it was offline is no note for the plan: the same plan is to have the same card, whenever it is made.
        """
        from safegraft.remote.hub_model import find_hub_model

        if self.anonymous:
            message = "this server reads what is public on the Hub, and while HF_HUB_OFFLINE is set nobody says what is"
            raise CheckpointError(Problem(str(source), message))
        found = find_hub_model(source.path, pins.get(str(source), _revision(source)), access)
        assert isinstance(found.place, Path)  # it could be a store only if the Hub could be asked
        pins[str(source)] = found.name.rpartition("@")[2]
        return kind(found.place, found.name)

    def _open_url(self, url: str) -> "Store":
        from safegraft.remote.urls import UrlPolicy, open_url

        policy = UrlPolicy(self.urls)
        try:
            policy.admitted(url)
        except CheckpointError as error:
            message = f"{error.problems[0].message}; {self.hint(url)}"
            raise CheckpointError(Problem(error.problems[0].where, message)) from error
        return open_url(url, policy)

    @contextmanager
    def _in_words_for_clients(self) -> Generator[None]:
        """Where whoever sits at a machine would log in, a client names a credential."""
        from safegraft.remote.errors import LOG_IN

        try:
            yield
        except CheckpointError as error:
            hint = f"name a credential of this server in the request (hub_credential; {self._credential_hint()})"
            problems = [Problem(one.where, one.message.replace(LOG_IN, hint)) for one in error.problems]
            raise CheckpointError(problems) from error

    def _credential_hint(self) -> str:
        names = ", ".join(one.name for one in self.credentials)
        return f"it has {names}" if names else "it has none, and its owner can add some with --hub-credential"


def _listed(allowed: tuple[str, ...]) -> str:
    return ", ".join(allowed) or "nothing"


def _is_offline() -> bool:
    from huggingface_hub import constants

    return constants.HF_HUB_OFFLINE


def _open_hub(source: Source, access: HubAccess, pins: Pins) -> "HubStore":
    from safegraft.remote.hub import open_hub

    store = open_hub(source.path, pins.get(str(source), _revision(source)), access)
    pins[str(source)] = store.commit
    return store


def _revision(source: Source) -> str | None:
    if source.revision is not None and (not _REVISION.fullmatch(source.revision) or ".." in source.revision):
        raise CheckpointError(Problem(str(source), "names no branch, tag or commit after its @"))
    return source.revision
