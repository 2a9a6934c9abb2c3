"""Random numbers that depend on a seed and an element's position alone: cutting a tensor changes none of them."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray

BITS = 31  # of a number: one int32, never negative

# Philox4x32 of Salmon et al., "Parallel random numbers: as easy as 1, 2, 3" (SC 2011), table 2: with seven rounds it
# passes every test of BigCrush.
ROUNDS = 7
WORDS = 4  # that a counter gives, of 32 bits
MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
KEY_STEPS = (0x9E3779B9, 0xBB67AE85)

# Elements come in groups, one counter after the other: the first words of sixteen counters, their second words, and so
# on. A vector processor computes the counters of a group side by side.
COUNTERS = 16

GROUPS_AT_ONCE = 1 << 10  # whose words stay in the cache

_LOW = 0xFFFFFFFF


def uniform(seed: int, stream: int, position: int, count: int, device: "torch.device | None" = None) -> "torch.Tensor":
    """int32 [count], uniform in [0, 2^31): the numbers of elements `position`, `position + 1`, ...

    The key is the seed, of 64 bits; the counter is (number of the counter, of 64 bits; stream, of 32; 0).
    """
    import numpy as np
    import torch

    if device not in (None, torch.device("cpu")):
        return uniform_there(seed, stream, position, count, device)
    group, skipped = divmod(position, COUNTERS * WORDS)
    groups = -(-(skipped + count) // (COUNTERS * WORDS))
    numbers = np.empty((groups, WORDS, COUNTERS), np.int32)
    for start in range(0, groups, GROUPS_AT_ONCE):
        part = numbers[start : start + GROUPS_AT_ONCE]
        first = (group + start) * COUNTERS
        counters = np.arange(first, first + len(part) * COUNTERS, dtype=np.uint64)
        halves = counters & np.uint64(_LOW), counters >> np.uint64(32)
        words = philox([*halves, np.full_like(counters, stream), np.zeros_like(counters)], seed)
        for number, word in enumerate(words):
            part[:, number] = np.right_shift(word, np.uint64(1), out=word).reshape(-1, COUNTERS)
    return torch.as_tensor(numbers.reshape(-1)[skipped : skipped + count])


def uniform_there(seed: int, stream: int, position: int, count: int, device: "torch.device") -> "torch.Tensor":
    """`uniform`, computed on a device in int64, whose products and sums wrap around as unsigned ones do."""
    import torch

    group, skipped = divmod(position, COUNTERS * WORDS)
    groups = -(-(skipped + count) // (COUNTERS * WORDS))
    counters = torch.arange(group * COUNTERS, (group + groups) * COUNTERS, device=device)
    a, b = counters & _LOW, counters >> 32 & _LOW
    c, d = torch.full_like(counters, stream), torch.zeros_like(counters)
    for number in range(ROUNDS):
        k, l = ((key + number * step) & _LOW for key, step in zip((seed & _LOW, seed >> 32), KEY_STEPS, strict=True))  # noqa: E741
        p, q = a * MULTIPLIERS[0], c * MULTIPLIERS[1]
        a, b, c, d = (q >> 32 & _LOW) ^ b ^ k, q & _LOW, (p >> 32 & _LOW) ^ d ^ l, p & _LOW
    words = torch.stack([word.view(groups, COUNTERS) for word in (a, b, c, d)], dim=1)
    return (words >> 1).int().flatten()[skipped : skipped + count]


def philox(counter: "Sequence[NDArray[np.uint64]]", seed: int, rounds: int = ROUNDS) -> "list[NDArray[np.uint64]]":
    """The four words that each counter gives, from its four words; the least significant first, 32 bits in uint64.

    counter: overwritten.
    """
    import numpy as np

    low, half = np.uint64(_LOW), np.uint64(32)
    first, second = (np.uint64(one) for one in MULTIPLIERS)
    a, b, c, d = counter
    p, q = np.empty_like(a), np.empty_like(a)
    for number in range(rounds):
        keys = (
            np.uint64((part + number * step) & _LOW)
            for part, step in zip((seed & _LOW, seed >> 32), KEY_STEPS, strict=True)
        )
        np.multiply(a, first, out=p)
        np.multiply(c, second, out=q)
        for word, product, other, key in zip((a, c), (q, p), (b, d), keys, strict=True):
            np.right_shift(product, half, out=word)
            np.bitwise_xor(word, other, out=word)
            np.bitwise_xor(word, key, out=word)
            np.bitwise_and(product, low, out=other)
    return [a, b, c, d]


def limit(probability: float) -> int:
    """A uniform number is below it with this probability, to within 2^-31."""
    return min(round(probability * (1 << BITS)), (1 << BITS) - 1)
