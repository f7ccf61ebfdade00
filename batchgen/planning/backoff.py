"""Out of memory: what rows may take now, what was too much, and what was measured against what was expected.

Knows nothing of models, and not how rows are run: that, and what to do when memory runs out, is the engine's.
"""

from __future__ import annotations

import gc
from collections.abc import Callable
from dataclasses import replace

from batchgen.machine.limits import PeakMeter, peak_bytes
from batchgen.machine.process import release_heap
from batchgen.planning.memory import BatchLimits, batch_bytes, batch_estimate
from batchgen.records import Sequence
from batchgen.text import size_text

# Smaller batches drown in what the process allocates anyway; their ratio of measured to predicted says nothing.
LEAST_TELLING_BYTES = 64 * 2**20
# Memory is plenty for a batch that needs less than this share of its budget: it may hold half as much again.
PLENTY_SHARE = 0.6
# Rows that take so many times what was predicted are worth a word, and the next run plans with it.
TELLING_OVERRUN = 1.15


class Backoff:
    """What memory allows now, and what it turned out not to: a ceiling, once found, holds for the rest of the run.

    `budget` says how many bytes rows may take now, and `wall` how many nothing may take, where the kernel would not
    refuse them but kill the process. `reuse_blocks` is told whether memory is plenty for what runs next. `say` gets one
    line for each time that memory ran out, and one at the end if rows took more than was predicted; `keep_overrun` is
    then told how many times as much.
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
        keep_overrun: Callable[[float], None] = lambda times: None,
    ) -> None:
        self._limits = limits
        self._budget = budget or (lambda: limits.budget_bytes)
        self._wall = wall
        self._reuse_blocks = reuse_blocks
        self._meter = meter
        self._say = say
        self._keep_overrun = keep_overrun
        self._is_plenty = False
        self.ceiling_bytes: int | None = None
        self._correction = 1.0  # measured over predicted bytes, where that was more than 1
        self._worst: tuple[int, int] = (1, 1)  # predicted and measured bytes, where their ratio was highest
        self.predicted_bytes = 0  # of the largest batch
        self.measured_bytes: int | None = None

    @property
    def limits(self) -> BatchLimits:
        """What the next rows must keep to: the budget of now, below every ceiling found so far."""
        budget_bytes = int(self._budget() / self._correction)
        if self.ceiling_bytes is not None:
            budget_bytes = min(budget_bytes, self.ceiling_bytes)
        return replace(self._limits, budget_bytes=budget_bytes)

    @property
    def is_users_number(self) -> bool:
        """Whether the user has fixed the rows that run together; memory has its say when it runs out."""
        return self._limits.num_rows is not None and self.ceiling_bytes is None

    @property
    def peak_bytes(self) -> int:
        """The most that the process, or its tensors on the device, ever held."""
        return self._meter.peak_bytes if self._meter else peak_bytes()

    def expect(self, predicted: int, *, anew: bool, prefills_apart: bool = False) -> None:
        """Notes what is expected of the rows that run next; growth is measured from here on if it begins `anew`.

        Where `prefills_apart`, their blocks go back as they are freed, until `begin_steps`.
        """
        self._is_plenty = predicted < PLENTY_SHARE * self.limits.budget_bytes
        self._reuse_blocks(self._is_plenty and not prefills_apart)
        if self._meter and anew:
            self._meter.start()

    def begin_steps(self) -> None:
        """Rows have been prefilled; what steps free may be kept for the next ones."""
        self._reuse_blocks(self._is_plenty)

    def compare(self, predicted: int) -> None:
        """Notes what was taken since `expect`; where memory is short, more than was expected makes the next smaller."""
        growth = self._meter.growth_bytes() if self._meter else None
        if growth is None:
            return
        self.measured_bytes = max(self.measured_bytes or 0, growth)
        if predicted >= LEAST_TELLING_BYTES and not self._is_plenty:
            self._correction = max(self._correction, growth / predicted)
        if growth >= LEAST_TELLING_BYTES and growth / predicted > self._worst[1] / self._worst[0]:
            self._worst = predicted, growth

    def end(self) -> None:
        """Says by how much rows took more than was predicted, and has it kept for the next run."""
        predicted, measured = self._worst
        times = measured / predicted
        if times > TELLING_OVERRUN:
            self._keep_overrun(times)
            took = f"rows took {size_text(measured)} of memory where {size_text(predicted)} was predicted"
            self._say(f"{took}: the next run of this model plans with {times:.1f} times as much")
        self._worst = 1, 1

    def lower_ceiling(self, num_bytes: int) -> None:
        """Memory ran out: from now on rows are expected to take no more than this together."""
        self.ceiling_bytes = num_bytes

    def say_fewer(self, ran: str, left: int) -> None:
        """One line for the user, after memory ran out with so many rows."""
        self._say(f"out of memory with {ran}: continuing with {left} at a time")

    def hits_the_wall(self, rows: list[Sequence]) -> bool:
        """Whether a single row, which is tried otherwise, would get the process killed."""
        if len(rows) > 1:
            return False
        needed = batch_estimate(self._limits, rows)
        wall_bytes = self._wall()
        if wall_bytes is not None and needed.tensors > wall_bytes:
            release()
            wall_bytes = self._wall()
        return wall_bytes is not None and needed.tensors > wall_bytes

    def fail(self, row: Sequence) -> None:
        needed = size_text(batch_bytes(self._limits, [row]))
        tokens = f"{row.num_prompt_tokens} prompt + {row.sampling.max_new_tokens} new tokens"
        row.batch_index = row.padded_length = None  # no batch ran it
        row.fail(
            f"out of memory: this row alone ({tokens}) needs about {needed}, and {size_text(self._budget())} is free"
        )
        self._say(f"out of memory with a single row ({tokens}): it needs about {needed} and is recorded as failed")


def release() -> None:
    """Lets go of what the failed batch still holds: frames of a traceback may refer to each other."""
    import torch

    gc.collect()
    release_heap()
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        torch.cuda.empty_cache()
