"""One range of one file over HTTP, tried again while that may help: the only place that sends a ranged GET.

Follows redirects itself, so that a token stays with the origin it is for, and keeps the signed URL that a redirect
leads to until it expires. An answer that breaks off is continued at the byte where it broke. What an answer claims
(range, size, ETag) is checked before its bytes count. Knows no checkpoints, and neither Hub nor policy.
"""

import random
import re
import threading
import time
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from email.utils import parsedate_to_datetime
from typing import TypeVar

import httpx2
from huggingface_hub.utils import RateLimitInfo, parse_ratelimit_headers

from safegraft.errors import CheckpointError, InputChangedError, Problem, SafegraftError
from safegraft.remote.errors import certificate_refused, transport_words

MAX_REDIRECTS = 8
MAX_CONNECTIONS = 64
OPENING_ATTEMPTS = 4  # somebody sits and waits for it
_REDIRECTS = (301, 302, 303, 307, 308)
_EXPIRED = (400, 401, 403, 404, 410)  # what stores answer to a signed URL that is too old
_RANGE = re.compile(r"bytes (\d{1,19})-(\d{1,19})/(\d{1,19}|\*)")
_UNSATISFIED = re.compile(r"bytes \*/(\d{1,19})")
_MAX_DIGITS = 10  # of seconds
_FEW = 3  # attempts where more would hardly help
_SMALL_BODY = 1 << 16  # bytes; a body that is not wanted is read to its end up to here, to keep the connection

_Result = TypeVar("_Result")


@dataclass(frozen=True, slots=True)
class Patience:
    """How long to try. All times in seconds; `attempts` and `without_progress` count from the last byte received."""

    attempts: int = 8
    without_progress: float = 600.0  # the Hub's rate limits last 300
    first_pause: float = 0.5  # doubled each time
    longest_pause: float = 20.0
    connect: float = 10.0
    between_bytes: float = 30.0

    @property
    def timeout(self) -> httpx2.Timeout:
        """As the client takes it. Waiting for a free connection has no limit: others of ours hold them."""
        return httpx2.Timeout(self.between_bytes, connect=self.connect, pool=None)


@dataclass(frozen=True, slots=True)
class Clock:
    """Time, for tests to replace. sleep: None waits in a way that `HttpRanges.interrupt` ends at once."""

    monotonic: Callable[[], float] = time.monotonic
    now: Callable[[], float] = time.time
    sleep: Callable[[float], object] | None = None
    jitter: Callable[[], float] = random.random


def _anywhere(url: str) -> None:
    del url


class Resource:
    """A file behind a URL. Safe to use from several threads.

    where: its name in messages, which show no URL. headers: sent to the URL's own origin and nowhere else.
    refused: the error for an answer of that origin which is none of the expected. may_visit: raises for a URL that
    must not be asked, this one or one that a redirect leads to. etag: what the file's has to be; None: that of the
    first answer.
    """

    def __init__(
        self,
        where: str,
        url: str,
        headers: Mapping[str, str] | None = None,
        *,
        refused: Callable[[httpx2.Response], SafegraftError] | None = None,
        may_visit: Callable[[str], None] = _anywhere,
        etag: str | None = None,
    ) -> None:
        self.where = where
        self.url = url
        self._headers = dict(headers or {})
        self._refused = refused or self._plain_refusal
        self._may_visit = may_visit
        self._etag = etag
        self._seen_etag: str | None = None
        self._modified: str | None = None  # Last-Modified of the version that counts, when it was pinned
        self._target: str | None = None  # where redirects led
        self._lock = threading.Lock()

    def start(self) -> tuple[str, bool]:
        """The URL to ask, and whether it was learnt from an earlier redirect."""
        with self._lock:
            return (self._target, True) if self._target is not None else (self.url, False)

    def headers_for(self, url: str) -> dict[str, str]:
        """Raises what `may_visit` raises."""
        self._may_visit(url)
        if same_origin(url, self.url):
            return self._headers
        return {name: value for name, value in self._headers.items() if name.lower() == "user-agent"}

    def follow(self, url: str, location: str) -> str:
        """The absolute URL that a redirect of `url` names. Raises CheckpointError when it must not be followed."""
        try:
            target = httpx2.URL(url).join(location)
        except httpx2.InvalidURL as error:
            raise self.problem("is redirected to something that is no URL") from error
        if target.scheme not in ("http", "https") or (target.scheme == "http" and url.startswith("https:")):
            raise self.problem("is redirected to a place without https, or to no server at all, which is not followed")
        return str(target)

    def remember(self, url: str) -> None:
        if url != self.url:
            with self._lock:
                self._target = url

    def forget(self, url: str) -> None:
        """The redirect's target has expired; the next one may come from another store, with an ETag of its own."""
        with self._lock:
            if self._target == url:
                self._target = self._seen_etag = None

    def pin(self, headers: Mapping[str, str]) -> None:
        """From now on it has to be the version that this answer was of, wherever redirects lead."""
        with self._lock:
            self._etag = self._etag or headers.get("etag")
            self._modified = headers.get("last-modified")

    def check_version(self, headers: Mapping[str, str]) -> None:
        """Raise InputChangedError when an answer is of another version than those before it."""
        etag, modified = headers.get("etag"), headers.get("last-modified")
        with self._lock:
            expected = self._etag or self._seen_etag
            self._seen_etag = self._seen_etag or etag
            before = self._modified if expected is None else None  # an ETag says it better
        if (etag is not None and expected is not None and etag != expected) or (
            modified is not None and before is not None and modified != before
        ):
            raise self.changed()

    def refusal(self, response: httpx2.Response) -> SafegraftError:
        url = str(response.request.url)
        return self._refused(response) if same_origin(url, self.url) else self._plain_refusal(response)

    def problem(self, message: str) -> CheckpointError:
        return CheckpointError(Problem(self.where, message))

    def changed(self) -> InputChangedError:
        message = "changed while it was in use. Leave the input alone and start again"
        return InputChangedError(Problem(self.where, message))

    def _plain_refusal(self, response: httpx2.Response) -> SafegraftError:
        status = response.status_code
        if status in (401, 403):
            return self.problem(f"cannot be read: the server that holds it gives no access (status {status})")
        if status in (404, 410):
            return self.problem("is not there")
        return self.problem(f"cannot be read: the server that holds it answers with status {status}")


