"""How a server is told to run. Checked as a whole before anything is opened."""

import ipaddress
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from safegraft.engine.plan import Card
from safegraft.errors import UsageError
from safegraft.rpc.models import ModelRoot
from safegraft.rpc.remote_models import RemoteModels
from safegraft.rpc.remote_policy import HubCredential, require_patterns, require_prefixes

DEFAULT_LISTEN = "127.0.0.1:50051"
DEFAULT_MAX_UPLOAD_BYTES = 100 * 10**9
DEFAULT_UPLOAD_LIFETIME = 7 * 24 * 3600.0


def say(line: str) -> None:
    """Print at once: whoever started the server may be waiting for the line at the other end of a pipe."""
    print(line, flush=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerOptions:
    """Everything `safegraft serve` can be told.

    Args:
        data: folder for the database, results and uploads; made if need be. One server a folder.
        listen: HOST:PORT. Port 0: a free one, told to `ready`.
        models: folders whose models recipes may name.
        hub: which models of the Hugging Face Hub recipes may name: ORG/NAME, in which `*` stands for any text, or `*`.
        hub_credentials: tokens for the Hub that requests may name.
        hub_anonymous: read the Hub without the login and HF_TOKEN of whoever runs the server.
        hub_cache: bring whole models into the standard Hub cache instead of reading the ranges that a merge needs.
        urls: below which URLs (s3, gs, az, https, http) recipes may name models.
        publish_to: which repositories of the Hub results may be published to; patterns like those of `hub`.
        device: where merges are computed: "cpu", "cuda" or "cuda:N".
        sources: names of plugins' checkpoint sources that recipes may read from; none unless named.
        workers: merges computed at the same time.
        readers: processes that compute bytes on demand for merges with RETENTION_NONE, one call each.
        token: what clients must send as bearer token; None: anybody who reaches the server may use it.
        insecure: listen on other than loopback addresses although there is no token.
        tls_cert, tls_key: PEM files; both or neither.
        database: SQLAlchemy URL; None: SQLite within `data`.
        max_upload_bytes: quota for uploads; 0: no uploads.
        upload_lifetime: seconds after which an unused upload may be removed.
        grace: seconds that calls may take to end when the server stops.
        card: renders the result's README.md; must be importable by name, since workers call it.
        ready: called with the address once the server answers.

    Raises UsageError when options contradict each other.
    """

    data: Path
    listen: str = DEFAULT_LISTEN
    models: tuple[ModelRoot, ...] = ()
    hub: tuple[str, ...] = ()
    hub_credentials: tuple[HubCredential, ...] = ()
    hub_anonymous: bool = False
    hub_cache: bool = False
    urls: tuple[str, ...] = ()
    publish_to: tuple[str, ...] = ()
    sources: tuple[str, ...] = ()
    device: str = "cpu"
    workers: int = 1
    readers: int = 2
    token: str | None = None
    insecure: bool = False
    tls_cert: Path | None = None
    tls_key: Path | None = None
    database: str | None = None
    max_upload_bytes: int = DEFAULT_MAX_UPLOAD_BYTES
    upload_lifetime: float = DEFAULT_UPLOAD_LIFETIME
    grace: float = 10.0
    card: Card | None = None
    ready: Callable[[str], None] = say

    def __post_init__(self) -> None:
        host, _ = split_address(self.listen)
        if self.workers < 1 or self.readers < 1:
            raise UsageError("a server needs at least one worker and one reader")
        if self.max_upload_bytes < 0 or self.upload_lifetime <= 0 or self.grace < 0:
            raise UsageError("the upload quota and the grace must not be negative, and uploads need a lifetime")
        if self.token is not None and not (self.token.isascii() and self.token.isprintable() and self.token.strip()):
            raise UsageError("the token must be printable ASCII and not empty")
        if (self.tls_cert is None) != (self.tls_key is None):
            raise UsageError("TLS needs both the certificate and the key")
        if not (self.token or self.insecure or is_loopback(host)):
            raise UsageError(
                f"{self.listen} can be reached from other machines: set a token (--token-file, or SAFEGRAFT_TOKEN in "
                "the environment), or say --insecure to let anybody in"
            )
        require_patterns("--hub", self.hub)
        require_patterns("--publish-to", self.publish_to)
        require_prefixes(self.urls)
        names = [credential.name for credential in self.hub_credentials]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise UsageError(f"--hub-credential: two are called {', '.join(twice)}; give each a name of its own")
        for credential in self.hub_credentials:
            if any(credential.path.resolve().is_relative_to(root.path) for root in self.models):
                message = "its file lies in a model root, whose files recipes may name; keep it elsewhere"
                raise UsageError(f"--hub-credential {credential.name}: {message}")
        if (self.hub_cache or self.hub_anonymous) and not self.hub:
            raise UsageError("--hub-cache and --hub-anonymous say how the Hub is read: allow models of it with --hub")

    @property
    def remote(self) -> RemoteModels:
        """What recipes may read over the network."""
        return RemoteModels(self.hub, self.hub_credentials, self.hub_anonymous, self.hub_cache, self.urls)


def split_address(address: str) -> tuple[str, int]:
    """HOST:PORT, with an IPv6 host in brackets. Raises UsageError."""
    host, colon, port = address.rpartition(":")
    if not colon or not port.isascii() or not port.isdigit() or int(port) > 65535 or not host:
        raise UsageError(f"{address!r} is not HOST:PORT, such as {DEFAULT_LISTEN}")
    return host.removeprefix("[").removesuffix("]"), int(port)


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches a host's address. A name other than localhost could mean anything."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0))
