"""Options that contradict each other are refused before anything is opened."""

from pathlib import Path
from typing import Any

import pytest

from safegraft.errors import UsageError
from safegraft.rpc.models import ModelRoot
from safegraft.rpc.options import ServerOptions, split_address
from safegraft.rpc.remote_models import RemoteModels
from safegraft.rpc.remote_policy import HubCredential


@pytest.mark.parametrize("listen", ["0.0.0.0:1", "[::]:1", "192.168.0.7:1", "example.org:1"])
def test_a_public_address_needs_a_token_or_insecure(listen: str):
    with pytest.raises(UsageError, match="--insecure"):
        ServerOptions(data=Path("d"), listen=listen)
    ServerOptions(data=Path("d"), listen=listen, token="secret")
    ServerOptions(data=Path("d"), listen=listen, insecure=True)


@pytest.mark.parametrize("listen", ["127.0.0.1:0", "127.9.9.9:1", "[::1]:1", "localhost:65535"])
def test_loopback_needs_neither(listen: str):
    ServerOptions(data=Path("d"), listen=listen)


@pytest.mark.parametrize("listen", ["", "localhost", ":1", "a:b", "a:70000", "a:-1", "a:1x"])
def test_addresses_are_host_and_port(listen: str):
    with pytest.raises(UsageError, match="HOST:PORT"):
        split_address(listen)


@pytest.mark.parametrize(
    "wrong",
    [
        {"workers": 0},
        {"readers": 0},
        {"max_upload_bytes": -1},
        {"grace": -1.0},
        {"upload_lifetime": 0.0},
        {"token": ""},
        {"token": "two\nlines"},
        {"tls_cert": Path("c")},
        {"tls_key": Path("k")},
        {"hub": ("org",)},
        {"hub": ("org/*", "")},
        {"publish_to": ("org/a/b",)},
        {"urls": ("https:///models",)},
        {"urls": ("file:///srv/models",)},
        {"urls": ("s3://bucket", "https://user:pw@host/")},
        {"hub_cache": True},
        {"hub_anonymous": True},
        {"hub_credentials": (HubCredential("a", Path("f")), HubCredential("a", Path("g")))},
        {"hub_credentials": (HubCredential("a", Path("/proc/f")),), "models": (ModelRoot.parse("/proc=x"),)},
    ],
)
def test_options_that_make_no_sense_are_refused(wrong: dict[str, Any]):
    with pytest.raises(UsageError):
        ServerOptions(data=Path("d"), **wrong)


def test_by_default_nothing_is_read_over_the_network():
    assert ServerOptions(data=Path("d")).remote == RemoteModels()


def test_what_is_said_of_the_network_reaches_those_who_open_models():
    credentials = (HubCredential("a", Path("f")), HubCredential("b", Path("f")))
    options = ServerOptions(
        data=Path("d"),
        hub=("org/*", "*"),
        hub_credentials=credentials,
        hub_anonymous=True,
        hub_cache=True,
        urls=("s3://bucket/models/", "http://127.0.0.1:9000", "https://[fd00::1]/x"),
        publish_to=("*",),
    )
    assert options.remote == RemoteModels(options.hub, credentials, True, True, options.urls)
