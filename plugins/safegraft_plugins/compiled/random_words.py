"""safegraft_plugins.random_bits in machine code: Philox4x32-7, sixteen counters at a time."""

# pyright: basic
# (numba has no type information)

import numpy as np

from safegraft_plugins.compiled.machine_code import machine_code
from safegraft_plugins.random_bits import COUNTERS, KEY_STEPS, MULTIPLIERS, ROUNDS, WORDS

GROUP = COUNTERS * WORDS
M0, M1 = (np.uint64(one) for one in MULTIPLIERS)
W0, W1 = (np.uint32(one) for one in KEY_STEPS)
LOW = np.uint64(0xFFFFFFFF)
HALF = np.uint64(32)
ONE = np.uint32(1)


@machine_code
def fill(seed, stream, group, numbers):
    """The numbers of whole groups from `group` on; int32 [groups * GROUP]."""
    first_key, second_key = np.uint32(seed & LOW), np.uint32(seed >> HALF)
    for at in range(0, numbers.size, GROUP):
        counter = (np.uint64(group) + np.uint64(at // GROUP)) * np.uint64(COUNTERS)
        part = numbers[at : at + GROUP]
        for lane in range(COUNTERS):
            count = counter + np.uint64(lane)
            a, b, c, d = np.uint32(count & LOW), np.uint32(count >> HALF), np.uint32(stream), np.uint32(0)
            k, l = first_key, second_key  # noqa: E741
            for _ in range(ROUNDS):
                p, q = np.uint64(a) * M0, np.uint64(c) * M1
                a, b, c, d = (
                    np.uint32(q >> HALF) ^ b ^ k,
                    np.uint32(q & LOW),
                    np.uint32(p >> HALF) ^ d ^ l,
                    np.uint32(p & LOW),
                )
                k, l = np.uint32(k + W0), np.uint32(l + W1)  # noqa: E741
            part[lane] = np.int32(a >> ONE)
            part[COUNTERS + lane] = np.int32(b >> ONE)
            part[2 * COUNTERS + lane] = np.int32(c >> ONE)
            part[3 * COUNTERS + lane] = np.int32(d >> ONE)
