"""Turn measured points into settings, and into the sentence that recommends them. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from math import sqrt

from batchgen.bench.facts import WORKLOADS, Best, Gain, Point
from batchgen.bench.sweep import NO_TIME, OUT_OF_MEMORY
from batchgen.records import parts_of_precision

# Rates of at least this share of the best are as good: fewer rows take less memory and finish sooner.
AS_GOOD = 0.97
# bfloat16 changes tokens: a smaller gain than this is not worth mentioning.
WORTH_IT = 1.1


def find_bests(points: Sequence[Point], most_rows: int) -> tuple[Best, ...]:
    """The best batch size of each dtype and engine, the recommended one first; `most_rows` is the most for auto.

    The recommended one is the fastest in float32, the exact dtype, if that was measured; otherwise the fastest of all.
    """
    pairs = dict.fromkeys((point.task.dtype, point.task.engine) for point in points)
    bests = [best for dtype, engine in pairs if (best := find_best(points, dtype, engine, most_rows))]
    return tuple(sorted(bests, key=lambda best: (best.dtype != "float32", -best.rate)))


def find_best(points: Sequence[Point], dtype: str, engine: str, most_rows: int) -> Best | None:
    """The fewest rows within 3% of the best rate; None if nothing ran."""
    mine = [point for point in points if (point.task.dtype, point.task.engine) == (dtype, engine)]
    rates = dict(_both_workloads(mine))
    if not rates:
        return None
    enough = min(rows for rows, rate in rates.items() if rate >= AS_GOOD * max(rates.values()))
    tried = max(rates)
    had_time = not any(point.problem == NO_TIME for point in mine)
    ran_out = any(point.problem == OUT_OF_MEMORY for point in mine)
    is_settled = enough < tried or tried >= most_rows or (had_time and ran_out)
    return Best(dtype, engine, enough, rates[enough], rates.get(1), tried, is_settled, had_time)


def _both_workloads(points: Sequence[Point]) -> Iterator[tuple[int, float]]:
    """(rows, geometric mean of the rates on the fixed and the ragged workload) for batch sizes at which both ran."""
    rates = {(point.task.rows, point.task.workload): point.rate for point in points}
    for rows in sorted({point.task.rows for point in points}):
        fixed, ragged = (rates.get((rows, workload)) for workload in WORKLOADS)
        if fixed and ragged:
            yield rows, sqrt(fixed * ragged)


def find_gain(bests: Sequence[Best], differing: Mapping[str, float], precision: str) -> Gain | None:
    """The gain of a precision on the engine that is best in float32; None unless the best of both is settled."""
    settled = [best for best in bests if best.is_settled]
    exact = next((best for best in settled if best.dtype == "float32"), None)
    coarse = [best for best in settled if exact and (best.dtype, best.engine) == (precision, exact.engine)]
    return Gain(coarse[0].rate / exact.rate, differing.get(precision), precision) if exact and coarse else None


def find_quantised_gain(bests: Sequence[Best], differing: Mapping[str, float]) -> Gain | None:
    """The largest gain of a precision with quantised layers, or None."""
    names = dict.fromkeys(best.dtype for best in bests if parts_of_precision(best.dtype)[1])
    gains = [gain for name in names if (gain := find_gain(bests, differing, name))]
    return max(gains, key=lambda gain: gain.times, default=None)


def where_it_stops(best: Best) -> str:
    """A sentence on where batching stops paying off, compared with one row at a time."""
    where = f"{best.engine} in {best.dtype}"
    if best.most_tried == 1:
        return f"cannot tell whether batching pays off: only one row at a time was measured ({where})"
    if best.rows == best.most_tried:
        return (
            f"batching still paid off at the largest batch size measured, {best.rows:,}{_against_one(best)} ({where})"
        )
    if best.rows == 1:
        return f"batching does not pay off here: one row at a time is as fast as any batch ({where})"
    return f"batching stops paying off at {best.rows:,} rows{_against_one(best)} ({where}); more rows gain less than 3%"


def _against_one(best: Best) -> str:
    return f", {best.times:.1f} times as fast as one row at a time" if best.times and best.rows > 1 else ""


def recommend(
    bests: Sequence[Best], gain: Gain | None, bfloat16_ratio: float | None = None, quantised: Gain | None = None
) -> str:
    """The recommended settings in one sentence; `bfloat16_ratio` is its relative product rate, if it was skipped."""
    if not bests:
        return "nothing could be measured: increase --seconds, or see what failed"
    best = bests[0]
    if not best.is_known:
        return f"no advice: there was time for {best.most_tried:,} {_rows(best.most_tried)} at most: increase --seconds"
    options = f"--engine {best.engine} {_options(best.dtype)} --batch-size {best.rows}"
    more = "" if best.had_time else " (larger batches need more --seconds)"
    others = _on_bfloat16(gain, bfloat16_ratio) + (f"; {_gain(quantised)}" if quantised else "")
    return f"use {options}, for about {best.rate:,.0f} tokens/s{more}{others}"


def _options(precision: str) -> str:
    dtype, quantize = parts_of_precision(precision)
    return f"--dtype {dtype}{f' --quantize {quantize}' if quantize else ''}"


def _rows(number: int) -> str:
    return "row" if number == 1 else "rows"


def _on_bfloat16(gain: Gain | None, ratio: float | None) -> str:
    if gain is None:
        return (
            f"; bfloat16 was skipped: its matrix products run at {ratio:.2g} of float32's speed here" if ratio else ""
        )
    if gain.times < WORTH_IT:
        return "; bfloat16 is no faster here"
    return f"; {_gain(gain)}"


def _gain(gain: Gain) -> str:
    """The gain, and what it costs."""
    changed = "" if gain.differing_share is None else f", and changes {gain.differing_share:.0%} of greedy tokens"
    return f"{_options(gain.precision)} is {gain.times:.1f} times as fast{changed}"
