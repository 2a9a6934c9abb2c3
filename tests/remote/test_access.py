"""Who asks which Hub; and that no token and no signature is ever shown."""

import pickle

import pytest

from safegraft.errors import OutputError
from safegraft.remote.access import HubAccess, scrub
from safegraft.remote.errors import hub_errors


def test_the_environment_decides_what_is_left_open(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "https://mirror.example")
    monkeypatch.setenv("HF_TOKEN", "hf_of_the_environment")
    access = HubAccess()
    assert (access.url, access.api().endpoint) == ("https://mirror.example", "https://mirror.example")
    assert access.headers()["authorization"] == "Bearer hf_of_the_environment"
    assert "authorization" not in HubAccess(token=False).headers()
    given = HubAccess("https://hub.example/", "hf_given")
    assert (given.url, given.api().endpoint) == ("https://hub.example", "https://hub.example")
    assert given.headers()["authorization"] == "Bearer hf_given"
    assert given.headers()["user-agent"].startswith("safegraft/")


def test_a_token_is_not_shown_but_travels() -> None:
    access = HubAccess("https://hub.example", "hf_given")
    assert "hf_given" not in repr(access) + str(access)
    assert pickle.loads(pickle.dumps(access)) == access


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        ("403 for https://cdn.example/a/b?X-Sig=abc&y=1: no", "403 for https://cdn.example/a/b no"),
        ("see 'https://user:pw@host.example/x'", "see 'https://host.example/x'"),
        ("token hf_AbCd1234 and Bearer xyz.123", "token *** and Bearer ***"),
        ("s3://bucket/key is fine", "s3://bucket/key is fine"),
    ],
)
def test_texts_of_others_are_scrubbed(text: str, clean: str) -> None:
    assert scrub(text) == clean


def test_errors_of_others_pass_as_they_are() -> None:
    with pytest.raises(ValueError, match="mine"), hub_errors("org/name"):
        raise ValueError("mine")
    with pytest.raises(KeyError), hub_errors("org/name"):
        raise KeyError("mine")


def test_whoever_writes_gets_errors_of_writing() -> None:
    from huggingface_hub.errors import LocalTokenNotFoundError

    with (
        pytest.raises(OutputError, match="org/name: needs a token, and there is none: log in"),
        hub_errors("org/name", OutputError),
    ):
        raise LocalTokenNotFoundError("Token is required")


def test_a_servers_words_are_passed_on_without_secrets() -> None:
    import httpx2
    from huggingface_hub.errors import HfHubHTTPError

    request = httpx2.Request("POST", "https://hub.example/api/x?token=hf_secret1234")
    answer = httpx2.Response(400, request=request)
    said = "Invalid metadata,\nsee https://hub.example/docs?sig=1234"
    with pytest.raises(OutputError) as caught, hub_errors("org/name", OutputError):
        raise HfHubHTTPError("Bad request for https://hub.example/?sig=1", response=answer, server_message=said)
    assert str(caught.value) == (
        "org/name: the Hub refuses with status 400 (Invalid metadata, see https://hub.example/docs)"
    )
