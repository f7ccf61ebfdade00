"""A loop that quantizes rows to 8-bit integers."""

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
    u4,
    wide,
)
from batchgen.engines.compiled.threads import Loop
from batchgen.engines.compiled.tile import GROUP
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
