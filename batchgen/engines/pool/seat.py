"""A worker's place in a pool: its process, its rows, and what it and its predecessors have done."""

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

PATIENCE_S = 2.0  # for a worker to exit when told to
MOST_FAILED_STARTS = 3  # of one worker


class Seat:
    """A worker's place. When a worker dies, another one takes the place; `past` has the counts of its predecessors."""

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe
        self.rows: dict[Key, Sequence] = {}
        self.part: Part | None = None  # the last part that it was given
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
        """Whether it can take rows: it has asked for some, and has none that must run alone."""
        return self.wants and not (self.rows and self.part and self.part.is_suspect)

    def start(self) -> None:
        context = get_context("spawn")  # a fork would copy this process's threads and locks, and cannot use CUDA
        self.connection, other_end = context.Pipe()
        self._process = context.Process(target=work, args=(other_end, self.recipe), daemon=True)
        with _without_interrupts(), safe_children():  # the first start also starts multiprocessing's helper process
            self._process.start()
        other_end.close()  # so that the pipe closes when the worker ends
        self.is_running = self.wants = True  # rows that it is given wait in the pipe while it loads the model

    def give(self, part: Part) -> None:
        self.rows |= {key_of(row): row for row in part.rows}
        self.part, self.wants = part, False
        with suppress(OSError):  # it has just died; `receive` will notice
            self.connection.send([_slim(row) for row in part.rows])

    def answer(self, agreed: EngineChoice) -> None:
        """Tell the worker which engine choice the run uses."""
        with suppress(OSError):  # as above
            self.connection.send(agreed)

    def receive(self) -> WorkReport | None:
        """Return what the worker sends; None if it has died."""
        try:
            report: WorkReport = self.connection.recv()
        except (EOFError, OSError):
            self.is_running = False
            return None
        if report.choice:  # it has loaded the model, and waits for an answer before it asks for rows
            return report
        self.totals = report.totals
        self.wants |= report.wants and self.has_reported  # the first request was assumed when it started
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
        """Return the dead worker's unfinished rows, as they were given to it, and how it ended."""
        self.close()
        self._failed_starts = 0 if self.has_reported else self._failed_starts + 1
        self._first_batch += self.totals.batches + 1
        self.past.append(self.totals)
        rows, self.rows = list(self.rows.values()), {}
        self.totals, self.part, self.wants, self.has_reported = EngineStats(), None, False, False
        assert self._process
        return rows, _how_ended(self._process.exitcode)

    def drop_tokens(self) -> int:
        """Return the number of tokens generated so far for rows that start again, and stop counting them."""
        dropped, self._tokens_in_hand = self._tokens_in_hand, 0
        return max(0, dropped)

    def dismiss(self) -> None:
        """Tell the worker that no more rows will come."""
        if self.is_running:
            with suppress(OSError):
                self.connection.send(None)

    def hang_up(self) -> None:
        """Close the worker's pipe, which makes it exit."""
        if self._process:
            self.connection.close()

    def close(self) -> None:
        """End the worker, and wait until it has ended."""
        if not self._process:
            return
        self.hang_up()
        self._process.join(PATIENCE_S)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()
        self.is_running = False


def _slim(row: Sequence) -> Sequence:
    """Return what an engine needs of a row: everything but its text and columns."""
    return replace(row, request=replace(row.request, prompt="", metadata={}))


def _how_ended(exit_code: int | None) -> str:
    if exit_code is None or exit_code >= 0:
        return f"exit code {exit_code}"
    name = signal.Signals(-exit_code).name
    return f"{name}, as when memory runs out" if name == "SIGKILL" else name


@contextmanager
def _without_interrupts() -> Iterator[None]:
    """Block Ctrl-C for processes started inside, even before they can ignore it themselves."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
