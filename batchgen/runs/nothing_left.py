"""Resuming a finished file: if the file already answers the same job, nothing is left to do."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from typing import Any

from batchgen.errors import OVERWRITE, OutputError, parameter
from batchgen.records import RunStats
from batchgen.runs.ending import Ending, RanOn
from batchgen.runs.equipment import find_equipment, made_of
from batchgen.runs.finished import check_finished_files
from batchgen.runs.job import Job
from batchgen.runs.manifest import InputDigest, compare
from batchgen.runs.observer import Observer
from batchgen.runs.target import Target


def find_finished(job: Job, target: Target, observer: Observer) -> Ending:
    """Return the ending of a job that an earlier run completed.

    Raises `OutputError` if the finished file answers another job: other rows, options, model or format.
    """
    record = check_finished_files(target)
    found = find_equipment(job, observer)
    compare(record.facts, {**made_of(job, found), "output": job.output_form.options}, target.path)
    digest = InputDigest()
    deque(digest.watch(job.requests()), maxlen=0)
    _check_input(target, record.facts["input"], digest)
    observer.note(f"{target.path} is complete, there is nothing to continue ({OVERWRITE} starts over)")
    rows, errors = (record.facts["stats"][name] for name in ("rows", "errors"))
    stats = RunStats(rows, errors, 0, 0, 0, 0, 0, 0.0, 0.0, 0.0, 0, rows_kept=rows)
    on = RanOn(found.checkpoint.name, "", found.device, found.dtype, job.engine.exact, quantize=job.engine.quantize)
    return Ending(stats, on, was_complete=True)


def _check_input(target: Target, answered: Mapping[str, Any], digest: InputDigest) -> None:
    if answered == digest.facts:
        return
    if answered["rows"] == digest.num_rows:
        raise OutputError(
            f"the input has changed since {target.path} was made: restore it, or start over with {OVERWRITE}"
        )
    rows = "1 row" if answered["rows"] == 1 else f"{answered['rows']:,} rows"
    raise OutputError(
        f"{target.path} answers {rows}, but the input has {digest.num_rows:,}, and the store is missing: "
        f"run the rest into another file, or start over with {OVERWRITE} "
        f"({parameter('keep_store=True')} lets you add rows later)"
    )
