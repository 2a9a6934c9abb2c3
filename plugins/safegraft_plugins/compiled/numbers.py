"""Stored numbers to float32 and back, and their bit patterns. uint16 holds bfloat16's bits, int16 float16's.

Everything here becomes one or two instructions of the loop that it is used in.
"""

# pyright: basic
# (numba has no type information, and its intrinsics take numba's types)

import numpy as np
from llvmlite import ir
from numba import types

from safegraft_plugins.compiled.machine_code import instruction, machine_code

FLOAT = ir.FloatType()
WORD = ir.IntType(32)
HALF_WORD = ir.IntType(16)

MAGNITUDE = np.uint32(0x7FFFFFFF)


@instruction
def load(context, number):
    """A stored number as float32: exact."""

    def generate(_, builder, signature, arguments):
        (bits,) = arguments
        if number == types.uint16:
            return builder.bitcast(builder.shl(builder.zext(bits, WORD), WORD(16)), FLOAT)
        if number == types.int16:
            return builder.fpext(builder.bitcast(bits, ir.HalfType()), FLOAT)
        return bits

    return types.float32(number), generate


@instruction
def store(context, value, like):
    """float32 in the format of `like`, rounded to nearest, ties to even. NaN may become anything."""

    def generate(_, builder, signature, arguments):
        value, _like = arguments
        if like == types.uint16:
            bits = builder.bitcast(value, WORD)
            odd = builder.and_(builder.lshr(bits, WORD(16)), WORD(1))
            rounded = builder.add(bits, builder.add(odd, WORD(0x7FFF)))
            return builder.trunc(builder.lshr(rounded, WORD(16)), HALF_WORD)
        if like == types.int16:
            return builder.bitcast(builder.fptrunc(value, ir.HalfType()), HALF_WORD)
        return value

    return like(types.float32, like), generate


@instruction
def bits_of(context, value):
    """The bit pattern of a float32, as uint32."""

    def generate(_, builder, signature, arguments):
        return builder.bitcast(arguments[0], WORD)

    return types.uint32(types.float32), generate


@instruction
def of_bits(context, bits):
    """The float32 of a bit pattern."""

    def generate(_, builder, signature, arguments):
        return builder.bitcast(arguments[0], FLOAT)

    return types.float32(types.uint32), generate


@instruction
def fused(context, a, b, c):
    """a b + c in float32, rounded once."""

    def generate(_, builder, signature, arguments):
        return builder.fma(*arguments)

    return types.float32(types.float32, types.float32, types.float32), generate


@machine_code
def magnitude(value):
    """The bit pattern of |value|, which orders as the numbers do."""
    return bits_of(value) & MAGNITUDE
