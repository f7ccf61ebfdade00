"""A worker without a model, which loads no torch: it repeats each prompt, unless a row says what to do to its process.

Imported by the worker's process too.
"""

from __future__ import annotations

import ctypes
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from batchgen.engines.pool.engine import PoolEngine, PoolLimits, PoolMemory
from batchgen.errors import ModelError
from batchgen.records import Sequence
from tests.support.rows import rows_of

SEGFAULT, REFUSE, DIE_AT_START = 1, 2, 3


@dataclass
class FakeEngine:
    """Finishes a row each `seconds`. The rows' padded length is the process that ran them."""

    on_step: Callable[[int], None]
    seconds: float
    name = "fake"
    is_busy = False  # while it has rows
    num_batches = decode_work = 0
    prefill_s = decode_s = 1.0
    backoff = PoolMemory(PoolLimits(16), peak_bytes=1000, predicted_bytes=10, measured_bytes=9)

    def generate(self, windows: Iterable[list[Sequence]]) -> Iterator[Sequence]:
        rows: list[Sequence] = []
        for window in windows:  # while it is busy, it is asked for more after each row
            self.num_batches += bool(window)
            for sequence in window:
                sequence.batch_index = self.num_batches
            rows += window
            if rows:
                time.sleep(self.seconds)
                self.run(sequence := rows.pop(0))
                self.is_busy = bool(rows)
                yield sequence
        for sequence in rows:
            self.run(sequence)
            yield sequence

    def run(self, sequence: Sequence) -> None:
        if SEGFAULT in sequence.input_ids:
            ctypes.string_at(0)  # in this thread: a signal from outside would leave it time to go on
        if REFUSE in sequence.input_ids:
            raise ModelError("the model refuses")
        sequence.output_ids, sequence.finish_reason = list(sequence.input_ids), "length"
        sequence.padded_length = os.getpid()
        self.on_step(1)


@dataclass(frozen=True)
class FakeRecipe:
    seconds: float = 0.0
    fails: bool = False

    def make(self, on_step: Callable[[int], None], say: Callable[[str], None]) -> FakeEngine:
        if self.fails:
            sys.exit(DIE_AT_START)
        say("made a fake engine")
        return FakeEngine(on_step, self.seconds)


def run_until_killed() -> None:
    """Says which processes work, and goes on for long."""
    rows = rows_of([[4]] * 20_000)
    for row in PoolEngine([FakeRecipe(0.001)] * 2, 8).generate(iter([rows])):
        print(row.padded_length, flush=True)


if __name__ == "__main__":
    run_until_killed()
