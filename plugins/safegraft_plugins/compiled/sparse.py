"""Sparsified task vectors, summed where their signs agree: what safegraft_plugins.sparsified does, strip by strip.

Loops are short and take contiguous arrays of one dimension, so that each becomes vector code.
"""

# pyright: basic
# (numba has no type information)

from typing import NamedTuple

import numpy as np

from safegraft_plugins.compiled.machine_code import machine_code
from safegraft_plugins.compiled.numbers import bits_of, load, magnitude, store
from safegraft_plugins.compiled.random_words import GROUP, fill
from safegraft_plugins.compiled.sums import STRIP, largest_of, widen
from safegraft_plugins.lanes import LANES, ROWS

WHOLE, LARGEST, BAND, RANDOM = range(4)
SIGN, NO_BITS = np.uint32(0x80000000), np.uint32(0)
ZERO, ONE = np.float32(0), np.float32(1)


class Sieve(NamedTuple):
    """How each task vector is sparsified; all arrays are [vectors], those with two columns [vectors, 2].

    kind: WHOLE, LARGEST (of magnitude: bits and last as in safegraft_plugins.magnitude.Largest, first column), BAND
    (in the first column's and not in the second's) or RANDOM (numbers below limit, drawn from seed and stream).
    stream: of a vector is its place. divisor: of what is kept.
    """

    kind: "np.ndarray"  # int32
    bits: "np.ndarray"  # uint32, two columns
    last: "np.ndarray"  # int64, two columns
    limit: "np.ndarray"  # int32
    divisor: "np.ndarray"  # float32
    seed: "np.uint64"


class Sum(NamedTuple):
    """How they are summed: each times its weight (float32).

    rows: which of the inputs they are. elects: only where the sign is the whole sum's. divides: by the summed `share`
    of those that took part (if it elects), else by `total`. mixed: whether shares have both signs. positive: whether
    the first is. least: the smallest size of a share.
    """

    rows: "np.ndarray"  # int64
    weight: "np.ndarray"
    share: "np.ndarray"
    elects: bool
    divides: bool
    mixed: bool
    positive: bool
    least: "np.float32"
    cancelled: "np.float32"
    total: "np.float32"
    scale: "np.float32"


@machine_code
def sparsified(inputs, base, sieve, sums, position, out):
    """b + scale (sum_i w_i s_i(x_i - b)) / divisor; returns the largest magnitudes read and written."""
    count = len(sums.rows)
    origin = np.empty(STRIP, np.float32)
    deltas = np.empty((count, STRIP), np.float32)
    scratch = np.empty((4, STRIP), np.float32)
    numbers = np.empty(STRIP + GROUP, np.int32)
    read = written = np.uint32(0)
    for start in range(0, out.size, STRIP):
        stop = min(start + STRIP, out.size)
        size = stop - start
        b = origin[:size]
        # A slice of several rows would not be known to be contiguous.
        result, total, divisor, sizes = scratch[0, :size], scratch[1, :size], scratch[2, :size], scratch[3, :size]
        read = max(read, widen(base[start:stop], b))
        for j in range(count):
            x, d = inputs[sums.rows[j], start:stop], deltas[j, :size]
            read = max(read, _subtract(x, b, d))
            sift(d, j, sieve, position + start, numbers)
            _weigh_and_add(d, sums.weight[j], total, j == 0)
        if count < len(inputs):
            for row in range(len(inputs)):
                read = max(read, largest_of(inputs[row, start:stop]))
        if not sums.elects:
            if sums.divides:
                for i in range(size):
                    total[i] /= sums.total
            written = max(written, _finish(total, b, sums.scale, out[start:stop]))
            continue
        for j in range(count):
            _add_agreeing(deltas[j, :size], total, sums.share[j], result, divisor, j == 0)
        if sums.divides:
            if sums.mixed:
                for j in range(count):
                    _add_size(deltas[j, :size], total, abs(sums.share[j]), sizes, j == 0)
                _divide_mixed(result, divisor, sizes, sums.cancelled)
            else:
                _divide(result, divisor, sums.least, sums.positive)
        written = max(written, _finish(result, b, sums.scale, out[start:stop]))
    return read, written


@machine_code
def _subtract(stored, base, d):
    largest = np.uint32(0)
    for i in range(d.size):
        value = load(stored[i])
        d[i] = value - base[i]
        largest = max(largest, magnitude(value))
    return largest


@machine_code
def _weigh_and_add(d, weight, total, first):
    if first:
        for i in range(d.size):
            d[i] *= weight
            total[i] = d[i]
    else:
        for i in range(d.size):
            d[i] *= weight
            total[i] += d[i]


@machine_code
def _finish(result, base, scale, out):
    largest = np.uint32(0)
    for i in range(out.size):
        value = result[i] * scale + base[i]
        largest = max(largest, magnitude(value))
        out[i] = store(value, out[i])
    return largest