@dataclass(frozen=True, slots=True)
class Probe:
    """What a first look at a file tells. modified: seconds since the epoch, 0.0 when not known."""

    size: int
    etag: str | None
    modified: float


class _Again(Exception):
    """Worth another attempt, `asked` seconds from now where the server says so. most: attempts, where few help."""

    def __init__(self, words: str, asked: float | None = None, most: int | None = None) -> None:
        super().__init__(words)
        self.words, self.asked, self.most = words, asked, most


class HttpRanges:
    """Reads ranges over connections that it keeps until `close`. Safe to use from several threads.

    transport: how to connect; None: as the environment says (proxies, certificates). The client is our own, and not
    huggingface_hub's, which that library closes under everybody's hands when one connection fails.
    received: told how many bytes of content came, as they come, from any thread.
    """

    def __init__(
        self,
        *,
        transport: httpx2.BaseTransport | None = None,
        patience: Patience | None = None,
        clock: Clock | None = None,
        received: Callable[[int], None] | None = None,
    ) -> None:
        self._patience = patience or Patience()
        self._clock = clock or Clock()
        self._received = received
        self._closing = threading.Event()
        self._interrupted = threading.Event()  # replaced by a new one for reads that begin later
        self._client = httpx2.Client(
            transport=transport,
            trust_env=transport is None,
            timeout=self._patience.timeout,
            limits=httpx2.Limits(max_connections=MAX_CONNECTIONS, max_keepalive_connections=MAX_CONNECTIONS),
        )

    def read(self, resource: Resource, start: int, stop: int, size: int) -> bytes:
        """Bytes [start, stop) of a file of `size` bytes.

        Raises CheckpointError when they cannot be had, InputChangedError when the file is another one by now.
        """
        if not 0 <= start <= stop <= size:
            raise ValueError(f"{resource.where} has {size} bytes: {start} to {stop} are out of range")
        body = _Body(resource, start, stop, size)
        if start < stop:
            self._persist(resource, lambda tries: self._fill(body, resource, tries), self._patience)
        return body.content()

    def probe(self, resource: Resource, absent: tuple[int, ...] = (404, 410)) -> Probe | None:
        """Size and version of a file; None when the answer's status is one of `absent`."""
        patience = replace(self._patience, attempts=min(self._patience.attempts, OPENING_ATTEMPTS))
        return self._persist(resource, lambda tries: self._look(resource, absent), patience)

    def interrupt(self) -> None:
        """Have reads that are going on fail before their next bytes, and those that pause at once."""
        before, self._interrupted = self._interrupted, threading.Event()
        before.set()

    def close(self) -> None:
        """Release connections. Reads that are going on fail, those that pause too."""
        self._closing.set()
        self._interrupted.set()
        self._client.close()

    # -- one attempt ----------------------------------------------------------------------------

    def _fill(self, body: "_Body", resource: Resource, tries: "Tries") -> None:
        with self._response(resource, body.position, body.stop, (200, 206)) as response:
            body.begin(response)
            resource.check_version(response.headers)
            for chunk in response.iter_raw():
                tries.require_wanted()
                if body.add(chunk):
                    tries.progress()
                if self._received is not None:
                    self._received(len(chunk))
        if body.position < body.stop:
            raise _Again("the answer broke off")

    def _look(self, resource: Resource, absent: tuple[int, ...]) -> Probe | None:
        with self._response(resource, 0, 1, (200, 206, 416, *absent)) as response:
            status, headers = response.status_code, response.headers
            if status == 206:
                match = _RANGE.fullmatch(headers.get("content-range", ""))
                size = match[3] if match else ""
            elif status == 416:  # an empty file has no first byte
                match = _UNSATISFIED.fullmatch(headers.get("content-range", ""))
                size = match[1] if match else ""
            elif status == 200:
                size = headers.get("content-length", "")
            else:
                _drain(response)
                return None
            if not size.isascii() or not size.isdigit():
                raise resource.problem("has a server that does not tell its size, so it cannot be read by ranges")
            resource.check_version(headers)
            resource.pin(headers)
            return Probe(int(size), headers.get("etag"), _seconds(headers.get("last-modified")) or 0.0)

    @contextmanager
    def _response(
        self, resource: Resource, start: int, stop: int, accepted: tuple[int, ...]
    ) -> Generator[httpx2.Response]:
        """The answer to a GET of the range, redirects followed; its status is an accepted one."""
        url, remembered = resource.start()
        for _ in range(MAX_REDIRECTS):
            headers = {
                **resource.headers_for(url),
                "Range": f"bytes={start}-{stop - 1}",
                "Accept-Encoding": "identity",  # positions are counted in the file's own bytes
            }
            with self._client.stream("GET", url, headers=headers, follow_redirects=False) as response:
                if response.status_code in _REDIRECTS and "location" in response.headers:
                    url, remembered = resource.follow(url, response.headers["location"]), False
                    _drain(response)
                    continue
                if url != resource.url and response.status_code in _EXPIRED:
                    resource.forget(url)
                    words = f"the place that it is redirected to answers with status {response.status_code}"
                    raise _Again(words, asked=0.0 if remembered else None, most=_FEW)
                self._require(response, resource, accepted)
                resource.remember(url)
                yield response
                return
        raise resource.problem("is redirected in a circle")

    def _require(self, response: httpx2.Response, resource: Resource, accepted: tuple[int, ...]) -> None:
        status = response.status_code
        if status in accepted:
            return
        if status in (408, 429) or status >= 500:
            words = "it limits how often it is asked" if status == 429 else f"it answers with status {status}"
            raise _Again(words, asked_pause(response, self._clock))
        if status == 416:
            raise resource.changed()
        raise resource.refusal(response)

    # -- attempts -------------------------------------------------------------------------------

    def _persist(self, resource: Resource, action: "Callable[[Tries], _Result]", patience: Patience) -> _Result:
        tries = Tries(resource.where, patience, self._clock, self._clock.sleep, self._interrupted)
        while True:
            if self._closing.is_set():
                raise ValueError(f"{resource.where} has been closed")
            try:
                return action(tries)
            except _Again as error:
                tries.pause(error, error.words, error.asked, error.most)
            except (httpx2.TransportError, httpx2.InvalidURL) as error:
                lasting = (httpx2.UnsupportedProtocol, httpx2.LocalProtocolError, httpx2.InvalidURL)
                if isinstance(error, lasting) or certificate_refused(error):
                    raise resource.problem(f"cannot be read: {transport_words(error)}") from error
                tries.pause(error, transport_words(error))


