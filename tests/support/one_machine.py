"""A cluster that is this process, for tests that need nothing from Ray itself."""

from __future__ import annotations

import pickle
from collections.abc import Iterator

from batchgen.model import Checkpoint
from batchgen.runs.ray.cluster import Size
from batchgen.runs.ray.folder import Piece
from batchgen.runs.ray.piecework import Outcome, PieceWorker, Work


class OneMachine:
    """Runs pieces in this process, as a worker that they were sent to would."""

    def ship(self, checkpoint: Checkpoint) -> Checkpoint:
        return checkpoint

    def run(
        self, pieces: list[Piece], work: Work, checkpoint: Checkpoint, recipe: object, size: Size
    ) -> Iterator[Outcome]:
        work, recipe = pickle.loads(pickle.dumps((work, recipe)))
        worker = PieceWorker("worker", work, checkpoint, recipe, lambda choice: choice)
        yield from map(worker.run, pieces)
