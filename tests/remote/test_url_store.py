"""Models below URLs: what is looked for, what changes, what a server's policy lets through and connects to."""

import ipaddress
import json
import time
from collections.abc import Iterator
from contextlib import closing
from email.utils import formatdate
from pathlib import Path
from typing import Any

import fsspec
import httpx2
import pytest
from scripted_server import Asked, Reply, ScriptedServer, scripted_server

from safegraft.errors import CheckpointError, InputChangedError, UsageError
from safegraft.remote.checkpoint import RemoteCheckpoint
from safegraft.remote.http_ranges import Clock, Patience
from safegraft.remote.url_names import shown_url
from safegraft.remote.url_policy import PublicTransport, UrlPolicy, is_public
from safegraft.remote.urls import open_url
from safegraft.testing import tiny_llm

FAST = Clock(sleep=lambda seconds: None)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llm(tmp_path_factory.mktemp("models") / "llm", shards=2)


@pytest.fixture
def server(model: Path) -> Iterator[ScriptedServer]:
    with scripted_server() as running:
        running.files |= {f"/m/llm/{path.name}": path.read_bytes() for path in model.iterdir()}
        running.files["/m/llm/LICENSE"] = b"free"
        yield running


# -- http ---------------------------------------------------------------------------------------


def test_a_model_on_a_web_server_opens(server: ScriptedServer, model: Path) -> None:
    server.headers = {"ETag": '"1"', "Last-Modified": "Tue, 14 Nov 2023 22:13:20 GMT"}
    url = server.url("/m/llm/?sig=secret").replace("http://", "http://me:password@")
    checkpoint = RemoteCheckpoint(open_url(url))
    assert checkpoint.name == server.url("/m/llm")
    assert set(checkpoint.sidecars) == {"LICENSE"} | {
        path.name for path in model.iterdir() if path.suffix == ".json" and "index" not in path.name
    }
    assert len({tensor.file for tensor in checkpoint.tensors.values()}) == 2
    assert checkpoint.modified_ns() == 1_700_000_000 * 10**9
    checkpoint.close()
    assert all(one.path.endswith("?sig=secret") for one in server.asked)
    paths = [one.path for one in server.asked if one.range == (0, 1)]
    assert len(set(paths)) >= len(paths) - 1  # each name is looked for once; one that nothing has, twice


def test_a_bucket_that_may_not_be_listed_says_403_for_what_is_absent(server: ScriptedServer) -> None:
    server.otherwise = lambda asked: (
        reply if (reply := server.usual(asked)).status != 404 else Reply(403, {}, b"AccessDenied")
    )
    RemoteCheckpoint(open_url(server.url("/m/llm"))).close()


def test_a_file_that_may_not_be_read_is_no_absent_file(server: ScriptedServer) -> None:
    server.otherwise = lambda asked: Reply(403) if "generation_config" in asked.path else server.usual(asked)
    with pytest.raises(CheckpointError, match=r"generation_config.json: cannot be read: .*gives no access"):
        open_url(server.url("/m/llm"))


def test_a_server_with_a_page_for_everything_is_refused(server: ScriptedServer) -> None:
    server.otherwise = lambda asked: Reply(200, {}, b"<html>")
    with pytest.raises(CheckpointError, match="answered with a page for any name"):
        open_url(server.url("/m/llm"))


def test_nothing_there_is_told_as_for_a_folder(server: ScriptedServer) -> None:
    with pytest.raises(CheckpointError, match=r"has neither model.safetensors nor"):
        RemoteCheckpoint(open_url(server.url("/elsewhere")))


@pytest.mark.parametrize("change", ["etag", "date", "size"])
def test_a_file_on_a_web_server_that_changes(server: ScriptedServer, change: str) -> None:
    dated = {"Last-Modified": formatdate(1_700_000_000, usegmt=True)}
    server.headers = dated if change == "date" else {"ETag": '"1"'}
    with closing(open_url(server.url("/m/llm"))) as store:
        file = store.listing.files["config.json"]
        assert store.read(file, 0, 5) == server.files["/m/llm/config.json"][:5]
        if change == "etag":
            server.headers = {"ETag": '"2"'}
        elif change == "date":
            server.headers = {"Last-Modified": formatdate(1_700_000_000 + 60, usegmt=True)}
        else:
            server.files["/m/llm/config.json"] += b" "
        with pytest.raises(InputChangedError, match=r"config.json: changed"):
            store.read(file, 0, 5)


