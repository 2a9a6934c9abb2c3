"""Masks on the bit patterns of floats: integers with every bit set where the mask holds, and none where it does not.

In cache they cost a tenth of a nanosecond an element; `where`, comparisons and products with booleans a multiple of it.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

MAGNITUDE = 0x7FFFFFFF  # every bit of a float32 but the sign
INFINITE = 0x7F800000  # magnitudes from here on are inf and NaN


def integers(tensor: "torch.Tensor") -> "torch.Tensor":
    """The same memory as integers: int32 for float32, int64 for float64."""
    import torch

    return tensor.view(torch.int32 if tensor.dtype == torch.float32 else torch.int64)


def magnitude(tensor: "torch.Tensor") -> "torch.Tensor":
    """|x| as the bit pattern of a float32, which orders as the numbers do: int32, new memory.

    float64 is rounded to float32 first, so that numbers closer than that are equal (as in mergekit's trims).
    """
    return integers(tensor.float()).bitwise_and(MAGNITUDE)


def negative(tensor: "torch.Tensor") -> "torch.Tensor":
    """The mask of elements whose sign bit is set; -0 counts. New memory."""
    return sign_bit_mask(integers(tensor).clone())


def sign_bit_mask(whole: "torch.Tensor") -> "torch.Tensor":
    """The mask of negative integers, in place."""
    return whole.bitwise_right_shift_(8 * whole.element_size() - 1)


def keep(tensor: "torch.Tensor", mask: "torch.Tensor") -> "torch.Tensor":
    """Set elements outside the mask to 0, in place."""
    held = integers(tensor)
    held.bitwise_and_(mask.to(held.dtype))
    return tensor
