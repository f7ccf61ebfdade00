"""The loop of a step's attention: each row's query to its pages, in the order of their columns."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numba import carray

from batchgen.engines.compiled.compiling import (
    FLOAT,
    INTEGER,
    INTEGERS,
    LINE,
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
from batchgen.engines.compiled.dots import REGISTER, score_columns
from batchgen.engines.compiled.sums import WIDTH, add_values
from batchgen.engines.compiled.threads import Loop
from batchgen.engines.compiled.writer import LANES, WORD
from batchgen.engines.continuous.memory import PAGE

PREFIX_FIELDS, PLACE_FIELDS = 8, 5  # integers that describe a shared prefix, and where a page is


@lru_cache
def attention(dtype: str, head_size: int, group: int, *, has_cap: bool, has_sinks: bool, in_registers: bool) -> Loop:
    """Attention of queries `[B, Hkv, G, D]` to the pages of their rows: `[B, Hkv, G, D]`.

    order `[N]` are the pages of each row, from begin[b] to begin[b + 1]. Keys and values are `[U, Hkv, PAGE, D]`; mask
    `[U * Q, PAGE]` is added to the scores. Numbers below U * Q (`num_own`) are pages that count Q (`times`) times. The
    others belong to prefixes, each described by `PREFIX_FIELDS` integers: its first number, its pages per row, the
    addresses of its keys and of its values `[Hkv, P, D]`, P, the number of columns from there on, the address of a mask
    `[R, P']` or 0, and P'. `in_registers` multiplies by `dots` and adds by `sums`; P is then a multiple of 16.
    """
    size, num_queries, page_size, fields, known = head_size, group, PAGE, PREFIX_FIELDS, PLACE_FIELDS
    kind, item, registers = NUMPY[dtype], np.dtype(NUMPY[dtype]).itemsize, True if in_registers else None
    sums_in_registers = registers if head_size % WIDTH == 0 else None

    @compiled(STORED[dtype], *[INTEGER] * 3, *[INTEGERS] * 3, FLOAT, STORED[dtype], *[INTEGER] * 4, NUMBER, NUMBER)
    def run(
        first, last, query_, keys_at, values_at, mask_at, order_, begin_, prefixes_, sinks_, out_, kv_heads, num_own,
        times, num_prefixes, scaling, cap,
    ):  # fmt: skip
        shape = (last, kv_heads * num_queries, size)
        query, out = carray(query_, shape), carray(out_, shape)
        begin, prefixes = carray(begin_, (last + 1,)), carray(prefixes_, (num_prefixes, fields))
        order, sinks = carray(order_, (begin[last],)), carray(sinks_, (kv_heads * num_queries,))
        own = (keys_at, values_at, mask_at, num_own, times, kv_heads, page_size, size * item)
        longest, heads = most_pages(begin, first, last), kv_heads * num_queries
        scores, places = np.empty((heads, longest * page_size), np.float32), np.empty((2, longest, known), np.int64)
        wide_query, sums = np.empty((heads, size), np.float32), np.empty((heads, size), np.float32)
        by_head = (kv_heads, page_size, size, size * item)
        where = find_pages(places[0], pages_of(order, begin, first), own, prefixes)
        for row in range(first, last):
            following = find_pages(places[(row + 1 - first) % 2], pages_of(order, begin, row + 1), own, prefixes)
            begin_row(query[row], wide_query, sums)
            score(scores, wide_query, query[row].ctypes.data, where, by_head, kind, registers)
            finish_scores(scores, where, page_size, scaling, cap, has_cap)
            for h in range(heads):
                weigh(scores[h], len(where), page_size, sinks[h] if has_sinks else f4(-np.inf), has_sinks)
            add_values(sums, scores, where, following, by_head, kind, sums_in_registers)
            store(sums, out[row])
            where = following

    return run


@inlined
def most_pages(begin, first, last):
    most = 0
    for row in range(first, last):
        most = max(most, begin[row + 1] - begin[row])
    return most


@inlined
def pages_of(order, begin, row):
    """Return the numbers of a row's pages; none after the last row."""
    return order[begin[row] : begin[row + 1]] if row + 1 < len(begin) else order[:0]


