"""Loops for products in 8-bit integers: quantize rows, and multiply them with panels of weights."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numba import carray, types

from batchgen.engines.compiled.compiling import (
    FLOAT,
    INTEGER,
    INTEGERS,
    STORED,
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
from batchgen.engines.compiled.tile import GROUP, PANEL, ROWS, WORD, multiply_row, multiply_rows
from batchgen.engines.int8.linear import LEAST_PEAK, MOST, ZERO_POINT

BYTES, SUMS = types.CPointer(types.int8), types.CPointer(types.int32)


@lru_cache
def quantize(dtype: str) -> Loop:
    """Quantize rows `[N, I]` to signed integers `[N, G, 64]`, with a scale per group `[N, G]`.

    Weights are unsigned, 128 too large: `starts` `[N, G]` make up for it, -128 times the sum of a group's integers.
    Columns that are 0 in counted `[I]` become zeros: those at places `[K]` are copied to loud `[N, K]`.
    """

    @compiled(STORED[dtype], BYTES, FLOAT, SUMS, FLOAT, INTEGERS, FLOAT, *[INTEGER] * 3)
    def run(first, last, x_, integers_, scales_, starts_, counted_, places_, loud_, rows, size, num_loud):
        groups = (size + GROUP - 1) // GROUP
        x, counted = carray(x_, (rows, size)), carray(counted_, (size,))
        places, loud = carray(places_, (num_loud,)), carray(loud_, (rows, num_loud))
        integers = carray(integers_, (rows, groups, GROUP))
        scales, starts = carray(scales_, (rows, groups)), carray(starts_, (rows, groups))
        for row in range(first, last):
            for k in range(num_loud):
                loud[row, k] = wide(x[row, places[k]])
            for group in range(groups):
                begin, made = group * GROUP, integers[row, group]
                its, counts = x[row, begin : begin + GROUP], counted[begin : begin + GROUP]
                if len(its) == GROUP:  # a known number of turns makes for faster code
                    scales[row, group], starts[row, group] = quantize_group(its, counts, made, GROUP)
                else:
                    made[:] = np.int8(0)
                    scales[row, group], starts[row, group] = quantize_group(its, counts, made, len(its))

    return run


@inlined
def quantize_group(x, counted, made, size):
    """Write the integers of one group, and return their scale and their start."""
    peak, total = largest(x, counted, size), i4(0)
    factor = f4(MOST) / peak
    for i in range(size):
        # Plus a half, because the conversion truncates.
        number = i4(i4(wide(x[i]) * counted[i] * factor + f4(ZERO_POINT + 0.5)) - i4(ZERO_POINT))
        made[i] = np.int8(number)
        total = i4(total + number)  # Numba's sums have 64 bits
    return peak / f4(MOST), i4(-ZERO_POINT * total)


@inlined
def largest(x, counted, size):
    """Return the largest absolute value, NaN or infinity if there is one: bits of positive floats have their order."""
    peak = i4(0)
    for i in range(size):
        peak = max(peak, i4(f4(wide(x[i]) * counted[i]).view(np.int32) & i4(0x7FFFFFFF)))
    found = u4(peak).view(np.float32)
    return f4(LEAST_PEAK) if found < f4(LEAST_PEAK) else found


@lru_cache
def multiply(dtype: str, activation: str, *, has_bias: bool, adds: bool) -> Loop:
    """Multiply rows with panels of weights (see `tile`): `[N, O]`.

    The loop runs over parts of the rows of each panel. A bias `[O]`, an activation and another tensor `[N, O]` come
    last.
    """
    is_gelu = activation == GELU_TANH

    @compiled(*[INTEGER] * 7, FLOAT, STORED[dtype], STORED[dtype], *[INTEGER] * 5)
    def run(
        first, last, integers, scales, starts, loud, weights, weight_scales, loud_weights, bias_, other_, out_,
        rows, size, groups, num_loud, parts,
    ):  # fmt: skip
        bias, other, out = carray(bias_, (size,)), carray(other_, (rows, size)), carray(out_, (rows, size))
        sums = np.empty((ROWS, PANEL), np.float32)
        sums_at = sums.ctypes.data
        for item in range(first, last):
            panel, part = item // parts, item % parts
            row, end, begin = rows * part // parts, rows * (part + 1) // parts, panel * PANEL
            stop = min(begin + PANEL, size)
            its = weights + begin * groups * GROUP
            fine, its_loud = weight_scales + begin * groups * WORD, loud_weights + begin * num_loud * WORD
            while row < end:
                place = row * groups
                mine, scale, start = integers + place * GROUP, scales + place * WORD, starts + place * WORD
                spared, number = loud + row * num_loud * WORD, ROWS if end - row >= ROWS else 1
                if number == ROWS:
                    multiply_rows(mine, scale, start, spared, its, fine, its_loud, groups, num_loud, sums_at)
                else:
                    multiply_row(mine, scale, start, spared, its, fine, its_loud, groups, num_loud, sums_at)
                for k in range(number):
                    its_bias, its_other = bias[begin:stop], other[row + k, begin:stop]
                    its_out = out[row + k, begin:stop]
                    for i in range(len(its_out)):
                        value = sums[k, i] + its_bias[i] if has_bias else sums[k, i]
                        value = gelu(value) if is_gelu else value
                        its_out[i] = stored(value + wide(its_other[i]) if adds else value, out)
                row += number

    return run


@inlined
def gelu(x):
    """Return the approximation with tanh (arXiv:1606.08415): twice a sigmoid is one more than tanh of half as much."""
    return x * sigmoid(f4(1.5957691216057308) * (x + f4(0.044715) * x * x * x))
