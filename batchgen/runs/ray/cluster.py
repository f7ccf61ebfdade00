"""Runs pieces on an actor pool of Ray Data; pieces that kill workers are split, down to single rows."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any
from uuid import uuid4

from batchgen.engines.pool.worker import ModelRecipe, Recipe
from batchgen.errors import UsageError
from batchgen.machine.limits import share_of
from batchgen.model.checkpoint import Checkpoint, read_checkpoint
from batchgen.model.quiet import no_logs
from batchgen.records import EngineChoice
from batchgen.runs.ray.folder import Piece
from batchgen.runs.ray.model_files import ModelFiles, model_paths
from batchgen.runs.ray.piecework import Outcome, PieceWorker, Work

LOCAL = "local"
# A piece is started this often, because workers may also be killed from outside. If it killed a worker each time, it is
# split into PIECES_OF_ONE pieces.
MOST_TRIES = 2
PIECES_OF_ONE = 16


@dataclass(frozen=True, slots=True)
class Size:
    """How many workers there are, and the CPUs and GPUs reserved for each."""

    workers: int
    cpus: float
    gpus: float

    @property
    def device(self) -> str:
        return "cuda" if self.gpus else "cpu"


class Cluster:
    """A connection to Ray."""

    def __init__(self, address: str) -> None:
        self.address = address

    @property
    def num_machines(self) -> int:
        return len(_machines())

    def choose_size(self, workers: int | None, cpus: float | None, gpus: float | None) -> Size:
        """Choose the unset sizes: one worker per GPU, or without GPUs one per machine, with all its CPUs.

        Raises `UsageError` if a local run asks for more than this machine has; a cluster may grow.
        """
        import ray

        there = ray.cluster_resources()
        gpus = gpus if gpus is not None else min(1.0, there.get("GPU", 0.0))
        workers = workers or (max(1, int(there.get("GPU", 0) // gpus)) if gpus else self.num_machines)
        cpus = cpus if cpus is not None else 1.0 if gpus else max(1.0, there.get("CPU", 1.0) // workers)
        for name, needed in (("CPU", workers * cpus), ("GPU", workers * gpus)):
            if self.address == LOCAL and needed > there.get(name, 0.0):
                raise UsageError(
                    f"{workers} workers need {needed:g} {name}s, and this machine has {there.get(name, 0.0):g}: "
                    f"use fewer --workers or a smaller --{name.lower()}s-per-worker"
                )
        return Size(workers, cpus, gpus)

    def ship(self, checkpoint: Checkpoint) -> ModelFiles:
        """Put the checkpoint's files into the object store, if there are other machines that may need them."""
        import ray

        paths = model_paths(checkpoint.folder)
        files = {name: ray.put(path.read_bytes()) for name, path in paths.items()} if self.num_machines > 1 else {}
        sizes = {name: path.stat().st_size for name, path in paths.items()}
        return ModelFiles(checkpoint.name, checkpoint.folder.resolve(), sizes, files)

    def run(self, pieces: list[Piece], work: Work, model: ModelFiles, recipe: Recipe, size: Size) -> Iterator[Outcome]:
        """Run pieces in rounds; those that kill workers are split for the next round, down to single rows.

        A row that kills workers when it runs by itself gives an outcome without counts.
        """
        import ray

        begun = recipe.begun if isinstance(recipe, ModelRecipe) else None
        ledger = ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1)(_Ledger).remote(begun)
        while pieces:
            to_split = []
            for outcome in self._run_once(pieces, size, (work, model, recipe, size, ledger)):
                if outcome.stats is None and outcome.piece.num_rows > 1:
                    to_split.append(outcome.piece)
                else:
                    yield outcome
            pieces = [part for piece in to_split for part in piece.split(PIECES_OF_ONE)]

    def _run_once(self, pieces: list[Piece], size: Size, given: tuple[Any, ...]) -> Iterator[Outcome]:
        """Yield the outcomes of a round as they arrive. Ray replaces dead workers and gives their pieces to others."""
        import ray

        _be_quiet()
        workers = min(size.workers, len(pieces))
        items = [{"piece": pickle.dumps(piece)} for piece in pieces]
        outcomes = ray.data.from_items(items, override_num_blocks=len(items)).map(
            _Actor,
            fn_constructor_args=given,
            compute=ray.data.ActorPoolStrategy(size=workers, max_tasks_in_flight_per_actor=2),
            num_cpus=size.cpus,
            num_gpus=size.gpus,
        )
        for row in outcomes.iter_rows():
            yield pickle.loads(row["outcome"])


class _Ledger:
    """Counts how often each piece was started, and keeps the engine choice that all workers share.

    The choice is that of the resumed run (`begun`), or of the first worker. The ledger has its own process, so it
    survives the death of workers.
    """

    def __init__(self, begun: EngineChoice | None = None) -> None:
        self._times: dict[str, int] = {}
        self._agreed = begun

    def begin(self, stem: str) -> int:
        self._times[stem] = self._times.get(stem, 0) + 1
        return self._times[stem]

    def agree(self, choice: EngineChoice) -> EngineChoice:
        self._agreed = self._agreed or choice
        return self._agreed


class _Actor:
    """A worker's process on Ray; it loads the model once, when it starts."""

    def __init__(self, work: Work, model: ModelFiles, recipe: Recipe, size: Size, ledger: Any) -> None:
        self.ledger = ledger
        with no_logs():
            folder = model.unpack()
            if isinstance(recipe, ModelRecipe):
                recipe = self._fit(replace(recipe, folder=folder, device=size.device), size)
            checkpoint = read_checkpoint(model.name, folder)
            self.worker = PieceWorker(uuid4().hex, work, checkpoint, recipe, self._agree)

    def _fit(self, recipe: ModelRecipe, size: Size) -> ModelRecipe:
        """Adapt the recipe to this worker's share of its machine."""
        beside = _num_beside(size)
        memory = share_of(recipe.options.memory, num_workers=beside, num_beside=beside)
        options = replace(recipe.options, memory=memory)
        return replace(recipe, options=options, num_threads=None if size.gpus else max(1, int(size.cpus)))

    def _agree(self, choice: EngineChoice) -> EngineChoice:
        """Return the engine choice that all workers share; this worker's choice if it is the first."""
        import ray

        agreed: EngineChoice = ray.get(self.ledger.agree.remote(choice))
        return agreed

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        with no_logs():
            outcome = self._run(pickle.loads(row["piece"]))
        return {"outcome": pickle.dumps(outcome)}

    def _run(self, piece: Piece) -> Outcome:
        """Run a piece, unless a worker that died has already written its file, or it has killed too many workers."""
        import ray

        tries = ray.get(self.ledger.begin.remote(piece.stem))
        if tries > 1 and self.worker.work.folder.has(piece):
            return self.worker.outcome(piece)
        return self.worker.run(piece) if tries <= MOST_TRIES else Outcome(piece, "", None)


def _num_beside(size: Size) -> int:
    """Return how many workers may share this worker's memory."""
    import ray

    if size.gpus:
        return max(1, int(1 / size.gpus))
    here = ray.get_runtime_context().get_node_id()
    cpus = next((node["Resources"].get("CPU", 1.0) for node in _machines() if node["NodeID"] == here), 1.0)
    return max(1, min(size.workers, int(cpus // size.cpus)))


def _machines() -> list[dict[str, Any]]:
    import ray

    return [node for node in ray.nodes() if node["Alive"]]


def _be_quiet() -> None:
    import ray

    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
