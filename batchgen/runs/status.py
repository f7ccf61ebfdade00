"""How far a run is or was, from what it keeps next to its output. Changes nothing and never waits."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

from batchgen.errors import InputError, InUseError, OutputError
from batchgen.runs.database import is_database, is_in_use
from batchgen.runs.finished import FinishedRecord, read_record
from batchgen.runs.progress import MOST_REASONS, PROGRESS_NOTE, ProgressNote, read_progress, read_status_file
from batchgen.runs.stored import open_stored
from batchgen.runs.target import Target

State = Literal["running", "interrupted", "complete"]
STORE_SUFFIX = ".run.db"


@dataclass(frozen=True, slots=True)
class RunStatus:
    """How far a run is. Times are seconds since 1970; unknown values are None.

    `command` is the command that started it, typed in `folder`. `reasons` are the first kinds of errors, each with its
    number of rows. `noted_s` is the time of its last progress; `progress.seconds_left` counts from then.
    """

    path: str
    state: State
    rows_done: int
    rows_total: int | None
    rows_failed: int
    reasons: tuple[tuple[str, int], ...] = ()
    progress: ProgressNote | None = None
    started_s: float | None = None
    noted_s: float | None = None
    model: str | None = None
    engine: str | None = None
    prompt_tokens: int | None = None
    output_tokens: int | None = None
    tokens_per_s: float | None = None
    predicted_bytes: int | None = None
    measured_bytes: int | None = None
    peak_bytes: int | None = None
    command: tuple[str, ...] = ()
    folder: str | None = None
    has_store: bool = False

    @property
    def has_failed(self) -> bool:
        """Whether the run is complete and some of its rows failed."""
        return self.state == "complete" and self.rows_failed > 0


def read_status(path: Path, clock: Callable[[], float] = time.time) -> RunStatus:
    """Return the status of the run that writes, or has written, a file; the name of its store also works.

    Raises `InputError` if there is no such run.
    """
    target = target_of(path)
    for _ in range(2):  # a run may end and remove its store between the two checks
        if is_database(target.store) or is_in_use(target.store):
            try:
                return _of_store(path, target)
            except InputError:
                if target.store.exists():
                    raise
        if record := read_record(target):
            return _of_record(path, record)
    raise InputError(f"{path}: there is no run with this output: give the same file as its -o")


def target_of(path: Path) -> Target:
    """Return the target of a path, which names an output or the store next to one."""
    if path.name.endswith(STORE_SUFFIX) and path.exists():
        path = path.with_name(path.name.removesuffix(STORE_SUFFIX))
    target = Target(path, "jsonl")
    return Target(path, "sqlite") if is_database(target.file) and not target.store.exists() else target


def _of_store(path: Path, target: Target) -> RunStatus:
    store = target.store
    is_running = is_in_use(store)
    try:
        with open_stored(store) as stored:
            facts = stored.manifest()
            progress = read_progress(facts.get(PROGRESS_NOTE))
            is_complete = not is_running and _is_written(target, facts.get("finished"))
            total = facts["input"]["rows"] if is_complete else progress.rows_total if progress else None
            return _status(
                path,
                facts,
                progress,
                state="running" if is_running else "complete" if is_complete else "interrupted",
                rows_done=stored.num_complete_rows,
                rows_total=total,
                rows_failed=stored.num_failed_rows,
                reasons=tuple(stored.reasons(MOST_REASONS)),
            )
    except (InUseError, OutputError):
        if not is_running:
            raise
        return _of_a_store_that_is_locked(path, store)


def _is_written(target: Target, finished: str | None) -> bool:
    """Whether the run of a store has finished and its output file is written."""
    if finished is None or target.is_store:
        return finished is not None
    record = read_record(target)
    return record is not None and target.file.exists() and record.facts.get("finished") == finished


def _of_a_store_that_is_locked(path: Path, store: Path) -> RunStatus:
    """Return the status of a run that does not share its store, or has only just created it."""
    progress = read_status_file(store)
    if progress is None:
        return RunStatus(str(path), "running", 0, None, 0, has_store=True)
    return _status(
        path,
        {},
        progress,
        state="running",
        rows_done=progress.rows_done or 0,
        rows_total=progress.rows_total,
        rows_failed=progress.rows_failed or 0,
        reasons=progress.reasons,
    )


def _status(path: Path, facts: Mapping[str, Any], progress: ProgressNote | None, **more: Any) -> RunStatus:
    command = facts.get("command") or {}
    status = RunStatus(
        str(path),
        progress=progress,
        model=(facts.get("model") or {}).get("model"),
        started_s=seconds_of(facts.get("started")),
        command=tuple(command.get("words", ())),
        folder=command.get("folder"),
        has_store=True,
        **more,
    )
    return status if progress is None else with_progress(status, progress)


def with_progress(status: RunStatus, progress: ProgressNote) -> RunStatus:
    """Add a run's progress note to its status."""
    return replace(
        status,
        started_s=status.started_s or progress.started_s,
        noted_s=progress.noted_s,
        model=status.model or progress.model,
        engine=progress.engine,
        prompt_tokens=progress.prompt_tokens,
        output_tokens=progress.output_tokens,
        tokens_per_s=progress.tokens_per_s,
        predicted_bytes=progress.predicted_bytes,
        measured_bytes=progress.measured_bytes,
        peak_bytes=progress.peak_bytes,
    )


def _of_record(path: Path, record: FinishedRecord) -> RunStatus:
    """Return the status of a finished file whose store is gone."""
    facts = record.facts
    stats, command = facts.get("stats", {}), facts.get("command") or {}
    rows = facts.get("input", {}).get("rows", stats.get("rows", 0))
    return RunStatus(
        str(path),
        "complete",
        rows_done=rows,
        rows_total=rows,
        rows_failed=stats.get("errors", 0),
        reasons=tuple((text, number) for text, number in facts.get("reasons", ())),
        started_s=seconds_of(facts.get("started")),
        noted_s=seconds_of(facts.get("finished")),
        model=stats.get("model"),
        engine=stats.get("engine"),
        prompt_tokens=stats.get("prompt_tokens"),
        output_tokens=stats.get("output_tokens"),
        tokens_per_s=stats.get("tokens_per_s"),
        predicted_bytes=stats.get("predicted_batch_bytes"),
        measured_bytes=stats.get("measured_batch_bytes"),
        peak_bytes=stats.get("peak_bytes"),
        command=tuple(command.get("words", ())),
        folder=command.get("folder"),
    )


def seconds_of(time_text: str | None) -> float | None:
    """Convert an ISO 8601 time to seconds since 1970."""
    return datetime.fromisoformat(time_text).timestamp() if time_text else None
