"""One range over HTTP: what is asked for, what is tried again and when, what is refused, and where a token goes."""

import random
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from email.utils import formatdate
from typing import Any

import pytest
from scripted_server import Asked, Reply, ScriptedServer, scripted_server

from safegraft.errors import CheckpointError, InputChangedError
from safegraft.remote.http_ranges import Clock, HttpRanges, Patience, Probe, Resource

CONTENT = random.Random(7).randbytes(100_000)
SIZE = len(CONTENT)
NOW = 1_700_000_000.0


@pytest.fixture
def server() -> Iterator[ScriptedServer]:
    with scripted_server() as running:
        running.files["/file"] = CONTENT
        yield running


class Pauses:
    """A clock that only pauses move."""

    def __init__(self) -> None:
        self.slept: list[float] = []

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)

    @property
    def clock(self) -> Clock:
        return Clock(monotonic=lambda: sum(self.slept), now=lambda: NOW, sleep=self.sleep, jitter=lambda: 1.0)


@pytest.fixture
def pauses() -> Pauses:
    return Pauses()


@pytest.fixture
def ranges(pauses: Pauses) -> Iterator[HttpRanges]:
    reader = HttpRanges(clock=pauses.clock, patience=Patience(between_bytes=0.5))
    yield reader
    reader.close()


@pytest.fixture
def file(server: ScriptedServer) -> Resource:
    return Resource("model/file", server.url("/file?sig=secret"))


def test_any_range_is_exactly_that(server: ScriptedServer, ranges: HttpRanges, file: Resource) -> None:
    chance = random.Random(1)
    for _ in range(20):
        start, stop = sorted(chance.choices(range(SIZE + 1), k=2))
        assert ranges.read(file, start, stop, SIZE) == CONTENT[start:stop]
    assert ranges.read(file, 0, SIZE, SIZE) == CONTENT
    assert server.connections == 1
    count = len(server.asked)
    assert ranges.read(file, 5, 5, SIZE) == b""
    assert len(server.asked) == count
    with pytest.raises(ValueError, match="out of range"):
        ranges.read(file, 0, SIZE + 1, SIZE)


def test_many_threads_share_connections(server: ScriptedServer, ranges: HttpRanges, file: Resource) -> None:
    places = [(start, start + 1000) for start in range(0, SIZE, 1000)] * 2
    with ThreadPoolExecutor(8) as pool:
        read = pool.map(lambda place: ranges.read(file, *place, SIZE), places)
    assert list(read) == [CONTENT[start:stop] for start, stop in places]
    assert server.connections <= 8


# -- tried again --------------------------------------------------------------------------------


def cut(server: ScriptedServer, count: int) -> Callable[[Asked], Reply]:
    """The usual answer, its connection closed after `count` bytes."""

    def answer(asked: Asked) -> Reply:
        reply = server.usual(asked)
        reply.cut = count
        return reply

    return answer


def test_what_breaks_off_goes_on_where_it_broke(
    server: ScriptedServer, ranges: HttpRanges, file: Resource, pauses: Pauses
) -> None:
    server.script += [cut(server, 10_000), Reply(cut=0), cut(server, 1)]
    assert ranges.read(file, 1_000, 51_000, SIZE) == CONTENT[1_000:51_000]
    assert [one.range for one in server.asked] == [
        (1_000, 51_000),
        (11_000, 51_000),
        (11_000, 51_000),
        (11_001, 51_000),
    ]
    assert pauses.slept == [0.5, 1.0, 0.5]  # the second one brought nothing, so its pause is longer


def test_a_shorter_range_than_asked_is_gone_on_with(server: ScriptedServer, ranges: HttpRanges, file: Resource) -> None:
    server.script.append(Reply(206, {"Content-Range": f"bytes 10-19/{SIZE}"}, CONTENT[10:20]))
    assert ranges.read(file, 10, 40, SIZE) == CONTENT[10:40]
    assert [one.range for one in server.asked] == [(10, 40), (20, 40)]


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503, 504])
def test_a_busy_server_is_asked_again_after_growing_pauses(
    server: ScriptedServer, ranges: HttpRanges, file: Resource, pauses: Pauses, status: int
) -> None:
    server.script += [Reply(status)] * 6
    assert ranges.read(file, 0, 10, SIZE) == CONTENT[:10]
    assert pauses.slept == [0.5, 1.0, 2.0, 4.0, 8.0, 16.0]


