"""Drop and rescale (DARE, arXiv 2311.03099), on one cut of a task vector."""

from typing import TYPE_CHECKING

from safegraft_plugins.float_bits import keep, sign_bit_mask
from safegraft_plugins.random_bits import limit, uniform

if TYPE_CHECKING:
    import torch


def drop(delta: "torch.Tensor", rate: float, seed: int, stream: int, position: int) -> "torch.Tensor":
    """Zero each element with probability `rate`, below 1, and divide the others by 1 - rate. In place.

    seed, stream, position: what the random numbers depend on; `position` is that of the first element.
    """
    if rate == 0:
        return delta
    numbers = uniform(seed, stream, position, delta.numel(), delta.device).view(delta.shape)
    return keep(delta, sign_bit_mask(numbers.sub_(limit(1 - rate)))).div_(1 - rate)