@inlined
def find_pages(where, pages, own, prefixes):
    """Write and return where pages are, `[N, 5]`.

    These are addresses of keys, values and mask (or 0), the number of columns that may be seen, and bytes of a head.
    """
    keys_at, values_at, mask_at, num_own, times, kv_heads, page_size, column_bytes = own
    for n in range(len(pages)):
        number = pages[n]
        if number < num_own:
            place = number // times * kv_heads * page_size * column_bytes
            hidden = mask_at + number * page_size * WORD
            keys, values, count, head_bytes = keys_at + place, values_at + place, page_size, page_size * column_bytes
        else:
            k = len(prefixes) - 1
            while prefixes[k, 0] > number:
                k -= 1
            first, num_pages, its_keys_at, its_values_at, length, seen, its_mask_at, mask_length = prefixes[k]
            row, page = divmod(number - first, num_pages)
            place, count = page * page_size * column_bytes, min(page_size, seen - page * page_size)
            hidden = its_mask_at + (row * mask_length + page * page_size) * WORD if its_mask_at != 0 else 0
            keys, values, head_bytes = its_keys_at + place, its_values_at + place, length * column_bytes
        if hidden != 0:
            count = last_seen(carray(at(hidden), (count,), np.float32))
        # One by one: for an assigned tuple, Numba would compile messages about shapes, for more than a second.
        where[n, 0], where[n, 1], where[n, 2], where[n, 3], where[n, 4] = keys, values, hidden, count, head_bytes
    return where[: len(pages)]


@inlined
def begin_row(query, wide_query, sums):
    """Write queries `[H, D]` in float32, and zeros to `sums`."""
    for h in range(query.shape[0]):
        for i in range(query.shape[1]):
            wide_query[h, i] = wide(query[h, i])
            sums[h, i] = f4(0)


@inlined
def store(sums, out):
    for h in range(sums.shape[0]):
        for i in range(sums.shape[1]):
            out[h, i] = stored(sums[h, i], out)


@inlined
def score(scores, wide_query, query, where, shape, kind, in_registers):
    """Write the products of queries and the keys of all columns that may be seen, `[H, N * PAGE]`.

    Meanwhile their values come into the caches. Without instructions for `dots`, in_registers is None, not False: then
    Numba leaves that part out.
    """
    kv_heads, page_size, size, column_bytes = shape
    group = len(wide_query) // kv_heads
    for n in range(len(where)):
        num_columns = where[n, 3]
        for k in range(kv_heads):
            keys, values = where[n, 0] + k * where[n, 4], where[n, 1] + k * where[n, 4]
            for begin in range(0, num_columns, LANES):
                end, heads = min(begin + LANES, num_columns), slice(k * group, (k + 1) * group)
                here = (keys, values, begin, end)
                found = scores[heads, n * page_size :]
                if in_registers is None:
                    multiply(found, wide_query[heads], here, size, column_bytes, kind)
                else:
                    its_query = query + k * group * column_bytes
                    multiply_in_registers(found, its_query, here, column_bytes, carray(at(keys), (size,), kind))


@inlined
def multiply(scores, wide_query, here, size, column_bytes, kind):
    """Write the products with the keys of at most 16 columns, for the queries `[G, D]` that share them."""
    keys_at, values_at, begin, end = here
    keys = carray(at(keys_at), (end, size), kind)
    for c in range(begin, end):
        fetch_all(values_at + c * column_bytes, column_bytes)
        for h in range(len(wide_query)):
            total = f4(0)
            for i in range(size):
                total += wide_query[h, i] * wide(keys[c, i])
            scores[h, c] = total


@inlined
def multiply_in_registers(scores, query, here, column_bytes, like):
    """Do the same for 16 columns, by `dots`.

    Each query asks for its share of the values: memory would not answer in time if the first asked for all.
    """
    keys, values, begin, _ = here
    group = len(scores)
    for h in range(group):
        ahead = values + begin * column_bytes + h * LANES * column_bytes // group
        found, its_query = scores[h, begin:].ctypes.data, query + h * column_bytes
        score_columns(
            its_query, keys + begin * column_bytes, column_bytes // REGISTER, found, ahead, LINE // group, like
        )


@inlined
def finish_scores(scores, where, page_size, scaling, cap, has_cap):
    """Scale, bound and mask the scores `[H, N * PAGE]`; those of hidden columns become the lowest float32."""
    for n in range(len(where)):
        num_columns, start = where[n, 3], n * page_size
        mask = carray(at(where[n, 2]), (num_columns,), np.float32)
        for h in range(len(scores)):
            its = scores[h, start : start + page_size]
            for c in range(num_columns):
                value = its[c] * scaling
                its[c] = tanh(value / cap) * cap if has_cap else value
            if where[n, 2] != 0:
                for c in range(num_columns):
                    its[c] += mask[c]
            its[num_columns:] = f4(-np.inf)


@inlined
def last_seen(mask):
    """Return how many columns to look at: up to the last that is seen, in whole fours, as values are added."""
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
