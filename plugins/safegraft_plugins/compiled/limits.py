"""Magnitudes that are too large: NaN and inf among what is read, and what the result's format cannot hold."""

from typing import TYPE_CHECKING, Any

from safegraft.methods.compiled import DeclinedError
from safegraft_plugins.float_bits import INFINITE

if TYPE_CHECKING:
    from numpy.typing import NDArray

# The smallest bit patterns of a float32 that round to inf, by what stands for the format.
_TOO_LARGE = {"uint16": 0x7F7F8000, "int16": 0x477FF000, "float32": INFINITE}


def require_finite(read: int) -> None:
    """Decline if the largest magnitude among the numbers read is no finite number's."""
    if read >= INFINITE:
        raise DeclinedError


def require_sound(magnitudes: tuple[int, int], out: "NDArray[Any]") -> None:
    """Decline unless the largest magnitudes read and written (before rounding) are of finite numbers."""
    read, written = magnitudes
    if read >= INFINITE or written >= _TOO_LARGE[out.dtype.name]:
        raise DeclinedError
