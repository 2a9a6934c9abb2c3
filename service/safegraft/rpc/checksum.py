"""CRC-32C of a chunk: the one typed door to google-crc32c, which ships no types."""

from typing import cast

import google_crc32c


def crc32c(data: bytes) -> int:
    """CRC-32C (Castagnoli) as an unsigned 32-bit integer."""
    return cast(int, google_crc32c.value(data))  # pyright: ignore[reportUnknownMemberType] (untyped library)
