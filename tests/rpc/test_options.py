"""Options that contradict each other are refused before anything is opened."""

from pathlib import Path
from typing import Any

import pytest

from safegraft.errors import UsageError
from safegraft.rpc.options import ServerOptions, split_address


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
    ],
)
def test_options_that_make_no_sense_are_refused(wrong: dict[str, Any]):
    with pytest.raises(UsageError):
        ServerOptions(data=Path("d"), **wrong)
