"""Random numbers that depend on a seed and an element's position alone: cutting a tensor changes none of them."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

BITS = 31  # of a number: one int32, never negative
NUMBERS_A_STEP = 8  # Philox4x64 gives four 64-bit words for each value of its counter


def uniform(seed: int, stream: int, position: int, count: int) -> "torch.Tensor":
    """int32 [count], uniform in [0, 2^31): the numbers of elements `position`, `position + 1`, ...

    Philox4x64-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011) as numpy has it: the key is
    (seed, stream), the counter counts eighths of positions.
    """
    import numpy as np
    import torch

    step, skipped = divmod(position, NUMBERS_A_STEP)
    philox = np.random.Philox(key=np.array([seed, stream], np.uint64), counter=step)
    # Every 64-bit word as the generator gives it; unlike `random_raw` this lets other threads run.
    words = np.random.Generator(philox).integers(0, 1 << 64, -(-(skipped + count) // 2), np.uint64)
    return torch.as_tensor(words.view(np.int32)[skipped : skipped + count]).bitwise_and_((1 << BITS) - 1)


def limit(probability: float) -> int:
    """A uniform number is below it with this probability, to within 2^-31."""
    return min(round(probability * (1 << BITS)), (1 << BITS) - 1)
