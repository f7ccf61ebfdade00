"""How `continuous` would run rows: by prefills into slots, which other rows take as soon as they are free."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

from batchgen.engines.continuous.memory import SlotMemory, room_beside
from batchgen.planning.batches import STEP_OVERHEAD, longest_first, plan_prefills
from batchgen.planning.kinds import LargestBatch, larger, num_steps
from batchgen.planning.memory import BatchLimits
from batchgen.records import Sequence


def first_window(limits: BatchLimits) -> int:
    """Return the rows of the first window: all slots, which fill up before the first row is answered."""
    return limits.num_rows or limits.most_rows


class SlotSchedule:
    """Rows come in by prefills and leave their slots to others. Does not count on shared prefixes."""

    def __init__(self, limits: BatchLimits) -> None:
        self.limits = limits
        self._memory = SlotMemory(limits.memory.footprint)
        self.num_slots = limits.num_rows or limits.most_rows
        self.largest: LargestBatch | None = None
        self._filling: list[Sequence] = []
        self._most_rows = 1  # most rows that were ever in the slots
        self._row_steps = self._longest = 0

    def plan(self, rows: list[Sequence]) -> Iterator[list[Sequence]]:
        rows = longest_first(rows)
        if rows:
            self._fill(rows)
        self._row_steps += sum(map(num_steps, rows))
        self._longest = max(self._longest, *map(num_steps, rows), 0)
        for start in range(0, len(rows), self.num_slots):
            filling = iter(rows[start : start + self.num_slots])
            lengths = [row.num_prompt_tokens for row in rows[start : start + self.num_slots]]
            yield from (list(islice(filling, size)) for size in plan_prefills(lengths, self._memory.rows_at_once))

    def _fill(self, rows: list[Sequence]) -> None:
        """Add a window: the first ones run together until slots are full.

        Later ones run only their own longest rows.
        """
        beside = self._filling if len(self._filling) < self.num_slots else []
        self._filling = longest_first([*beside, *rows])[: self.num_slots]
        lengths = [(row.num_prompt_tokens, row.sampling) for row in self._filling]
        room = max(1, room_beside(self.limits, [], lengths))
        memory = self._memory.of_rows(lengths[:room])
        self.largest = larger(self.largest, LargestBatch(room, lengths[0][0], memory))
        self._most_rows = max(self._most_rows, room)

    @property
    def decode_work(self) -> int:
        """Work of all steps: slots never idle while rows remain, but no run takes fewer steps than its longest row."""
        return self._row_steps + STEP_OVERHEAD * max(self._longest, -(-self._row_steps // self._most_rows))
