"""Patterns, URL prefixes and token files: what is not plainly allowed is refused, from text alone."""

import os
import pickle
import re
from pathlib import Path

import pytest

from safegraft.errors import ServerError, UsageError
from safegraft.rpc.remote_policy import HubCredential, matches, require_patterns, require_prefixes

TOKEN = "hf_0123456789abcdefSECRET"


@pytest.mark.parametrize(
    ("pattern", "fits", "does_not"),
    [
        ("org/*", ["org/a", "org/a.b-c_d"], ["Org/a", "orgs/a", "xorg/a", "org", "org/", "org/a/b", "org/../x/y"]),
        ("org/name", ["org/name"], ["org/names", "org/Name", "org/nam", "org/name\n"]),
        ("*/llm-*", ["a/llm-1", "b/llm-"], ["a/llm", "a/xllm-1"]),
        ("a.b/*", ["a.b/c"], ["axb/c"]),
        ("*", ["a/b"], ["a", "a/b/c", "../b", "a/..", "/a", "a//b", "a/b@main", "datasets/a/b", "", ".a/b"]),
    ],
)
def test_patterns_fit_names_of_the_hub_and_nothing_else(pattern: str, fits: list[str], does_not: list[str]):
    require_patterns("--hub", [pattern])
    assert all(matches(name, [pattern]) for name in fits)
    assert not any(matches(name, [pattern]) for name in does_not)
    assert not any(matches(name, []) for name in fits)


@pytest.mark.parametrize(
    "pattern", ["", "org", "org*", "**", "org/a/b", "org/?", "[a]/b", "org/ a", "/", "org/", "a\n/b"]
)
def test_bad_patterns_are_usage_errors_that_name_the_option(pattern: str):
    with pytest.raises(UsageError, match=f"^--publish-to {re.escape(pattern)}: give ORG/NAME"):
        require_patterns("--publish-to", [pattern])


@pytest.mark.parametrize(
    "prefix",
    [
        "s3://bucket/a/b/",
        "gs://my_bucket",
        "az://container/x",
        "https://host/models",
        "http://127.0.0.1:9000",
        "https://[::1]/x",
    ],
)
def test_a_prefix_is_a_url_and_addresses_of_inner_networks_may_be_meant(prefix: str):
    require_prefixes([prefix])


@pytest.mark.parametrize(
    "prefix",
    [
        "",
        "bucket/a",
        "https:///x",
        "https://",
        "https:/host/x",
        "//host/x",
        "https://user@host/x",
        "https://user:SECRET@host/x",
        "https://host/x?sig=SECRET",
        "https://host/x#y",
        "https://host/../x",
        "https://host/%2e%2e/x",
        "https://host/a//b",
        "https://host\\x/y",
        "file:///srv/models",
        "file://localhost/srv",
        "memory://x/y",
        "ftp://host/x",
        "hf://org/name",
        "simplecache::s3://bucket/x",
        "s3://bucket/x::file:///etc",
        "s3://key:SECRET@bucket/x",
        "s3+https://bucket/x",
    ],
)
def test_a_prefix_that_could_mean_two_things_is_a_usage_error_and_shows_no_secret(prefix: str):
    with pytest.raises(UsageError, match=r"^--url ") as caught:
        require_prefixes([prefix])
    assert "SECRET" not in str(caught.value)


@pytest.fixture
def token_file(tmp_path: Path) -> Path:
    file = tmp_path / "token"
    file.write_text(f"{TOKEN}\n")
    file.chmod(0o600)
    return file


def test_a_credential_is_its_name_and_its_file_and_never_shows_the_token(token_file: Path):
    credential = HubCredential.parse(f"team={token_file}")
    assert credential.token() == TOKEN
    copy = pickle.loads(pickle.dumps(credential))
    assert copy == credential
    assert TOKEN not in repr(credential)
    assert TOKEN.encode() not in pickle.dumps(credential)
    token_file.write_text("hf_next")
    assert copy.token() == "hf_next", "a token that is renewed needs no new start"


@pytest.mark.parametrize("mode", [0o604, 0o602, 0o601, 0o620, 0o644, 0o666])
def test_a_token_that_others_can_read_is_refused(token_file: Path, mode: int):
    token_file.chmod(mode)
    with pytest.raises(UsageError, match="open to others on this machine"):
        HubCredential.parse(f"team={token_file}")


@pytest.mark.parametrize("mode", [0o600, 0o400, 0o640])
def test_the_owner_and_the_group_may_read_it(token_file: Path, mode: int):
    token_file.chmod(mode)
    HubCredential.parse(f"team={token_file}")


@pytest.mark.parametrize("content", [b"", b"\n", b"two words", b"two\nlines", b"\xff\xfe", b"x" * 5000])
def test_a_file_without_a_token_is_refused_and_not_quoted(token_file: Path, content: bytes):
    token_file.write_bytes(content)
    with pytest.raises(UsageError, match="holds no token") as caught:
        HubCredential.parse(f"team={token_file}")
    assert "two" not in str(caught.value).replace(str(token_file), "")


@pytest.mark.parametrize("argument", ["", "team", "team=", "=f", "a b=f", "-x=f", "team=/no/such/file", "team=/"])
def test_bad_credentials_are_usage_errors(argument: str):
    with pytest.raises(UsageError, match="--hub-credential"):
        HubCredential.parse(argument)


def test_a_credential_that_breaks_later_is_the_servers_fault_and_says_no_path(token_file: Path):
    credential = HubCredential.parse(f"team={token_file}")
    token_file.chmod(0o644)
    with pytest.raises(ServerError, match="credential team cannot be used: its file is open") as caught:
        credential.token()
    assert str(token_file) not in str(caught.value)
    os.unlink(token_file)
    with pytest.raises(ServerError, match="cannot be read") as caught:
        credential.token()
    assert str(token_file) not in str(caught.value)
