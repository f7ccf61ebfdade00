"""Save a bench's results in the user's cache: rows for `--batch-size auto`, a speed for `plan`, bfloat16's gain."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from datetime import date

from batchgen.bench.facts import BenchReport, Best, Point
from batchgen.machine.speeds import KeptGain, Settings, Speed, write_gain, write_settings, write_speed


def keep(report: BenchReport, environ: Mapping[str, str] = os.environ) -> BenchReport:
    """Save the continuous engine's best batch size for each dtype if it is settled; the report says whether."""
    today = date.today().isoformat()
    settled = [best for best in report.bests if best.engine == "continuous" and best.is_settled]
    for best in settled:
        place = (report.model, report.device, best.dtype)
        write_settings(Settings(best.rows, best.rate, today), *place, environ)
        if speed := _speed(report.points, best, today):
            write_speed(speed, *place, best.engine, environ)
    if report.gain and settled:
        gain = KeptGain(report.model, report.gain.times, report.gain.differing_share, today)
        write_gain(gain, report.device, environ)
    return replace(report, kept=bool(settled))


def _speed(points: tuple[Point, ...], best: Best, today: str) -> Speed | None:
    """The speed at the best batch size over both workloads; None if prefill or decode has no measurements."""
    at = (best.dtype, best.engine, best.rows)
    mine = [point for point in points if (point.task.dtype, point.task.engine, point.task.rows) == at]
    samples = [sample for point in mine for sample in point.samples]
    columns, prefill_s = sum(s.prefill_columns for s in samples), sum(s.prefill_s for s in samples)
    work, decode_s = sum(s.decode_work for s in samples), sum(s.decode_s for s in samples)
    return Speed(columns / prefill_s, work / decode_s, today) if columns and work and prefill_s and decode_s else None
