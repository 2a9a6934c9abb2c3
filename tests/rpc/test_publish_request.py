"""What PublishMerge takes, and how it says what is wrong."""

import json
from pathlib import Path
from typing import Any

import pytest

from safegraft.errors import NotFoundError, UsageError
from safegraft.hub.publication import Destination
from safegraft.rpc.options import ServerOptions
from safegraft.rpc.publication import Asked
from safegraft.rpc.publish_request import MAX_EVALUATION_BYTES, MAX_PLOT_BYTES, read_request
from safegraft.rpc.remote_policy import HubCredential
from safegraft.v1 import merge_service_pb2 as pb

TOKEN = "hf_" + "t0ken" * 7
HEADER = (("x-hub-token", TOKEN),)
PNG = b"\x89PNG\r\n\x1a\n" + bytes(10)
SCORE = {"name": "p/helpfulness", "value": 0.5, "low": 0.4, "high": 0.6, "n": 10, "lower_is_better": False}
EVALUATION = json.dumps(
    {
        "format": "safegraft-evaluation/1",
        "evaluations": [
            {
                "model": "merged",
                "digest": "d" * 64,
                "settings": {},
                "versions": {},
                "suites": [{"name": "p", "digest": "e" * 64, "n": 10}],
                "judges": [],
                "scores": [{**SCORE, "axis": "helpfulness", "dataset": "p", "judge": None, "images": False}],
                "measured": [],
                "skipped": {},
            }
        ],
    }
).encode()


@pytest.fixture
def options(tmp_path: Path) -> ServerOptions:
    team = HubCredential("team", tmp_path / "token")
    return ServerOptions(data=tmp_path, publish_to=("org/*", "team/merged-*"), hub_credentials=(team,))


def read(options: ServerOptions, metadata: Any = HEADER, **changes: Any) -> Asked:
    fields: dict[str, Any] = {"name": "merges/m", "repository": "org/name", "unevaluated": True, **changes}
    return read_request(pb.PublishMergeRequest(**fields), metadata, options)


def test_a_request_in_full(options: ServerOptions):
    asked = read(
        options,
        repository="team/merged-1",
        public=True,
        revision="branch",
        tags=["v1", "v2"],
        message="a title",
        replace=True,
        unevaluated=False,
        evaluation=EVALUATION,
        plot=PNG,
        request_id="r",
    )
    expected = Destination("team/merged-1", False, "branch", False, ("v1", "v2"), "a title", True)
    assert (asked.merge, asked.destination, asked.credential, asked.request_id) == ("m", expected, "", "r")
    publicity = asked.publicity
    assert (publicity.evaluation, publicity.plot, publicity.token) == (EVALUATION, PNG, TOKEN)


def test_a_small_request_is_private_and_to_main(options: ServerOptions):
    asked = read(options, metadata=(), credential="team")
    assert asked.destination == Destination("org/name", private=True)
    assert (asked.destination.branch, asked.credential, asked.publicity.token) == ("main", "team", None)
    assert (asked.publicity.evaluation, asked.request_id) == (None, None)


def test_of_two_ways_to_the_hub_the_server_s_is_taken_and_the_token_dropped(options: ServerOptions):
    assert read(options, credential="team").publicity.token is None


@pytest.mark.parametrize(
    ("changes", "field", "words"),
    [
        ({"name": "m"}, "name", "merges/ID"),
        ({"repository": ""}, "repository", "cannot be a repository's name"),
        ({"repository": "name"}, "repository", "ORG/NAME"),
        ({"repository": "org/a/b"}, "repository", "cannot be a repository's name"),
        ({"repository": "org/na--me"}, "repository", "cannot be a repository's name"),
        ({"repository": "org/name.git"}, "repository", "cannot be a repository's name"),
        ({"repository": "org/" + "n" * 97}, "repository", "cannot be a repository's name"),
        ({"repository": "other/name"}, "repository", "does not publish to other/name; it does to org/*"),
        ({"repository": "team/other"}, "repository", "does not publish to team/other"),
        ({"revision": "../main"}, "../main", "branch"),
        ({"tags": ["a b"]}, "a b", "tag"),
        ({"tags": [f"v{n}" for n in range(21)]}, "tags", "at most 20"),
        ({"message": "two\nlines"}, "message", "one line"),
        ({"message": "x" * 501}, "message", "longer than 500"),
        ({"unevaluated": False}, "evaluation", "is missing"),
        ({"evaluation": EVALUATION}, "evaluation", "leave one of them away"),
        ({"unevaluated": False, "evaluation": b"{}"}, "evaluation", "format"),
        ({"unevaluated": False, "evaluation": b"nonsense"}, "evaluation", "not valid JSON"),
        ({"unevaluated": False, "evaluation": b"x" * (MAX_EVALUATION_BYTES + 1)}, "evaluation", "longer than"),
        ({"plot": PNG}, "plot", "none is given"),
        ({"unevaluated": False, "evaluation": EVALUATION, "plot": b"GIF89a"}, "plot", "no PNG"),
        ({"unevaluated": False, "evaluation": EVALUATION, "plot": PNG + bytes(MAX_PLOT_BYTES)}, "plot", "longer than"),
        ({"credential": "other"}, "credential", "no credential 'other'; it has team"),
        ({"metadata": ()}, "credential", "x-hub-token"),
        ({"metadata": (*HEADER, ("x-hub-token", "another"))}, "x-hub-token", "one token"),
        ({"metadata": (("x-hub-token", "two words"),)}, "x-hub-token", "without spaces"),
        ({"metadata": (("x-hub-token", ""),)}, "x-hub-token", "printable ASCII"),
        ({"request_id": "x" * 129}, "request_id", "128"),
    ],
)
def test_what_cannot_be_is_refused_with_its_field(options: ServerOptions, changes: Any, field: str, words: str):
    with pytest.raises(UsageError) as caught:
        read(options, **changes)
    problem = caught.value.problems[0]
    assert problem.where == field
    assert words in problem.message
    assert TOKEN not in str(caught.value)


def test_a_merge_that_cannot_be_is_not_found(options: ServerOptions):
    with pytest.raises(NotFoundError):
        read(options, name="merges/../x")


def test_a_server_does_not_publish_unless_it_is_told_where(tmp_path: Path):
    with pytest.raises(UsageError, match="does not publish; its owner can allow"):
        read(ServerOptions(data=tmp_path))


def test_requests_are_told_apart_by_all_but_the_token_and_their_id(options: ServerOptions):
    first = read(options).fingerprint
    assert read(options, metadata=(("x-hub-token", "another"),), request_id="r").fingerprint == first
    others: list[dict[str, Any]] = [
        {"repository": "org/other"},
        {"public": True},
        {"revision": "branch"},
        {"pull_request": True},
        {"tags": ["v1"]},
        {"message": "title"},
        {"replace": True},
        {"unevaluated": False, "evaluation": EVALUATION},
        {"unevaluated": False, "evaluation": EVALUATION, "plot": PNG},
        {"credential": "team"},
    ]
    assert len({first, *(read(options, **one).fingerprint for one in others)}) == 1 + len(others)
