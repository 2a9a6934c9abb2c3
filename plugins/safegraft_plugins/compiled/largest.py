"""Counting magnitudes of task vectors x - b, for safegraft_plugins.magnitude."""

# pyright: basic
# (numba has no type information)

import numpy as np

from safegraft_plugins.compiled.machine_code import machine_code
from safegraft_plugins.compiled.numbers import load, magnitude
from safegraft_plugins.compiled.sums import STRIP

HALF = np.uint32(16)
LOW = np.uint32(0xFFFF)


@machine_code
def count_upper(stored, base, counts):
    """Add how often each value of the upper bits occurs; returns the largest magnitude among x and b."""
    digits = np.empty(STRIP, np.uint32)
    odd = np.zeros(counts.size, np.int64)  # a second table: of equal neighbours, one need not wait for the other
    largest = np.uint32(0)
    for start in range(0, stored.size, STRIP):
        stop = min(start + STRIP, stored.size)
        x, b, strip = stored[start:stop], base[start:stop], digits[: stop - start]
        for i in range(strip.size):
            one, origin = load(x[i]), load(b[i])
            largest = max(largest, magnitude(one), magnitude(origin))
            strip[i] = magnitude(one - origin) >> HALF
        for i in range(0, strip.size - 1, 2):
            counts[strip[i]] += 1
            odd[strip[i + 1]] += 1
        if strip.size % 2:
            counts[strip[strip.size - 1]] += 1
    for i in range(counts.size):
        counts[i] += odd[i]
    return largest


@machine_code
def count_lower(stored, base, digit, counts):
    """Add how often each value of the lower bits occurs among the elements whose upper bits are `digit`."""
    for i in range(stored.size):
        bits = magnitude(load(stored[i]) - load(base[i]))
        if bits >> HALF == digit:
            counts[bits & LOW] += 1


@machine_code
def gather(stored, base, digit, lower, positions):
    """Lower bits and positions of the elements whose upper bits are `digit`, in order; returns their number.

    lower, positions: one element longer than needed at most.
    """
    found = 0
    magnitudes = np.empty(STRIP, np.uint32)
    for start in range(0, stored.size, STRIP):
        stop = min(start + STRIP, stored.size)
        x, b, strip = stored[start:stop], base[start:stop], magnitudes[: stop - start]
        for i in range(strip.size):
            strip[i] = magnitude(load(x[i]) - load(b[i]))
        for i in range(strip.size):  # without a branch, which would be guessed wrong
            lower[found] = strip[i] & LOW
            positions[found] = start + i
            found += strip[i] >> HALF == digit
    return found


@machine_code
def equal(stored, base, bits, positions):
    """The positions of the elements of just this magnitude, in order; returns their number."""
    found = 0
    for i in range(stored.size):
        if magnitude(load(stored[i]) - load(base[i])) == bits:
            positions[found] = i
            found += 1
    return found
