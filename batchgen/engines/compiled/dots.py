"""Products of one query with the keys of 16 columns.

A column's products stay in the lanes of one register until the end, when 16 registers are summed up together: the
compiler would sum up each by itself, which takes longer than the products.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic, overload

from batchgen.engines.compiled.writer import FLOATS, INTS, LANES, LONG, WORD, Values, Writer

REGISTER = LANES * WORD  # bytes


class _Scores(Writer):
    """float32: arguments are described at `_function`."""

    def write(
        self, query: ir.Value, keys: ir.Value, registers: ir.Value, scores: ir.Value, ahead: ir.Value, step: ir.Value
    ) -> None:
        size = self.builder.mul(registers, LONG(REGISTER))
        columns = [self.builder.add(keys, self.builder.mul(size, LONG(column))) for column in range(LANES)]

        def add(place: ir.Value, done: Values) -> Values:
            mine, theirs = self.at(query, place, REGISTER), [self.at(column, place, REGISTER) for column in columns]
            for column in range(LANES):
                number = self.builder.add(self.builder.mul(place, LONG(LANES)), LONG(column))
                self.fetch(self.builder.add(ahead, self.builder.mul(number, step)))
            return self._add(mine, theirs, done)

        zeros = [ir.Constant(FLOATS, [0.0] * LANES)] * LANES
        self.store(self._summed(self.loop(registers, zeros, add)), scores)

    def _add(self, query: ir.Value, keys: Values, done: Values) -> Values:
        x = self.load(query, FLOATS)
        return [self.add_floats(sums, x, self.load(key, FLOATS)) for sums, key in zip(done, keys, strict=True)]

    def _summed(self, registers: Values) -> ir.Value:
        """Return the sums of 16 registers in one: each turn adds halves of lanes, and puts two registers together."""
        width = LANES
        while len(registers) > 1:
            width, half = width // 2, len(registers) // 2
            pairs = zip(registers[:half], registers[half:], strict=True)
            registers = [self._folded(one, other, width) for one, other in pairs]
        return registers[0]

    def _folded(self, one: ir.Value, other: ir.Value, width: int) -> ir.Value:
        """Add lanes that are `width` apart; in turn, `width` sums are those of `one` and of `other`."""
        low = [lane - width + LANES if lane & width else lane for lane in range(LANES)]
        parts = low, [lane + width for lane in low]
        return self.builder.fadd(*(self.builder.shuffle_vector(one, other, ir.Constant(INTS, its)) for its in parts))


class _PairScores(_Scores):
    """bfloat16, by AVX512-BF16."""

    def _add(self, query: ir.Value, keys: Values, done: Values) -> Values:
        x = self.load(query, INTS)
        return [self.add_pairs(sums, x, self.load(key, INTS)) for sums, key in zip(done, keys, strict=True)]


def _function(kind: type[_Scores]) -> Any:
    """Return a function that writes 16 scores.

    Arguments, 64-bit integers: addresses of a query `[W]` and of keys `[16, W]`, in words that fill W / 16 registers;
    that number; the address of scores `[16]`; the address of what is read next, and the bytes from one to the next of
    16 cache lines, for each register, that are asked for. A word is a float32 or two neighbours in bfloat16.
    """

    @intrinsic
    def score(_, query, keys, registers, scores, ahead, step):
        def generate(context, builder, signature, arguments):
            kind(builder).write(*arguments)
            return context.get_dummy_value()

        return types.void(*[types.int64] * 6), generate

    return score


# Global names, as in `tile`.
float_scores, pair_scores = _function(_Scores), _function(_PairScores)


def score_columns(
    query: int, keys: int, registers: int, scores: int, ahead: int, step: int, like: np.ndarray[Any, Any]
) -> None:
    """Write 16 scores, with keys in the dtype of the array `like`; the others are as at `_function`."""


@overload(score_columns)
def _score_columns(query, keys, registers, scores, ahead, step, like):
    if like.dtype == types.uint16:
        return lambda query, keys, registers, scores, ahead, step, like: pair_scores(
            query, keys, registers, scores, ahead, step
        )
    return lambda query, keys, registers, scores, ahead, step, like: float_scores(
        query, keys, registers, scores, ahead, step
    )
