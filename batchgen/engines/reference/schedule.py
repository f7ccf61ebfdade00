"""How `reference` would run rows: batch by batch, each until its last row ends."""

from __future__ import annotations

from collections.abc import Iterator

from batchgen.planning.batches import plan_batches, step_work
from batchgen.planning.kinds import LargestBatch, larger, num_steps
from batchgen.planning.memory import BatchLimits, batch_estimate
from batchgen.records import Sequence

FIRST_WINDOW = 16


def first_window(limits: BatchLimits) -> int:
    """Return the rows of the first window: a small batch, so that the first answers come soon."""
    return limits.num_rows or min(FIRST_WINDOW, limits.most_rows)


class BatchSchedule:
    """Every batch runs until its last row ends."""

    def __init__(self, limits: BatchLimits) -> None:
        self.limits = limits
        self.largest: LargestBatch | None = None
        self.decode_work = 0

    def plan(self, rows: list[Sequence]) -> Iterator[list[Sequence]]:
        for batch in plan_batches(rows, self.limits):
            self.decode_work += max(map(num_steps, batch)) * step_work(len(batch))
            memory = batch_estimate(self.limits, batch)
            self.largest = larger(self.largest, LargestBatch(len(batch), batch[0].num_prompt_tokens, memory))
            yield batch
