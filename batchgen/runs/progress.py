"""The progress that a run records each second for others to see, in its store or in a file next to it."""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from batchgen.formats.fields import to_json
from batchgen.records import EngineStats
from batchgen.runs.database import file_beside
from batchgen.runs.pace import Pace
from batchgen.runs.store import Store

if TYPE_CHECKING:
    from batchgen.runs.ending import RanOn

PROGRESS_NOTE = "progress"
MOST_REASONS = 5
LOADING, GENERATING, WRITING = "loading the model", "generating", "writing the output"


@dataclass(frozen=True, slots=True)
class ProgressNote:
    """How far a run was when it last made progress. Times are seconds since 1970, rates are tokens per second.

    `prompt_tokens` and `output_tokens` cover all results, `new_tokens` only what this run has made so far. Rows,
    failures and reasons are recorded only in the file next to a store that others cannot read.
    """

    phase: str
    noted_s: float
    started_s: float
    host: str
    pid: int
    rows_total: int | None = None
    prompt_tokens: int = 0
    output_tokens: int = 0
    new_tokens: int = 0
    tokens_per_s: float = 0.0
    recent_tokens_per_s: float = 0.0
    seconds_left: float | None = None
    model: str | None = None
    engine: str | None = None
    device: str | None = None
    dtype: str | None = None
    peak_bytes: int = 0
    predicted_bytes: int = 0
    measured_bytes: int | None = None
    rows_done: int | None = None
    rows_failed: int | None = None
    reasons: tuple[tuple[str, int], ...] = ()


def read_progress(facts: Mapping[str, Any] | None) -> ProgressNote | None:
    """Return the recorded progress; None if there is none, or if another version recorded it differently."""
    try:
        known = {field.name for field in fields(ProgressNote)}
        progress = ProgressNote(**{name: value for name, value in (facts or {}).items() if name in known})
        return replace(progress, reasons=tuple((str(text), int(number)) for text, number in progress.reasons))
    except (TypeError, ValueError):
        return None


class Reporter:
    """Records a run's progress whenever it has changed."""

    def __init__(self, store: Store, clock: Callable[[], float] = time.time) -> None:
        self.store = store
        self._clock = clock
        self._progress = ProgressNote(LOADING, clock(), clock(), socket.gethostname(), os.getpid())
        self._last: ProgressNote | None = None
        self.measure: Callable[[ProgressNote], ProgressNote] = lambda progress: progress
        store.on_second = self.note

    def begin(self, phase: str) -> None:
        """Start another phase of the run."""
        self._progress = replace(self._progress, phase=phase)
        self.note()

    def note(self) -> None:
        """Record what `measure` makes of the current phase, if it differs from the last record."""
        progress = self.measure(self._progress)
        moved = self._last is None or _work(progress) != _work(self._last)
        if not moved:
            return
        progress = replace(progress, noted_s=self._clock())
        self._last = progress
        if self.store.allows_readers:
            self.store.note(PROGRESS_NOTE, asdict(progress))
        else:
            self.store.put_beside(to_json(asdict(self._with_rows(progress))))

    def _with_rows(self, progress: ProgressNote) -> ProgressNote:
        store = self.store
        reasons = tuple(store.reasons(MOST_REASONS))
        return replace(progress, rows_done=store.num_complete_rows, rows_failed=store.num_failed_rows, reasons=reasons)


def measure(
    progress: ProgressNote,
    pace: Pace,
    engine: EngineStats,
    on: RanOn,
    rows_total: int | None,
    tokens_before: tuple[int, int],
) -> ProgressNote:
    """Return a note with the current numbers; `tokens_before` counts the results that existed when the run began."""
    return replace(
        progress,
        rows_total=rows_total,
        prompt_tokens=tokens_before[0] + pace.prompt_tokens,
        output_tokens=tokens_before[1] + pace.output_tokens,
        new_tokens=pace.num_tokens,
        tokens_per_s=pace.tokens_per_s,
        recent_tokens_per_s=pace.recent_tokens_per_s,
        seconds_left=pace.seconds_left,
        model=on.model,
        engine=on.engine,
        device=on.device,
        dtype=on.dtype,
        peak_bytes=engine.peak_bytes,
        predicted_bytes=engine.predicted_bytes,
        measured_bytes=engine.measured_bytes,
    )


def _work(progress: ProgressNote) -> tuple[object, ...]:
    """Return the fields that change when a run makes progress, not merely because time passes."""
    return progress.phase, progress.new_tokens, progress.prompt_tokens, progress.output_tokens, progress.rows_total


def read_status_file(store: Path) -> ProgressNote | None:
    """Read the progress that a run has written next to its store; None if there is none."""
    try:
        facts = json.loads(file_beside(store).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return read_progress(facts) if isinstance(facts, dict) else None
