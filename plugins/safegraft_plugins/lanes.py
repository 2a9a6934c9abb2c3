"""Sums in double precision whose order is fixed: wherever and by whatever code they are computed, the bits are equal.

A block is seen as rows of LANES elements, four rows at a time: the first two are added, and the other two; their sum is
added to the lanes, which are then added up. Code for vector processors computes just that, however wide its vectors.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray

LANES = 512
ROWS = 4  # added at a time, so that lanes are written less often


def total(values: "torch.Tensor") -> float:
    """The sum of a flat float64 tensor. Not on a CPU it is the device's own, in another order."""
    import torch

    if values.device != torch.device("cpu"):
        return float(values.sum())
    groups = -(-len(values) // (LANES * ROWS))
    padded = torch.nn.functional.pad(values, (0, groups * LANES * ROWS - len(values)))
    first, second, third, fourth = padded.view(groups, ROWS, LANES).unbind(1)
    sums = first.add(second).add_(third.add(fourth))
    return added(sums.numpy().sum(axis=0))  # along the first axis numpy adds row by row


def added(lanes: "NDArray[np.float64]") -> float:
    """The sum of all lanes."""
    return float(lanes.sum())
