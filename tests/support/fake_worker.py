"""A worker without a model, which loads no torch: it repeats each prompt, unless a row tells it to harm its process.

The worker's process imports it too.
"""

from __future__ import annotations

import ctypes
import os
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from batchgen.engines import Agree, finish_all
from batchgen.engines.pool.engine import PoolEngine
from batchgen.errors import ModelError
from batchgen.records import EngineChoice, EngineStats, Sequence
from tests.support.rows import rows_of

SEGFAULT, REFUSE, DIE_AT_START = 1, 2, 3


@dataclass
class FakeEngine:
    """Finishes one row per step, every `seconds`. The rows' padded length is the id of the process that ran them."""

    seconds: float
    wants_rows = 16
    rows: deque[Sequence] = field(default_factory=deque)
    num_batches: int = 0
    num_tokens: int = 0

    @property
    def is_idle(self) -> bool:
        return not self.rows

    @property
    def stats(self) -> EngineStats:
        return EngineStats(
            engine="fake",
            batches=self.num_batches,
            new_tokens=self.num_tokens,
            prefill_s=1.0,
            decode_s=1.0,
            peak_bytes=1000,
            predicted_bytes=10,
            measured_bytes=9,
        )

    def add(self, sequences: Iterable[Sequence]) -> None:
        rows = list(sequences)
        self.num_batches += bool(rows)
        for row in rows:
            row.batch_index = self.num_batches
        self.rows += rows

    def step(self) -> list[Sequence]:
        if not self.rows:
            return []
        time.sleep(self.seconds)
        row = self.rows.popleft()
        if SEGFAULT in row.input_ids:
            ctypes.string_at(0)  # in this thread: a signal from outside would leave it time to continue
        if REFUSE in row.input_ids:
            raise ModelError("the model refuses")
        row.output_ids, row.finish_reason = list(row.input_ids), "length"
        row.padded_length = os.getpid()
        self.num_tokens += 1
        return [row]

    def close(self) -> None:
        self.rows.clear()


@dataclass(frozen=True)
class FakeRecipe:
    seconds: float = 0.0
    fails: bool = False
    tells_choice: bool = False

    def make(self, say: Callable[[str], None], agree: Agree) -> FakeEngine:
        if self.fails:
            sys.exit(DIE_AT_START)
        own = EngineChoice(f"of process {os.getpid()}", "plain", "", 16, 1)
        say(f"made a fake engine {agree(own).engine}" if self.tells_choice else "made a fake engine")
        return FakeEngine(self.seconds)


def run_until_killed() -> None:
    """Print which processes work, and run for a long time."""
    rows = rows_of([[4]] * 20_000)
    for row in finish_all(PoolEngine([FakeRecipe(0.001)] * 2, 8), rows):
        print(row.padded_length, flush=True)


if __name__ == "__main__":
    run_until_killed()
