"""A loop that multiplies rows with panels of weights, and does what follows the product."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
from numba import carray

from batchgen.engines.compiled.compiling import FLOAT, INTEGER, STORED, compiled, gelu, inlined, stored, wide
from batchgen.engines.compiled.rows import GELU_TANH
from batchgen.engines.compiled.threads import Loop
from batchgen.engines.compiled.tile import (
    GROUP,
    PANEL,
    ROWS,
    float_row,
    float_rows,
    integer_row,
    integer_rows,
    pair_row,
    pair_rows,
)
from batchgen.engines.compiled.writer import WORD
from batchgen.engines.int8.support import INT8

ITEMS = 16  # of a thread's work, at least, if there are rows enough
LEAST_ROWS = 64  # of an item: a panel of weights is read anew for each


@lru_cache
def multiply(kind: str, dtype: str, activation: str, *, has_bias: bool, adds: bool) -> Loop:
    """Multiply rows of a kind, `INT8` or the dtype, with panels of weights: `[N, O]`; `tile` describes what it reads.

    The loop runs over parts of the rows of each panel. `count` is that of groups, or of words of floats. A bias `[O]`,
    an activation and another tensor `[N, O]` come last.
    """
    is_integer, is_paired, is_gelu = kind == INT8, kind == "bfloat16", activation == GELU_TANH
    width = GROUP if is_integer else WORD  # bytes of one of `count`, in each row and for each output

    @compiled(*[INTEGER] * 7, FLOAT, STORED[dtype], STORED[dtype], *[INTEGER] * 5)
    def run(
        first, last, x, scales, starts, loud, weights, weight_scales, loud_weights, bias_, other_, out_,
        rows, size, count, num_loud, parts,
    ):  # fmt: skip
        bias, other, out = carray(bias_, (size,)), carray(other_, (rows, size)), carray(out_, (rows, size))
        sums = np.empty((ROWS, PANEL), np.float32)
        sums_at = sums.ctypes.data
        for item in range(first, last):
            panel, part = item // parts, item % parts
            row, end, begin = rows * part // parts, rows * (part + 1) // parts, panel * PANEL
            stop, its = min(begin + PANEL, size), weights + begin * count * width
            fine, its_loud = weight_scales + begin * count * WORD, loud_weights + begin * num_loud * WORD
            while row < end:
                number = ROWS if end - row >= ROWS else 1
                mine, place, spared = x + row * count * width, row * count * WORD, loud + row * num_loud * WORD
                scale, start = scales + place, starts + place
                if is_integer and number == ROWS:
                    integer_rows(mine, scale, start, spared, its, fine, its_loud, count, num_loud, sums_at)
                elif is_integer:
                    integer_row(mine, scale, start, spared, its, fine, its_loud, count, num_loud, sums_at)
                else:
                    multiply_floats(mine, count, its, sums_at, number == ROWS, is_paired)
                for k in range(number):
                    its_out, its_other = out[row + k, begin:stop], other[row + k, begin:stop]
                    finish(sums[k], bias[begin:stop], its_other, its_out, has_bias, is_gelu, adds)
                row += number

    return run


@inlined
def multiply_floats(x, count, weights, sums_at, has_rows, is_paired):
    if is_paired and has_rows:
        pair_rows(x, count, weights, sums_at, PANEL * WORD)
    elif is_paired:
        pair_row(x, count, weights, sums_at, PANEL * WORD)
    elif has_rows:
        float_rows(x, count, weights, sums_at, PANEL * WORD)
    else:
        float_row(x, count, weights, sums_at, PANEL * WORD)


@inlined
def finish(sums, bias, other, out, has_bias, is_gelu, adds):
    """Write the outputs of a row and a panel from their sums."""
    for i in range(len(out)):
        value = sums[i] + bias[i] if has_bias else sums[i]
        value = gelu(value) if is_gelu else value
        out[i] = stored(value + wide(other[i]) if adds else value, out)


def num_parts(rows: int, panels: int) -> int:
    """Return in how many parts the rows of each panel are multiplied, so that threads have equal shares."""
    return max(1, min(rows // LEAST_ROWS, -(-ITEMS * torch.get_num_threads() // panels)))
