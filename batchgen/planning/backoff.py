"""Running out of memory: how much rows may take now, what was too much, and how use compares with the prediction.

Knows nothing about models or how rows run; the engine decides what to do when memory runs out.
"""

from __future__ import annotations

import gc
from collections.abc import Callable
from dataclasses import replace

from batchgen.machine.meter import PeakMeter, peak_bytes
from batchgen.machine.process import release_heap
from batchgen.planning.memory import PLENTY_SHARE, BatchLimits, padded_estimate
from batchgen.records import Sequence
from batchgen.text import size_text

# Smaller batches are lost among the process's other allocations; their ratio of measured to predicted means nothing.
LEAST_TELLING_BYTES = 64 * 2**20
# Rows that take this many times the prediction are reported, and the next run plans with it.
TELLING_OVERRUN = 1.15


class Backoff:
    """What memory allows now, and what turned out to be too much. A ceiling, once found, holds for the rest of the run.

    `budget` returns how many bytes rows may take now; `wall` returns the limit above which the kernel would kill the
    process instead of refusing memory. `reuse_blocks` is called with whether memory is plentiful for what runs next.
    `say` gets one line each time memory runs out, and one at the end if rows took more than predicted; `keep_overrun`
    then gets the ratio.
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
        self._correction = 1.0  # ratio of measured to predicted bytes, if that is more than 1
        self._worst: tuple[int, int] = (1, 1)  # predicted and measured bytes where their ratio was highest
        self.predicted_bytes = 0  # for the largest batch
        self.measured_bytes: int | None = None

    @property
    def limits(self) -> BatchLimits:
        """The limits for the next rows: the current budget, below every ceiling found so far."""
        budget_bytes = int(self._budget() / self._correction)
        if self.ceiling_bytes is not None:
            budget_bytes = min(budget_bytes, self.ceiling_bytes)
        return replace(self._limits, budget_bytes=budget_bytes)

    @property
    def is_users_number(self) -> bool:
        """Whether the user's number of rows still applies; it does until memory runs out."""
        return self._limits.num_rows is not None and self.ceiling_bytes is None

    @property
    def peak_bytes(self) -> int:
        """The most bytes that the process, or its tensors on the device, ever held."""
        return self._meter.peak_bytes if self._meter else peak_bytes()

    def expect(self, needed: int, *, anew: bool, prefills_apart: bool = False) -> None:
        """Record what the next rows need; with `anew`, growth is measured from here on.

        If `prefills_apart`, freed blocks are returned to the system until `begin_steps`.
        """
        self._is_plenty = needed < PLENTY_SHARE * self.limits.budget_bytes
        self._reuse_blocks(self._is_plenty and not prefills_apart)
        if self._meter and anew:
            self._meter.start()

    def begin_steps(self) -> None:
        """Note that the prefill is over; blocks that steps free may be kept for the next ones."""
        self._reuse_blocks(self._is_plenty)

    def compare(self, predicted: int) -> None:
        """Record what was taken since `expect`; if memory is short and it took more than predicted, plan smaller."""
        growth = self._meter.growth_bytes() if self._meter else None
        if growth is None:
            return
        self.measured_bytes = max(self.measured_bytes or 0, growth)
        if predicted >= LEAST_TELLING_BYTES and not self._is_plenty:
            self._correction = max(self._correction, growth / predicted)
        if growth >= LEAST_TELLING_BYTES and growth / predicted > self._worst[1] / self._worst[0]:
            self._worst = predicted, growth

    def end(self) -> None:
        """Report by how much rows exceeded the prediction, and save the ratio for the next run."""
        predicted, measured = self._worst
        times = measured / predicted
        if times > TELLING_OVERRUN:
            self._keep_overrun(times)
            took = f"rows took {size_text(measured)} of memory where {size_text(predicted)} was predicted"
            self._say(f"{took}: the next run of this model plans with {times:.1f} times as much")
        self._worst = 1, 1

    def lower_ceiling(self, num_bytes: int) -> None:
        """Lower the ceiling after memory ran out: from now on rows may need at most this many bytes, as predicted."""
        self.ceiling_bytes = num_bytes

    def say_fewer(self, ran: str, left: int) -> None:
        """Tell the user that memory ran out and how many rows run from now on."""
        self._say(f"out of memory with {ran}: continuing with {left} at a time")

    def hits_the_wall(self, rows: list[Sequence]) -> bool:
        """Whether a single row would get the process killed; without that danger it is simply tried."""
        if len(rows) > 1:
            return False
        needed = padded_estimate(self._limits.memory, rows)
        wall_bytes = self._wall()
        if wall_bytes is not None and needed.tensors > wall_bytes:
            release()
            wall_bytes = self._wall()
        return wall_bytes is not None and needed.tensors > wall_bytes

    def fail(self, row: Sequence) -> None:
        needed = size_text(padded_estimate(self._limits.memory, [row]).total)
        tokens = f"{row.num_prompt_tokens} prompt + {row.sampling.max_new_tokens} new tokens"
        row.batch_index = row.padded_length = None
        row.fail(
            f"out of memory: this row alone ({tokens}) needs about {needed}, and {size_text(self._budget())} is free"
        )
        self._say(f"out of memory with a single row ({tokens}): it needs about {needed} and is recorded as failed")


def release() -> None:
    """Free what the failed batch still holds: the frames of its traceback may refer to each other."""
    import torch

    gc.collect()
    release_heap()
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        torch.cuda.empty_cache()