class Tries:
    """Counts attempts since the last progress, and pauses between them."""

    def __init__(
        self,
        where: str,
        patience: Patience,
        clock: Clock,
        sleep: Callable[[float], object] | None = None,
        unwanted: threading.Event | None = None,
    ) -> None:
        self._where, self._patience, self._clock = where, patience, clock
        self._unwanted = unwanted or threading.Event()
        self._sleep = sleep or self._unwanted.wait
        self.progress()

    def require_wanted(self) -> None:
        """Raise CheckpointError when nobody wants the bytes any more."""
        if self._unwanted.is_set():
            raise CheckpointError(Problem(self._where, "was being read when that was stopped"))

    def progress(self) -> None:
        self._failed = self._hopeless = 0
        self._since = self._clock.monotonic()

    def pause(self, cause: Exception, words: str, asked: float | None = None, most: int | None = None) -> None:
        """Wait for the next attempt. Raises CheckpointError when patience ends.

        most: how many failures of such a kind are enough.
        """
        self._failed += 1
        self._hopeless += most is not None
        patience, waited = self._patience, self._clock.monotonic() - self._since
        if asked is None:
            longest = min(patience.longest_pause, patience.first_pause * 2 ** (self._failed - 1))
            seconds = longest * (0.5 + 0.5 * self._clock.jitter())
        else:
            # Not everybody who was told the same comes at the same moment.
            seconds = asked + self._clock.jitter() if asked else 0.0
        hopeless = most is not None and self._hopeless >= most
        if hopeless or self._failed >= patience.attempts or waited + seconds > patience.without_progress:
            raise CheckpointError(Problem(self._where, self._given_up(words, asked))) from cause
        if seconds:
            self._sleep(seconds)
        self.require_wanted()

    def _given_up(self, words: str, asked: float | None) -> str:
        tried = f"{self._failed} attempts" if self._failed > 1 else "one attempt"
        when = f"in {asked:,.0f} seconds, as it asks for" if asked else "later"
        return f"cannot be read: {words} ({tried} without progress). Check the network, or run it again {when}"


