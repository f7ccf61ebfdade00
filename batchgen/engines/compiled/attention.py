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
    at,
    compiled,
    exp,
    f4,
    fetch_all,
    highest,
    inlined,
    stored,
    tanh,
    wide,
)
from batchgen.engines.compiled.threads import Loop
from batchgen.engines.continuous.memory import PAGE

FLOAT_BYTES = 4
PREFIX_FIELDS = 8  # integers that describe a shared prefix


@lru_cache
def attention(dtype: str, head_size: int, group: int, *, has_cap: bool, has_sinks: bool) -> Loop:
    """Attention of queries `[B, Hkv, G, D]` to the pages of their rows: `[B, Hkv, G, D]`.

    order `[N]` are the pages of each row, from begin[b] to begin[b + 1]. Keys and values are `[U, Hkv, PAGE, D]`; mask
    `[U * Q, PAGE]` is added to the scores. Numbers below U * Q (`num_own`) are pages that count Q (`times`) times. The
    others belong to `num_prefixes` prefixes, each described by `PREFIX_FIELDS` integers: its first number, its pages
    per row, the addresses of its keys and of its values `[Hkv, P, D]`, P, the number of columns from there on, the
    address of a mask `[R, P']` or 0, and P'.
    """
    size, num_queries, page_size, fields = head_size, group, PAGE, PREFIX_FIELDS
    kind, item = NUMPY[dtype], np.dtype(NUMPY[dtype]).itemsize

    @compiled(STORED[dtype], *[INTEGER] * 3, *[INTEGERS] * 3, FLOAT, STORED[dtype], *[INTEGER] * 4, NUMBER, NUMBER)
    def run(
        first, last, query_, keys_at, values_at, mask_at, order_, begin_, prefixes_, sinks_, out_, kv_heads, num_own,
        times, num_prefixes, scaling, cap,
    ):  # fmt: skip
        shape = (last, kv_heads * num_queries, size)
        query, out = carray(query_, shape), carray(out_, shape)
        begin = carray(begin_, (last + 1,))
        order, sinks = carray(order_, (begin[last],)), carray(sinks_, (kv_heads * num_queries,))
        prefixes = carray(prefixes_, (num_prefixes, fields))
        own = (keys_at, values_at, mask_at, num_own, times, kv_heads, page_size, size * item)
        longest, heads = most_pages(begin, first, last), kv_heads * num_queries
        scores, where = np.empty((heads, longest * page_size), np.float32), np.empty((longest, 5), np.int64)
        scaled, sums = np.empty((heads, size), np.float32), np.empty((heads, size), np.float32)
        for row in range(first, last):
            pages = order[begin[row] : begin[row + 1]]
            find_pages(where, pages, own, prefixes)
            scale(query[row], scaling, scaled, sums)
            score(scores, scaled, where[: len(pages)], (kv_heads, page_size, size, size * item), kind, cap, has_cap)
            for h in range(heads):
                weigh(scores[h], len(pages), page_size, sinks[h] if has_sinks else f4(-np.inf), has_sinks)
            add_values(sums, scores, where[: len(pages)], (kv_heads, page_size, size), kind)
            store(sums, out[row])

    return run


@inlined
def most_pages(begin, first, last):
    most = 0
    for row in range(first, last):
        most = max(most, begin[row + 1] - begin[row])
    return most


@inlined
def find_pages(where, pages, own, prefixes):
    """Write where pages are, `[N, 5]`: addresses of keys, values and mask (or 0), columns, and bytes of a head."""
    keys_at, values_at, mask_at, num_own, times, kv_heads, page_size, column_bytes = own
    for n in range(len(pages)):
        number = pages[n]
        if number < num_own:
            place = number // times * kv_heads * page_size * column_bytes
            hidden = mask_at + number * page_size * FLOAT_BYTES
            where[n] = keys_at + place, values_at + place, hidden, page_size, page_size * column_bytes
        else:
            k = len(prefixes) - 1
            while prefixes[k, 0] > number:
                k -= 1
            first, num_pages, its_keys_at, its_values_at, length, seen, its_mask_at, mask_length = prefixes[k]
            row, page = divmod(number - first, num_pages)
            place, count = page * page_size * column_bytes, min(page_size, seen - page * page_size)
            hidden = its_mask_at + (row * mask_length + page * page_size) * FLOAT_BYTES if its_mask_at != 0 else 0
            where[n] = its_keys_at + place, its_values_at + place, hidden, count, length * column_bytes


