"""`run --ray`: the same job on a Ray cluster, from files that all machines can read into a folder."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from batchgen.cli.execute import SOME_ROWS_FAILED, Job, ran_exactly
from batchgen.cli.options import Format
from batchgen.cli.output import write_json
from batchgen.cli.signals import Interrupts
from batchgen.engines.pool.worker import ModelRecipe
from batchgen.errors import OutputError, UsageError
from batchgen.model import Checkpoint, open_checkpoint
from batchgen.model.weights import choose_dtype, name_of_dtype
from batchgen.render.screen import Screen, plural, summary
from batchgen.runs.manifest import Manifest, model_facts
from batchgen.runs.ray import ClusterRun
from batchgen.runs.ray.cluster import Cluster, Size, connect
from batchgen.runs.ray.cut import GRAIN, CutFile, Part, choose_part_rows, cut_file, make_parts
from batchgen.runs.ray.folder import MANIFEST, NAME, WRITING, OutputFolder, Piece
from batchgen.runs.ray.inputs import InputFile, find_files
from batchgen.runs.ray.piecework import Outcome, Work

SAY_EVERY_S = 5.0


@dataclass(frozen=True, slots=True)
class OnRay:
    """What `--ray` and the options that go with it ask for."""

    address: str
    inputs: list[str]
    output: str
    workers: int | None = None
    cpus: float | None = None
    gpus: float | None = None
    part_rows: int | None = None
    overwrite: bool = False
    resume: bool = False


def make_on_ray(
    address: str,
    inputs: list[str],
    output: Path | None,
    workers: int | None,
    cpus: float | None,
    gpus: float | None,
    part_rows: int | None,
    overwrite: bool,
    resume: bool,
) -> OnRay:
    """The options, checked. Raises `UsageError`."""
    if output is None:
        raise UsageError("--ray writes into a folder: name it with -o")
    if overwrite and resume:
        raise UsageError("--overwrite starts anew, --resume goes on: choose one")
    folder = re.sub(r"^([a-z0-9+]+:/)(?=[^/])", r"\1/", str(output))  # a Path has made one slash of a URL's two
    return OnRay(address, inputs, folder, workers, cpus, gpus, part_rows, overwrite, resume)


def choose_ray_format(asked: Format) -> Format:
    """JSON Lines, or Parquet where that is asked for."""
    if asked not in (Format.auto, Format.jsonl, Format.parquet):
        raise UsageError(f"--format {asked.value} is not for --ray: use jsonl or parquet")
    return Format.jsonl if asked is Format.auto else asked


def refuse_with_ray(given: Mapping[str, object]) -> None:
    """Raises `UsageError` for options that mean nothing on a cluster."""
    for flag, value in given.items():
        if value:
            raise UsageError(f"{flag} is not for --ray")


def execute_on_ray(job: Job, on: OnRay, screen: Screen, interrupts: Interrupts) -> int:
    """Runs the job, says how it went, and returns the exit code."""
    if job.device != "auto":
        raise UsageError(f"--device {job.device} is not for --ray: --gpus-per-worker says what workers run on")
    files = find_files(on.inputs, any_suffix=job.reading.input_format is not None)
    folder = OutputFolder(on.output, job.form.value)
    _check_folder(folder, on)
    checkpoint = open_checkpoint(job.model, revision=job.revision, say=screen.say)
    with connect(on.address) as cluster:
        size = cluster.choose_size(on.workers, on.cpus, on.gpus)
        folder.make()
        folder.clean(all_of_ours=on.overwrite)
        run = _Run(job, on, screen, interrupts, checkpoint, cluster, size, folder)
        run.prepare(files)
        if not (pieces := run.find_missing()):
            screen.say(f"{on.output} is complete, there is nothing to go on with")
            return 0
        with suppress(KeyboardInterrupt):
            run.generate(pieces)
        run.write_notes()
        return run.sum_up()


def _check_folder(folder: OutputFolder, on: OnRay) -> None:
    names = folder.names()
    ours = [name for name in names if name == MANIFEST or NAME.fullmatch(name) or name.startswith(WRITING)]
    if names and not ours:
        raise OutputError(f"-o {on.output} is a folder with other things in it: name a new one")
    if ours and not (on.resume or on.overwrite):
        raise OutputError(f"-o {on.output} holds a run: go on with --resume, or start anew with --overwrite")


class _Run:
    """One run of a job on a cluster."""

    def __init__(
        self,
        job: Job,
        on: OnRay,
        screen: Screen,
        interrupts: Interrupts,
        checkpoint: Checkpoint,
        cluster: Cluster,
        size: Size,
        folder: OutputFolder,
    ) -> None:
        self.job = job
        self.on = on
        self.screen = screen
        self.interrupts = interrupts
        self.folder = folder
        self.dtype = _dtype(job, size, checkpoint)
        work = Work(folder, job.sampling, job.reading, job.too_long, job.parse_special, job.strict, job.ids)
        self.run = ClusterRun(cluster, work, checkpoint, _recipe(job, checkpoint, self.dtype), size)
        self.manifest = Manifest(facts=folder.read_manifest(), where=f"{on.output}/{MANIFEST}")
        self.parts: list[Part] = []
        self.num_blanks = 0
        self._has_said: set[str] = set()
        self._last_line = time.monotonic()

    def prepare(self, files: list[InputFile]) -> None:
        """Cuts the input, and notes what the run is made of; one that was begun with something else is refused."""
        begun = self.manifest.facts.get("options", {}).get("--part-rows")
        every = self.on.part_rows or begun or GRAIN
        with self.screen.waiting("reading the input"):
            cuts = [cut_file(file, self.job.reading, every) for file in files]
        num_rows = sum(cut.num_rows for cut in cuts)
        part_rows = self.on.part_rows or begun or choose_part_rows(num_rows, self.run.size.workers)
        self._note(cuts, part_rows)
        self.num_blanks = sum(cut.num_blanks for cut in cuts)
        self.parts = make_parts(cuts, part_rows, self.job.limit)

    def _note(self, cuts: list[CutFile], part_rows: int) -> None:
        options = {**self.job.options, "--dtype": self.dtype, "--format": self.job.form.value, "--ids": self.job.ids}
        options |= {"--limit": self.job.limit, "--part-rows": part_rows}
        files = {cut.file.name: cut.digest for cut in cuts}
        names = {"files": list(files)}
        self.manifest.begin(
            self.run.size.device,
            model=model_facts(self.run.checkpoint),
            options=options,
            input=files,
            inputs=names,
        )
        self.folder.write_manifest(self.manifest.facts)

    def find_missing(self) -> list[Piece]:
        """What is not in the folder yet."""
        pieces = list(self.folder.missing(self.parts))
        missing = sum(piece.num_rows for piece in pieces)
        all_rows = sum(part.num_rows for part in self.parts)
        if 0 < missing < all_rows:
            self.screen.say(f"going on with {self.on.output}: {all_rows - missing:,} of {all_rows:,} rows are there")
        return pieces

    def generate(self, pieces: list[Piece]) -> None:
        num_rows = sum(piece.num_rows for piece in pieces)
        for outcome in self.run.run(pieces):
            self._report(outcome, num_rows)
        self.manifest.finish(self._stats())
        self.folder.write_manifest(self.manifest.facts)

    def _report(self, outcome: Outcome, num_rows: int) -> None:
        for line in outcome.said:
            if line not in self._has_said:  # workers of one kind have the same to say
                self._has_said.add(line)
                self.screen.say(line)
        if time.monotonic() - self._last_line >= SAY_EVERY_S:
            self._last_line = time.monotonic()
            stats = self.run.stats()
            rate = stats.output_tokens / stats.wall_s
            self.screen.say(f"{self.run.num_rows:,} of {num_rows:,} rows, {rate:,.0f} tokens/s")

    def _stats(self) -> dict[str, Any]:
        stats = replace(self.run.stats(), blank_lines=self.num_blanks)
        return asdict(stats) | {
            "tokens_per_s": stats.tokens_per_s,
            "padding_share": stats.padding_share,
            "model": self.run.checkpoint.name,
            "dtype": self.dtype,
            "device": self.run.size.device,
            "workers": self.run.size.workers,
            "engine": self.run.engine,
            "isolated_rows": self.run.num_isolated,
        }

    def write_notes(self) -> None:
        if self.job.manifest:
            write_json(self.job.manifest, self.manifest.facts)
        if self.job.stats:
            write_json(self.job.stats, self._stats())

    def sum_up(self) -> int:
        """The closing lines on stderr; the exit code."""
        stats = replace(self.run.stats(), blank_lines=self.num_blanks)
        ran_on = f"{self.run.engine} in {plural(self.run.size.workers, 'worker')} on Ray ({self.run.size.device})"
        line = summary(stats, self.run.checkpoint.name, ran_on, ran_exactly(self.job, self.dtype))
        if self.interrupts.stop_requested():
            self.screen.say(f"interrupted: {line}; the same command with --resume goes on")
            return self.interrupts.exit_code
        self.screen.say(line)
        if self.run.first_error:
            _index, row_id, error = self.run.first_error
            self.screen.error(f"{stats.errors} of {stats.rows} rows failed, the first with id {row_id}: {error}")
            return SOME_ROWS_FAILED
        return 0


def _dtype(job: Job, size: Size, checkpoint: Checkpoint) -> str:
    import torch

    return name_of_dtype(choose_dtype(job.dtype, torch.device(size.device), checkpoint.config))


def _recipe(job: Job, checkpoint: Checkpoint, dtype: str) -> ModelRecipe:
    return ModelRecipe(
        name=checkpoint.name,
        folder=checkpoint.folder,
        device="cpu",
        dtype=dtype,
        engine=job.engine,
        num_rows=job.num_rows,
        num_beams=job.sampling.num_beams,
        exact=job.exact,
        share=job.share_prefixes,
        memory=job.memory,
    )
