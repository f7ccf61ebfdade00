"""A run on a Ray cluster, from files that all machines can read into a folder."""

from __future__ import annotations

import os
import socket
import time
from dataclasses import dataclass, replace
from importlib.util import find_spec
from itertools import zip_longest
from pathlib import Path
from typing import Any

from batchgen.engines.pool.worker import ModelRecipe
from batchgen.engines.ready import refuse_other_engine
from batchgen.errors import OVERWRITE, RESUME, ClusterError, OutputError, UsageError
from batchgen.formats.extras import check_output_extras
from batchgen.formats.whole import write_json
from batchgen.model import Checkpoint, open_checkpoint
from batchgen.model.chat import open_chat
from batchgen.model.padding import check_named_tokens
from batchgen.model.weights import choose_dtype
from batchgen.records import RunStats
from batchgen.runs.differences import shown_hash
from batchgen.runs.ending import Ending, Failures, RanOn, stats_facts
from batchgen.runs.job import Job
from batchgen.runs.manifest import Manifest, model_facts
from batchgen.runs.observer import Observer
from batchgen.runs.pace import RunProgress
from batchgen.runs.progress import GENERATING, ProgressNote
from batchgen.runs.ray.checks import check_folder, check_notes
from batchgen.runs.ray.cluster import Cluster, Size
from batchgen.runs.ray.connection import connect
from batchgen.runs.ray.cut import GRAIN, CutFile, choose_part_rows, cut_file, make_parts
from batchgen.runs.ray.file_parts import FilePart, number_ids
from batchgen.runs.ray.folder import MANIFEST, OutputFolder, Piece
from batchgen.runs.ray.inputs import InputFile, find_files, is_url
from batchgen.runs.ray.pieces import ClusterPieces
from batchgen.runs.ray.piecework import Outcome, Work
from batchgen.runs.sums import ScoreSums

SAY_EVERY_S = 5.0


@dataclass(frozen=True, slots=True)
class OnRay:
    """The cluster, inputs and output of a run on Ray, and what each worker gets."""

    address: str
    inputs: tuple[str, ...]
    output: str
    limit: int | None = None
    workers: int | None = None
    cpus: float | None = None
    gpus: float | None = None
    part_rows: int | None = None
    recursive: bool = False
    overwrite: bool = False
    resume: bool = False


def execute_on_ray(job: Job, on: OnRay, observer: Observer) -> Ending:
    """Run a job on Ray and return how it ended."""
    if job.model.device != "auto":
        raise UsageError(
            f"--device {job.model.device} is not supported with --ray: --gpus-per-worker sets what workers run on"
        )
    files = find_files(on.inputs, job.prompts.reading, recursive=on.recursive, say=observer.say)
    check_notes(job.manifest, job.stats, on.output, files)
    folder = OutputFolder(_absolute(on.output), job.output_form.form)
    check_folder(folder, on.output, is_wanted=on.resume or on.overwrite)
    if find_spec("ray") is None:
        raise ClusterError("--ray needs another package: pip install 'ray[data]'")
    check_output_extras(job.output_form.form)
    checkpoint = open_checkpoint(job.model.name, revision=job.model.revision, say=observer.say)
    check_named_tokens(job.sampling, checkpoint.vocab_size)
    with observer.if_it_ends_here(_last_line(on.address)), connect(on.address) as cluster:
        size = cluster.choose_size(on.workers, on.cpus, on.gpus)
        folder.make()
        folder.clean(all_of_ours=on.overwrite)
        run = RayRun(job, on, observer, checkpoint, cluster, size, folder)
        run.prepare(files)
        if not (pieces := run.find_missing()):
            observer.note(f"{on.output} is complete, there is nothing to continue")
            return replace(run.ending(), was_complete=True)
        try:
            run.generate(pieces)
        except KeyboardInterrupt:
            if not observer.should_stop():
                raise
        run.write_notes()
        return run.ending()


def _last_line(address: str) -> str:
    return (
        f"the run was ended abruptly, as Ray ends programs whose cluster ({address}) has died or no longer answers "
        f"(the end of python-core-driver-*_{os.getpid()}.log in Ray's logs says why): once Ray is there again, "
        f"run the same command with {RESUME}"
    )


