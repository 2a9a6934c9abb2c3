"""Inner products in double precision, in the very order of safegraft_plugins.lanes and so equal to it to the bit."""

# pyright: basic
# (numba has no type information)

import numpy as np

from safegraft.methods.compiled import StoredView
from safegraft_plugins.compiled.limits import require_finite
from safegraft_plugins.compiled.machine_code import machine_code
from safegraft_plugins.compiled.numbers import load, magnitude
from safegraft_plugins.lanes import LANES, ROWS, added


def gram(view: StoredView, *, base_among: bool = False) -> list[list[float]]:
    """Inner products of all pairs of inputs, less the base where there is one. Raises DeclinedError.

    base_among: of the base, as the first, and the inputs as they are.
    """
    sums: list[list[float]] = []
    for cut in view.blocks():
        vectors, base = cut.inputs, cut.base
        if base_among and base is not None:
            vectors, base = np.stack([base, *vectors]), None
        count = len(vectors)
        lanes = np.zeros((count, count, LANES))
        require_finite(add_products(vectors, vectors[0] if base is None else base, base is not None, lanes))
        sums = sums or [[0.0] * count for _ in range(count)]
        for i in range(count):
            for j in range(i + 1):
                sums[i][j] += added(lanes[i, j])
    return [[sums[max(i, j)][min(i, j)] for j in range(len(sums))] for i in range(len(sums))]


@machine_code
def add_products(inputs, base, has_base, lanes):
    """Add x_i x_j to the lanes [i, j], for j <= i; returns the largest magnitude read."""
    count = len(inputs)
    values = np.zeros((count, ROWS, LANES))
    origin = np.zeros(LANES)
    largest = np.uint32(0)
    for start in range(0, inputs.shape[1], ROWS * LANES):
        for row in range(ROWS):
            begin = min(start + row * LANES, inputs.shape[1])
            end = min(begin + LANES, inputs.shape[1])
            if has_base:
                largest = max(largest, _widen(base[begin:end], origin[: end - begin]))
            for j in range(count):
                x = values[j, row]
                largest = max(largest, _widen(inputs[j, begin:end], x[: end - begin]))
                if has_base:
                    for i in range(end - begin):
                        x[i] -= origin[i]
                x[end - begin :] = 0
        for j in range(count):
            for k in range(j + 1):
                x, y = values[j], values[k]
                _add(x[0], x[1], x[2], x[3], y[0], y[1], y[2], y[3], lanes[j, k])
    return largest


@machine_code
def _add(a, b, c, d, p, q, r, s, lanes):
    for i in range(lanes.size):
        lanes[i] += (a[i] * p[i] + b[i] * q[i]) + (c[i] * r[i] + d[i] * s[i])


@machine_code
def _widen(stored, into):
    largest = np.uint32(0)
    for i in range(into.size):
        value = load(stored[i])
        into[i] = np.float64(value)
        largest = max(largest, magnitude(value))
    return largest