@machine_code
def sift(d, j, sieve, position, numbers):
    """Zero what is dropped of task vector j's strip, whose first element is at `position`."""
    kind = sieve.kind[j]
    if kind in (LARGEST, BAND):
        border = _border(sieve.last[j, 0], position, d.size)
        _keep_from(d[:border], sieve.bits[j, 0])
        _keep_from(d[border:], sieve.bits[j, 0] + np.uint32(1))
    if kind == BAND:
        border = _border(sieve.last[j, 1], position, d.size)
        _drop_from(d[:border], sieve.bits[j, 1])
        _drop_from(d[border:], sieve.bits[j, 1] + np.uint32(1))
    if kind == RANDOM:
        skipped = position % GROUP
        drawn = numbers[: (skipped + d.size + GROUP - 1) // GROUP * GROUP]
        fill(sieve.seed, j, position // GROUP, drawn)
        _keep_below(d, drawn[skipped : skipped + d.size], sieve.limit[j])
        if sieve.divisor[j] != ONE:
            divisor = sieve.divisor[j]
            for i in range(d.size):
                d[i] /= divisor


@machine_code
def _border(last, position, size):
    """How many of the strip's elements are at `last` or before."""
    return size if last - position >= size else max(last - position + 1, 0)


@machine_code
def _keep_from(d, least):
    for i in range(d.size):
        d[i] = d[i] if magnitude(d[i]) >= least else ZERO


@machine_code
def _drop_from(d, least):
    for i in range(d.size):
        d[i] = d[i] if magnitude(d[i]) < least else ZERO


@machine_code
def _keep_below(d, numbers, limit):
    for i in range(d.size):
        d[i] = d[i] if numbers[i] < limit else ZERO


@machine_code
def _agreeing(value, elected):
    """The value where its sign is the elected one, else 0."""
    return value if (bits_of(value) ^ bits_of(elected)) & SIGN == NO_BITS else ZERO


@machine_code
def _add_agreeing(d, elected, share, result, divisor, first):
    if first:
        for i in range(d.size):
            kept = _agreeing(d[i], elected[i])
            result[i] = kept
            divisor[i] = share if kept != ZERO else ZERO
    else:
        for i in range(d.size):
            kept = _agreeing(d[i], elected[i])
            result[i] += kept
            divisor[i] += share if kept != ZERO else ZERO


@machine_code
def _add_size(d, elected, size, sizes, first):
    if first:
        sizes[:] = ZERO
    for i in range(d.size):
        sizes[i] += size if _agreeing(d[i], elected[i]) != ZERO else ZERO


@machine_code
def _divide(result, divisor, least, positive):
    """By what is not zero: of shares with one sign, a sum is as large as the least of them, or empty."""
    if positive:
        for i in range(result.size):
            result[i] /= max(divisor[i], least)
    else:
        for i in range(result.size):
            result[i] /= min(divisor[i], -least)


@machine_code
def _divide_mixed(result, divisor, sizes, cancelled):
    for i in range(result.size):
        result[i] /= ONE if abs(divisor[i]) <= cancelled * sizes[i] else divisor[i]


@machine_code
def norms(stored, base, j, sieve, position, before, after):
    """Add |x - b| to the lanes of `before`, and what is kept of it to those of `after`; the largest magnitude read.

    Lanes as in safegraft_plugins.lanes.
    """
    origin = np.empty(LANES, np.float32)
    whole = np.zeros((ROWS, LANES), np.float32)
    kept = np.zeros((ROWS, LANES), np.float32)
    numbers = np.empty(LANES + GROUP, np.int32)
    read = np.uint32(0)
    for start in range(0, stored.size, ROWS * LANES):
        for row in range(ROWS):
            begin = min(start + row * LANES, stored.size)
            end = min(begin + LANES, stored.size)
            b, d, k = origin[: end - begin], whole[row, : end - begin], kept[row, : end - begin]
            whole[row, end - begin :] = ZERO
            kept[row, end - begin :] = ZERO
            read = max(read, widen(base[begin:end], b), _subtract(stored[begin:end], b, d))
            for i in range(d.size):
                k[i] = d[i]
            sift(k, j, sieve, position + begin, numbers)
        _add_sizes(whole[0], whole[1], whole[2], whole[3], before)
        _add_sizes(kept[0], kept[1], kept[2], kept[3], after)
    return read


@machine_code
def _add_sizes(first, second, third, fourth, lanes):
    for i in range(lanes.size):
        upper = np.float64(abs(first[i])) + np.float64(abs(second[i]))
        lower = np.float64(abs(third[i])) + np.float64(abs(fourth[i]))
        lanes[i] += upper + lower
