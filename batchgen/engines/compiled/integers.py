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
from batchgen.engines.compiled.threads import Loop
from batchgen.engines.int8.linear import LEAST_PEAK, MOST, ZERO_POINT

BYTES = types.CPointer(types.uint8)


@lru_cache
def quantize(dtype: str) -> Loop:
    """Quantize rows `[N, I]` to unsigned integers around `ZERO_POINT`, `[G, N, I / G]`, with scales `[G, N]`.

    Columns that are 0 in counted `[I]` do not count for the scales, and their integers mean nothing: those at places
    `[K]` are copied to loud `[N, K]`.
    """
    most, zero_point = f4(MOST), f4(ZERO_POINT)

    @compiled(STORED[dtype], BYTES, FLOAT, FLOAT, INTEGERS, FLOAT, *[INTEGER] * 4)
    def run(first, last, x_, integers_, scales_, counted_, places_, loud_, rows, size, groups, num_loud):
        part = size // groups
        whole, places, loud = carray(x_, (rows, size)), carray(places_, (num_loud,)), carray(loud_, (rows, num_loud))
        x, integers = carray(x_, (rows, groups, part)), carray(integers_, (groups, rows, part))
        scales, counted = carray(scales_, (groups, rows)), carray(counted_, (groups, part))
        for row in range(first, last):
            for k in range(num_loud):
                loud[row, k] = wide(whole[row, places[k]])
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
def finish(dtype: str, activation: str, *, has_start: bool, has_bias: bool, adds: bool) -> Loop:
    """Scale and add the products of groups of inputs: `[N, O]`, in the order of the groups.

    products `[G]` are the addresses of `[N, O]`, scales are `[G, N]`. A start `[N, O]` comes first; a bias `[O]`, an
    activation and another tensor `[N, O]` come last.
    """
    is_gelu = activation == GELU_TANH

    @compiled(INTEGERS, FLOAT, FLOAT, FLOAT, STORED[dtype], STORED[dtype], *[INTEGER] * 3)
    def run(first, last, products_, scales_, start_, bias_, other_, out_, rows, size, groups):
        products, scales, bias = carray(products_, (groups,)), carray(scales_, (groups, rows)), carray(bias_, (size,))
        start, other, out = carray(start_, (rows, size)), carray(other_, (rows, size)), carray(out_, (rows, size))
        sums = np.empty(size, np.float32)
        for row in range(first, last):
            for i in range(size):
                sums[i] = start[row, i] if has_start else f4(0)
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
