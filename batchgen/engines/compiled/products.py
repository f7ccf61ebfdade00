"""A loop that multiplies rows with panels of weights, and does what follows the product."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache

import numpy as np
import torch
from numba import carray

from batchgen.engines.compiled.compiling import FLOAT, INTEGER, STORED, compiled, gelu, inlined, sigmoid, stored, wide
from batchgen.engines.compiled.rows import GELU_TANH, SILU
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
from batchgen.engines.fused.product import GATE
from batchgen.engines.int8.support import INT8

ITEMS = 16  # of a thread's work, at least, if there are rows enough
FOLLOWS = (GELU_TANH, GATE + GELU_TANH, GATE + SILU)  # what the loop can do with a product, besides adding to it
ROWS_AT_ONCE = 32  # whose sums are kept until all panels of an item are multiplied
LEAST_ROWS = 64  # of an item: a panel of weights is read anew for each


@lru_cache
def multiply(kind: str, dtype: str, follow: str, *, has_bias: bool, adds: bool) -> Loop:
    """Multiply rows of a kind, `INT8` or the dtype, with panels of weights: `[N, O]`; `tile` describes what it reads.

    The loop runs over parts of the rows of each panel. `count` is that of groups, or of words of floats. A bias `[O]`
    comes last, and another tensor `[N, O]` or what follows: an activation, or a gate, for `[N, O / 2]`.
    """
    is_gelu, is_gate = follow.endswith(GELU_TANH), follow.startswith(GATE)
    is_integer, is_paired = True if kind == INT8 else None, True if kind == "bfloat16" else None  # `multiply_panels`
    panels_of_item = 2 if is_gate else 1
    most, width = panels_of_item * PANEL, GROUP if is_integer else WORD  # bytes of one of `count`, for each output

    @compiled(*[INTEGER] * 7, FLOAT, STORED[dtype], STORED[dtype], *[INTEGER] * 5)
    def run(
        first, last, x, scales, starts, loud, weights, weight_scales, loud_weights, bias_, other_, out_,
        rows, size, count, num_loud, parts,
    ):  # fmt: skip
        bias, other = carray(bias_, (size,)), carray(other_, (rows, size))
        out = carray(out_, (rows, size // panels_of_item))
        sums = np.empty((ROWS_AT_ONCE, most), np.float32)
        for item in range(first, last):
            begin, part = item // parts * most, item % parts
            stop, row, end = min(begin + most, size), rows * part // parts, rows * (part + 1) // parts
            place, place_loud = begin * count * WORD, begin * num_loud * WORD
            panels = weights + begin * count * width, weight_scales + place, loud_weights + place_loud
            while row < end:
                some, place = min(end - row, ROWS_AT_ONCE), row * count * WORD
                its = x + row * count * width, scales + place, starts + place, loud + row * num_loud * WORD
                multiply_panels(its, some, panels, stop - begin, sums, count, num_loud, is_integer, is_paired)
                for k in range(some):
                    if is_gate:
                        finish_gate(sums[k], bias[begin:stop], out[row + k, begin // 2 : stop // 2], has_bias, is_gelu)
                    else:
                        its_other, its_out = other[row + k, begin:stop], out[row + k, begin:stop]
                        finish(sums[k], bias[begin:stop], its_other, its_out, has_bias, is_gelu, adds)
                row += some

    return run


@inlined
def multiply_panels(its, rows, panels, num_outputs, sums, count, num_loud, is_integer, is_paired):
    """Write the sums of rows and some outputs, whose panels lie one after the other.

    `its` are the addresses of the first row's integers, scales, starts and loud; `panels` those of the first panel's
    weights, their scales and the weights of loud inputs. is_integer and is_paired are True or None, not False: then no
    code is made for the other kinds, whose instructions this processor may lack.
    """
    weights, weight_scales, loud_weights = panels
    stride = sums.shape[1] * WORD
    for begin in range(0, num_outputs, PANEL):
        found, scale = sums.ctypes.data + begin * WORD, weight_scales + begin * count * WORD
        if is_integer is not None:
            its_loud, its_weights = loud_weights + begin * num_loud * WORD, weights + begin * count * GROUP
            multiply_integers(its, rows, count, num_loud, its_weights, scale, its_loud, found, stride)
        else:
            multiply_floats(its[0], rows, count, weights + begin * count * WORD, found, stride, is_paired)


@inlined
def multiply_integers(its, rows, count, num_loud, weights, weight_scales, loud_weights, sums, stride):
    """Multiply rows with a panel."""
    x, scales, starts, loud = its
    row = 0
    while row < rows:
        mine, place, spared = x + row * count * GROUP, row * count * WORD, loud + row * num_loud * WORD
        scale, start, found = scales + place, starts + place, sums + row * stride
        if rows - row >= ROWS:
            integer_rows(
                mine, scale, start, spared, weights, weight_scales, loud_weights, count, num_loud, found, stride
            )
            row += ROWS
        else:
            integer_row(
                mine, scale, start, spared, weights, weight_scales, loud_weights, count, num_loud, found, stride
            )
            row += 1


@inlined
def multiply_floats(x, rows, count, weights, sums, stride, is_paired):
    row = 0
    while row < rows:
        mine, found = x + row * count * WORD, sums + row * stride
        if rows - row >= ROWS:
            if is_paired is not None:
                pair_rows(mine, count, weights, found, stride)
            else:
                float_rows(mine, count, weights, found, stride)
            row += ROWS
        else:
            if is_paired is not None:
                pair_row(mine, count, weights, found, stride)
            else:
                float_row(mine, count, weights, found, stride)
            row += 1


@inlined
def finish(sums, bias, other, out, has_bias, is_gelu, adds):
    """Write the outputs of a row and a panel from their sums."""
    for i in range(len(out)):
        value = sums[i] + bias[i] if has_bias else sums[i]
        value = gelu(value) if is_gelu else value
        out[i] = stored(value + wide(other[i]) if adds else value, out)


@inlined
def finish_gate(sums, bias, out, has_bias, is_gelu):
    """Write the outputs of a row from their sums: an activation's inputs and, after them, what they are times."""
    half = len(out)
    if half == PANEL:  # a known number of turns makes for faster code
        multiply_gate(sums, sums[PANEL:], bias, bias[PANEL:], out, PANEL, has_bias, is_gelu)
    else:
        multiply_gate(sums, sums[half:], bias, bias[half:], out, half, has_bias, is_gelu)


