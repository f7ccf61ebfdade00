"""Loops over rows: norms, the gate of an MLP, and the way of a new token's heads into the cache.

Each computes the rows from `first` to `last`, since threads share them.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numba import carray

from batchgen.engines.compiled.compiling import (
    FLOAT,
    INTEGER,
    INTEGERS,
    NUMBER,
    STORED,
    compiled,
    f4,
    gelu,
    inlined,
    sigmoid,
    stored,
    wide,
)
from batchgen.engines.compiled.threads import Loop
from batchgen.engines.continuous.memory import PAGE

SILU, GELU_TANH = "swish", "gelu tanh"  # oneDNN's names, as in `fused.product`


@lru_cache
def norm(dtype: str, *, is_centered: bool) -> Loop:
    """RMS norm of rows `[N, E]` with weight `[E]`; `is_centered` is the layer norm, with a bias `[E]`."""

    @compiled(STORED[dtype], FLOAT, FLOAT, STORED[dtype], INTEGER, NUMBER)
    def run(first, last, x_, weight_, bias_, out_, size, eps):
        x, out = carray(x_, (last, size)), carray(out_, (last, size))
        weight, bias = carray(weight_, (size,)), carray(bias_, (size,))
        for row in range(first, last):
            mean = f4(0)
            if is_centered:
                for i in range(size):
                    mean += wide(x[row, i])
                mean = mean / f4(size)
            squares = f4(0)
            for i in range(size):
                value = wide(x[row, i]) - mean
                squares += value * value
            scale = f4(1) / np.sqrt(squares / f4(size) + eps)
            for i in range(size):
                value = (wide(x[row, i]) - mean) * scale * weight[i]
                out[row, i] = stored(value + bias[i] if is_centered else value, out)

    return run


@lru_cache
def gate(dtype: str, activation: str) -> Loop:
    """The activation of the first half of rows `[N, 2 I]`, times the second half: `[N, I]`."""
    is_silu = activation == SILU

    @compiled(STORED[dtype], STORED[dtype], INTEGER)
    def run(first, last, x_, out_, size):
        x, out = carray(x_, (last, 2, size)), carray(out_, (last, size))
        for row in range(first, last):
            for i in range(size):
                value = wide(x[row, 0, i])
                active = value * sigmoid(value) if is_silu else gelu(value)
                out[row, i] = stored(active * wide(x[row, 1, i]), out)

    return run


@lru_cache
def turn(dtype: str, head_size: int, *, is_normed: bool, is_turned: bool) -> Loop:
    """Norm and rotate the queries and keys of all columns: mixed `[N, H + 2 Hkv, D]` gives `[N, H + Hkv, D]`.

    cosines and sines are `[T, D]`; column n has those at n modulo T.
    """
    size = head_size

    @compiled(STORED[dtype], *[FLOAT] * 4, STORED[dtype], *[INTEGER] * 3, NUMBER)
    def run(
        first, last, mixed_, cosines_, sines_, norm_queries_, norm_keys_, out_, num_tables, heads, kv_heads, eps
    ):  # fmt: skip
        mixed, out = carray(mixed_, (last, heads + 2 * kv_heads, size)), carray(out_, (last, heads + kv_heads, size))
        cosines, sines = carray(cosines_, (num_tables, size)), carray(sines_, (num_tables, size))
        norm_queries, norm_keys = carray(norm_queries_, (size,)), carray(norm_keys_, (size,))
        head = np.empty(size, np.float32)
        for row in range(first, last):
            place = row % num_tables
            for h in range(heads + kv_heads):
                read_head(mixed[row, h], head, norm_queries if h < heads else norm_keys, eps, is_normed)
                if is_turned:
                    turn_head(head, cosines[place], sines[place], out[row, h])
                else:
                    for i in range(size):
                        out[row, h, i] = stored(head[i], out)

    return run


@lru_cache
def entry(dtype: str, head_size: int, *, is_normed: bool, is_turned: bool) -> Loop:
    """Norm and rotate the heads of one new token per row, and write keys and values to their pages.

    mixed `[B, H + 2 Hkv, D]` gives query `[B, H, D]`; cosines and sines are `[B, D]` or `[1, D]`, page and column
    `[B]`.
    """
    size, page_size = head_size, PAGE

    @compiled(STORED[dtype], *[FLOAT] * 4, *[STORED[dtype]] * 3, INTEGERS, INTEGERS, *[INTEGER] * 3, NUMBER)
    def run(
        first, last, mixed_, cosines_, sines_, norm_queries_, norm_keys_, query_, keys_, values_, page_, column_,
        num_tables, heads, kv_heads, eps,
    ):  # fmt: skip
        mixed, query = carray(mixed_, (last, heads + 2 * kv_heads, size)), carray(query_, (last, heads, size))
        cosines, sines = carray(cosines_, (num_tables, size)), carray(sines_, (num_tables, size))
        norm_queries, norm_keys = carray(norm_queries_, (size,)), carray(norm_keys_, (size,))
        page, column = carray(page_, (last,)), carray(column_, (last,))
        head = np.empty(size, np.float32)
        for row in range(first, last):
            keys = carray(keys_, (page[row] + 1, kv_heads, page_size, size))[page[row], :, column[row]]
            values = carray(values_, (page[row] + 1, kv_heads, page_size, size))[page[row], :, column[row]]
            place = row % num_tables
            for h in range(heads + kv_heads):
                read_head(mixed[row, h], head, norm_queries if h < heads else norm_keys, eps, is_normed)
                target = query[row, h] if h < heads else keys[h - heads]
                if is_turned:
                    turn_head(head, cosines[place], sines[place], target)
                else:
                    for i in range(size):
                        target[i] = stored(head[i], target)
            for h in range(kv_heads):
                for i in range(size):
                    values[h, i] = mixed[row, heads + kv_heads + h, i]

    return run


@inlined
def read_head(stored_head, head, weight, eps, is_normed):
    """Write a head `[D]` to the float32 `head`, normed if its layer does that."""
    for i in range(len(head)):
        head[i] = wide(stored_head[i])
    if is_normed:
        norm_head(head, weight, eps)


@inlined
def norm_head(head, weight, eps):
    """Apply the RMS norm in place."""
    squares = f4(0)
    for i in range(len(head)):
        squares += head[i] * head[i]
    scale = f4(1) / np.sqrt(squares / f4(len(head)) + eps)
    for i in range(len(head)):
        head[i] = head[i] * scale * weight[i]


@inlined
def turn_head(head, cosines, sines, target):
    """Rotate a head by its position, in halves (arXiv:2104.09864)."""
    half = len(head) // 2
    for i in range(half):
        target[i] = stored(head[i] * cosines[i] - head[i + half] * sines[i], target)
    for i in range(half, 2 * half):
        target[i] = stored(head[i] * cosines[i] + head[i - half] * sines[i], target)
