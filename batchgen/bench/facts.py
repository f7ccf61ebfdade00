"""The records of a bench: its tasks, the samples of their runs, and the results. Rates are in new tokens/s."""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import median
from typing import Any

WORKLOADS = ("fixed", "ragged")


@dataclass(frozen=True, slots=True)
class Task:
    """One point of the sweep; `dtype` is a precision, such as "int8 and float32" for quantised layers."""

    dtype: str
    engine: str
    workload: str
    rows: int


@dataclass(frozen=True, slots=True)
class Sample:
    """One run of a task; `decode_work` is counted as in `RunStats`, `prefill_columns` includes padding."""

    tokens: int
    seconds: float
    prefill_columns: int = 0
    prefill_s: float = 0.0
    decode_s: float = 0.0
    decode_work: int = 0


@dataclass(frozen=True, slots=True)
class Point:
    """A task and its runs; if there are none, `problem` says why."""

    task: Task
    samples: tuple[Sample, ...] = ()
    problem: str | None = None

    @property
    def rate(self) -> float | None:
        """The median rate of its runs, or None."""
        return median(sample.tokens / sample.seconds for sample in self.samples) if self.samples else None


@dataclass(frozen=True, slots=True)
class Ceiling:
    """What limits the rate in a dtype: the matrix products per token, and reading the weights once per step."""

    dtype: str
    gflops: float
    gbytes_per_s: float
    flops_per_token: int
    bytes_per_step: int

    @property
    def matmul_rate(self) -> float:
        return self.gflops * 1e9 / self.flops_per_token

    def bandwidth_rate(self, rows: int) -> float:
        return self.gbytes_per_s * 1e9 / self.bytes_per_step * rows

    def rate(self, rows: int) -> float:
        """The lower of the two ceilings."""
        return min(self.matmul_rate, self.bandwidth_rate(rows))


@dataclass(frozen=True, slots=True)
class Gain:
    """The effect of a coarser precision: its rate relative to float32's, and the share of greedy tokens it changes."""

    times: float
    differing_share: float | None
    precision: str = "bfloat16"


@dataclass(frozen=True, slots=True)
class Best:
    """The fewest rows that (nearly) reach an engine's best rate in a dtype; `alone` is the rate of one row at a time.

    `is_settled` says whether more rows were tried, or more could never be used; `had_time` whether all requested ones
    were tried.
    """

    dtype: str
    engine: str
    rows: int
    rate: float
    alone: float | None
    most_tried: int
    is_settled: bool = True
    had_time: bool = True

    @property
    def is_known(self) -> bool:
        """Whether it can be recommended: time did not run out before the best was found."""
        return self.is_settled or self.had_time

    @property
    def times(self) -> float | None:
        """The rate relative to one row at a time, if that was measured."""
        return self.rate / self.alone if self.alone else None


@dataclass(frozen=True, slots=True)
class BenchReport:
    """Everything that a bench found for one model and device."""

    model: str
    device: str
    max_new_tokens: int
    points: tuple[Point, ...]
    ceilings: tuple[Ceiling, ...]
    bests: tuple[Best, ...]
    gain: Gain | None
    advice: str
    kept: bool = False
    quantised: Gain | None = None  # the fastest with quantised layers

    @property
    def recommended(self) -> Best | None:
        """The first of the bests; None if there was no time to find it."""
        return self.bests[0] if self.bests and self.bests[0].is_known else None

    def rate(self, task: Task) -> float | None:
        return next((point.rate for point in self.points if point.task == task), None)

    def summary(self) -> dict[str, Any]:
        """The recommended settings, for JSON."""
        best, gain = self.recommended, self.gain
        return {
            "model": self.model,
            "device": self.device,
            "dtype": best and best.dtype,
            "engine": best and best.engine,
            "rows": best and best.rows,
            "tokens_per_s": best and _round(best.rate),
            "tokens_per_s_alone": best and _round(best.alone),
            "bfloat16_times": gain and _round(gain.times),
            "bfloat16_differing_share": gain and _round(gain.differing_share),
            "quantized": self.quantised and self.quantised.precision,
            "quantized_times": self.quantised and _round(self.quantised.times),
            "quantized_differing_share": self.quantised and _round(self.quantised.differing_share),
            "kept": self.kept,
            "advice": self.advice,
        }

    def to_dict(self) -> dict[str, Any]:
        """The whole report, for JSON."""
        return self.summary() | {
            "max_new_tokens": self.max_new_tokens,
            "points": [_point(point) for point in self.points],
            "ceilings": [_ceiling(ceiling) for ceiling in self.ceilings],
        }


def _point(point: Point) -> dict[str, Any]:
    task = point.task
    facts = {"dtype": task.dtype, "engine": task.engine, "workload": task.workload, "rows": task.rows}
    return facts | {"tokens_per_s": _round(point.rate), "runs": len(point.samples), "problem": point.problem}


def _ceiling(ceiling: Ceiling) -> dict[str, Any]:
    return {
        "dtype": ceiling.dtype,
        "gflops": _round(ceiling.gflops),
        "gbytes_per_s": _round(ceiling.gbytes_per_s),
        "matmul_tokens_per_s": _round(ceiling.matmul_rate),
        "bandwidth_tokens_per_s_a_row": _round(ceiling.bandwidth_rate(1)),
    }


def _round(value: float | None) -> float | None:
    """Four significant figures; more would be noise."""
    return float(f"{value:.4g}") if value is not None and math.isfinite(value) else None
