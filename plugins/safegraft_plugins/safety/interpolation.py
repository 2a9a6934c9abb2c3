"""A point on the line between two tensors."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def between(start: "torch.Tensor", end: "torch.Tensor", t: float) -> "torch.Tensor":
    """(1 - t) start + t end, for t in [0, 1]. Overwrites both.

    Computed from the nearer end, so that it is exact to the bit at both ends and where the two are equal.
    """
    if t < 0.5:
        return end.sub_(start).mul_(t).add_(start)
    return start.sub_(end).mul_(1 - t).add_(end)
