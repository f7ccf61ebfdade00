"""How a run goes: prompts through the engine to standard output, or into a store and from there to a file."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from batchgen.cli.options import Format
from batchgen.cli.output import (
    Target,
    count_answered,
    is_abandoned,
    open_store,
    open_stream,
    text_of,
    write_json,
    write_whole,
)
from batchgen.cli.signals import Interrupts
from batchgen.engines import Engine, make_engine
from batchgen.engines.pool.engine import choose_devices, make_pool, num_threads
from batchgen.errors import OutputError
from batchgen.formats.reading import ReadOptions, Source, count_rows, read_requests
from batchgen.formats.writing import WRITERS, Rows, WriteOptions
from batchgen.machine.limits import MemoryLimit
from batchgen.machine.process import reuse_blocks
from batchgen.machine.speeds import speed_of, write_speed
from batchgen.model import Checkpoint, Model, open_checkpoint
from batchgen.model.checks import check_weights
from batchgen.model.weights import choose_dtype, load_model, name_of_dtype
from batchgen.pipeline import Pipeline
from batchgen.records import Request, Result, SamplingParams, TooLong
from batchgen.render.progress import ProgressReport
from batchgen.render.screen import OutputConsole, Screen, plural, summary
from batchgen.render.table import ResultTable
from batchgen.runs.manifest import InputDigest, Manifest, model_facts
from batchgen.runs.store import Store
from batchgen.text import escape

if TYPE_CHECKING:
    import torch

SOME_ROWS_FAILED = 3


@dataclass(frozen=True, slots=True)
class Job:
    """What the command line asked for, checked and complete. Without a `target` rows go to standard output."""

    sources: list[Source]
    sampling: SamplingParams
    reading: ReadOptions
    limit: int | None
    parse_special: bool
    too_long: TooLong
    strict: bool
    model: str | None
    revision: str | None
    device: str
    dtype: str
    num_rows: int | None
    memory: MemoryLimit | None
    engine: str
    workers: int | None
    exact: bool
    share_prefixes: bool
    form: Format
    ids: bool
    csv_raw: bool
    target: Target | None
    manifest: Path | None
    stats: Path | None

    @property
    def is_durable(self) -> bool:
        return self.target is not None and not self.target.is_stream

    @property
    def is_noted(self) -> bool:
        """Whether anybody will ask what the run was made of."""
        return self.is_durable or self.manifest is not None

    @property
    def options(self) -> dict[str, Any]:
        """What rows' results depend on, by the flags' names."""
        flags = {"--" + name.replace("_", "-"): value for name, value in asdict(self.sampling).items()}
        flags["--stop"] = list(self.sampling.stop)
        return flags | {
            "--field": self.reading.field,
            "--id-field": self.reading.id_field,
            "--template": self.reading.template and self.reading.template.source,
            "--input-format": self.reading.input_format,
            "--parse-special": self.parse_special,
            "--too-long": self.too_long,
            "--exact": self.exact,
        }

    def open_store(self) -> AbstractContextManager[Store | None]:
        return open_store(self.target) if self.target and self.is_durable else nullcontext()


def execute(job: Job, screen: Screen, interrupts: Interrupts) -> int:
    """Runs the job, says how it went, and returns the exit code."""
    if job.target and job.target.is_complete:
        _check_complete(job, job.target)
        screen.say(f"{job.target.path} is complete, there is nothing to go on with (--overwrite starts anew)")
        return 0
    with job.open_store() as store:
        manifest = Manifest(store)
        with screen.waiting("loading the model"):
            equipment = _load(job, screen, manifest)
        run = Run(job, screen, interrupts, equipment, store, manifest)
        interrupts.start_steps()
        with suppress(KeyboardInterrupt):
            run.generate()
            run.finish()
        interrupts.end_steps()
        run.write_notes()
        run.let_go()
        return run.sum_up()


@dataclass(frozen=True, slots=True)
class Equipment:
    """What rows run on. With several workers, one on each of `devices`, the weights are theirs alone."""

    checkpoint: Checkpoint
    devices: list[torch.device]
    dtype: str
    model: Model | None

    @property
    def device(self) -> str:
        """The devices by name, each once."""
        return ",".join(dict.fromkeys(map(str, self.devices)))


def _check_complete(job: Job, target: Target) -> None:
    """Refuses to take a finished file of JSON Lines for the answer to an input that has other rows by now."""
    if job.form is not Format.jsonl:
        return
    num_rows = sum(1 for _ in islice(read_requests(job.sources, job.sampling, job.reading), job.limit))
    if num_rows != (num_answered := count_answered(target.file)):
        raise OutputError(
            f"{target.path} answers {plural(num_answered, 'row')}, the input has {num_rows:,}, and the store is gone: "
            "run the others into another file, or start anew with --overwrite (--keep-store lets you add rows later)"
        )


def _load(job: Job, screen: Screen, manifest: Manifest) -> Equipment:
    """The model. A run that was begun with another one, or other options, is refused before weights are loaded."""
    devices = choose_devices(job.device, job.workers)
    checkpoint = open_checkpoint(job.model, revision=job.revision, say=screen.say)
    dtype = name_of_dtype(choose_dtype(job.dtype, devices[0], checkpoint.config))
    equipment = Equipment(checkpoint, devices, dtype, None)
    if job.is_noted:
        check_weights(checkpoint.folder)  # before they are read for their hash
        options = {**job.options, "--dtype": dtype}
        manifest.begin(equipment.device, model=model_facts(checkpoint), options=options)
    if len(devices) > 1:
        return equipment
    return replace(equipment, model=load_model(checkpoint, str(devices[0]), dtype))


class Run:
    """One run of a job: to standard output as rows come, or into a store, and from there to a file."""

    def __init__(
        self,
        job: Job,
        screen: Screen,
        interrupts: Interrupts,
        equipment: Equipment,
        store: Store | None,
        manifest: Manifest,
    ) -> None:
        self.job = job
        self.screen = screen
        self.interrupts = interrupts
        self.equipment = equipment
        self.store = store
        self.manifest = manifest
        self.num_before = store.num_results if store else 0
        self.progress = ProgressReport(screen, self._count_results(), job.sampling.max_new_tokens)
        self.pipeline = self._make_pipeline()
        self.digest = InputDigest()
        self.failures = Failures(0, 0, None)
        self.is_finished = False

    def _count_results(self) -> int | None:
        """Results to come, where somebody watches and it can be known."""
        rows = None if self.screen.quiet else count_rows(self.job.sources, self.job.limit, self.job.reading)
        return rows and max(0, rows * self.job.sampling.num_samples - self.num_before)

    def _make_engine(self) -> Engine:
        job, equipment = self.job, self.equipment
        options: dict[str, Any] = {
            "name": job.engine,
            "num_rows": job.num_rows,
            "num_beams": job.sampling.num_beams,
            "exact": job.exact,
            "share": job.share_prefixes,
            "on_step": self.progress.on_step,
            "should_stop": self._should_stop,
            "memory": job.memory,
            "say": self.screen.say,
        }
        if equipment.model:
            return make_engine(equipment.model, reuse_blocks=reuse_blocks, **options)
        return make_pool(equipment.checkpoint, equipment.devices, equipment.dtype, **options)

    def _make_pipeline(self) -> Pipeline:
        job = self.job
        return Pipeline(
            self.equipment.checkpoint,
            self._make_engine(),
            too_long=job.too_long,
            parse_special=job.parse_special,
            strict=job.strict,
        )

    def _should_stop(self) -> bool:
        if self.job.target is None and is_abandoned(sys.stdout):
            raise BrokenPipeError
        return self.interrupts.stop_requested()

    def generate(self) -> None:
        """Runs every row that is not done."""
        if self.store and self.num_before:
            self.screen.say(f"going on with {self.store.path}: {plural(self.num_before, 'result')} kept")
        requests = self._read()
        with self.progress:
            if self.store:
                for result in self.pipeline.run_into(self.store, requests):
                    self.progress.on_result(result)
            else:
                with open_stream(self.job.target) as stream:
                    self._write(self.progress.track(self.pipeline.run(requests), stream), stream)

    def _read(self) -> Iterator[Request]:
        job = self.job
        requests = read_requests(job.sources, job.sampling, job.reading, on_blank=self.pipeline.count_blank_line)
        requests = islice(requests, job.limit)
        return self.digest.watch(requests) if job.is_noted else requests

    def _write(self, results: Iterable[Result], stream: BinaryIO, rows: Rows = "all") -> None:
        job = self.job
        if job.form is Format.table:
            with text_of(stream) as file:
                console = OutputConsole(file=file, highlight=False)
                ResultTable(console, self.equipment.checkpoint.pad_token_id, all_ids=job.ids).write(results)
        else:
            options = WriteOptions(job.ids, job.csv_raw, escape if stream.isatty() else str, rows)
            WRITERS[job.form.value](results, stream, options)

    def finish(self) -> None:
        """After the last row: what was noted is complete, and the file is written."""
        self.failures = self._find_failures()
        if self.job.is_noted:
            self.manifest.end(self.digest, self._stats())
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
            return Failures(self.store.num_errors, self.store.num_results, self.store.first_error())
        stats = self.pipeline.stats()
        return Failures(stats.errors, stats.rows, self.pipeline.first_error)

    def _stats(self) -> dict[str, Any]:
        stats = self.pipeline.stats()
        return asdict(stats) | {
            "tokens_per_s": stats.tokens_per_s,
            "padding_share": stats.padding_share,
            "results_before": self.num_before,
            "model": self.equipment.checkpoint.name,
            "dtype": self.equipment.dtype,
            "device": self.equipment.device,
            "workers": len(self.equipment.devices),
            "engine": self.pipeline.engine.name,
        }

    def write_notes(self) -> None:
        """The files that `--manifest` and `--stats` name, also of a run that was interrupted."""
        if self.job.manifest:
            write_json(self.job.manifest, self.manifest.facts)
        if self.job.stats:
            write_json(self.job.stats, self._stats())

    def let_go(self) -> None:
        """Of the store, where nothing is left to be written from it."""
        if not (self.store and self.job.target and self.is_finished):
            return
        if self.job.target.is_store or self.job.target.keep_store:
            self.store.close(as_single_file=True)
        else:
            self.store.discard()

    def sum_up(self) -> int:
        """The closing lines on stderr; the exit code."""
        stats = self.pipeline.stats()
        on, engine = self.equipment, self.pipeline.engine.name
        line = summary(stats, on.checkpoint.name, _ran_on(engine, on), ran_exactly(self.job, on.dtype))
        if self.interrupts.stop_requested():
            self.screen.say(f"interrupted: {line}{self._how_to_go_on()}")
            return self.interrupts.exit_code
        self.screen.say(line)
        if self.store and (speed := speed_of(stats)):
            write_speed(speed, on.checkpoint.name, on.device, on.dtype, engine)
        failures = self.failures
        if failures.first:
            self.screen.error(
                f"{failures.number} of {failures.of} rows failed, the first with id {failures.first.id}: "
                f"{failures.first.error}"
            )
            return SOME_ROWS_FAILED
        return 0

    def _how_to_go_on(self) -> str:
        if not self.store or self.store.is_closed or not self.store.num_results:
            return ""
        kept = plural(self.store.num_results, "result")
        return f"; {kept} kept in {self.store.path}: the same command with --resume goes on"


@dataclass(frozen=True, slots=True)
class Failures:
    """How many rows failed, of how many, and the first of them."""

    number: int
    of: int
    first: Result | None


def ran_exactly(job: Job, dtype: str) -> str:
    """The dtype, and that near ties are not decided again, where that is so."""
    return dtype if job.exact and dtype == "float32" else f"{dtype} (near ties not decided again)"


def _ran_on(engine: str, equipment: Equipment) -> str:
    """`continuous on cpu (2 threads)`: torch chooses how many; workers share the cores."""
    import torch

    number = torch.get_num_threads() if equipment.model else num_threads(len(equipment.devices))
    each = "" if equipment.model else " each"
    threads = f" ({plural(number, 'thread')}{each})" if equipment.devices[0].type == "cpu" else ""
    return f"{engine} on {equipment.device}{threads}"
