"""A worker of a pool: a process with its own model and engine that gets rows through a pipe.

It asks for rows whenever its engine has room, and exits when the other end of the pipe is closed, for whatever reason.
"""

from __future__ import annotations

import os
import queue
import signal
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Protocol

from batchgen.engines import Agree, Engine, make_engine, make_scoring_engine
from batchgen.errors import BatchgenError, ModelError
from batchgen.machine.process import reuse_blocks, settle
from batchgen.model.checkpoint import read_checkpoint
from batchgen.model.private import spare_imports
from batchgen.model.quiet import no_logs
from batchgen.model.weights import load_model
from batchgen.records import EngineChoice, EngineOptions, EngineStats, FinishReason, Sequence, TokenLogprob

REPORT_EVERY_S = 0.1
# Identifies a row of a run on both ends of the pipe: its index and its sample's index.
Key = tuple[int, int]


def key_of(sequence: Sequence) -> Key:
    return sequence.request.index, sequence.sample_index


class Recipe(Protocol):
    """How a worker gets its engine. It is pickled; a fake one needs no model.

    The engine choice goes through `agree`: it is the same for all workers of a run.
    """

    def make(self, say: Callable[[str], None], agree: Agree) -> Engine: ...


@dataclass(frozen=True, slots=True)
class ModelRecipe:
    """Loads a checkpoint from its folder to a device. `options.memory` and `num_threads` are this worker's shares.

    `begun` is the engine choice that the run was started with.
    """

    name: str
    folder: Path
    device: str
    dtype: str
    options: EngineOptions
    num_beams: int = 1
    num_threads: int | None = None
    begun: EngineChoice | None = None
    scores: bool = False

    def make(self, say: Callable[[str], None], agree: Agree) -> Engine:
        if self.num_threads:  # before torch is imported, because some libraries read it only once
            os.environ["OMP_NUM_THREADS"] = str(self.num_threads)
        settle()
        spare_imports()
        import torch

        if self.num_threads:
            torch.set_num_threads(self.num_threads)
        model = load_model(read_checkpoint(self.name, self.folder), self.device, self.dtype, self.options.memory)
        if self.scores:
            return make_scoring_engine(
                model,
                self.options,
                is_owned=True,
                begun=self.begun,
                agree=agree,
                reuse_blocks=reuse_blocks,
                say=say,
            )
        return make_engine(
            model,
            self.options,
            num_beams=self.num_beams,
            is_owned=True,
            begun=self.begun,
            agree=agree,
            reuse_blocks=reuse_blocks,
            say=say,
        )


@dataclass(frozen=True, slots=True)
class Answer:
    """The outcome of a row."""

    key: Key
    output_ids: list[int]
    finish_reason: FinishReason | None
    error: str | None
    batch_index: int | None
    padded_length: int | None
    logprobs: list[TokenLogprob]
    scores: dict[int, list[TokenLogprob]]
    num_thought_tokens: int = 0
    forced: list[int] = field(default_factory=list)

    @classmethod
    def of(cls, row: Sequence) -> Answer:
        place, constrained = (row.batch_index, row.padded_length), (row.num_thought_tokens, row.forced)
        ending = row.finish_reason, row.error
        return cls(key_of(row), row.output_ids, *ending, *place, row.logprobs, row.scores, *constrained)


@dataclass(frozen=True, slots=True)
class WorkReport:
    """What a worker sends: finished rows, the number of tokens since the last report, and lines for the user.

    `wants` asks for rows; the pool sends some when it has them. `choice` is what this worker's engine would use; the
    pool answers with what the run uses. `failure` is the error that ended the worker.
    """

    answers: list[Answer]
    num_tokens: int
    said: list[str]
    totals: EngineStats
    wants: bool = False
    choice: EngineChoice | None = None
    failure: Exception | None = None


def work(connection: Connection, recipe: Recipe) -> None:
    """Run the worker's process: rows come in through the pipe, until a None ends them."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the main process handles Ctrl-C, and then closes the pipe
    desk = _Desk(connection)
    try:
        with no_logs():
            desk.run(recipe.make(desk.say, desk.agree))
        desk.report()
    except Exception as error:  # noqa: BLE001 - raised again in the main process
        desk.report(failure=_portable(error))


class _Desk:
    """Receives a worker's rows and sends its reports."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._engine: Engine | None = None
        self._answers: list[Answer] = []
        self._said: list[str] = []
        self._num_told = 0  # tokens reported so far
        self._last_report = time.monotonic()
        self._inbox: queue.SimpleQueue[list[Sequence] | None] = queue.SimpleQueue()
        self._agreed: queue.SimpleQueue[EngineChoice] = queue.SimpleQueue()
        threading.Thread(target=self._receive, daemon=True).start()

    def _receive(self) -> None:
        try:
            while True:
                received = self._connection.recv()
                box = self._agreed if isinstance(received, EngineChoice) else self._inbox
                box.put(received)
        except (EOFError, OSError):  # the pool is gone
            os._exit(0)

    def run(self, engine: Engine) -> None:
        """Run rows from the pool through the engine, until the pool says that there are no more."""
        self._engine = engine
        has_asked, more = False, True
        while more or not engine.is_idle:
            if more and engine.wants_rows:
                if not has_asked or (self._answers and engine.is_idle):
                    self.report(wants=not has_asked)
                    has_asked = True
                if self._inbox.empty() and not engine.is_idle:
                    rows: list[Sequence] | None = []  # continue with the rows that it has
                else:
                    rows = self._inbox.get()
                    has_asked = False
                more = rows is not None
                engine.add(rows or [])
            self._answers += [Answer.of(row) for row in engine.step()]
            if self._answers or time.monotonic() - self._last_report > REPORT_EVERY_S:
                self.report()
        engine.close()

    def say(self, line: str) -> None:
        self._said.append(line)

    def agree(self, choice: EngineChoice) -> EngineChoice:
        """Report this worker's choice to the pool, and return the choice that the run uses."""
        self.report(choice=choice)
        return self._agreed.get()

    def report(
        self, *, wants: bool = False, choice: EngineChoice | None = None, failure: Exception | None = None
    ) -> None:
        totals = self._engine.stats if self._engine else EngineStats()
        num_tokens, self._num_told = totals.new_tokens - self._num_told, totals.new_tokens
        self._connection.send(WorkReport(self._answers, num_tokens, self._said, totals, wants, choice, failure))
        self._answers, self._said = [], []
        self._last_report = time.monotonic()


def _portable(error: Exception) -> Exception:
    """Return a picklable error: batchgen's and the system's own as they are, others as a `ModelError` with text."""
    if isinstance(error, BatchgenError | MemoryError | OSError):
        return error
    return ModelError(f"a worker process failed: {''.join(traceback.format_exception_only(error)).strip()}")
