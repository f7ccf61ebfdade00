"""A worker of a pool: a process with a model and an engine of its own, that is given rows through a pipe.

It asks for rows whenever its engine has room, and ends when the other end of the pipe is gone, however that ended.
"""

from __future__ import annotations

import os
import queue
import signal
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Protocol

from batchgen.engines import Engine, make_engine
from batchgen.errors import BatchgenError, ModelError
from batchgen.machine.limits import MemoryLimit
from batchgen.machine.process import reuse_blocks, settle
from batchgen.model.checkpoint import read_checkpoint
from batchgen.model.quiet import no_logs
from batchgen.model.weights import load_model
from batchgen.records import FinishReason, Sequence

REPORT_EVERY_S = 0.1
# The same row of the same run, on both ends of the pipe: its index, and the sample's.
Key = tuple[int, int]


def key_of(sequence: Sequence) -> Key:
    return sequence.request.index, sequence.sample_index


class Recipe(Protocol):
    """How a worker comes by its engine. It is pickled; a fake one needs no model."""

    def make(self, on_step: Callable[[int], None], say: Callable[[str], None]) -> Engine: ...


@dataclass(frozen=True, slots=True)
class ModelRecipe:
    """A checkpoint from its folder, on a device. `memory` is this worker's share, `num_threads` that of the cores."""

    name: str
    folder: Path
    device: str
    dtype: str
    engine: str = "auto"
    num_rows: int | None = None
    num_beams: int = 1
    exact: bool = True
    share: bool = True
    memory: MemoryLimit | None = None
    num_threads: int | None = None

    def make(self, on_step: Callable[[int], None], say: Callable[[str], None]) -> Engine:
        if self.num_threads:  # before torch is there, for what reads it only once
            os.environ["OMP_NUM_THREADS"] = str(self.num_threads)
        settle()
        import torch

        if self.num_threads:
            torch.set_num_threads(self.num_threads)
        model = load_model(read_checkpoint(self.name, self.folder), self.device, self.dtype)
        return make_engine(
            model,
            name=self.engine,
            num_rows=self.num_rows,
            num_beams=self.num_beams,
            exact=self.exact,
            share=self.share,
            on_step=on_step,
            memory=self.memory,
            reuse_blocks=reuse_blocks,
            say=say,
        )


@dataclass(frozen=True, slots=True)
class Answer:
    """What became of a row."""

    key: Key
    output_ids: list[int]
    finish_reason: FinishReason | None
    error: str | None
    batch_index: int | None
    padded_length: int | None

    @classmethod
    def of(cls, row: Sequence) -> Answer:
        return cls(key_of(row), row.output_ids, row.finish_reason, row.error, row.batch_index, row.padded_length)


@dataclass(frozen=True, slots=True)
class Totals:
    """What a worker has done since it started, as its engine counts it."""

    engine: str = ""
    num_batches: int = 0
    decode_work: int = 0
    prefill_s: float = 0.0
    decode_s: float = 0.0
    peak_bytes: int = 0
    predicted_bytes: int = 0
    measured_bytes: int | None = None

    @classmethod
    def of(cls, engine: Engine) -> Totals:
        return cls(
            engine.name,
            engine.num_batches,
            engine.decode_work,
            engine.prefill_s,
            engine.decode_s,
            engine.backoff.peak_bytes,
            engine.backoff.predicted_bytes,
            engine.backoff.measured_bytes,
        )


@dataclass(frozen=True, slots=True)
class Report:
    """What a worker sends: rows that are finished, tokens made since the last report, lines for the user.

    `wants` asks for rows; the pool answers when it has some. `failure` is what ended the worker.
    """

    answers: list[Answer]
    num_tokens: int
    said: list[str]
    totals: Totals
    wants: bool = False
    failure: Exception | None = None


def work(connection: Connection, recipe: Recipe) -> None:
    """What the worker's process runs: rows that come down the pipe, until a None ends them."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the main process's affair, which then closes the pipe
    desk = _Desk(connection)
    try:
        with no_logs():
            desk.engine = engine = recipe.make(desk.count, desk.say)
            for finished in engine.generate(desk.windows()):
                desk.answers.append(Answer.of(finished))
        desk.report()
    except Exception as error:  # noqa: BLE001 - raised again in the main process
        desk.report(failure=_portable(error))


class _Desk:
    """Where a worker's rows come in and its reports go out."""

    def __init__(self, connection: Connection) -> None:
        self.engine: Engine | None = None
        self.answers: list[Answer] = []
        self._connection = connection
        self._num_tokens = 0
        self._said: list[str] = []
        self._last_report = time.monotonic()
        self._inbox: queue.SimpleQueue[list[Sequence] | None] = queue.SimpleQueue()
        threading.Thread(target=self._receive, daemon=True).start()

    def _receive(self) -> None:
        try:
            while True:
                self._inbox.put(self._connection.recv())
        except (EOFError, OSError):  # nobody is left to work for
            os._exit(0)

    def windows(self) -> Iterator[list[Sequence]]:
        """Rows as the pool gives them; for a busy engine, which goes on meanwhile, perhaps none."""
        assert self.engine
        has_asked = False
        while True:
            is_busy = self.engine.is_busy
            if not has_asked or (self.answers and not is_busy):
                self.report(wants=not has_asked)
                has_asked = True
            try:
                rows = self._inbox.get(block=not is_busy)
            except queue.Empty:
                yield []
                continue
            if rows is None:
                return
            has_asked = False
            yield rows

    def count(self, num_tokens: int) -> None:
        """The engine has made a step."""
        self._num_tokens += num_tokens
        if self.answers or time.monotonic() - self._last_report > REPORT_EVERY_S:
            self.report()

    def say(self, line: str) -> None:
        self._said.append(line)

    def report(self, *, wants: bool = False, failure: Exception | None = None) -> None:
        totals = Totals.of(self.engine) if self.engine else Totals()
        self._connection.send(Report(self.answers, self._num_tokens, self._said, totals, wants, failure))
        self.answers, self._said, self._num_tokens = [], [], 0
        self._last_report = time.monotonic()


def _portable(error: Exception) -> Exception:
    """An error that can be sent through a pipe: ours and the system's are, of any other the text goes along."""
    if isinstance(error, BatchgenError | MemoryError | OSError):
        return error
    return ModelError(f"a worker process failed: {''.join(traceback.format_exception_only(error)).strip()}")