def test_weights_of_a_server_without_ranges_are_refused(server: ScriptedServer) -> None:
    def whole(asked: Asked) -> Reply:
        content = server.files.get(asked.path)
        return Reply(404) if content is None else Reply(200, {}, content)

    server.otherwise = whole
    with pytest.raises(CheckpointError, match="sends the whole file where a range was asked for"):
        RemoteCheckpoint(open_url(server.url("/m/llm"), clock=FAST))


# -- fsspec -------------------------------------------------------------------------------------


@pytest.fixture
def bucket(model: Path) -> Iterator[Any]:
    memory: Any = fsspec.filesystem("memory")
    for path in model.iterdir():
        memory.pipe_file(f"/bucket/llm/{path.name}", path.read_bytes())
    memory.pipe_file("/bucket/llm/additional_chat_templates/tools.jinja", b"{{ tools }}")
    yield memory
    memory.rm("/bucket", recursive=True)


def test_a_model_in_an_object_store_opens(bucket: Any, model: Path) -> None:
    checkpoint = RemoteCheckpoint(open_url("memory://bucket/llm/"))
    assert checkpoint.name == "memory://bucket/llm"
    assert checkpoint.sidecars["additional_chat_templates/tools.jinja"] == b"{{ tools }}"
    tensor = next(iter(checkpoint.tensors.values()))
    buffer = bytearray(16)
    checkpoint.read_into(tensor, 4, memoryview(buffer))
    assert buffer == (model / tensor.file).read_bytes()[tensor.offset + 4 :][:16]
    assert abs(checkpoint.modified_ns() / 1e9 - time.time()) < 600
    checkpoint.close()


def test_an_object_that_changes_or_goes(bucket: Any) -> None:
    store = open_url("memory://bucket/llm")
    file = store.listing.files["config.json"]
    content = store.read(file, 0, file.size)
    assert store.bytes_read == file.size
    bucket.pipe_file("/bucket/llm/config.json", content)
    with pytest.raises(InputChangedError, match=r"config.json: changed"):
        store.read(file, 0, 5)
    bucket.rm("/bucket/llm/config.json")
    with pytest.raises(InputChangedError, match=r"config.json: changed"):
        store.read(file, 0, 5)


def test_an_object_store_that_stumbles_is_asked_again(bucket: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    store = open_url("memory://bucket/llm", patience=Patience(attempts=4), clock=FAST)
    file = store.listing.files["config.json"]
    failures: list[Exception] = [OSError("reset"), TimeoutError(), EOFError()]
    usual = type(bucket).cat_file

    def cat_file(self: Any, path: str, **bounds: Any) -> bytes:
        if failures:
            raise failures.pop()
        return usual(self, path, **bounds)

    monkeypatch.setattr(type(bucket), "cat_file", cat_file)
    whole = store.read(file, 0, file.size)
    assert json.loads(whole)["model_type"]
    failures += [OSError("reset")] * 4
    with pytest.raises(CheckpointError, match=r"does not answer as it should \(4 attempts"):
        store.read(file, 0, 5)
    failures[:] = [PermissionError("secret key")]
    with pytest.raises(CheckpointError, match="gives no access") as caught:
        store.read(file, 0, 5)
    assert "secret" not in str(caught.value)
    failures[:] = [RuntimeError("signature=secret")]
    with pytest.raises(CheckpointError, match="library failed with RuntimeError") as caught:
        store.read(file, 0, 5)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("url", "kind", "words"),
    [
        ("memory://bucket/nothing", CheckpointError, "there is nothing at this URL"),
        ("memory://bucket/llm/config.json", CheckpointError, "is a file: name the folder"),
        ("memory://bucket/llm?version=1", CheckpointError, "a query has no place in it"),
        ("simplecache::memory://bucket/llm", CheckpointError, "is not one of https://"),
        ("memory://a::file://etc", CheckpointError, "a chain of stores has no place"),
        ("s3://key:secret@bucket/llm", CheckpointError, "s3://bucket/llm: .*credentials do not belong into it"),
        ("file:///etc", CheckpointError, "file:// is not one of https://"),
        ("github://org:repo@main/x", CheckpointError, "github:// is not one of"),
    ],
)
def test_urls_that_are_not_read(bucket: Any, url: str, kind: type[Exception], words: str) -> None:
    with pytest.raises(kind, match=words) as caught:
        open_url(url)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(("scheme", "package"), [("s3", "s3fs"), ("gs", "gcsfs"), ("gcs", "gcsfs"), ("az", "adlfs")])
