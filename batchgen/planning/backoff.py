"""Out of memory: splits the batch that failed, keeps what is finished, and remembers what was too much.

Also measures each batch against its estimate, and gives way before it fails where the machine has less than it had.
Knows nothing of models: how to run rows is the caller's.
"""

from __future__ import annotations

import gc
from bisect import bisect_right
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import replace

from batchgen.errors import is_out_of_memory
from batchgen.machine.limits import PeakMeter, peak_bytes
from batchgen.machine.process import release_heap
from batchgen.planning.memory import (
    BatchLimits,
    batch_bytes,
    batch_estimate,
    filled_slots_estimate,
    kinds_of,
    largest_batch,
    size_text,
)
from batchgen.records import SamplingParams, Sequence

Rows = list[Sequence]
Lengths = list[tuple[int, SamplingParams]]

# Smaller batches drown in what the process allocates anyway; their ratio of measured to predicted says nothing.
LEAST_TELLING_BYTES = 64 * 2**20
# Memory is plenty for a batch that needs less than this share of its budget: it may hold half as much again.
PLENTY_SHARE = 0.6


class Backoff:
    """Runs rows in batches that fit, halving one that does not; the ceiling holds for the rest of the run.

    `budget` says how many bytes a batch may take now, and `wall` how many nothing may take, where the kernel would not
    refuse them but kill the process. `reuse_blocks` is told before each batch whether memory is plenty for it. `say`
    gets one line for each time that memory ran out, and `on_dropped` how many tokens of unfinished rows were dropped
    with it: they start again from their prompts.
    """

    def __init__(
        self,
        limits: BatchLimits,
        *,
        budget: Callable[[], int] | None = None,
        wall: Callable[[], int | None] = lambda: None,
        reuse_blocks: Callable[[bool], None] = lambda is_plenty: None,
        meter: PeakMeter | None = None,
        say: Callable[[str], None] = lambda line: None,
        on_dropped: Callable[[int], None] = lambda num_tokens: None,
    ) -> None:
        self._limits = limits
        self._budget = budget or (lambda: limits.budget_bytes)
        self._wall = wall
        self._reuse_blocks = reuse_blocks
        self._meter = meter
        self._say = say
        self._on_dropped = on_dropped
        self._is_plenty = False
        self._ceiling_bytes: int | None = None
        self._correction = 1.0  # measured over predicted bytes, where that was more than 1
        self.predicted_bytes = 0  # of the largest batch
        self.measured_bytes: int | None = None

    @property
    def limits(self) -> BatchLimits:
        """What the next batches must keep to: the budget of now, below every ceiling found so far."""
        budget_bytes = int(self._budget() / self._correction)
        if self._ceiling_bytes is not None:
            budget_bytes = min(budget_bytes, self._ceiling_bytes)
        return replace(self._limits, budget_bytes=budget_bytes)

    @property
    def peak_bytes(self) -> int:
        """The most that the process, or its tensors on the device, ever held."""
        return self._meter.peak_bytes if self._meter else peak_bytes()

    def run(self, rows: Rows, attempt: Callable[[Rows], None]) -> Iterator[Rows]:
        """Runs all of `rows`; yields them in parts, each as soon as it is finished.

        A row that does not fit alone comes out failed, with an error that says how much it needed.
        """
        pending = deque([rows])
        while pending:
            part = pending.popleft()
            if len(part) > (room := self._room(part)):
                pending.extendleft((part[room:], part[:room]))
            elif self.hits_the_wall(part):
                self.fail(part[0])
                yield part
            elif self._fits(part, attempt):
                yield part
            else:
                finished, unfinished = self._give_way(part)
                pending.extendleft(reversed(unfinished))
                yield finished

    def _room(self, rows: Rows) -> int:
        """How many of these rows may run together now."""
        if self._limits.num_rows is not None and self._ceiling_bytes is None:
            return len(rows)  # the user's own number; memory has its say when it runs out
        padded_length = max(row.num_prompt_tokens for row in rows)
        return largest_batch(self.limits, padded_length, kinds_of(row.sampling for row in rows), len(rows))

    def hits_the_wall(self, rows: Rows) -> bool:
        """Whether a single row, which is tried otherwise, would get the process killed."""
        if len(rows) > 1:
            return False
        needed = batch_estimate(self._limits, rows)
        wall_bytes = self._wall()
        if wall_bytes is not None and needed.tensors > wall_bytes:
            release()
            wall_bytes = self._wall()
        return wall_bytes is not None and needed.tensors > wall_bytes

    def _fits(self, rows: Rows, attempt: Callable[[Rows], None]) -> bool:
        """Runs rows; False where memory ran out. The exception, which holds the batch's tensors, ends in here."""
        predicted = batch_bytes(self._limits, rows)
        is_plenty = predicted < PLENTY_SHARE * self.limits.budget_bytes
        self._reuse_blocks(is_plenty)
        if self._meter:
            self._meter.start()
        try:
            attempt(rows)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            return False
        self._compare(predicted, is_plenty)
        return True

    def _compare(self, predicted: int, is_plenty: bool) -> None:
        """Notes what the batch took; where memory is short, what it took beyond its estimate makes the next smaller."""
        self.predicted_bytes = max(self.predicted_bytes, predicted)
        growth = self._meter.growth_bytes() if self._meter else None
        if growth is None:
            return
        self.measured_bytes = max(self.measured_bytes or 0, growth)
        if predicted >= LEAST_TELLING_BYTES and not is_plenty:
            self._correction = max(self._correction, growth / predicted)

    def _give_way(self, rows: Rows) -> tuple[Rows, list[Rows]]:
        """After memory ran out: rows that are done with, and the rest in halves, to run again from their prompts."""
        release()
        padded_length = max(row.num_prompt_tokens for row in rows)
        finished = [row for row in rows if row.is_finished]
        unfinished = [row for row in rows if not row.is_finished]
        self._on_dropped(sum(row.num_output_tokens for row in unfinished))
        for row in unfinished:
            row.output_ids.clear()
        half = max(1, len(rows) // 2)
        self._ceiling_bytes = batch_bytes(self._limits, rows[:half])
        if len(rows) == 1:
            self.fail(rows[0])
            return rows, []
        self._say(f"out of memory with {len(rows)} rows of {padded_length} columns: going on with {half} at a time")
        return finished, [part for part in (unfinished[:half], unfinished[half:]) if part]

    # For an engine that runs no batches of its own, but fills slots one by one.

    def room_beside(self, running: Lengths, waiting: Lengths, prefix_tokens: int, held_columns: int) -> int:
        """How many of the first `waiting` rows may join those that run; the cache has `held_columns` already.

        Rows are prompt lengths with options, as `filled_slots_estimate` takes them.
        """
        if self._limits.num_rows is not None and self._ceiling_bytes is None:
            return len(waiting)  # the user's own number; memory has its say when it runs out
        footprint = self._limits.footprint
        budget_bytes = self.limits.budget_bytes + footprint.cache_bytes(1, held_columns)

        def needed_bytes(num_rows: int) -> int:
            return filled_slots_estimate(footprint, running + waiting[:num_rows], prefix_tokens).total

        return bisect_right(range(1, len(waiting) + 1), budget_bytes, key=needed_bytes)

    def watch(self, rows: Lengths, prefix_tokens: int) -> None:
        """Notes what the rows in slots are expected to take; what they do take counts from the first call on.

        Prefills and steps of like sizes then keep freed blocks for the next ones, if memory allows.
        """
        predicted = filled_slots_estimate(self._limits.footprint, rows, prefix_tokens).total
        if self.predicted_bytes:
            self.measure()
        elif self._meter:
            self._meter.start()
        self._is_plenty = predicted < PLENTY_SHARE * self.limits.budget_bytes
        self._reuse_blocks(self._is_plenty)
        self.predicted_bytes = max(self.predicted_bytes, predicted)

    def measure(self) -> None:
        """Notes what the rows in slots have taken; where memory is short, more than expected leaves room for fewer."""
        growth = self._meter.growth_bytes() if self._meter and self.predicted_bytes else None
        if growth is None:
            return
        self.measured_bytes = max(self.measured_bytes or 0, growth)
        if self.predicted_bytes >= LEAST_TELLING_BYTES and not self._is_plenty:
            self._correction = max(self._correction, growth / self.predicted_bytes)

    def say_halved(self, num_rows: int, left: int) -> None:
        """One line for the user, after memory ran out with so many rows in slots."""
        self._ceiling_bytes = self._ceiling_bytes or self.limits.budget_bytes
        self._say(f"out of memory with {num_rows} rows: going on with {left} at a time")

    def fail(self, row: Sequence) -> None:
        needed = size_text(batch_bytes(self._limits, [row]))
        tokens = f"{row.num_prompt_tokens} prompt + {row.sampling.max_new_tokens} new tokens"
        row.batch_index = row.padded_length = None  # no batch ran it
        row.fail(f"out of memory: this row alone ({tokens}) needs about {needed}; there is {size_text(self._budget())}")
        self._say(f"out of memory with a single row ({tokens}): it needs about {needed}, and is marked as failed")


def release() -> None:
    """Lets go of what the failed batch still holds: frames of a traceback may refer to each other."""
    import torch

    gc.collect()
    release_heap()
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        torch.cuda.empty_cache()
