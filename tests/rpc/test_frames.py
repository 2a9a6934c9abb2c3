"""Answers that are encoded by hand are what protobuf would have made of them."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from safegraft.rpc.checksum import crc32c
from safegraft.rpc.frames import encode, head
from safegraft.rpc.ring import SLOT_BYTES
from safegraft.v1 import artifact_service_pb2 as pb


@settings(derandomize=True, deadline=None)
@given(st.binary(min_size=1, max_size=300), st.integers(0, 2**63 - 1))
def test_parsers_read_it(chunk: bytes, offset: int) -> None:
    expected = pb.ReadFileResponse(offset=offset, data=chunk, crc32c=crc32c(chunk))
    assert pb.ReadFileResponse.FromString(encode(chunk, offset)) == expected
    in_place = memoryview(bytearray(chunk))
    assert head(in_place, offset) + chunk == encode(chunk, offset)


@pytest.mark.parametrize("size", [1, 127, 128, 16383, 16384, SLOT_BYTES, 2**21])
def test_lengths(size: int) -> None:
    frame = pb.ReadFileResponse.FromString(encode(b"x" * size, 7))
    assert (len(frame.data), frame.offset) == (size, 7)
    assert len(encode(b"x" * size, 7)) == frame.ByteSize()