def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch, scheme: str, package: str) -> None:
    def missing(*args: Any, **options: Any) -> Any:
        raise ImportError("no such module")

    monkeypatch.setattr("fsspec.core.url_to_fs", missing)
    with pytest.raises(UsageError, match=f"needs the package {package}: pip install {package}"):
        open_url(f"{scheme}://bucket/llm")


def test_names_of_urls_hold_no_secrets() -> None:
    assert shown_url("https://me:pw@host.example:8/a/b/?sig=1#x") == "https://host.example:8/a/b"
    assert shown_url("abfs://container@account.example/a") == "abfs://container@account.example/a"
    assert shown_url("http://[bad?sig=1") == "http://[bad"


# -- a server's policy --------------------------------------------------------------------------

POLICY = UrlPolicy(
    ["https://Models.example/open", "s3://bucket/models/", "http://127.0.0.1:8080", "https://bücher.example"]
)


@pytest.mark.parametrize(
    ("url", "form"),
    [
        ("https://models.example/open", "https://models.example/open"),
        ("HTTPS://MODELS.example.:443/open/a%20b/", "https://models.example/open/a%20b"),
        ("s3://bucket/models/llm", "s3://bucket/models/llm"),
        ("http://127.0.0.1:8080/x", "http://127.0.0.1:8080/x"),
        ("https://xn--bcher-kva.example/x", "https://xn--bcher-kva.example/x"),
        ("https://BÜCHER.example/x", "https://xn--bcher-kva.example/x"),
    ],
)
def test_urls_below_a_prefix_pass_in_one_form(url: str, form: str) -> None:
    assert POLICY.admitted(url) == form


@pytest.mark.parametrize(
    "url",
    [
        "https://models.example/opened",
        "https://models.example/",
        "http://models.example/open",
        "https://models.example:8443/open",
        "https://models.example.evil.example/open",
        "https://models.example@evil.example/open",
        "https://me:pw@models.example/open",
        "https://models.example/open/../secret",
        "https://models.example/open/%2e%2e/secret",
        "https://models.example/open/%252e%252e/secret",
        "https://models.example/open/a%2fb",
        "https://models.example/open/a%5c..%5cb",
        "https://models.example/open\\..\\secret",
        "https://models.example/open//secret",
        "https://models.example/open/x?url=http://10.0.0.1",
        "https://models.example/open/x#y",
        "https://models.example/open/%00",
        "https://models.example/open/%ff",
        "https://models.example\t/open",
        "https:/models.example/open",
        "//models.example/open",
        "s3://bucket/models-2",
        "s3://Bucket/models",
        "s3://bucket/models/../other",
        "s3://key:secret@bucket/models",
        "memory://bucket/models",
        "http://127.0.0.1/x",
        "http://2130706433:8080/x",
        "http://0x7f.1:8080/x",
        "http://[::1]:8080/x",
        "http://localhost:8080/x",
        "https://models.example:99999/open",
    ],
)
def test_urls_that_are_not_plainly_below_a_prefix_are_refused(url: str) -> None:
    with pytest.raises(CheckpointError, match="this server") as caught:
        POLICY.admitted(url)
    assert "secret@" not in str(caught.value)