@inlined
def scale(query, scaling, scaled, sums):
    """Write scaled queries `[H, D]` to `scaled`, and zeros to `sums`."""
    for h in range(query.shape[0]):
        for i in range(query.shape[1]):
            scaled[h, i] = wide(query[h, i]) * scaling
            sums[h, i] = f4(0)


@inlined
def store(sums, out):
    for h in range(sums.shape[0]):
        for i in range(sums.shape[1]):
            out[h, i] = stored(sums[h, i], out)


@inlined
def score(scores, scaled, where, shape, kind, cap, has_cap):
    """Write the scores of all columns, `[H, N * PAGE]`; those of hidden columns are the lowest float32.

    Meanwhile the keys of the next head and the values of this one come into the caches.
    """
    kv_heads, page_size, size, column_bytes = shape
    group = len(scaled) // kv_heads
    for n in range(len(where)):
        start, num_columns = n * page_size, where[n, 3]
        mask = carray(at(where[n, 2]), (num_columns,), np.float32)
        if where[n, 2] != 0:
            num_columns = where[n, 3] = last_seen(mask)
        for k in range(kv_heads):
            keys = carray(at(where[n, 0] + k * where[n, 4]), (page_size, size), kind)
            is_last = k + 1 == kv_heads
            next_keys = where[min(n + 1, len(where) - 1), 0] if is_last else where[n, 0] + (k + 1) * where[n, 4]
            its_values = where[n, 1] + k * where[n, 4]
            for c in range(num_columns):
                fetch_all(next_keys + c * column_bytes, column_bytes)
                fetch_all(its_values + c * column_bytes, column_bytes)
                for h in range(k * group, (k + 1) * group):
                    total = f4(0)
                    for i in range(size):
                        total += scaled[h, i] * wide(keys[c, i])
                    scores[h, start + c] = total
        for h in range(len(scaled)):
            if has_cap:
                for c in range(start, start + num_columns):
                    scores[h, c] = tanh(scores[h, c] / cap) * cap
            if where[n, 2] != 0:
                for c in range(num_columns):
                    scores[h, start + c] += mask[c]
            for c in range(start + num_columns, start + page_size):
                scores[h, c] = f4(-np.inf)


@inlined
def last_seen(mask):
    """Return how many columns to look at: up to the last that is seen, in whole fours, as `add_values` adds them."""
    count = len(mask)
    while count > 0 and mask[count - 1] < f4(0):
        count -= 1
    return min(len(mask), (count + 3) // 4 * 4)


@inlined
def weigh(scores, num_pages, page_size, sink, has_sink):
    """Replace scores with their softmax, whose sum is one of pages: a hidden page more changes no bits.

    A sink takes part of the weight.
    """
    peak = highest(scores[: num_pages * page_size], sink)
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
    kv_heads, page_size, size = shape
    group = len(sums) // kv_heads
    for n in range(len(where)):
        start, num_columns = n * page_size, where[n, 3]
        for k in range(kv_heads):
            values = carray(at(where[n, 1] + k * where[n, 4]), (page_size, size), kind)
            for h in range(k * group, (k + 1) * group):
                for c in range(0, num_columns - 3, 4):
                    w0, w1, w2, w3 = scores[h, start + c : start + c + 4]
                    for i in range(size):
                        left = w0 * wide(values[c, i]) + w1 * wide(values[c + 1, i])
                        sums[h, i] += left + (w2 * wide(values[c + 2, i]) + w3 * wide(values[c + 3, i]))
                for c in range(num_columns // 4 * 4, num_columns):
                    for i in range(size):
                        sums[h, i] += scores[h, start + c] * wide(values[c, i])
