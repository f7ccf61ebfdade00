"""The loops of a prefill's attention: keys and values are laid out for `tile`, then multiplied with a few queries each.

A row's columns count from its first token, with those of a shared prefix. Its sums run over all of them in their order,
so its bits do not depend on other rows, on pads, or on how many of its tokens are in the prefix.
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
    NUMPY,
    STORED,
    at,
    compiled,
    exp,
    f4,
    highest,
    inlined,
    stored,
    tanh,
    u4,
)
from batchgen.engines.compiled.threads import Loop
from batchgen.engines.compiled.tile import ROWS, WIDE, wide_float_rows, wide_pair_rows
from batchgen.engines.compiled.writer import WORD

BITS = {"float32": np.uint32, "bfloat16": np.uint16}  # what stands for a number
MOST_QUERIES = 32  # of all heads that share keys, in one item of work
OWN_FIELDS, PREFIX_FIELDS = 4, 2  # integers that describe where keys or values are


@lru_cache
def lay_out(dtype: str, head_size: int) -> Loop:
    """Lay out the keys and values of rows in panels of 64 columns; the loop runs over the panels of all heads.

    own `[2, 4]` are the addresses of keys and values `[B, Hkv, T, D]`, and their strides by row, head and column in
    bytes; row b has its length[b] columns at the end. prefix `[2, 2]` is the same of the P columns before, `[Hkv, P,
    D]`: addresses and strides by head. Keys become words `[B, Hkv, S / 64, D / N, 64]`, values `[B, Hkv, D / 64, S / N,
    64]`, with N numbers to a word; the rest is 0.
    """
    kind = BITS[dtype]
    item = np.dtype(kind).itemsize
    numbers, parts = WORD // item, -(-head_size // WIDE)
    size, words, all_words = head_size, head_size // numbers, WIDE // numbers

    @compiled(*[INTEGERS] * 3, *[INTEGER] * 6)
    def run(first, last, own_, prefix_, length_, keys, values, kv_heads, columns, before, panels):
        own, prefix = carray(own_, (2, OWN_FIELDS)), carray(prefix_, (2, PREFIX_FIELDS))
        length = carray(length_, (last,))
        block = np.zeros((WIDE, parts * WIDE), kind)  # columns of one head, filled up with zeros
        for n in range(first, last):
            row, head, panel = n // panels // kv_heads, n // panels % kv_heads, n % panels
            place = (row, head, panel * WIDE, before, columns, length[row])
            gather(block, own[0], prefix[0], place, size, item)
            turn_keys(block.view(np.uint32), carray(at(keys + n * words * WIDE * WORD), (words, WIDE), np.uint32))
            gather(block, own[1], prefix[1], place, size, item)
            for part in range(parts):
                to = values + ((n // panels * parts + part) * panels + panel) * all_words * WIDE * WORD
                join_values(block, part * WIDE, carray(at(to), (all_words, WIDE), np.uint32), numbers)

    return run


@inlined
def gather(block, own, prefix, place, size, item):
    """Copy 64 columns of a head `[D]` from the prefix and from the row itself."""
    row, head, start, before, columns, length = place
    for c in range(len(block)):
        column = start + c
        if column >= before + length:
            for i in range(size):
                block[c, i] = 0
        else:
            if column < before:
                address = prefix[0] + head * prefix[1] + column * size * item
            else:
                address = own[0] + row * own[1] + head * own[2] + (columns - length + column - before) * own[3]
            source = carray(at(address), (size,), block.dtype)
            for i in range(size):
                block[c, i] = source[i]


@inlined
def turn_keys(block, target):
    for i in range(target.shape[0]):
        for c in range(target.shape[1]):
            target[i, c] = block[c, i]


@inlined
def join_values(block, begin, target, numbers):
    """Write the words of 64 numbers of each column; neighbouring columns share words of bfloat16."""
    for word in range(target.shape[0]):
        for i in range(target.shape[1]):
            if numbers == 1:
                target[word, i] = block[word, begin + i]
            else:
                low, high = u4(block[2 * word, begin + i]), u4(block[2 * word + 1, begin + i])
                target[word, i] = u4(low | u4(high << u4(16)))


@lru_cache
def attention(dtype: str, head_size: int, group: int, *, has_cap: bool, has_sinks: bool) -> Loop:
    """Attention of queries `[B, T, Hkv, G, D]` to what `lay_out` made: `[B, T, Hkv, G, D]`; pads get nothing.

    The loop runs over blocks of the queries of all heads. A query sees the columns up to its own: all of them, the last
    `window`, or those of its chunk; 0 stands for none. strides of queries are those by row and column, in bytes.
    """
    kind, is_paired, size, heads, block = NUMPY[dtype], dtype == "bfloat16", head_size, group, queries_of(group)
    item, parts, most = np.dtype(kind).itemsize, -(-head_size // WIDE), -(-block * group // ROWS) * ROWS
    numbers = WORD // item
    words = size // numbers

    @compiled(*[INTEGER] * 5, INTEGERS, FLOAT, STORED[dtype], *[INTEGER] * 6, NUMBER, NUMBER)
    def run(
        first, last, query, row_stride, stride, keys, values, length_, sinks_, out_, kv_heads, columns, before, panels,
        window, chunk, scaling, cap,
    ):  # fmt: skip
        length, sinks = carray(length_, (last,)), carray(sinks_, (kv_heads, heads))
        blocks, width = -(-columns // block), panels * WIDE
        out = carray(out_, (last, columns, kv_heads, heads, size))
        x, scores = np.zeros((most, words), np.uint32), np.empty(most * width, np.float32)
        weights, totals = np.zeros(most * width, kind), np.ones(most, np.float32)
        for n in range(first, last):
            row, head, begin = n // blocks // kv_heads, n // blocks % kv_heads, fold(n % blocks, blocks) * block
            end, pads = min(begin + block, length[row]), columns - length[row]
            if begin < end:
                start = first_seen(before + begin, window, chunk) // WIDE * WIDE
                seen, count = -(-(before + end) // WIDE) * WIDE - start, (end - begin) * heads
                mine = query + row * row_stride + (pads + begin) * stride + head * heads * size * item
                read_queries(x, mine, stride, count, heads)
                score(scores, x, keys + (n // blocks * width + start) * words * WORD, seen, count, is_paired)
                columns_seen = (before + begin, start, seen, window, chunk)
                weigh(scores, weights, totals[:count], sinks[head], columns_seen, (scaling, cap), has_cap, has_sinks)
                its_values = values + (n // blocks * parts * width + start) // numbers * WIDE * WORD
                found = out[row, pads + begin : pads + end, head]
                add_values(found, weights, totals, its_values, (seen, width, numbers), is_paired)

    return run


@inlined
def fold(place, count):
    """Return the blocks of a row from both ends in turn, because later ones have more to do."""
    return place // 2 if place % 2 == 0 else count - 1 - place // 2


@inlined
def first_seen(position, window, chunk):
    """Do what `LayerRule.first_seen` does."""
    if chunk:
        return position - position % chunk
    return max(0, position + 1 - window) if window else 0


@inlined
def read_queries(x, address, stride, count, heads):
    words = x.shape[1]
    for i in range(count):
        source = carray(at(address + i // heads * stride + i % heads * words * WORD), (words,), np.uint32)
        for k in range(words):
            x[i, k] = source[k]


@inlined
def multiply(x, words, panel, sums, stride, is_paired):
    if is_paired:
        wide_pair_rows(x, words, panel, sums, stride)
    else:
        wide_float_rows(x, words, panel, sums, stride)


@inlined
def score(scores, x, keys, seen, count, is_paired):
    """Write the products of queries with the keys of `seen` columns, `[N, seen]`."""
    words, queries, first = x.shape[1], x.ctypes.data, scores.ctypes.data
    for start in range(0, seen, WIDE):
        for i in range(0, count, ROWS):
            panel, sums = keys + start * words * WORD, first + (i * seen + start) * WORD
            multiply(queries + i * words * WORD, words, panel, sums, seen * WORD, is_paired)


@inlined
def weigh(scores, weights, totals, sinks, columns, arithmetic, has_cap, has_sinks):
    """Write the weights of columns `[N, seen]`, 0 where a query does not see one, and their sums, for N queries."""
    first, start, seen, window, chunk = columns
    heads = len(sinks)
    for i in range(len(totals)):
        place, sink = first + i // heads, sinks[i % heads] if has_sinks else f4(-np.inf)
        begin, end = first_seen(place, window, chunk) - start, place + 1 - start
        its = weights[i * seen : (i + 1) * seen]
        its[:begin] = 0
        its[end:] = 0
        totals[i] = weigh_seen(scores[i * seen :][begin:end], its[begin:end], sink, arithmetic, has_cap, has_sinks)


@inlined
def weigh_seen(scores, weights, sink, arithmetic, has_cap, has_sinks):
    """Write the weights of columns, relative to the highest one, and return their sum."""
    scaling, cap = arithmetic
    for c in range(len(scores)):
        value = scores[c] * scaling
        scores[c] = tanh(value / cap) * cap if has_cap else value
    peak = highest(scores, sink)
    total = exp(sink - peak) if has_sinks else f4(0)
    for c in range(len(scores)):
        value = exp(scores[c] - peak)
        weights[c] = stored(value, weights)
        total += value
    return total


@inlined
def add_values(found, weights, totals, values, shape, is_paired):
    """Write the sums `[N, G, D]` of values, weighted and divided by the sums of the weights."""
    seen, width, numbers = shape
    heads, size, sums = found.shape[1], found.shape[2], np.empty((ROWS, WIDE), np.float32)
    words, first, item = seen // numbers, weights.ctypes.data, WORD // numbers
    for start in range(0, size, WIDE):
        panel = values + start // WIDE * (width // numbers) * WIDE * WORD
        for i in range(0, len(found) * heads, ROWS):
            multiply(first + i * seen * item, words, panel, sums.ctypes.data, WIDE * WORD, is_paired)
            for k in range(min(ROWS, len(found) * heads - i)):
                target = found[(i + k) // heads, (i + k) % heads, start : start + WIDE]
                for c in range(len(target)):
                    target[c] = stored(sums[k, c] / totals[i + k], target)


def queries_of(group: int) -> int:
    """Return how many queries of each head an item of work has: a power of two, so that items begin alike."""
    return 1 << max(0, (MOST_QUERIES // group).bit_length() - 1)
