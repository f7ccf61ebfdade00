"""Counts the pieces of a run on a cluster as they finish."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace

from batchgen.engines.pool.worker import Recipe
from batchgen.model import Checkpoint
from batchgen.records import RowId, RunStats
from batchgen.runs.pace import RunProgress
from batchgen.runs.ray.cluster import Cluster, Size
from batchgen.runs.ray.folder import Piece
from batchgen.runs.ray.model_files import ModelFiles
from batchgen.runs.ray.piecework import Outcome, Work, add_up

ISOLATED = "worker processes died each time they ran this row alone: remove it"


class ClusterPieces:
    """Runs pieces on a cluster and counts. An error that ends a piece for good ends the run."""

    def __init__(self, cluster: Cluster, work: Work, checkpoint: Checkpoint, recipe: Recipe, size: Size) -> None:
        self.cluster = cluster
        self.work = work
        self.checkpoint = checkpoint
        self.recipe = recipe
        self.size = size
        self.engine = "engine"
        self.num_pieces = self.num_rows = self.num_isolated = 0
        self.first_error: tuple[int, RowId | None, str] | None = None  # index, id, error
        self._counts: dict[str, RunStats] = {}  # by worker; for a dead worker, as of its last piece
        self._started = time.perf_counter()

    def run(self, pieces: list[Piece]) -> Iterator[Outcome]:
        """Yield every piece as it finishes; its file is then in the folder."""
        model: ModelFiles = self.cluster.ship(self.checkpoint)
        for outcome in self.cluster.run(pieces, self.work, model, self.recipe, self.size):
            if outcome.failure:
                raise outcome.failure
            yield self._count(self._isolate(outcome.piece) if outcome.stats is None else outcome)

    def _isolate(self, piece: Piece) -> Outcome:
        """Write the error record of a row that kills workers."""
        pipeline = self.work.fail(piece, self.checkpoint, ISOLATED)
        self.num_isolated += 1
        first = pipeline.first_error
        assert first
        found = (first.index, first.id, first.error or "")
        return Outcome(piece, f"isolated {self.num_isolated}", replace(pipeline.stats(), peak_bytes=0), "", found)

    def _count(self, outcome: Outcome) -> Outcome:
        assert outcome.stats
        self._counts[outcome.worker] = outcome.stats
        self.engine = outcome.engine or self.engine
        self.num_pieces += 1
        self.num_rows += outcome.piece.num_rows
        if outcome.first_error and (self.first_error is None or outcome.first_error < self.first_error):
            self.first_error = outcome.first_error
        return outcome

    def stats(self) -> RunStats:
        """Return the counts so far."""
        return add_up(self._counts.values(), self.size.workers, time.perf_counter() - self._started)

    def progress(self, num_missing: int, num_kept: int) -> RunProgress:
        """Return the progress on `num_missing` rows, besides `num_kept` done before; pieces count once finished."""
        stats, done = self.stats(), self.num_rows
        rate = stats.output_tokens / max(stats.wall_s, 1e-9)
        return RunProgress(
            unit="row",
            done=num_kept + done,
            total=num_kept + num_missing,
            kept=num_kept,
            failed=stats.errors,
            new_tokens=stats.output_tokens,
            elapsed_s=stats.wall_s,
            tokens_per_s=rate,
            recent_tokens_per_s=rate,
            seconds_left=(num_missing - done) / done * stats.wall_s if done else None,
        )