@pytest.mark.parametrize(
    ("status", "headers", "pause"),
    [
        (503, {"Retry-After": "7"}, 8.0),
        (429, {"Retry-After": formatdate(NOW + 30, usegmt=True)}, 31.0),
        (503, {"Retry-After": formatdate(NOW + 30, usegmt=True), "Date": formatdate(NOW + 20, usegmt=True)}, 11.0),
        (429, {"Retry-After": "3", "RateLimit": '"api";r=0;t=55', "RateLimit-Policy": '"api";q=500;w=300'}, 56.0),
        (429, {"Retry-After": "3", "RateLimit": '"api";r=9;t=55'}, 4.0),
        (503, {"Retry-After": "soon"}, 0.5),
    ],
)
def test_a_server_says_how_long_to_wait(
    server: ScriptedServer,
    ranges: HttpRanges,
    file: Resource,
    pauses: Pauses,
    status: int,
    headers: dict[str, str],
    pause: float,
) -> None:
    server.script.append(Reply(status, headers))
    assert ranges.read(file, 0, 10, SIZE) == CONTENT[:10]
    assert pauses.slept == [pytest.approx(pause)]


def test_patience_ends_in_words(server: ScriptedServer, ranges: HttpRanges, file: Resource, pauses: Pauses) -> None:
    server.otherwise = lambda asked: Reply(503)
    with pytest.raises(CheckpointError) as caught:
        ranges.read(file, 0, 10, SIZE)
    assert str(caught.value) == (
        "model/file: cannot be read: it answers with status 503 (8 attempts without progress). "
        "Check the network, or run it again later"
    )
    assert len(server.asked) == 8
    assert len(pauses.slept) == 7


def test_who_asks_for_more_time_than_there_is_patience_is_not_waited_for(
    server: ScriptedServer, ranges: HttpRanges, file: Resource, pauses: Pauses
) -> None:
    server.script.append(Reply(429, {"Retry-After": "3600"}))
    with pytest.raises(CheckpointError, match=r"run it again in 3,600 seconds, as it asks for$"):
        ranges.read(file, 0, 10, SIZE)
    assert pauses.slept == []


def test_progress_renews_patience(server: ScriptedServer, ranges: HttpRanges, file: Resource) -> None:
    server.script += [cut(server, 10)] * 40
    assert ranges.read(file, 0, 1000, SIZE) == CONTENT[:1000]
    assert len(server.asked) == 41


def test_silence_between_bytes_is_a_break(server: ScriptedServer, ranges: HttpRanges, file: Resource) -> None:
    talk = threading.Event()
    server.script.append(Reply(206, {"Content-Range": f"bytes 0-9/{SIZE}"}, CONTENT[:10], before_body=talk.wait))
    try:
        assert ranges.read(file, 0, 10, SIZE) == CONTENT[:10]
    finally:
        talk.set()
    assert len(server.asked) == 2


def test_nobody_there_is_told(pauses: Pauses) -> None:
    with scripted_server() as gone:
        url = gone.url("/file?sig=secret")
    reader = HttpRanges(clock=pauses.clock)
    with pytest.raises(CheckpointError) as caught:
        reader.read(Resource("model/file", url), 0, 1, SIZE)
    reader.close()
    assert "it cannot be reached: connection refused (8 attempts" in str(caught.value)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("end", [HttpRanges.close, HttpRanges.interrupt])
def test_whoever_wants_no_bytes_any_more_ends_a_pause(server: ScriptedServer, file: Resource, end: Any) -> None:
    reader = HttpRanges()
    server.otherwise = lambda asked: Reply(503, {"Retry-After": "300"})
    with ThreadPoolExecutor(1) as pool:
        reading = pool.submit(reader.read, file, 0, 10, SIZE)
        while not server.asked:
            time.sleep(0.01)
        began = time.monotonic()
        end(reader)
        with pytest.raises((CheckpointError, RuntimeError), match=r"stopped|closed"):
            reading.result()
    assert time.monotonic() - began < 5


def test_after_an_interruption_reading_goes_on(ranges: HttpRanges, file: Resource) -> None:
    ranges.interrupt()
    assert ranges.read(file, 0, 10, SIZE) == CONTENT[:10]


# -- refused ------------------------------------------------------------------------------------


