"""Which URLs a server may be made to read, and which addresses it connects to for them.

A URL passes when it lies under an allowed prefix, compared part by part after both are brought into one form; what
could be read in two ways is refused. Names are resolved here and connections go to the very address that was looked
at, so that a name cannot turn into an inner address in between. Reads nothing itself.
"""

import ipaddress
import re
import socket
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from urllib.parse import quote, unquote, urlsplit

import httpx2

from safegraft.errors import CheckpointError, Problem, UsageError
from safegraft.remote.url_names import shown_url

WEB = ("http", "https")
_PORTS = {"http": 80, "https": 443}
_NAT64 = ipaddress.ip_network("64:ff9b::/96")
# Not the internet's, though `ipaddress` may say so: at 192.0.0.192 a cloud hands out its machines' credentials.
_SPECIAL = [ipaddress.ip_network(one) for one in ("192.0.0.0/24", "192.88.99.0/24", "64:ff9b:1::/48", "3fff::/20")]
_PLAIN_HOST = re.compile(r"[a-z0-9_]([a-z0-9._-]*[a-z0-9_])?")

Address = ipaddress.IPv4Address | ipaddress.IPv6Address


@dataclass(frozen=True, slots=True)
class Place:
    """A URL taken apart: `host` in lower case and ASCII; `steps`: the path's segments, decoded."""

    scheme: str
    host: str
    port: int | None
    steps: tuple[str, ...]

    def holds(self, other: "Place") -> bool:
        here = (self.scheme, self.host, self.port)
        return here == (other.scheme, other.host, other.port) and other.steps[: len(self.steps)] == self.steps


@dataclass(frozen=True)
class UrlPolicy:
    """allowed: prefixes that every URL, and every redirect of one, must lie under: "s3://bucket/models".

    Raises UsageError for a prefix that is no URL without user info, query and tricks.
    """

    allowed: Sequence[str]
    _places: tuple[Place, ...] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        places: list[Place] = []
        for prefix in self.allowed:
            try:
                places.append(_place(prefix))
            except ValueError as error:
                raise UsageError(f"{shown_url(prefix)}: cannot be an allowed URL: {error}") from error
        object.__setattr__(self, "_places", tuple(places))

    def admitted(self, url: str) -> str:
        """The URL in the form that was compared. Raises CheckpointError when it is not allowed."""
        try:
            place = _place(url)
        except ValueError as error:
            raise CheckpointError(Problem(shown_url(url), f"is no URL that this server reads: {error}")) from error
        self._require(place, url)
        if place.scheme not in WEB:
            return f"{place.scheme}://{place.host}/{'/'.join(place.steps)}"
        return f"{place.scheme}://{_written(place)}/{'/'.join(quote(step, safe='') for step in place.steps)}"

    def admit_request(self, url: str) -> None:
        """Raise CheckpointError unless this URL, perhaps a redirect's and with a query, may be asked."""
        try:
            place = _place(url.partition("?")[0])
        except ValueError as error:
            raise CheckpointError(Problem(shown_url(url), f"is no URL that this server reads: {error}")) from error
        self._require(place, url)

    def transport(self) -> httpx2.BaseTransport:
        """Connects to public addresses only, and to inner ones that a prefix names as an address or "localhost"."""
        named = {place.host for place in self._places if _literal(place.host) or place.host == "localhost"}
        return PublicTransport(frozenset(named))

    def _require(self, place: Place, url: str) -> None:
        if not any(allowed.holds(place) for allowed in self._places):
            raise CheckpointError(Problem(shown_url(url), "lies under none of the URLs that this server may read"))


