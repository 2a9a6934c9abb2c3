"""ReadFileResponses as bytes: the payload is copied once, behind a header that protobuf encodes.

protobuf itself would copy it into a message and out again, in the event loop. Parsers take fields in any order.
"""

from safegraft.rpc.checksum import crc32c
from safegraft.v1 import artifact_service_pb2 as pb

_DATA = bytes([pb.ReadFileResponse.DATA_FIELD_NUMBER << 3 | 2])  # the tag of a field with a length


def encode(chunk: bytes, offset: int) -> bytes:
    """ReadFileResponse(offset, data=chunk, crc32c) on the wire."""
    return head(chunk, offset) + chunk


def head(chunk: bytes | memoryview, offset: int) -> bytes:
    """What stands before the chunk there."""
    fields = pb.ReadFileResponse(offset=offset, crc32c=crc32c(chunk)).SerializeToString()
    return b"".join((fields, _DATA, _varint(len(chunk))))


def _varint(number: int) -> bytes:
    encoded = bytearray()
    while number > 0x7F:
        encoded.append(number & 0x7F | 0x80)
        number >>= 7
    encoded.append(number)
    return bytes(encoded)