class _Body:
    """The bytes of one range, as answers bring them."""

    def __init__(self, resource: Resource, start: int, stop: int, size: int) -> None:
        self._resource, self._start, self.stop, self._size = resource, start, stop, size
        self._chunks: list[bytes] = []
        self.position = self._reached = start

    def begin(self, response: httpx2.Response) -> None:
        """Hold an answer's head against what was asked for. Raises CheckpointError, InputChangedError."""
        headers = response.headers
        if headers.get("content-encoding", "identity") != "identity":
            raise self._resource.problem("arrives compressed, though it was asked for as it is")
        if response.status_code == 200:
            self._begin_whole(headers.get("content-length"))
            return
        match = _RANGE.fullmatch(headers.get("content-range", ""))
        if match is None or int(match[1]) != self.position or not self.position <= int(match[2]) < self.stop:
            raise self._resource.problem("has a server that answers with another range than was asked for")
        if match[3] != "*" and int(match[3]) != self._size:
            raise self._resource.changed()

    def add(self, chunk: bytes) -> bool:
        """Whether it brings bytes that never came before: a file that starts over again and again is no progress."""
        if self.position + len(chunk) > self.stop:
            raise self._resource.problem("has a server that sends more bytes than it was asked for")
        self._chunks.append(chunk)
        self.position += len(chunk)
        further = self.position > self._reached
        self._reached = max(self._reached, self.position)
        return further

    def content(self) -> bytes:
        return b"".join(self._chunks)

    def _begin_whole(self, length: str | None) -> None:
        """An answer with the whole file is good where the whole file is wanted, from its first byte again."""
        if self._start != 0 or self.stop != self._size:
            # A CDN may do so for once; a server that does not know ranges does so again.
            raise _Again("its server sends the whole file where a range was asked for", asked=0.0, most=_FEW)
        if length is not None and length != str(self._size):
            raise self._resource.changed()
        self._chunks.clear()
        self.position = 0


def asked_pause(response: httpx2.Response, clock: Clock) -> float | None:
    """How many seconds a server that turns us away wants us to wait; None when it does not say."""
    headers = response.headers
    limit = _rate_limit(headers) if response.status_code == 429 else None
    if limit is not None and limit.remaining == 0:
        return float(limit.reset_in_seconds)
    value = headers.get("retry-after", "").strip()
    if value.isascii() and value.isdigit() and len(value) < _MAX_DIGITS:
        return float(value)
    until = _seconds(value)
    if until is None:
        return None
    return max(0.0, until - (_seconds(headers.get("date")) or clock.now()))


def _rate_limit(headers: Mapping[str, str]) -> RateLimitInfo | None:
    try:
        return parse_ratelimit_headers(headers)
    except ValueError:  # a number of thousands of digits
        return None


def same_origin(one: str, other: str) -> bool:
    """Whether two URLs have the same scheme, host and port."""
    a, b = httpx2.URL(one), httpx2.URL(other)
    return (a.scheme, a.host, _port(a)) == (b.scheme, b.host, _port(b))


def _port(url: httpx2.URL) -> int | None:
    return url.port or {"http": 80, "https": 443}.get(url.scheme)


def _drain(response: httpx2.Response) -> None:
    length = response.headers.get("content-length", "")
    if length.isdigit() and int(length) <= _SMALL_BODY:
        response.read()


def _seconds(date: str | None) -> float | None:
    """An HTTP date in seconds since the epoch."""
    try:
        return parsedate_to_datetime(date).timestamp() if date else None
    except ValueError:  # a stranger's header
        return None
