"""Weighted sums of models: strip by strip in the first-level cache, each step rounded as torch rounds it.

Each returns the largest magnitudes among the inputs and in the result, by which NaN and inf are noticed.
"""

# pyright: basic
# (numba has no type information)

import numpy as np

from safegraft_plugins.compiled.machine_code import machine_code
from safegraft_plugins.compiled.numbers import fused, load, magnitude, store

STRIP = 1024


@machine_code
def widen(stored, into):
    """Stored numbers as float32; returns the largest magnitude."""
    largest = np.uint32(0)
    for i in range(into.size):
        value = load(stored[i])
        into[i] = value
        largest = max(largest, magnitude(value))
    return largest


@machine_code
def narrow(values, into):
    """float32 in the result's format; returns the largest magnitude."""
    largest = np.uint32(0)
    for i in range(into.size):
        value = values[i]
        largest = max(largest, magnitude(value))
        into[i] = store(value, into[i])
    return largest


@machine_code
def linear(inputs, weights, total, out):
    """sum_i w_i x_i / total, from zero, products and sums fused; without the division where total is 1."""
    values = np.empty(STRIP, np.float32)
    read = written = np.uint32(0)
    for start in range(0, out.size, STRIP):
        stop = min(start + STRIP, out.size)
        strip = values[: stop - start]
        strip[:] = np.float32(0)
        for j in range(len(weights)):
            read = max(read, _add_fused(inputs[j, start:stop], weights[j], strip))
        if total != np.float32(1):
            for i in range(strip.size):
                strip[i] = strip[i] / total
        written = max(written, narrow(strip, out[start:stop]))
    return read, written


@machine_code
def _add_fused(stored, weight, strip):
    largest = np.uint32(0)
    for i in range(strip.size):
        value = load(stored[i])
        strip[i] = fused(value, weight, strip[i])
        largest = max(largest, magnitude(value))
    return largest


@machine_code
def task_vectors(inputs, base, weights, total, scale, out):
    """b + scale (sum_i w_i (x_i - b)) / total; steps that are factors of 1 are left out."""
    origin = np.empty(STRIP, np.float32)
    values = np.empty(STRIP, np.float32)
    read = written = np.uint32(0)
    for start in range(0, out.size, STRIP):
        stop = min(start + STRIP, out.size)
        size = stop - start
        b, strip = origin[:size], values[:size]
        read = max(read, widen(base[start:stop], b))
        for j in range(len(weights)):
            read = max(read, _add_difference(inputs[j, start:stop], b, weights[j], strip, j == 0))
        if total != np.float32(1):
            for i in range(size):
                strip[i] = strip[i] / total
        for i in range(size):
            strip[i] = strip[i] * scale + b[i]
        written = max(written, narrow(strip, out[start:stop]))
    return read, written


@machine_code
def _add_difference(stored, base, weight, strip, first):
    largest = np.uint32(0)
    if first:
        for i in range(strip.size):
            value = load(stored[i])
            strip[i] = (value - base[i]) * weight
            largest = max(largest, magnitude(value))
    else:
        for i in range(strip.size):
            value = load(stored[i])
            strip[i] = strip[i] + (value - base[i]) * weight
            largest = max(largest, magnitude(value))
    return largest


@machine_code
def pair(first, second, first_share, second_share, out):
    """c x + d y."""
    values = np.empty(STRIP, np.float32)
    others = np.empty(STRIP, np.float32)
    read = written = np.uint32(0)
    for start in range(0, out.size, STRIP):
        stop = min(start + STRIP, out.size)
        x, y = values[: stop - start], others[: stop - start]
        read = max(read, widen(first[start:stop], x), widen(second[start:stop], y))
        for i in range(x.size):
            x[i] = x[i] * first_share + y[i] * second_share
        written = max(written, narrow(x, out[start:stop]))
    return read, written


@machine_code
def about(inputs, reference, total, coefficients, out):
    """total x_r + sum_i c_i (x_i - x_r), over the i whose coefficient is not zero; c_r must be."""
    origin = np.empty(STRIP, np.float32)
    values = np.empty(STRIP, np.float32)
    read = written = np.uint32(0)
    for start in range(0, out.size, STRIP):
        stop = min(start + STRIP, out.size)
        size = stop - start
        x, strip = origin[:size], values[:size]
        read = max(read, widen(inputs[reference, start:stop], x))
        for i in range(size):
            strip[i] = x[i] * total
        for j in range(len(coefficients)):
            if coefficients[j] != 0:
                read = max(read, _add_difference(inputs[j, start:stop], x, coefficients[j], strip, False))
            elif j != reference:
                read = max(read, largest_of(inputs[j, start:stop]))
        written = max(written, narrow(strip, out[start:stop]))
    return read, written


@machine_code
def largest_of(stored):
    largest = np.uint32(0)
    for i in range(stored.size):
        largest = max(largest, magnitude(load(stored[i])))
    return largest


@machine_code
def mean_towards(inputs, base, share, base_share, out):
    """c mean_i x_i + d b, the mean by way of the differences from the first."""
    origin = np.empty(STRIP, np.float32)
    first = np.empty(STRIP, np.float32)
    values = np.empty(STRIP, np.float32)
    read = written = np.uint32(0)
    count = np.float32(len(inputs))
    for start in range(0, out.size, STRIP):
        stop = min(start + STRIP, out.size)
        size = stop - start
        b, x, strip = origin[:size], first[:size], values[:size]
        read = max(read, widen(base[start:stop], b), widen(inputs[0, start:stop], x))
        for j in range(1, len(inputs)):
            read = max(read, _add_difference(inputs[j, start:stop], x, np.float32(1), strip, j == 1))
        for i in range(size):
            strip[i] = (strip[i] / count + x[i]) * share + b[i] * base_share
        written = max(written, narrow(strip, out[start:stop]))
    return read, written
