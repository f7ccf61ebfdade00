"""A run from start to end: prompts go through the engine to a stream, or into a store and from there to a file."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO

from batchgen.formats.extras import check_output_extras
from batchgen.formats.whole import write_json
from batchgen.formats.writing import WRITERS, Rows, WriteOptions, Writer, write_in_kind
from batchgen.machine.speeds import speed_of, write_speed
from batchgen.model.stops import watch_stops
from batchgen.pipeline import Pipeline
from batchgen.records import Request, Result, RunStats
from batchgen.runs.ending import Ending, Failures, RanOn, stats_facts
from batchgen.runs.equipment import Equipment, load_equipment, make_run_engine
from batchgen.runs.job import Job
from batchgen.runs.manifest import InputDigest, Manifest
from batchgen.runs.nothing_left import find_finished
from batchgen.runs.observer import Observer
from batchgen.runs.output import OutputFiles, open_store, open_stream
from batchgen.runs.pace import Pace
from batchgen.runs.progress import GENERATING, MOST_REASONS, WRITING, ProgressNote, Reporter, measure
from batchgen.runs.store import Store
from batchgen.runs.sums import ScoreSums, sum_up, summing, watch_groups
from batchgen.runs.target import OPENAI_BATCH, Target
from batchgen.text import escape


def execute(
    job: Job,
    observer: Observer,
    *,
    stdout: BinaryIO | None = None,
    writers: Mapping[str, Writer] = WRITERS,
) -> Ending:
    """Run a job, write its results to the target (or to `stdout` if there is none), and return how it ended.

    A run that the observer stops ends early. A `KeyboardInterrupt` propagates unless the observer asked to stop.
    """
    if job.target and job.target.is_complete:
        return find_finished(job, job.target, observer)
    with open_run(job, observer, writers) as run:
        with observer.steps():
            try:
                run.generate(stdout)
                run.finish()
            except KeyboardInterrupt:
                if not observer.should_stop():
                    raise
        run.write_notes()
        run.close_store()
        return run.ending()


@contextmanager
def open_run(job: Job, observer: Observer, writers: Mapping[str, Writer] = WRITERS) -> Iterator[Run]:
    """Open a run that is ready to generate: packages are checked, the store is open, the model is loaded."""
    job.prompts.check_extras()
    check_output_extras(job.output_form.form, job.target.path if job.target else None)
    with _open_store(job) as store:
        files = OutputFiles(job.target, store) if job.target and store and not job.target.is_store else None
        reporter = Reporter(store) if store else None
        manifest = Manifest(store)
        with observer.waiting("loading the model"):
            equipment = load_equipment(job, manifest, observer)
        yield Run(job, observer, equipment, store, files, manifest, writers, reporter)


def _open_store(job: Job) -> AbstractContextManager[Store | None]:
    return open_store(job.target) if job.target and job.is_durable else nullcontext()


class Run:
    """One run of a job: to a stream as rows finish, or into a store and from there to a file."""

    def __init__(
        self,
        job: Job,
        observer: Observer,
        equipment: Equipment,
        store: Store | None,
        files: OutputFiles | None,
        manifest: Manifest,
        writers: Mapping[str, Writer],
        reporter: Reporter | None = None,
    ) -> None:
        self.job = job
        self.observer = observer
        self.equipment = equipment
        self.store = store
        self.files = files
        self.manifest = manifest
        self.writers = writers
        self.reporter = reporter
        self.pace = Pace(job.sampling.max_new_tokens)
        self.num_before = store.num_results if store else 0
        self.rows_before = store.num_rows if store else 0
        self.pipeline = Pipeline(
            equipment.checkpoint,
            make_run_engine(job, equipment, manifest, observer),
            too_long=job.too_long,
            parse_special=job.parse_special,
            strict=job.strict,
            should_stop=observer.should_stop,
            on_step=self._on_step,
            chat=equipment.chat,
            scoring=job.scoring,
        )
        self.sums = ScoreSums() if job.scoring else None
        self.digest = InputDigest()
        self.failures = Failures()
        self.written: list[Path] = []
        self.is_finished = False
        self._last_stats: RunStats | None = None

    def generate(self, stdout: BinaryIO | None = None) -> None:
        """Run every row that is not done yet, into the store or the stream."""
        if self.store and self.num_before:
            self.observer.note(f"continuing {self.store.path}: {results_text(self.num_before)} kept")
        self._begin()
        with self.observer.generating(self._count_left, self.num_before, self.job.sampling):
            if self.store:
                results = self.pace.track(self.pipeline.run_into(self.store, self._requests()))
                deque(self.observer.track(results), maxlen=0)
                return
            with self._open_stream(stdout) as stream:
                self._write(self.observer.track(self._summed(self.pipeline.run(self._requests())), stream), stream)

    def _summed(self, results: Iterator[Result]) -> Iterator[Result]:
        """Pass on rows that go straight to the output; count them in the sums if the job scores."""
        if not (self.sums and self.job.scoring):
            return results
        return summing(self.observer.scored(results), self.sums, self.job.scoring.by)

    def _begin(self) -> None:
        """Start reporting progress."""
        if not (self.store and self.reporter):
            return
        tokens_before = self.store.count_tokens() if self.num_before else (0, 0)
        self.pace.begin(self._count_left(), self.num_before)
        self.reporter.measure = lambda progress: self._measure(progress, tokens_before)
        self.reporter.begin(GENERATING)

    def _measure(self, progress: ProgressNote, tokens_before: tuple[int, int]) -> ProgressNote:
        rows = self.digest.num_rows if progress.phase == WRITING else self._num_rows
        return measure(progress, self.pace, self.pipeline.engine.stats, self.ran_on, rows, tokens_before)

    def _on_step(self, num_tokens: int) -> None:
        self.pace.on_step(num_tokens)
        self.observer.on_step(num_tokens)

    def results(self) -> Iterator[Result]:
        """Yield every row as it finishes, without keeping any."""
        return self.pipeline.run_into(Nowhere(), self._requests())

    def _requests(self) -> Iterator[Request]:
        requests = watch_groups(self.job.requests(self.pipeline.count_blank_line), self.job.scoring, self.observer.say)
        requests = watch_stops(requests, self.equipment.checkpoint, self.observer.say)
        return self.digest.watch(requests) if self.job.is_noted else requests

    def _count_left(self) -> int | None:
        """Return the number of results still to come, or None if unknown."""
        rows = self._num_rows
        return rows and max(0, rows * self.job.sampling.num_samples - self.num_before)

    @cached_property
    def _num_rows(self) -> int | None:
        return self.job.prompts.count()

    def _open_stream(self, stdout: BinaryIO | None) -> AbstractContextManager[BinaryIO]:
        if self.job.target:
            return open_stream(self.job.target.path)
        assert stdout
        return nullcontext(stdout)

    def _write(self, results: Iterable[Result], stream: BinaryIO, rows: Rows = "all") -> None:
        output_form = self.job.output_form
        options = WriteOptions(
            ids=output_form.ids,
            csv_raw=output_form.csv_raw,
            escape=escape if stream.isatty() else str,
            rows=rows,
            pad_token_id=self.equipment.checkpoint.pad_token_id,
            facts=self.manifest.facts,
            columns=self.job.columns,
        )
        write = write_in_kind if output_form.in_kind else self.writers[output_form.form]
        write(results if self.store else self.manifest.with_input(results, self.digest), stream, options)

    def finish(self) -> None:
        """Complete the manifest and write the output file, after the last row."""
        if self.reporter:
            self.reporter.begin(WRITING)
        self.failures = self._find_failures()
        if self.store and self.job.scoring:
            self.sums = sum_up(self.observer.scored(self.store.results()), self.job.scoring.by)
        if self.job.is_noted:
            self.manifest.end(self.digest, self._stats_facts())
        if self.store and self.job.target:
            self.written += self._write_target(self.job.target, self.store)
        self.is_finished = True

    def _write_target(self, target: Target, store: Store) -> list[Path]:
        """Write every file of the output and return their paths; a store is only checked for missing results."""
        if not self.files:
            deque(store.complete_results(), maxlen=0)
            if self.job.columns is not None:
                store.show_columns(self.job.columns)
            return [target.path]
        facts = {**self.manifest.facts, "output": self.job.output_form.options, "reasons": store.reasons(MOST_REASONS)}
        first = next(store.complete_results(), None)
        is_batch = target.form == OPENAI_BATCH or (target.in_kind and first is not None and first.endpoint is not None)
        return self.files.write(
            lambda stream, rows: self._write(store.complete_results(), stream, rows), facts, is_batch=is_batch
        )

    def _find_failures(self) -> Failures:
        first = self.store.first_error() if self.store else self.pipeline.first_error
        stats = self._stats()
        return Failures(stats.errors, stats.rows, first.id, first.error or "") if first else Failures()

    def write_notes(self) -> None:
        """Write the manifest and stats files, also if the run was interrupted."""
        facts = {self.job.manifest: self.manifest.facts, self.job.stats: self._stats_facts()}
        for path, value in facts.items():
            if path:
                write_json(path, value, self.files.temporary(path) if self.files else None)
                self.written.append(path)

    def close_store(self) -> None:
        """Keep the store as a single file, or remove it; do nothing if rows are still missing in the output."""
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
            is_exact=self.job.engine.is_exact(on.dtype),
            num_workers=len(on.devices),
            num_threads=on.num_threads,
            quantize=self.job.engine.quantize,
            bits=self.manifest.bits,
        )

    def _stats(self) -> RunStats:
        """Return the stats: rows of the whole output, including those kept; tokens and times of this run only."""
        stats = self.pipeline.stats()
        if not self.store or self.store.is_closed:
            return self._last_stats or stats
        self._last_stats = replace(
            stats, rows=self.store.num_rows, errors=self.store.num_failed_rows, rows_kept=self.rows_before
        )
        return self._last_stats

    def _stats_facts(self) -> dict[str, Any]:
        scores = self.sums.facts if self.sums else {}
        return stats_facts(self._stats(), self.ran_on, results_before=self.num_before, **scores)

    def ending(self) -> Ending:
        """Return how the run ended, and save its measured speed for `plan`."""
        stats, on, was_stopped = self._stats(), self.ran_on, self.observer.should_stop()
        if self.store and not was_stopped and (speed := speed_of(stats)):
            write_speed(speed, on.model, on.device, on.precision, on.engine)
        store = self.store.path if self.store and not self.is_finished else None
        kept = self.store.num_results if self.store and store else 0
        return Ending(stats, on, self.failures, store, kept, tuple(self.written), was_stopped, sums=self.sums)


class Nowhere:
    """A store that keeps nothing, for rows that are passed to the caller as they finish."""

    done: frozenset[tuple[int, int]] = frozenset()

    def unfinished(self, requests: Iterable[Request]) -> Iterator[Request]:
        return iter(requests)

    def add(self, result: Result) -> None:
        pass

    def forget(self, index: int) -> None:
        pass


def results_text(number: int) -> str:
    return f"{number:,} result{'s' if number != 1 else ''}"