def test_a_whole_file_in_place_of_a_range_is_not_downloaded(server: ScriptedServer, file: Resource) -> None:
    received: list[int] = []
    reader = HttpRanges(received=received.append)
    server.otherwise = lambda asked: Reply(200, {}, CONTENT)
    with pytest.raises(CheckpointError, match="sends the whole file where a range was asked for"):
        reader.read(file, 0, 10, SIZE)
    assert received == []
    assert reader.read(file, 0, SIZE, SIZE) == CONTENT
    reader.close()


def test_one_whole_file_by_mistake_is_forgiven(server: ScriptedServer, ranges: HttpRanges, file: Resource) -> None:
    server.script.append(Reply(200, {}, CONTENT))
    assert ranges.read(file, 10, 20, SIZE) == CONTENT[10:20]


def test_a_whole_file_that_breaks_off_starts_over_but_not_for_ever(
    server: ScriptedServer, ranges: HttpRanges, file: Resource
) -> None:
    server.script.append(Reply(200, {}, CONTENT, cut=50_000))
    server.otherwise = lambda asked: Reply(200, {}, CONTENT)
    assert ranges.read(file, 0, SIZE, SIZE) == CONTENT
    server.otherwise = lambda asked: Reply(200, {}, CONTENT, cut=50_000)
    with pytest.raises(CheckpointError, match="8 attempts without progress"):
        ranges.read(file, 0, SIZE, SIZE)


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Content-Range": f"bytes 11-20/{SIZE}"},
        {"Content-Range": f"bytes 10-20/{SIZE}"},
        {"Content-Range": f"bytes 10-9/{SIZE}"},
        {"Content-Range": "bytes ten-nineteen/many"},
        {"Content-Range": f"bytes 10-19/{SIZE}", "Content-Encoding": "gzip"},
    ],
)
def test_another_range_than_asked_is_refused(
    server: ScriptedServer, ranges: HttpRanges, file: Resource, headers: dict[str, str]
) -> None:
    server.otherwise = lambda asked: Reply(206, headers, CONTENT[10:20])
    with pytest.raises(CheckpointError, match=r"another range|compressed"):
        ranges.read(file, 10, 20, SIZE)
    assert len(server.asked) == 1


def test_more_bytes_than_asked_are_refused(server: ScriptedServer, ranges: HttpRanges, file: Resource) -> None:
    server.otherwise = lambda asked: Reply(206, {"Content-Range": f"bytes 10-19/{SIZE}"}, CONTENT[10:40])
    with pytest.raises(CheckpointError, match="more bytes than it was asked for"):
        ranges.read(file, 10, 20, SIZE)


@pytest.mark.parametrize("change", ["size", "shorter", "etag", "whole"])
def test_a_file_that_changes_is_noticed(
    server: ScriptedServer, ranges: HttpRanges, file: Resource, change: str
) -> None:
    server.headers = {"ETag": '"one"'}
    assert ranges.read(file, 0, 10, SIZE) == CONTENT[:10]
    if change == "size":
        server.files["/file"] = CONTENT + b"!"
    elif change == "shorter":
        server.files["/file"] = CONTENT[:5]
    elif change == "etag":
        server.headers = {"ETag": '"two"'}
    else:
        server.otherwise = lambda asked: Reply(200, {}, CONTENT + b"!")
    with pytest.raises(InputChangedError, match="model/file: changed while it was in use"):
        ranges.read(file, 10, 20, SIZE) if change != "whole" else ranges.read(file, 0, SIZE, SIZE)


@pytest.mark.parametrize(
    ("status", "words"),
    [(401, "gives no access"), (403, "gives no access"), (404, "is not there"), (418, "status 418")],
)
def test_a_refusal_is_final(
    server: ScriptedServer, ranges: HttpRanges, file: Resource, status: int, words: str
) -> None:
    server.otherwise = lambda asked: Reply(status)
    with pytest.raises(CheckpointError, match=words) as caught:
        ranges.read(file, 0, 10, SIZE)
    assert len(server.asked) == 1
    assert "secret" not in str(caught.value)


# -- redirects ----------------------------------------------------------------------------------