def _absolute(output: str) -> str:
    """Return the output's absolute place, because workers run in other folders."""
    return output if is_url(output) else str(Path(output).resolve())


class RayRun:
    """One run of a job on a cluster."""

    def __init__(
        self,
        job: Job,
        on: OnRay,
        observer: Observer,
        checkpoint: Checkpoint,
        cluster: Cluster,
        size: Size,
        folder: OutputFolder,
    ) -> None:
        self.job = job
        self.on = on
        self.observer = observer
        self.folder = folder
        self.dtype = choose_dtype(job.model.dtype, size.device, checkpoint.outline)
        self.manifest = Manifest(facts=folder.read_manifest(), where=f"{on.output}/{MANIFEST}")
        self.chat = open_chat(checkpoint, job.chat)
        work = Work(
            folder,
            job.sampling,
            job.prompts.reading,
            job.too_long,
            job.parse_special,
            job.strict,
            job.output_form.ids,
            job.chat,
            self.chat.chosen_templates,
            self.manifest.started,
            job.output_form.in_kind,
            job.scoring,
        )
        recipe = replace(_recipe(job, checkpoint, self.dtype), begun=self.manifest.engine)
        self.pieces = ClusterPieces(cluster, work, checkpoint, recipe, size)
        self.parts: list[FilePart] = []
        self.num_blanks = 0
        self.sums: ScoreSums | None = None
        self.written: list[Path] = []
        self._has_said: set[str] = set()
        self._last_line = time.monotonic()
        self._started_s = time.time()

    def prepare(self, files: list[InputFile]) -> None:
        """Cut the input and record what the run is made of. Raises if the run was started with something else."""
        begun = self.manifest.facts.get("options", {}).get("--part-rows")
        every = self.on.part_rows or begun or GRAIN
        with self.observer.waiting("reading the input"):
            cuts = [cut_file(file, self.job.prompts.reading, every, self.observer.say) for file in files]
        num_rows = sum(cut.num_rows for cut in cuts)
        part_rows = self.on.part_rows or begun or choose_part_rows(num_rows, self.pieces.size.workers)
        self.num_blanks = sum(cut.num_blanks for cut in cuts)
        self.parts = make_parts(cuts, part_rows, self.on.limit)
        self._note(cuts, part_rows)
        with self.observer.waiting("counting ids"):
            self.parts = list(number_ids(self.parts, self.job.prompts.reading))

    def _note(self, cuts: list[CutFile], part_rows: int) -> None:
        output_form = self.job.output_form
        options = {**self.job.options, "--dtype": self.dtype, "--format": output_form.form, "--ids": output_form.ids}
        options |= {"--limit": self.on.limit, "--part-rows": part_rows, "chat_template_sha256": self.chat.digest}
        names, digests = [cut.file.name for cut in cuts], [cut.digest for cut in cuts]
        self._check_inputs(names, digests)
        model = model_facts(self.pieces.checkpoint)
        self.manifest.begin(
            self.pieces.size.device, self.observer.say, command=self.job.command, model=model, options=options
        )
        refuse_other_engine(self.manifest.engine, self.job.engine, self.dtype)
        rows = {part.number: part.num_rows for part in self.parts}
        self.manifest.note("inputs", {"files": names, "blake2b": digests, "part_rows": rows})
        self.folder.write_manifest(self.manifest.facts)

    def _check_inputs(self, names: list[str], digests: list[str]) -> None:
        """Refuse files that differ from those the run was started with, whatever their names."""
        begun = self.manifest.facts.get("inputs")
        if begun is None:
            return
        for old_name, old, name, new in zip_longest(begun["files"], begun["blake2b"], names, digests):
            if old != new:
                where = f"{self.on.output}/{MANIFEST}"
                raise OutputError(
                    f"{where} was started with {old_name or name} {shown_hash(old)}, but now it is {shown_hash(new)}: "
                    f"use the same value as before, or start over with {OVERWRITE}"
                )

    def find_missing(self) -> list[Piece]:
        """Return the pieces that are not in the folder yet."""
        pieces = list(self.folder.missing(self.parts))
        missing = sum(piece.num_rows for piece in pieces)
        all_rows = sum(part.num_rows for part in self.parts)
        if 0 < missing < all_rows:
            self.observer.note(f"continuing {self.on.output}: {all_rows - missing:,} of {all_rows:,} rows are done")
        return pieces

    def generate(self, pieces: list[Piece]) -> None:
        """Run the missing pieces and complete the manifest."""
        num_missing = sum(piece.num_rows for piece in pieces)
        self._note_progress(num_missing)
        for outcome in self.pieces.run(pieces):
            self._report(outcome, num_missing)
        if self.job.scoring:
            self.sums = self.folder.read_sums()
        self.manifest.finish(self._stats_facts())
        self.folder.write_manifest(self.manifest.facts)

    def _report(self, outcome: Outcome, num_missing: int) -> None:
        if outcome.choice and self.manifest.engine is None:
            self.manifest.agree(outcome.choice)
            self.folder.write_manifest(self.manifest.facts)
        for line in outcome.said:
            if line not in self._has_said:  # workers of one kind repeat the same lines
                self._has_said.add(line)
                self.observer.say(line)
        if time.monotonic() - self._last_line >= SAY_EVERY_S:
            self._last_line = time.monotonic()
            self.observer.on_progress(self._note_progress(num_missing))

    def _note_progress(self, num_missing: int) -> RunProgress:
        """Write the progress to the folder for `batchgen status`, with the counts of this run so far, and return it."""
        rows_total = sum(part.num_rows for part in self.parts)
        stats, on = self.pieces.stats(), self.ran_on
        progress = self.pieces.progress(num_missing, rows_total - num_missing)
        self.folder.write_progress(
            ProgressNote(
                GENERATING,
                time.time(),
                self._started_s,
                socket.gethostname(),
                os.getpid(),
                rows_total=rows_total,
                prompt_tokens=stats.prompt_tokens,
                output_tokens=stats.output_tokens,
                new_tokens=stats.output_tokens,
                tokens_per_s=progress.tokens_per_s,
                recent_tokens_per_s=progress.recent_tokens_per_s,
                seconds_left=progress.seconds_left,
                model=on.model,
                engine=on.engine,
                device=on.device,
                dtype=on.dtype,
            )
        )
        return progress

    def write_notes(self) -> None:
        """Write the manifest and stats files, also if the run was interrupted."""
        for path, facts in ((self.job.manifest, self.manifest.facts), (self.job.stats, self._stats_facts())):
            if path:
                write_json(path, facts)
                self.written.append(path)

    def _stats(self) -> RunStats:
        return replace(self.pieces.stats(), blank_lines=self.num_blanks)

    @property
    def ran_on(self) -> RanOn:
        return RanOn(
            model=self.pieces.checkpoint.name,
            engine=self.pieces.engine,
            device=self.pieces.size.device,
            dtype=self.dtype,
            is_exact=self.job.engine.exact and self.dtype == "float32",
            num_workers=self.pieces.size.workers,
            is_on_ray=True,
            bits=self.manifest.bits,
        )

    def _stats_facts(self) -> dict[str, Any]:
        scores = self.sums.facts if self.sums else {}
        return stats_facts(self._stats(), self.ran_on, isolated_rows=self.pieces.num_isolated, **scores)

    def ending(self) -> Ending:
        """Return how the run ended."""
        stats, failures = self._stats(), Failures()
        if self.pieces.first_error:
            _index, row_id, error = self.pieces.first_error
            failures = Failures(stats.errors, stats.rows, row_id, error)
        written = (Path(self.on.output), *self.written)
        was_stopped = self.observer.should_stop()
        return Ending(stats, self.ran_on, failures, written=written, was_stopped=was_stopped, sums=self.sums)


def _recipe(job: Job, checkpoint: Checkpoint, dtype: str) -> ModelRecipe:
    beams, scores = job.sampling.num_beams, job.scoring is not None
    return ModelRecipe(checkpoint.name, checkpoint.folder, "cpu", dtype, job.engine, beams, scores=scores)
