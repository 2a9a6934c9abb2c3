"""Who may call, over which kind of connection, and how much they may store."""

import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2

from safegraft.errors import AuthenticationError, OutputError, ServerUnavailableError, UsageError
from safegraft.rpc.client import Client

TOKEN = "correct-horse-battery-staple"
QUOTA = 20_000  # bytes


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path] | None:
    """A self-signed certificate for localhost, and its key; None where nothing can make one."""
    if shutil.which("openssl") is None:
        return None
    folder = tmp_path_factory.mktemp("tls")
    cert, key = folder / "cert.pem", folder / "key.pem"
    ask = "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=localhost"
    names = ["-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"]
    command = ["openssl", *ask.split(), *names, "-keyout", str(key), "-out", str(cert)]
    subprocess.run(command, check=True, capture_output=True)
    return cert, key


@pytest.fixture(scope="module")
def guarded(start_server, certificate: tuple[Path, Path] | None):
    """A server with a token, a small quota, and TLS if possible."""
    tls = {"tls_cert": str(certificate[0]), "tls_key": str(certificate[1])} if certificate else {}
    return start_server(token=TOKEN, max_upload_bytes=QUOTA, **tls)


@pytest.fixture
def connect(guarded, certificate: tuple[Path, Path] | None) -> Iterator[Callable[..., Client]]:
    opened: list[Client] = []

    def connect(token: str | None = TOKEN, **more: Any) -> Client:
        opened.append(Client(guarded.target, token=token, ca=certificate[0] if certificate else None, **more))
        return opened[-1]

    yield connect
    for one in opened:
        one.close()


def test_the_token_opens_the_door(connect: Callable[..., Client]):
    assert connect().server_info().model_roots == ("models",)


@pytest.mark.parametrize("token", [None, "wrong", TOKEN + "x", TOKEN[:-1]])
def test_without_it_every_kind_of_call_is_refused(connect: Callable[..., Client], root: Path, token: str | None):
    client = connect(token)
    calls: dict[str, Callable[[], object]] = {
        "unary": client.server_info,
        "list": lambda: list(client.list()),
        "server stream": lambda: list(client.read("x", "y")),
        "watch": lambda: client.wait("x"),
        "upload": lambda: client.upload(root / "llm"),
        "plan": lambda: client.plan({"models": [{"model": "llm"}, {"model": "lvlm"}], "merge_method": "linear"}),
    }
    for call in calls.values():
        with pytest.raises(AuthenticationError, match="token"):
            call()
    assert client.health(), "health checks need no token"


@pytest.fixture
def channel(guarded, certificate: tuple[Path, Path] | None) -> Iterator[grpc.Channel]:
    if certificate is None:
        opened = grpc.insecure_channel(guarded.target)
    else:
        opened = grpc.secure_channel(guarded.target, grpc.ssl_channel_credentials(certificate[0].read_bytes()))
    with opened:
        yield opened


def test_with_tls_a_plain_client_gets_nowhere(guarded, certificate: tuple[Path, Path] | None):
    if certificate is None:
        pytest.skip("there is no openssl to make a certificate with")
    with Client(guarded.target, token=TOKEN) as client, pytest.raises(ServerUnavailableError):
        client.health()


def test_reflection_needs_the_token_too(channel: grpc.Channel):
    ask = channel.stream_stream(
        "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
        request_serializer=reflection_pb2.ServerReflectionRequest.SerializeToString,
        response_deserializer=reflection_pb2.ServerReflectionResponse.FromString,
    )
    request = reflection_pb2.ServerReflectionRequest(list_services="")
    with pytest.raises(grpc.RpcError) as caught:
        list(ask(iter([request]), timeout=5))
    assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED
    assert list(ask(iter([request]), timeout=5, metadata=[("authorization", f"Bearer {TOKEN}")]))
    stub = health_pb2_grpc.HealthStub(channel)
    assert stub.Check(health_pb2.HealthCheckRequest()).status == health_pb2.HealthCheckResponse.SERVING


def test_a_missing_certificate_file_is_a_usage_error(tmp_path: Path):
    with pytest.raises(UsageError, match="certificate"):
        Client("localhost:1", ca=tmp_path / "nothing.pem")


def test_the_quota_counts_what_is_there_and_what_is_promised(connect: Callable[..., Client], root: Path):
    client = connect()
    client.upload(root / "llm")
    used = client.server_info().used_upload_bytes
    assert 8000 < used < QUOTA
    with pytest.raises(OutputError, match="quota"):
        client.upload(root / "big-llm")
    assert client.upload(root / "llm").startswith("upload:"), "what is there already needs no room"
    assert client.server_info().used_upload_bytes <= QUOTA


def test_the_token_is_in_no_log(guarded):
    assert TOKEN not in guarded.log.read_text()
