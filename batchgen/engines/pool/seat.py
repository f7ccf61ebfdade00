"""A place for a worker of a pool: its process, the rows that it has, and what it and those before it have done."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from multiprocessing import get_context
from multiprocessing.process import BaseProcess

from batchgen.engines.pool.parts import Part
from batchgen.engines.pool.worker import Answer, Key, Recipe, WorkReport, key_of, work
from batchgen.machine.children import safe_children
from batchgen.records import EngineChoice, EngineStats, Sequence

PATIENCE_S = 2.0  # for a worker that is told to end
MOST_FAILED_STARTS = 3  # of one worker


class Seat:
    """A worker's place. Another worker takes it when one dies; `past` has what those before did."""

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe
        self.rows: dict[Key, Sequence] = {}
        self.part: Part | None = None  # the last that it was given
        self.wants = self.has_reported = self.is_running = False
        self.totals = EngineStats()
        self.past: list[EngineStats] = []
        self._first_batch = self._tokens_in_hand = self._failed_starts = 0
        self._process: BaseProcess | None = None

    @property
    def is_given_up(self) -> bool:
        return self._failed_starts >= MOST_FAILED_STARTS

    @property
    def is_free(self) -> bool:
        """Whether it may have rows: it asks for some, and has none that must be alone."""
        return self.wants and not (self.rows and self.part and self.part.is_suspect)

    def start(self) -> None:
        context = get_context("spawn")  # a fork would copy this process's threads and locks, and cannot use CUDA
        self.connection, other_end = context.Pipe()
        self._process = context.Process(target=work, args=(other_end, self.recipe), daemon=True)
        with _without_interrupts(), safe_children():  # the first start starts multiprocessing's own helper too
            self._process.start()
        other_end.close()  # so that the pipe ends with the worker
        self.is_running = self.wants = True  # what it is given waits in the pipe while it loads

    def give(self, part: Part) -> None:
        self.rows |= {key_of(row): row for row in part.rows}
        self.part, self.wants = part, False
        with suppress(OSError):  # it has just died; the other direction will say so
            self.connection.send([_slim(row) for row in part.rows])

    def answer(self, agreed: EngineChoice) -> None:
        """Tells the worker what the run is made of."""
        with suppress(OSError):  # as above
            self.connection.send(agreed)

    def receive(self) -> WorkReport | None:
        """What the worker sends; None where it has died."""
        try:
            report: WorkReport = self.connection.recv()
        except (EOFError, OSError):
            self.is_running = False
            return None
        if report.choice:  # it has a model, and waits for an answer before it asks for rows
            return report
        self.totals = report.totals
        self.wants |= report.wants and self.has_reported  # the first time it was taken for granted
        self.has_reported = True
        self._tokens_in_hand += report.num_tokens
        return report

    def finish(self, answer: Answer) -> Sequence:
        row = self.rows.pop(answer.key)
        row.output_ids, row.finish_reason, row.error = answer.output_ids, answer.finish_reason, answer.error
        row.padded_length, row.logprobs, row.scores = answer.padded_length, answer.logprobs, answer.scores
        row.num_thought_tokens, row.forced = answer.num_thought_tokens, answer.forced
        row.batch_index = None if answer.batch_index is None else self._first_batch + answer.batch_index
        self._tokens_in_hand -= len(answer.output_ids) + sum(map(len, answer.scores.values()))
        return row

    def bury(self) -> tuple[list[Sequence], str]:
        """The dead worker's unfinished rows, as they were given, and how it ended."""
        self.close()
        self._failed_starts = 0 if self.has_reported else self._failed_starts + 1
        self._first_batch += self.totals.batches + 1
        self.past.append(self.totals)
        rows, self.rows = list(self.rows.values()), {}
        self.totals, self.part, self.wants, self.has_reported = EngineStats(), None, False, False
        assert self._process
        return rows, _how_ended(self._process.exitcode)

    def drop_tokens(self) -> int:
        """How many tokens were made of rows that start again."""
        dropped, self._tokens_in_hand = self._tokens_in_hand, 0
        return max(0, dropped)

    def dismiss(self) -> None:
        """Tells the worker that no more rows will come."""
        if self.is_running:
            with suppress(OSError):
                self.connection.send(None)

    def hang_up(self) -> None:
        """Ends the worker: it does not outlive its pipe."""
        if self._process:
            self.connection.close()

    def close(self) -> None:
        """Ends the worker, and waits until it has ended."""
        if not self._process:
            return
        self.hang_up()
        self._process.join(PATIENCE_S)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()
        self.is_running = False


def _slim(row: Sequence) -> Sequence:
    """What an engine needs of a row: not its text and columns."""
    return replace(row, request=replace(row.request, prompt="", metadata={}))


def _how_ended(exit_code: int | None) -> str:
    if exit_code is None or exit_code >= 0:
        return f"exit code {exit_code}"
    name = signal.Signals(-exit_code).name
    return f"{name}, as when memory runs out" if name == "SIGKILL" else name


@contextmanager
def _without_interrupts() -> Iterator[None]:
    """What starts in here never sees a Ctrl-C, also before it can say that it does not want to."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
