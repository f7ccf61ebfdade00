"""A run from start to end: prompts through the engine to a stream, or into a store and from there to a file."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any, BinaryIO

from batchgen.errors import OutputError
from batchgen.formats.compression import damage, unpack
from batchgen.formats.whole import write_json, write_whole
from batchgen.formats.writing import WRITERS, Rows, WriteOptions, Writer
from batchgen.machine.speeds import speed_of, write_speed
from batchgen.model.stops import watch_stops
from batchgen.pipeline import Pipeline
from batchgen.records import Request, Result
from batchgen.runs.ending import Ending, Failures, RanOn, stats_facts
from batchgen.runs.equipment import Equipment, load_equipment, make_run_engine
from batchgen.runs.job import Job
from batchgen.runs.manifest import InputDigest, Manifest
from batchgen.runs.observer import Observer
from batchgen.runs.store import Store
from batchgen.runs.target import Target, open_store, open_stream
from batchgen.text import escape


def execute(
    job: Job,
    observer: Observer,
    *,
    stdout: BinaryIO | None = None,
    writers: Mapping[str, Writer] = WRITERS,
) -> Ending | None:
    """Runs a job into its target, else into `stdout`, and says how it ended; None where nothing was left to do.

    A run that the observer stops ends early; without an observer that asked for it, `KeyboardInterrupt` passes.
    """
    if job.target and job.target.is_complete:
        _check_complete(job, job.target)
        observer.say(f"{job.target.path} is complete, there is nothing to go on with (--overwrite starts anew)")
        return None
    with open_run(job, observer, writers) as run:
        with observer.steps():
            try:
                run.generate(stdout)
                run.finish()
            except KeyboardInterrupt:
                if not observer.should_stop():
                    raise
        run.write_notes()
        run.let_go()
        return run.ending()


@contextmanager
def open_run(job: Job, observer: Observer, writers: Mapping[str, Writer] = WRITERS) -> Iterator[Run]:
    """A run that is ready to generate: its store is open, its model is loaded."""
    with _open_store(job) as store:
        manifest = Manifest(store)
        with observer.waiting("loading the model"):
            equipment = load_equipment(job, manifest, observer)
        yield Run(job, observer, equipment, store, manifest, writers)


def _open_store(job: Job) -> AbstractContextManager[Store | None]:
    return open_store(job.target) if job.target and job.is_durable else nullcontext()


class Run:
    """One run of a job: to a stream as rows come, or into a store, and from there to a file."""

    def __init__(
        self,
        job: Job,
        observer: Observer,
        equipment: Equipment,
        store: Store | None,
        manifest: Manifest,
        writers: Mapping[str, Writer],
    ) -> None:
        self.job = job
        self.observer = observer
        self.equipment = equipment
        self.store = store
        self.manifest = manifest
        self.writers = writers
        self.num_before = store.num_results if store else 0
        self.pipeline = Pipeline(
            equipment.checkpoint,
            make_run_engine(job, equipment, observer),
            too_long=job.too_long,
            parse_special=job.parse_special,
            strict=job.strict,
            should_stop=observer.should_stop,
            on_step=observer.on_step,
            chat=equipment.chat,
        )
        self.digest = InputDigest()
        self.failures = Failures()
        self.is_finished = False

    def generate(self, stdout: BinaryIO | None = None) -> None:
        """Runs every row that is not done, into the store or the stream."""
        if self.store and self.num_before:
            self.observer.say(f"going on with {self.store.path}: {results_text(self.num_before)} kept")
        with self.observer.generating(self._count_left, self.job.sampling.max_new_tokens):
            if self.store:
                deque(self.observer.track(self.pipeline.run_into(self.store, self._requests())), maxlen=0)
                return
            with self._open_stream(stdout) as stream:
                self._write(self.observer.track(self.pipeline.run(self._requests()), stream), stream)

    def results(self) -> Iterator[Result]:
        """Every row, as it finishes; nothing is kept."""
        return self.pipeline.run_into(Nowhere(), self._requests())

    def _requests(self) -> Iterator[Request]:
        requests = self.job.prompts.requests(self.job.sampling, self.pipeline.count_blank_line)
        requests = watch_stops(requests, self.equipment.checkpoint, self.observer.say)
        return self.digest.watch(requests) if self.job.is_noted else requests

    def _count_left(self) -> int | None:
        """Results to come, where that can be known."""
        rows = self.job.prompts.count()
        return rows and max(0, rows * self.job.sampling.num_samples - self.num_before)

    def _open_stream(self, stdout: BinaryIO | None) -> AbstractContextManager[BinaryIO]:
        if self.job.target:
            return open_stream(self.job.target.path)
        assert stdout
        return nullcontext(stdout)

    def _write(self, results: Iterable[Result], stream: BinaryIO, rows: Rows = "all") -> None:
        layout = self.job.layout
        options = WriteOptions(
            ids=layout.ids,
            csv_raw=layout.csv_raw,
            escape=escape if stream.isatty() else str,
            rows=rows,
            pad_token_id=self.equipment.checkpoint.pad_token_id,
        )
        self.writers[layout.form](results, stream, options)

    def finish(self) -> None:
        """After the last row: what was noted is complete, and the file is written."""
        self.failures = self._find_failures()
        if self.job.is_noted:
            self.manifest.end(self.digest, self._stats_facts())
        if self.store and self.job.target and not self.job.target.is_store:
            self._write_files(self.job.target, self.store)
        self.is_finished = True

    def _write_files(self, target: Target, store: Store) -> None:
        if not (failures := target.failures_file):
            self._write_file(target.file, store.results(), "all")
            return
        self._write_file(target.file, store.results(), "answered")
        if store.num_errors:
            self._write_file(failures, store.results(), "failed")
        else:
            failures.unlink(missing_ok=True)

    def _write_file(self, file: Path, results: Iterable[Result], rows: Rows) -> None:
        try:
            write_whole(file, lambda stream: self._write(results, stream, rows))
        except OSError as error:
            mend = "mend that, then run the same command with --resume"
            raise OutputError(f"{file} cannot be written: {error.strerror or error}: {mend}") from None

    def _find_failures(self) -> Failures:
        if self.store:
            number, of, first = self.store.num_errors, self.store.num_results, self.store.first_error()
        else:
            stats = self.pipeline.stats()
            number, of, first = stats.errors, stats.rows, self.pipeline.first_error
        return Failures(number, of, first.id, first.error or "") if first else Failures()

    def write_notes(self) -> None:
        """The files for the manifest and the counts, also of a run that was interrupted."""
        if self.job.manifest:
            write_json(self.job.manifest, self.manifest.facts)
        if self.job.stats:
            write_json(self.job.stats, self._stats_facts())

    def let_go(self) -> None:
        """Of the store, where nothing is left to be written from it."""
        if not (self.store and self.job.target and self.is_finished):
            return
        if self.job.target.is_store or self.job.target.keep_store:
            self.store.close(as_single_file=True)
        else:
            self.store.discard()

    @property
    def ran_on(self) -> RanOn:
        on = self.equipment
        return RanOn(
            model=on.checkpoint.name,
            engine=self.pipeline.engine.stats.engine,
            device=on.device,
            dtype=on.dtype,
            is_exact=self.job.engine.exact and on.dtype == "float32",
            num_workers=len(on.devices),
            num_threads=on.num_threads,
        )

    def _stats_facts(self) -> dict[str, Any]:
        return stats_facts(self.pipeline.stats(), self.ran_on, results_before=self.num_before)

    def ending(self) -> Ending:
        """How the run ended; a speed that it showed is kept for `plan`."""
        stats, on = self.pipeline.stats(), self.ran_on
        was_stopped = self.observer.should_stop()
        if self.store and not was_stopped and (speed := speed_of(stats)):
            write_speed(speed, on.model, on.device, on.dtype, on.engine)
        if not self.store or self.store.is_closed:
            return Ending(stats, on, self.failures, was_stopped=was_stopped)
        return Ending(stats, on, self.failures, self.store.path, self.store.num_results, was_stopped)


class Nowhere:
    """Keeps no result; for rows that go to a caller as they finish."""

    done: frozenset[tuple[int, int]] = frozenset()

    def unfinished(self, requests: Iterable[Request]) -> Iterator[Request]:
        return iter(requests)

    def add(self, result: Result) -> None:
        pass

    def forget(self, index: int) -> None:
        pass


def results_text(number: int) -> str:
    return f"{number:,} result{'s' if number != 1 else ''}"


def _check_complete(job: Job, target: Target) -> None:
    """Refuses to take a finished file of JSON Lines for the answer to an input that has other rows by now."""
    if job.layout.form != "jsonl":
        return
    num_rows = sum(1 for _ in job.prompts.requests(job.sampling, lambda: None))
    if num_rows != (num_answered := _count_answered(target.file)):
        rows = "1 row" if num_answered == 1 else f"{num_answered:,} rows"
        raise OutputError(
            f"{target.path} answers {rows}, the input has {num_rows:,}, and the store is gone: "
            "run the others into another file, or start anew with --overwrite (--keep-store lets you add rows later)"
        )


def _count_answered(file: Path) -> int:
    """How many rows of the input a file of JSON Lines answers, by its last line."""
    try:
        with file.open("rb") as stream:
            last = deque(unpack(stream, str(file)), maxlen=1)
        return int(json.loads(last[0])["index"]) + 1 if last else 0
    except damage(ValueError, KeyError, TypeError):
        raise OutputError(f"{file} is not batchgen's: name another output") from None
