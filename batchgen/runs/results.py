"""The results of a running, interrupted or finished run: from its store while there is one, otherwise from its file."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from batchgen.errors import InputError, UsageError
from batchgen.formats.answers import read_answers
from batchgen.formats.parquet_facts import read_parquet_facts
from batchgen.records import Result
from batchgen.runs.database import is_database, is_in_use
from batchgen.runs.finished import read_record
from batchgen.runs.status import target_of
from batchgen.runs.stored import StoredRun, open_stored
from batchgen.runs.target import OPENAI_BATCH, SQLITE, Target, form_of_output

LOOK_AGAIN_S = 0.5


def read_results(path: Path) -> Iterator[Result]:
    """Yield every finished result, in input order.

    Raises `InputError` if there is no output of a run, and `InUseError` if a live run does not share its store.
    """
    target = target_of(path)
    if is_database(target.store):
        with open_stored(target.store) as stored:
            yield from stored.results()
    else:
        yield from _of_file(path, target)


def follow_results(path: Path, wait: Callable[[], object] = lambda: time.sleep(LOOK_AGAIN_S)) -> Iterator[Result]:
    """Yield results in input order until the run ends, each as soon as it and all before it are finished.

    `wait` is called when there is nothing new.
    """
    target = target_of(path)
    if not is_database(target.store):
        yield from _of_file(path, target)
        return
    with open_stored(target.store) as stored:
        follower = Follower(stored)
        while is_in_use(target.store):
            yield from follower.ready()
            wait()
        yield from follower.rest()


class Follower:
    """Reads the results of a store in input order, as rows become complete."""

    def __init__(self, stored: StoredRun) -> None:
        self._stored = stored
        self._last = (-1, -1)
        self._next_index = 0

    def ready(self) -> Iterator[Result]:
        """Yield the new results up to the first row that is not complete."""
        held: list[Result] = []
        expected = self._stored.num_samples_after(self._next_index - 1)
        index, num_samples = next(expected, (-1, 0))
        for result in self._stored.results_after(self._last):
            if result.index != index:
                return
            held.append(result)
            if len(held) == num_samples or held[0].error is not None:
                yield from held
                self._last, self._next_index, held = (result.index, result.sample_index), index + 1, []
                index, num_samples = next(expected, (-1, 0))

    def rest(self) -> Iterator[Result]:
        """Yield all remaining results."""
        return self._stored.results_after(self._last)


def _of_file(path: Path, target: Target) -> Iterator[Result]:
    if not target.file.is_file():
        raise InputError(f"{path}: there is no run with this output: give the same file as its -o")
    form = form_of_file(target)
    failures = Target(target.path, form, in_kind=True).failures_file if form in ("jsonl", OPENAI_BATCH) else None
    return read_answers(target.file, form, failures if failures and _belongs(target, failures) else None)


def form_of_file(target: Target) -> str:
    """Return the format of a finished file: from its record, or else from its suffix."""
    record = read_record(target)
    if record and (form := record.facts.get("output", {}).get("--format")):
        return str(form)
    try:
        return form_of_output(target.file)
    except UsageError as error:
        raise InputError(str(error)) from None


def _belongs(target: Target, failures: Path) -> bool:
    """Whether a file of failures was written by the same run."""
    record = read_record(target)
    return record is not None and record.names(failures)


def form_of_output_file(path: Path) -> str:
    """Return the format that an output's rows are read from; for a store that is SQLite."""
    target = target_of(path)
    return SQLITE if is_database(target.store) else form_of_file(target)


def facts_of(path: Path) -> dict[str, Any]:
    """Return what the run of an output was made of, as in its manifest; empty if unknown."""
    target = target_of(path)
    if is_database(target.store):
        with open_stored(target.store) as stored:
            return stored.manifest()
    if record := read_record(target):
        return dict(record.facts)
    return read_parquet_facts(target.file) if target.file.suffix == ".parquet" else {}
