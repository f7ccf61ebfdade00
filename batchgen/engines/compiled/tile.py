"""Products of a few rows and the outputs of one panel of weights, in the instructions that AVX-512 has for them.

The compiler does not find these instructions in a plain loop, so loops are built from LLVM's own operations. All sums
stay in registers until they are complete. A row goes through the same operations whatever the rows beside it.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from batchgen.engines.compiled.writer import FLOAT, FLOATS, INT, INTS, LANES, LONG, WORD, Values, Writer
from batchgen.model.shape import INPUTS_PER_SCALE

VECTORS = 3
PANEL = LANES * VECTORS  # outputs whose weights lie side by side
ROWS = 4  # of a tile: with 3 vectors, 12 sums of integers and 12 of floats, which leaves 8 of 32 registers
WIDE_VECTORS = 4  # in attention, whose heads mostly have a multiple of 64 numbers
WIDE = LANES * WIDE_VECTORS
GROUP = INPUTS_PER_SCALE  # of a row and of an output
QUAD = 4  # bytes whose products one instruction adds to a sum of 32 bits


class _Tile(Writer):
    """Writes the operations of one tile. Lists of sums have all vectors of the first row, then of the second."""

    def __init__(self, builder: ir.IRBuilder, num_rows: int, num_vectors: int = VECTORS) -> None:
        super().__init__(builder)
        self.rows, self.num_vectors = range(num_rows), num_vectors

    def _add_products(self, scalars: Values, vectors: Values, done: Values) -> Values:
        """Add to the sums of each row its scalar, at an address, times its vectors; each with one rounding."""
        by_row = [scalar for at in scalars for scalar in [self.spread(at, FLOAT)] * self.num_vectors]
        return [self.add_floats(*its) for its in zip(done, by_row, vectors, strict=True)]

    def _zeros(self) -> Values:
        return [ir.Constant(FLOATS, [0.0] * LANES)] * (len(self.rows) * self.num_vectors)

    def _store(self, found: Values, sums: ir.Value, stride: ir.Value) -> None:
        for place, value in enumerate(found):
            row, vector = divmod(place, self.num_vectors)
            self.store(value, self.builder.add(self.at(sums, stride, row), LONG(vector * LANES * WORD)))

    def _row_starts(self, first: ir.Value, size: ir.Value, width: int) -> Values:
        step = self.builder.mul(size, LONG(width))
        return [self.builder.add(first, self.builder.mul(step, LONG(row))) for row in self.rows]

    def _vectors(self, address: ir.Value, kind: ir.Type) -> Values:
        places = [self.builder.add(address, LONG(vector * LANES * WORD)) for vector in range(self.num_vectors)]
        return [self.load(place, kind) for place in places]


class _IntegerTile(_Tile):
    """8-bit integers with scales for 64 inputs, by AVX512-VNNI: arguments are described at `_integer_function`."""

    def write(
        self, integers: ir.Value, scales: ir.Value, starts: ir.Value, loud: ir.Value, weights: ir.Value,
        weight_scales: ir.Value, loud_weights: ir.Value, groups: ir.Value, num_loud: ir.Value, sums: ir.Value,
        stride: ir.Value,
    ) -> None:  # fmt: skip
        inputs, scalars = self._row_starts(integers, groups, GROUP), self._row_starts(scales, groups, WORD)
        begins, spared = self._row_starts(starts, groups, WORD), self._row_starts(loud, num_loud, WORD)

        def add_group(group: ir.Value, done: Values) -> Values:
            its = [self.at(row, group, GROUP) for row in inputs]
            begin = [self.spread(self.at(row, group, WORD), INT) for row in begins]
            found = self._group(its, self.at(weights, group, GROUP * PANEL), begin)
            fine = self._vectors(self.at(weight_scales, group, WORD * PANEL), FLOATS)
            scaled = [self.builder.fmul(self.builder.sitofp(x, FLOATS), fine[i % VECTORS]) for i, x in enumerate(found)]
            return self._add_products([self.at(row, group, WORD) for row in scalars], scaled, done)

        def add_loud(place: ir.Value, done: Values) -> Values:
            column = self._vectors(self.at(loud_weights, place, WORD * PANEL), FLOATS)
            return self._add_products([self.at(row, place, WORD) for row in spared], column * len(self.rows), done)

        found = self.loop(num_loud, self.loop(groups, self._zeros(), add_group), add_loud)
        self._store(found, sums, stride)

    def _group(self, inputs: Values, weights: ir.Value, begin: Values) -> Values:
        """Return the sums of integers of one group, from `begin` of each row on."""

        def add_quad(quad: ir.Value, done: Values) -> Values:
            panel = self._vectors(self.at(weights, quad, QUAD * PANEL), INTS)
            mine = [self.spread(self.at(row, quad, QUAD), INT) for row in inputs]
            pairs = [(x, w) for x in mine for w in panel]
            return [self.add_quads(sums, x, w) for sums, (x, w) in zip(done, pairs, strict=True)]

        return self.loop(LONG(GROUP // QUAD), [row for row in begin for _ in range(VECTORS)], add_quad)


class _FloatTile(_Tile):
    """float32: arguments are described at `_float_function`."""

    def write(self, x: ir.Value, words: ir.Value, weights: ir.Value, sums: ir.Value, stride: ir.Value) -> None:
        rows = self._row_starts(x, words, WORD)

        def add_word(word: ir.Value, done: Values) -> Values:
            at = [self.at(row, word, WORD) for row in rows]
            return self._add_word(at, self.at(weights, word, WORD * LANES * self.num_vectors), done)

        self._store(self.loop(words, self._zeros(), add_word), sums, stride)

    def _add_word(self, at: Values, weights: ir.Value, done: Values) -> Values:
        """Add the products of a word of each row and those of a panel."""
        return self._add_products(at, self._vectors(weights, FLOATS) * len(self.rows), done)


class _PairTile(_FloatTile):
    """bfloat16, two numbers to a word, by AVX512-BF16."""

    def _add_word(self, at: Values, weights: ir.Value, done: Values) -> Values:
        column = self._vectors(weights, INTS)
        mine = [self.spread(address, INT) for address in at]
        pairs = [(x, w) for x in mine for w in column]
        return [self.add_pairs(sums, x, w) for sums, (x, w) in zip(done, pairs, strict=True)]


def _integer_function(num_rows: int) -> Any:
    """Return a function for so many rows that multiplies them with a panel; all arguments are 64-bit integers.

    Addresses, of the first row where there are several: integers `[N, G, 64]`, signed; their scales `[N, G]`; starts
    `[N, G]`, the sums of 32 bits before the first product; loud `[N, K]`, inputs in float32. Of the panel: weights
    `[G, 16, 48, 4]`, unsigned; their scales `[G, 48]`; those of loud inputs `[K, 48]`. Then G and K, the address of
    the sums `[N, 48]` that it writes, and how many bytes lie from row to row of them.
    """

    @intrinsic
    def multiply(
        _, integers, scales, starts, loud, weights, weight_scales, loud_weights, groups, num_loud, sums, stride
    ):
        def generate(context, builder, signature, arguments):
            _IntegerTile(builder, num_rows).write(*arguments)
            return context.get_dummy_value()

        return types.void(*[types.int64] * 11), generate

    return multiply


def _float_function(num_rows: int, kind: type[_FloatTile], num_vectors: int = VECTORS) -> Any:
    """Return a function as above for floats.

    Arguments: address of the first row of `[N, W]` words, W, addresses of the panel's weights `[W, 48]` and of the sums
    `[N, 48]`, and how many bytes lie from row to row of them; 64 with 4 vectors. A word is a float32 or two neighbours
    in bfloat16.
    """

    @intrinsic
    def multiply(_, x, words, weights, sums, stride):
        def generate(context, builder, signature, arguments):
            kind(builder, num_rows, num_vectors).write(*arguments)
            return context.get_dummy_value()

        return types.void(*[types.int64] * 5), generate

    return multiply


# Global names: Numba does not keep code whose closure has an intrinsic.
integer_rows, integer_row = _integer_function(ROWS), _integer_function(1)
float_rows, float_row = _float_function(ROWS, _FloatTile), _float_function(1, _FloatTile)
pair_rows, pair_row = _float_function(ROWS, _PairTile), _float_function(1, _PairTile)
wide_float_rows = _float_function(ROWS, _FloatTile, WIDE_VECTORS)
wide_pair_rows = _float_function(ROWS, _PairTile, WIDE_VECTORS)
