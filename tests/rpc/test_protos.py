"""The protos are the API's documentation, and the generated code is theirs."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from safegraft.rpc import merges, reading
from safegraft.rpc.artifacts import MAX_BLOBS, MAX_WRITE_BYTES, ArtifactServicer
from safegraft.rpc.convert import MAX_WARNINGS
from safegraft.rpc.merges import MergeServicer
from safegraft.rpc.requests import MAX_REQUEST_ID
from safegraft.rpc.status import CLASSES
from safegraft.v1 import artifact_service_pb2, merge_service_pb2

PROTOS = Path(__file__).parents[2] / "protos"
TEXTS = {path.name: path.read_text() for path in sorted((PROTOS / "safegraft" / "v1").glob("*.proto"))}
RPC = re.compile(r"((?:^  //[^\n]*\n)+)  rpc (\w+)\(", re.MULTILINE)
RPCS = {name: re.sub(r"\s*//\s?", " ", prose) for text in TEXTS.values() for prose, name in RPC.findall(text)}


def test_buf_lint_passes():
    done = subprocess.run(
        [str(Path(sys.executable).parent / "buf"), "lint", str(PROTOS)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("descriptor", "servicer"),
    [
        (merge_service_pb2.DESCRIPTOR.services_by_name["MergeService"], MergeServicer),
        (artifact_service_pb2.DESCRIPTOR.services_by_name["ArtifactService"], ArtifactServicer),
    ],
)
def test_every_rpc_is_documented_and_answered(descriptor, servicer):
    for method in descriptor.methods:
        assert method.name in RPCS, f"{method.name} has no comment"
        assert method.name in vars(servicer), f"{method.name} is not implemented"


@pytest.mark.parametrize("rpc", sorted(RPCS.keys() - {"GetServerInfo", "ListMethods"}))
def test_every_rpc_that_can_fail_says_how(rpc: str):
    assert "Errors:" in RPCS[rpc]
    codes = set(re.findall(r"\b[A-Z]+_[A-Z_]+\b|\b(?:UNAVAILABLE|ABORTED|INTERNAL)\b", RPCS[rpc].split("Errors:")[1]))
    known = {"INVALID_ARGUMENT", "FAILED_PRECONDITION", "RESOURCE_EXHAUSTED", "DATA_LOSS", "UNAVAILABLE", "ABORTED"}
    assert codes <= known | {"NOT_FOUND", "INTERNAL", "RETENTION_NONE"} | set(CLASSES)


def test_every_message_is_documented():
    for name, text in TEXTS.items():
        for message in re.findall(r"^(?:(//[^\n]*)\n)?(?:message|enum|service) (\w+) \{(\}?)", text, re.MULTILINE):
            comment, what, empty = message
            request = what.endswith(("Request", "Response"))  # the RPC's comment speaks for those
            assert comment or empty or request, f"{name}: {what} has no comment"


def test_the_limits_in_the_prose_are_the_real_ones():
    flat = {name: re.sub(r"\s*//\s?", " ", text) for name, text in TEXTS.items()}
    artifact, merge, resource = flat["artifact_service.proto"], flat["merge_service.proto"], flat["merge.proto"]
    assert MAX_BLOBS == 10_000
    assert artifact.count("10,000") == 2
    assert MAX_WRITE_BYTES == 2 << 20
    assert "At most 2 MiB" in artifact
    assert MAX_REQUEST_ID == 128
    assert "up to 128 printable ASCII" in merge
    assert MAX_WARNINGS == 100
    assert "at most 100 entries" in resource
    assert merges.HEARTBEAT_SECONDS == 10
    assert "every ten seconds" in merge
    assert reading.CHUNK_BYTES <= 512 * 1024
