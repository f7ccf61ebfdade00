"""The loop of a step's attention: each row's query to its pages, in the order of their columns."""

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
    Kernel,
    at,
    compiled,
    exp,
    f4,
    inlined,
    stored,
    tanh,
    wide,
)
from batchgen.engines.continuous.memory import PAGE

FLOAT_BYTES = 4
PREFIX_FIELDS = 8  # integers that describe a shared prefix


@lru_cache
def attention(dtype: str, head_size: int, group: int, *, has_cap: bool, has_sinks: bool) -> Kernel:
    """Attention of queries `[B, Hkv, G, D]` to the pages of their rows: `[B, Hkv, G, D]`.

    order `[N]` are the pages of each row, from begin[b] to begin[b + 1]. Keys and values are `[U, Hkv, PAGE, D]`; mask
    `[U * Q, PAGE]` is added to the scores. Numbers below U * Q (`num_own`) are pages that count Q (`times`) times. The
    others belong to `num_prefixes` prefixes, each described by `PREFIX_FIELDS` integers: its first number, its pages
    per row, the addresses of its keys and of its values `[Hkv, P, D]`, P, the number of columns from there on, the
    address of a mask `[R, P']` or 0, and P'.
    """
    size, num_queries, page_size, fields = head_size, group, PAGE, PREFIX_FIELDS
    kind, item = NUMPY[dtype], np.dtype(NUMPY[dtype]).itemsize

    @compiled(STORED[dtype], *[INTEGER] * 3, *[INTEGERS] * 3, FLOAT, STORED[dtype], *[INTEGER] * 6, NUMBER, NUMBER)
    def run(
        query_, keys_at, values_at, mask_at, order_, begin_, prefixes_, sinks_, out_, first, last, kv_heads, num_own,
        times, num_prefixes, scaling, cap,
    ):  # fmt: skip
        shape = (last, kv_heads, num_queries, size)
        query, out = carray(query_, shape), carray(out_, shape)
        begin = carray(begin_, (last + 1,))
        order, sinks = carray(order_, (begin[last],)), carray(sinks_, (kv_heads, num_queries))
        prefixes = carray(prefixes_, (num_prefixes, fields))
        own = (keys_at, values_at, mask_at, num_own, times, kv_heads, page_size, size * item)
        longest = most_pages(begin, first, last)
        scores, where = np.empty((num_queries, longest * page_size), np.float32), np.empty((longest, 4), np.int64)
        scaled, sums = np.empty((num_queries, size), np.float32), np.empty((num_queries, size), np.float32)
        for row in range(first, last):
            pages = order[begin[row] : begin[row + 1]]
            for h in range(kv_heads):
                find_pages(where, pages, h, own, prefixes)
                scale(query[row, h], scaling, scaled, sums)
                score(scores, scaled, where[: len(pages)], (page_size, size), kind, cap, has_cap)
                for g in range(num_queries):
                    weigh(scores[g], len(pages), page_size, sinks[h, g] if has_sinks else f4(-np.inf), has_sinks)
                add_values(sums, scores, where[: len(pages)], (page_size, size), kind)
                store(sums, out[row, h])

    return run


@inlined
def most_pages(begin, first, last):
    most = 0
    for row in range(first, last):
        most = max(most, begin[row + 1] - begin[row])
    return most


@inlined
def find_pages(where, pages, head, own, prefixes):
    """Write where pages are, `[N, 4]`: addresses of a head's keys, values and mask (or 0), the number of columns."""
    keys_at, values_at, mask_at, num_own, times, kv_heads, page_size, column_bytes = own
    for n in range(len(pages)):
        number = pages[n]
        if number < num_own:
            place = (number // times * kv_heads + head) * page_size * column_bytes
            where[n] = keys_at + place, values_at + place, mask_at + number * page_size * FLOAT_BYTES, page_size
        else:
            k = len(prefixes) - 1
            while prefixes[k, 0] > number:
                k -= 1
            first, num_pages, its_keys_at, its_values_at, length, seen, its_mask_at, mask_length = prefixes[k]
            row, page = divmod(number - first, num_pages)
            place = (head * length + page * page_size) * column_bytes
            hidden = its_mask_at + (row * mask_length + page * page_size) * FLOAT_BYTES if its_mask_at != 0 else 0
            where[n] = its_keys_at + place, its_values_at + place, hidden, min(page_size, seen - page * page_size)


@inlined
def scale(query, scaling, scaled, sums):
    """Write scaled queries `[G, D]` to `scaled`, and zeros to `sums`."""
    for g in range(query.shape[0]):
        for i in range(query.shape[1]):
            scaled[g, i] = wide(query[g, i]) * scaling
            sums[g, i] = f4(0)


@inlined
def store(sums, out):
    for g in range(sums.shape[0]):
        for i in range(sums.shape[1]):
            out[g, i] = stored(sums[g, i], out)


@inlined
def score(scores, scaled, where, shape, kind, cap, has_cap):
    """Write the scores of all columns, `[G, N * PAGE]`; those of hidden columns are the lowest float32."""
    for n in range(len(where)):
        keys, start, num_columns = carray(at(where[n, 0]), shape, kind), n * shape[0], where[n, 3]
        for c in range(num_columns):
            for g in range(scaled.shape[0]):
                total = f4(0)
                for i in range(shape[1]):
                    total += scaled[g, i] * wide(keys[c, i])
                scores[g, start + c] = total
        if has_cap:
            cap_scores(scores, start, num_columns, cap)
        if where[n, 2] != 0:
            hide(scores, start, carray(at(where[n, 2]), (num_columns,), np.float32))
        scores[:, start + num_columns : start + shape[0]] = f4(-np.inf)


@inlined
def cap_scores(scores, start, num_columns, cap):
    for g in range(scores.shape[0]):
        for c in range(start, start + num_columns):
            scores[g, c] = tanh(scores[g, c] / cap) * cap


@inlined
def hide(scores, start, mask):
    for g in range(scores.shape[0]):
        for c in range(len(mask)):
            scores[g, start + c] += mask[c]


@inlined
def weigh(scores, num_pages, page_size, sink, has_sink):
    """Replace scores with their softmax, whose sum is one of pages: a hidden page more changes no bits.

    A sink takes part of the weight.
    """
    peak = sink
    for c in range(num_pages * page_size):
        peak = max(peak, scores[c])
    total = exp(sink - peak) if has_sink else f4(0)
    for n in range(num_pages):
        its = f4(0)
        for c in range(n * page_size, (n + 1) * page_size):
            scores[c] = exp(scores[c] - peak)
            its += scores[c]
        total += its
    for c in range(num_pages * page_size):
        scores[c] = scores[c] / total


@inlined
def add_values(sums, scores, where, shape, kind):
    """Add all columns' values, weighted, four columns at a time."""
    for n in range(len(where)):
        values, start, num_columns = carray(at(where[n, 1]), shape, kind), n * shape[0], where[n, 3]
        for g in range(sums.shape[0]):
            for c in range(0, num_columns - 3, 4):
                w0, w1, w2, w3 = scores[g, start + c : start + c + 4]
                for i in range(shape[1]):
                    left = w0 * wide(values[c, i]) + w1 * wide(values[c + 1, i])
                    sums[g, i] += left + (w2 * wide(values[c + 2, i]) + w3 * wide(values[c + 3, i]))
            for c in range(num_columns // 4 * 4, num_columns):
                for i in range(shape[1]):
                    sums[g, i] += scores[g, start + c] * wide(values[c, i])