class PublicTransport(httpx2.BaseTransport):
    """Resolves each request's host, refuses inner addresses, and connects to the address that it looked at.

    inner: hosts that may have any address. connect: makes a transport; one for each host, so that a connection which
    was made in one host's name never serves another's.
    """

    def __init__(
        self,
        inner: frozenset[str],
        connect: Callable[[], httpx2.BaseTransport] = httpx2.HTTPTransport,
        resolve: Callable[[str, int], list[Address]] | None = None,
    ) -> None:
        self._inner, self._connect, self._resolve = inner, connect, resolve or _resolved
        self._lock = threading.Lock()
        self._transports: dict[str, httpx2.BaseTransport] = {}

    def handle_request(self, request: httpx2.Request) -> httpx2.Response:
        host = request.url.host
        addresses = self._resolve(host, request.url.port or _PORTS[request.url.scheme])
        if host not in self._inner and not all(is_public(address) for address in addresses):
            message = "leads to an address inside a network, which this server does not read from"
            raise CheckpointError(Problem(shown_url(str(request.url)), message))
        failure: httpx2.ConnectError | None = None
        for address in addresses:
            try:
                return self._transport(host).handle_request(_aimed(request, address))
            except httpx2.ConnectError as error:
                failure = error
        raise failure or httpx2.ConnectError("no address", request=request)

    def close(self) -> None:
        with self._lock:
            for transport in self._transports.values():
                transport.close()
            self._transports.clear()

    def _transport(self, host: str) -> httpx2.BaseTransport:
        with self._lock:
            if host not in self._transports:
                self._transports[host] = self._connect()
            return self._transports[host]


def is_public(address: Address) -> bool:
    """Whether an address is one of the internet's, and so is every address that it stands for."""
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped is not None:
            return is_public(address.ipv4_mapped)
        embedded = [address.sixtofour, *(address.teredo or ())]
        if address in _NAT64:
            embedded.append(ipaddress.IPv4Address(int(address) & 0xFFFFFFFF))
        if not all(is_public(inner) for inner in embedded if inner is not None):
            return False
        if address.is_site_local:
            return False
    if any(address in network for network in _SPECIAL):
        return False
    return address.is_global and not (address.is_multicast or address.is_reserved or address.is_unspecified)


def _place(url: str) -> Place:
    """Take a URL apart. Raises ValueError, in words, when it can be read in more than one way."""
    if not url.isprintable() or any(sign in url for sign in " \\"):
        raise ValueError("it holds signs that belong into no URL")
    parts = urlsplit(url)
    scheme = parts.scheme.lower()
    if not scheme or not parts.netloc:
        raise ValueError("it has no scheme and host")
    if "@" in parts.netloc:
        raise ValueError("user names do not belong into it")
    if "?" in url or "#" in url or "::" in url.replace(parts.netloc, "", 1):
        raise ValueError("it has more than a scheme, a host and a path")
    web = scheme in WEB
    host, port = (_host(parts.hostname or ""), parts.port or _PORTS[scheme]) if web else (parts.netloc, None)
    return Place(scheme, host, port, _steps(parts.path, web))


def _steps(path: str, web: bool) -> tuple[str, ...]:
    steps = path.removeprefix("/").removesuffix("/").split("/") if path.strip("/") or "//" in path else []
    decoded = [unquote(step, errors="strict") for step in steps] if web else steps
    for step in decoded:
        if step in ("", ".", "..") or any(sign in step for sign in "/\\") or not step.isprintable():
            raise ValueError("its path does not say plainly where it leads")
        if web and "%" in step:
            raise ValueError("its path is encoded twice")
    return tuple(decoded)


def _host(host: str) -> str:
    """Lower case, ASCII, no dot at the end. Raises ValueError."""
    host = host.lower().removesuffix(".")
    literal = _literal(host)
    if literal is not None:
        return str(literal)
    try:
        written = httpx2.URL(scheme="https", host=host).raw_host.decode("ascii")  # knows IDNA
    except httpx2.InvalidURL as error:
        raise ValueError("its host is no name") from error
    if not _PLAIN_HOST.fullmatch(written):
        raise ValueError("its host is no name")
    return written


def _written(place: Place) -> str:
    host = f"[{place.host}]" if ":" in place.host else place.host
    return host if place.port == _PORTS[place.scheme] else f"{host}:{place.port}"


def _literal(host: str) -> Address | None:
    try:
        return ipaddress.ip_address(host.strip("[]"))
    except ValueError:
        return None


def _resolved(host: str, port: int) -> list[Address]:
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise httpx2.ConnectError("no such host") from error
    # A scope (fe80::1%eth0) is an inner network's affair.
    return list(dict.fromkeys(ipaddress.ip_address(str(entry[4][0]).partition("%")[0]) for entry in found))


def _aimed(request: httpx2.Request, address: Address) -> httpx2.Request:
    """The same request, sent to an address; certificate and Host header are still those of the name."""
    return httpx2.Request(
        request.method,
        request.url.copy_with(host=str(address)),
        headers=request.headers,
        stream=request.stream,
        extensions={**request.extensions, "sni_hostname": request.url.host},
    )
