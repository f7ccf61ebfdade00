"""What a worker on Ray does: read a piece, run it through the pipeline, write its file. Knows nothing about Ray."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime

from batchgen.engines import Agree, Engine
from batchgen.engines.pool.worker import Recipe
from batchgen.errors import BatchgenError
from batchgen.formats.reading import ReadOptions
from batchgen.formats.scored_rows import scored_requests
from batchgen.model import Checkpoint
from batchgen.model.chat import open_chat
from batchgen.model.chat.template import START
from batchgen.model.find import Say
from batchgen.model.stops import watch_stops
from batchgen.pipeline import Pipeline
from batchgen.records import (
    ChatOptions,
    EngineChoice,
    EngineStats,
    RowId,
    RunStats,
    SamplingParams,
    ScoringOptions,
    Sequence,
    TooLong,
)
from batchgen.runs.ray.file_parts import read_part
from batchgen.runs.ray.folder import OutputFolder, Piece
from batchgen.runs.sums import ScoreSums, summing, watch_groups


@dataclass(frozen=True, slots=True)
class Work:
    """The settings that all pieces of a run share."""

    folder: OutputFolder
    sampling: SamplingParams
    reading: ReadOptions
    too_long: TooLong = "error"
    parse_special: bool = False
    strict: bool = False
    ids: bool = False
    chat: ChatOptions = field(default_factory=ChatOptions)
    chat_templates: Mapping[str, str] | None = None  # instead of the model's own
    started: datetime = START
    in_kind: bool = False
    scoring: ScoringOptions | None = None

    def pipeline(self, checkpoint: Checkpoint, engine: Engine, say: Say = lambda line: None) -> Pipeline:
        return Pipeline(
            checkpoint,
            engine,
            too_long=self.too_long,
            parse_special=self.parse_special,
            strict=self.strict,
            chat=open_chat(checkpoint, self.chat, self.chat_templates, say=say, now=self.started),
            scoring=self.scoring,
        )

    def run(self, piece: Piece, pipeline: Pipeline, say: Callable[[str], None] = lambda line: None) -> None:
        """Run every row of a piece in order and write its file."""
        requests = read_part(piece.part, self.sampling, self.reading, piece.start, piece.stop, say)
        requests = watch_stops(requests, pipeline.checkpoint, say)
        results, sums = pipeline.run(requests), None
        if self.scoring:
            sums = ScoreSums(most_groups=sys.maxsize)  # the limit on groups is applied when parts are merged
            rows = watch_groups(scored_requests(requests), self.scoring, say)
            results = summing(pipeline.run(rows), sums, self.scoring.by)
        self.folder.write(piece, results, ids=self.ids, in_kind=self.in_kind, sums=sums)

    def fail(self, piece: Piece, checkpoint: Checkpoint, reason: str) -> Pipeline:
        """Write error records for the rows of a piece, without running them."""
        pipeline = self.pipeline(checkpoint, FailingEngine(reason))
        self.run(piece, pipeline)
        return pipeline


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a piece went: its worker's counts since that started, its first failed row, and the error that ends the run.

    `choice` is what the run's engines are made of.
    """

    piece: Piece
    worker: str
    stats: RunStats | None
    engine: str = ""
    first_error: tuple[int, RowId | None, str] | None = None  # index, id, error
    said: tuple[str, ...] = ()
    failure: BatchgenError | None = None
    choice: EngineChoice | None = None


class PieceWorker:
    """A model, loaded once, and the pieces run with it."""

    def __init__(self, name: str, work: Work, checkpoint: Checkpoint, recipe: Recipe, agree: Agree) -> None:
        self.name = name
        self.work = work
        self._said: list[str] = []
        self._choice: EngineChoice | None = None

        def keep(choice: EngineChoice) -> EngineChoice:
            self._choice = agree(choice)
            return self._choice

        self.pipeline = work.pipeline(checkpoint, recipe.make(self._said.append, keep), self._said.append)

    def run(self, piece: Piece) -> Outcome:
        self.pipeline.first_error = None
        failure = None
        try:
            self.work.run(piece, self.pipeline, self._said.append)
        except BatchgenError as error:
            failure = error
        return self.outcome(piece, failure)

    def outcome(self, piece: Piece, failure: BatchgenError | None = None) -> Outcome:
        """Return how a piece went; for a piece whose file already existed, the counts do not change."""
        said = tuple(self._said)
        self._said.clear()
        first = self.pipeline.first_error
        return Outcome(
            piece,
            self.name,
            self.pipeline.stats(),
            self.pipeline.engine.stats.engine,
            (first.index, first.id, first.error or "") if first else None,
            said,
            failure,
            self._choice,
        )


class FailingEngine:
    """An engine that runs nothing: every row fails for the same reason."""

    wants_rows = 1
    stats = EngineStats(engine="none")

    def __init__(self, reason: str) -> None:
        self.reason = reason
        self._rows: list[Sequence] = []

    @property
    def is_idle(self) -> bool:
        return not self._rows

    def add(self, sequences: Iterable[Sequence]) -> None:
        self._rows += sequences

    def step(self) -> list[Sequence]:
        failed, self._rows = self._rows, []
        for row in failed:
            row.fail(self.reason)
        return failed

    def close(self) -> None:
        self._rows = []


def add_up(workers: Iterable[RunStats], num_workers: int, wall_s: float) -> RunStats:
    """Return what the workers did together; their times are averaged, because they run in parallel."""
    stats = list(workers)

    def total(name: str) -> int:
        return sum(getattr(one, name) for one in stats)

    measured = [one.measured_batch_bytes for one in stats if one.measured_batch_bytes is not None]
    return RunStats(
        rows=total("rows"),
        errors=total("errors"),
        blank_lines=total("blank_lines"),
        batches=total("batches"),
        prompt_tokens=total("prompt_tokens"),
        output_tokens=total("output_tokens"),
        pad_tokens=total("pad_tokens"),
        prefill_s=sum(one.prefill_s for one in stats) / num_workers,
        decode_s=sum(one.decode_s for one in stats) / num_workers,
        wall_s=wall_s,
        peak_bytes=total("peak_bytes"),
        decode_work=total("decode_work"),
        predicted_batch_bytes=max((one.predicted_batch_bytes for one in stats), default=0),
        measured_batch_bytes=max(measured, default=None),
        drafted_tokens=total("drafted_tokens"),
        accepted_tokens=total("accepted_tokens"),
    )