@inlined
def multiply_gate(values, factors, bias, bias_factors, out, size, has_bias, is_gelu):
    for i in range(size):
        value, factor = values[i], factors[i]
        if has_bias:
            value, factor = value + bias[i], factor + bias_factors[i]
        active = gelu(value) if is_gelu else value * sigmoid(value)
        out[i] = stored(active * factor, out)


def in_panels(outputs: torch.Tensor, follow: str) -> Iterator[torch.Tensor]:
    """Yield the part `[48, …]` of each panel of `[O, …]`, the last maybe shorter.

    With a gate, two panels have outputs of the first half, and then those of the second that these are times.
    """
    if follow.startswith(GATE):
        parts = (torch.split(half, PANEL) for half in outputs.chunk(2))
        for both in map(torch.cat, zip(*parts, strict=True)):
            yield from torch.split(both, PANEL)
    else:
        yield from torch.split(outputs, PANEL)


def order(num_outputs: int, follow: str) -> torch.Tensor:
    """Return the outputs `[O]` in the order in which panels have them."""
    return torch.cat(list(in_panels(torch.arange(num_outputs), follow)))


def shares(rows: int, num_outputs: int, follow: str) -> tuple[int, int]:
    """Return how many items of work there are, and in how many parts rows are multiplied, for threads to have alike."""
    blocks = -(-num_outputs // (2 * PANEL if follow.startswith(GATE) else PANEL))
    parts = max(1, min(rows // LEAST_ROWS, -(-ITEMS * torch.get_num_threads() // blocks)))
    return blocks * parts, parts
