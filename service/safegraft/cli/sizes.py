"""Sizes as people write them: 5GB, 200KB, 1.5GiB, 4096. Decimal units, as transformers counts shards."""

import re
from decimal import Decimal

_UNITS = {
    "": 1,
    "B": 1,
    "KB": 10**3,
    "MB": 10**6,
    "GB": 10**9,
    "TB": 10**12,
    "KiB": 2**10,
    "MiB": 2**20,
    "GiB": 2**30,
    "TiB": 2**40,
}
_SIZE = re.compile(r"([0-9]+(?:\.[0-9]+)?) ?([A-Za-z]*)")


def parse_size(text: str) -> int:
    """Bytes. Units are case-sensitive, because 5Gb is gigabits to some.

    Raises ValueError, with what to write instead.
    """
    match = _SIZE.fullmatch(text.strip())
    if match is None or match[2] not in _UNITS:
        raise ValueError(f"{text!r} is not a size: write bytes, or a number with {', '.join(list(_UNITS)[2:])}")
    size = Decimal(match[1]) * _UNITS[match[2]]
    if size != size.to_integral_value():
        raise ValueError(f"{text!r} is not a whole number of bytes")
    if size < 1:
        raise ValueError(f"{text!r} is less than one byte")
    return int(size)


def format_size(size: float) -> str:
    """Three significant digits and a decimal unit: 812 B, 1.02 MB, 14.5 GB."""
    value, units = float(size), ["B", "KB", "MB", "GB", "TB"]
    while value >= 999.5 and len(units) > 1:  # 999.5 would be shown as 1000: take the next unit
        value /= 1000
        units.pop(0)
    unit = units[0]
    if unit == "B":
        return f"{value:.0f} B"
    digits = 2 if value < 9.995 else 1 if value < 99.95 else 0
    return f"{value:.{digits}f} {unit}"
