"""CRC-32C of a chunk: the one typed door to google-crc32c, which ships no types."""

from typing import cast

import google_crc32c


def crc32c(data: bytes | memoryview) -> int:
    """CRC-32C (Castagnoli) as an unsigned 32-bit integer."""
    readable: object = data
    if isinstance(data, memoryview):
        import numpy as np

        readable = np.frombuffer(data, np.uint8)  # the library takes no memoryview
    return cast(int, google_crc32c.value(readable))  # pyright: ignore[reportUnknownMemberType] (untyped library)
