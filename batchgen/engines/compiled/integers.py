"""Loops around products of 8-bit integers: quantize their inputs, scale and add their outputs."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numba import carray, types

from batchgen.engines.compiled.compiling import (
    FLOAT,
    INTEGER,
    INTEGERS,
    STORED,
    Kernel,
    at,
    compiled,
    f4,
    i4,
    inlined,
    sigmoid,
    stored,
    u4,
    wide,
)
from batchgen.engines.compiled.rows import GELU_TANH

BYTES = types.CPointer(types.uint8)
MOST, ZERO_POINT = 127, 128  # as in `int8.linear`
LEAST_PEAK = 1e-30  # of a row of zeros, whose scale would be 0


@lru_cache
def quantize(dtype: str) -> Kernel:
    """Quantize rows `[N, I]` to unsigned integers around `ZERO_POINT`, `[G, N, I / G]`, with scales `[G, N]`.

    Columns that are 0 in counted `[I]` do not count for the scales, and their integers mean nothing.
    """
    most, zero_point = f4(MOST), f4(ZERO_POINT)

    @compiled(STORED[dtype], BYTES, FLOAT, FLOAT, INTEGER, INTEGER, INTEGER, INTEGER, INTEGER)
    def run(x_, integers_, scales_, counted_, first, last, rows, size, groups):
        part = size // groups
        x, integers = carray(x_, (rows, groups, part)), carray(integers_, (groups, rows, part))
        scales, counted = carray(scales_, (groups, rows)), carray(counted_, (groups, part))
        for row in range(first, last):
            for group in range(groups):
                peak = largest(x[row, group], counted[group])
                scales[group, row] = peak / most
                factor = most / peak
                for i in range(part):
                    # Plus a half, because the conversion truncates.
                    integers[group, row, i] = np.uint8(i4(wide(x[row, group, i]) * factor + (zero_point + f4(0.5))))

    return run


@inlined
def largest(x, counted):
    """Return the largest absolute value, NaN or infinity if there is one: bits of positive floats have their order."""
    peak = i4(0)
    for i in range(len(x)):
        peak = max(peak, i4(f4(wide(x[i]) * counted[i]).view(np.int32) & i4(0x7FFFFFFF)))
    found = u4(peak).view(np.float32)
    return f4(LEAST_PEAK) if found < f4(LEAST_PEAK) else found


@lru_cache
def finish(dtype: str, activation: str, *, has_bias: bool, adds: bool) -> Kernel:
    """Scale and add the products of groups of inputs: `[N, O]`, in the order of the groups.

    products `[G]` are the addresses of `[N, O]`, scales are `[G, N]`. The inputs `[N, I]` at places `[K]`, which
    the integers leave out, are multiplied here, with loud `[K, O]`. A bias `[O]`, an activation and another tensor
    `[N, O]` come last. K is a multiple of 4.
    """
    is_gelu = activation == GELU_TANH

    @compiled(
        STORED[dtype], INTEGERS, FLOAT, INTEGERS, FLOAT, FLOAT, STORED[dtype], STORED[dtype], *[INTEGER] * 7
    )  # fmt: skip
    def run(
        x_, places_, loud_, products_, scales_, bias_, other_, out_, first, last, rows, inputs, size, groups, num_loud
    ):  # fmt: skip
        x, places, loud = carray(x_, (rows, inputs)), carray(places_, (num_loud,)), carray(loud_, (num_loud, size))
        products, scales, bias = carray(products_, (groups,)), carray(scales_, (groups, rows)), carray(bias_, (size,))
        other, out = carray(other_, (rows, size)), carray(out_, (rows, size))
        sums = np.empty(size, np.float32)
        for row in range(first, last):
            for i in range(size):
                sums[i] = f4(0)
            add_loud(sums, x[row], places, loud)
            for group in range(groups):
                product, scale = carray(at(products[group]), (rows, size), np.float32), scales[group, row]
                for i in range(size):
                    sums[i] += product[row, i] * scale
            for i in range(size):
                value = sums[i] + bias[i] if has_bias else sums[i]
                if is_gelu:
                    value = value * sigmoid(f4(1.5957691216057308) * (value + f4(0.044715) * value * value * value))
                out[row, i] = stored(value + wide(other[row, i]) if adds else value, out)

    return run


@inlined
def add_loud(sums, x, places, loud):
    """Add the inputs at places, times their weights, four inputs at a time."""
    for k in range(0, len(places), 4):
        a, b = wide(x[places[k]]), wide(x[places[k + 1]])
        c, d = wide(x[places[k + 2]]), wide(x[places[k + 3]])
        for i in range(len(sums)):
            sums[i] += (a * loud[k, i] + b * loud[k + 1, i]) + (c * loud[k + 2, i] + d * loud[k + 3, i])