@pytest.mark.parametrize("prefix", ["models.example", "https://", "https://a@b.example", "https://b.example/?x", "/x"])
def test_a_prefix_has_to_be_plain(prefix: str) -> None:
    with pytest.raises(UsageError, match="cannot be an allowed URL"):
        UrlPolicy([prefix])


@pytest.mark.parametrize(
    ("address", "public"),
    [
        ("93.184.216.34", True),
        ("2606:4700::1111", True),
        ("127.0.0.1", False),
        ("10.1.2.3", False),
        ("169.254.169.254", False),
        ("100.64.0.1", False),
        ("0.0.0.0", False),
        ("224.0.0.1", False),
        ("255.255.255.255", False),
        ("::1", False),
        ("fe80::1", False),
        ("fc00::1", False),
        ("fec0::1", False),
        ("::ffff:10.0.0.1", False),
        ("::ffff:93.184.216.34", True),
        ("64:ff9b::7f00:1", False),
        ("2002:7f00:1::", False),
        ("ff02::1", False),
    ],
)
def test_which_addresses_are_the_internets(address: str, public: bool) -> None:
    assert is_public(ipaddress.ip_address(address)) is public


class Recorder(httpx2.BaseTransport):
    def __init__(self, asked: list[tuple[str, str, Any]]) -> None:
        self._asked = asked

    def handle_request(self, request: httpx2.Request) -> httpx2.Response:
        self._asked.append((request.url.host, request.headers["host"], request.extensions.get("sni_hostname")))
        return httpx2.Response(200)


def test_a_connection_goes_to_the_address_that_was_looked_at() -> None:
    asked: list[tuple[str, str, Any]] = []
    answers = {"a.example": ["93.184.216.34"], "b.example": ["93.184.216.34", "10.0.0.1"]}
    transport = PublicTransport(
        frozenset(["10.0.0.9"]),
        connect=lambda: Recorder(asked),
        resolve=lambda host, port: [ipaddress.ip_address(one) for one in answers.get(host, [host])],
    )
    with httpx2.Client(transport=transport) as client:
        client.get("https://a.example/x")
        assert asked == [("93.184.216.34", "a.example", "a.example")]
        for url in ("https://b.example/x", "http://10.0.0.1/x", "http://[::1]/x", "http://169.254.169.254/latest"):
            with pytest.raises(CheckpointError, match="leads to an address inside a network"):
                client.get(url)
        client.get("http://10.0.0.9/x")
        # The name turns into an inner address: the next request is refused, though the last one was not.
        answers["a.example"] = ["127.0.0.1"]
        with pytest.raises(CheckpointError, match="inside a network"):
            client.get("https://a.example/x")
    assert len(asked) == 2


def test_a_policy_on_the_way(server: ScriptedServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """An inner address that a prefix names is read; redirects stay below the prefixes."""
    policy = UrlPolicy([server.url("/m")])
    with closing(open_url(server.url("/m/llm"), policy)) as store:
        config = store.listing.files["config.json"]
        assert store.read(config, 0, config.size) == server.files["/m/llm/config.json"]
        for place in ("/secret", server.url("/m/../secret"), server.url("/m/x", "localhost"), "http://10.0.0.1/m"):
            server.otherwise = lambda asked, place=place: Reply(302, {"Location": place})
            with pytest.raises(CheckpointError, match=r"none of the URLs that this server may read|plainly"):
                store.read(store.listing.files["LICENSE"], 0, 1)
    assert all(one.path.startswith("/m/") for one in server.asked)


def test_a_name_that_resolves_to_an_inner_address_is_refused(server: ScriptedServer) -> None:
    port = server.url().rpartition(":")[2]
    found = [(2, 1, 6, "", ("127.0.0.1", int(port)))]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("socket.getaddrinfo", lambda *args, **options: found)
        with pytest.raises(CheckpointError, match="leads to an address inside a network"):
            open_url(f"http://models.example:{port}/m/llm", UrlPolicy([f"http://models.example:{port}/m"]))
    assert server.asked == []
