"""The sums of values in a step's attention, weighted by the scores of their columns.

With AVX-512, a value is converted to float32 once for up to four queries; their sums stay in registers for a page.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import carray, types
from numba.extending import intrinsic

from batchgen.engines.compiled.compiling import LINE, at, fetch_all, inlined, wide
from batchgen.engines.compiled.writer import FLOATS, HALVES, INTS, LANES, LONG, WORD, Values, Writer

VECTORS = 4  # of 16 numbers: with 4 queries, 16 sums, 4 values and a weight in 32 registers
WIDTH = VECTORS * LANES  # numbers of a head that are added in one pass
MOST_ROWS = 4


class _ValueSums(Writer):
    """float32: arguments are described at `_function`."""

    item = 4  # bytes of a number

    def write(
        self, sums: ir.Value, row: ir.Value, weights: ir.Value, weights_row: ir.Value, values: ir.Value,
        column: ir.Value, columns: ir.Value, ahead: ir.Value, *, num_rows: int,
    ) -> None:  # fmt: skip
        places = [
            self.builder.add(self.builder.add(sums, self.builder.mul(row, LONG(r))), LONG(v * LANES * WORD))
            for r in range(num_rows)
            for v in range(VECTORS)
        ]
        first = [self.builder.add(weights, self.builder.mul(weights_row, LONG(r))) for r in range(num_rows)]

        def add(place: ir.Value, done: Values) -> Values:
            offset = self.builder.mul(place, column)
            start, following = self.builder.add(values, offset), self.builder.add(ahead, offset)
            for line in range(0, WIDTH * self.item, LINE):
                self.fetch(self.builder.add(following, LONG(line)))
            its = [self._wide(self.builder.add(start, LONG(v * LANES * self.item))) for v in range(VECTORS)]
            weight = [self.spread(self.at(at, place, WORD), FLOATS.element) for at in first for _ in its]
            return [self.add_floats(*one) for one in zip(done, weight, its * num_rows, strict=True)]

        found = self.loop(columns, [self.load(place, FLOATS) for place in places], add)
        for value, place in zip(found, places, strict=True):
            self.store(value, place)

    def _wide(self, address: ir.Value) -> ir.Value:
        return self.load(address, FLOATS)


class _HalfSums(_ValueSums):
    """bfloat16, the upper half of a float32."""

    item = 2

    def _wide(self, address: ir.Value) -> ir.Value:
        numbers = self.builder.zext(self.load(address, HALVES), INTS)
        return self.builder.bitcast(self.builder.shl(numbers, ir.Constant(INTS, [16] * LANES)), FLOATS)


def _function(num_rows: int) -> Any:
    """Return a function that adds weighted values to the sums of so many queries.

    Arguments, 64-bit integers: address of the sums `[num_rows, 64]`, and bytes from row to row of them; the same for
    the weights `[num_rows, columns]`, in float32; address of the values `[columns, 64]`, bytes from column to column,
    and columns; the address of what is read next, in the same layout. Then any array in the dtype of the values.
    """

    @intrinsic
    def add(_, sums, row, weights, weights_row, values, column, columns, ahead, like):
        kind = _HalfSums if like.dtype == types.uint16 else _ValueSums

        def generate(context, builder, signature, arguments):
            kind(builder).write(*arguments[:8], num_rows=num_rows)
            return context.get_dummy_value()

        return types.void(*[types.int64] * 8, like), generate

    return add


# Global names, as in `tile`.
add_one, add_two, add_three, add_four = map(_function, range(1, MOST_ROWS + 1))


@inlined
def add_values(sums, scores, where, following, shape, kind, in_registers):
    """Add all columns' values, weighted; meanwhile the next row's keys come into the caches.

    Without instructions for it, in_registers is None.
    """
    if in_registers is None:
        add_in_fours(sums, scores, where, following, shape, kind)
    else:
        add_in_registers(sums, scores, where, following, shape, carray(at(where[0, 1]), (1,), kind))


@inlined
def add_in_registers(sums, scores, where, following, shape, like):
    """Add values by `sums`, those of up to four queries at a time."""
    kv_heads, page_size, size, column_bytes = shape
    group = len(sums) // kv_heads
    row_bytes, weights_bytes, item = size * WORD, scores.shape[1] * WORD, column_bytes // size
    for n in range(len(where)):
        for k in range(kv_heads):
            values = where[n, 1] + k * where[n, 4]
            ahead = following[n, 0] + k * following[n, 4] if n < len(following) else values
            for begin in range(0, size, WIDTH):
                h, stop = k * group, (k + 1) * group
                mine, then = values + begin * item, ahead + begin * item
                while h < stop:
                    total, weights = sums[h, begin:].ctypes.data, scores[h, n * page_size :].ctypes.data
                    left, seen = stop - h, where[n, 3]
                    if left >= 4:
                        add_four(total, row_bytes, weights, weights_bytes, mine, column_bytes, seen, then, like)
                    elif left == 3:
                        add_three(total, row_bytes, weights, weights_bytes, mine, column_bytes, seen, then, like)
                    elif left == 2:
                        add_two(total, row_bytes, weights, weights_bytes, mine, column_bytes, seen, then, like)
                    else:
                        add_one(total, row_bytes, weights, weights_bytes, mine, column_bytes, seen, then, like)
                    h += min(left, MOST_ROWS)


@inlined
def add_in_fours(sums, scores, where, following, shape, kind):
    """Add four columns at a time."""
    kv_heads, page_size, size, column_bytes = shape
    group = len(sums) // kv_heads
    for n in range(len(where)):
        start, num_columns = n * page_size, where[n, 3]
        for k in range(kv_heads):
            values = carray(at(where[n, 1] + k * where[n, 4]), (page_size, size), kind)
            next_keys, num_next = 0, 0
            if n < len(following):
                next_keys, num_next = following[n, 0] + k * following[n, 4], following[n, 3]
            for h in range(k * group, (k + 1) * group):
                for c in range(0, num_columns - 3, 4):
                    if c < num_next and c // 4 % group == h - k * group:
                        fetch_all(next_keys + c * column_bytes, 4 * column_bytes)
                    w0, w1, w2, w3 = scores[h, start + c : start + c + 4]
                    for i in range(size):
                        left = w0 * wide(values[c, i]) + w1 * wide(values[c + 1, i])
                        sums[h, i] += left + (w2 * wide(values[c + 2, i]) + w3 * wide(values[c + 3, i]))
                for c in range(num_columns // 4 * 4, num_columns):
                    for i in range(size):
                        sums[h, i] += scores[h, start + c] * wide(values[c, i])