@pytest.fixture
def signing(server: ScriptedServer) -> list[str]:
    """/file leads to /cdn?sig=... at another host name; only the last signature in the list is good."""
    signatures = ["s0"]

    def answer(asked: Asked) -> Reply:
        path, _, query = asked.path.partition("?")
        if path == "/file":
            return Reply(302, {"Location": server.url(f"/cdn?sig={signatures[-1]}", "127.0.0.1")}, b"moved")
        if query != f"sig={signatures[-1]}":
            return Reply(403, {}, b"Request has expired")
        return server.usual(asked)

    server.files["/cdn"] = CONTENT
    server.otherwise = answer
    return signatures


@pytest.fixture
def signed(server: ScriptedServer, signing: list[str]) -> Resource:
    headers = {"authorization": "Bearer hf_secret", "user-agent": "safegraft"}
    return Resource("org/name/file", server.url("/file", "localhost"), headers)


def test_a_token_stays_with_its_origin_and_the_signed_url_is_kept(
    server: ScriptedServer, ranges: HttpRanges, signed: Resource
) -> None:
    for start in range(0, 500, 100):
        assert ranges.read(signed, start, start + 100, SIZE) == CONTENT[start : start + 100]
    assert [one.path for one in server.asked] == ["/file"] + ["/cdn?sig=s0"] * 5
    assert {(one.host, one.headers.get("authorization")) for one in server.asked} == {
        ("localhost", "Bearer hf_secret"),
        ("127.0.0.1", None),
    }
    assert {one.headers["user-agent"] for one in server.asked} == {"safegraft"}


def test_an_expired_url_is_asked_for_anew(
    server: ScriptedServer, ranges: HttpRanges, signed: Resource, signing: list[str], pauses: Pauses
) -> None:
    server.headers = {"ETag": '"of one store"'}
    ranges.read(signed, 0, 10, SIZE)
    signing.append("s1")
    server.headers = {"ETag": '"of another store"'}
    assert ranges.read(signed, 10, 20, SIZE) == CONTENT[10:20]
    assert [one.path for one in server.asked[2:]] == ["/cdn?sig=s0", "/file", "/cdn?sig=s1"]
    assert pauses.slept == []


def test_a_url_that_is_never_good_is_told_without_it(
    server: ScriptedServer, ranges: HttpRanges, signed: Resource
) -> None:
    server.otherwise = lambda asked: (
        Reply(302, {"Location": server.url("/cdn?sig=s0")}) if asked.path == "/file" else Reply(403)
    )
    with pytest.raises(CheckpointError) as caught:
        ranges.read(signed, 0, 10, SIZE)
    assert str(caught.value).startswith(
        "org/name/file: cannot be read: the place that it is redirected to answers with status 403 (3 attempts"
    )
    assert "sig" not in str(caught.value)
    assert "127.0.0.1" not in str(caught.value)


def test_a_circle_of_redirects_ends(server: ScriptedServer, ranges: HttpRanges, file: Resource) -> None:
    server.otherwise = lambda asked: Reply(307, {"Location": "/file"})
    with pytest.raises(CheckpointError, match="redirected in a circle"):
        ranges.read(file, 0, 10, SIZE)


@pytest.mark.parametrize("target", ["http://cdn.example/file", "ftp://cdn.example/file", "file:///etc/passwd"])
def test_a_redirect_out_of_https_is_not_followed(target: str) -> None:
    with pytest.raises(CheckpointError, match="which is not followed"):
        Resource("model/file", "https://hub.example/file").follow("https://hub.example/file", target)


# -- probes -------------------------------------------------------------------------------------


def test_a_probe_tells_size_and_version(server: ScriptedServer, ranges: HttpRanges) -> None:
    server.files |= {"/empty": b"", "/one": b"1"}
    server.headers = {"ETag": '"e"', "Last-Modified": formatdate(NOW, usegmt=True)}
    look: Callable[[str], Probe | None] = lambda path: ranges.probe(Resource("x", server.url(path)))  # noqa: E731
    assert look("/file") == Probe(SIZE, '"e"', NOW)
    assert look("/one") == Probe(1, '"e"', NOW)
    assert look("/empty") == Probe(0, None, 0.0)
    assert look("/none") is None
    server.otherwise = lambda asked: Reply(200, {}, CONTENT)  # a server without ranges
    assert look("/file") == Probe(SIZE, None, 0.0)
    server.otherwise = lambda asked: Reply(206, {"Content-Range": "bytes 0-0/*"}, b"x")
    with pytest.raises(CheckpointError, match="does not tell its size"):
        look("/file")
