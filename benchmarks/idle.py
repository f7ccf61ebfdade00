"""An engine that computes nothing, for measuring everything else."""

from __future__ import annotations

from collections.abc import Iterable

from batchgen.records import EngineStats, Sequence

TOKEN = 262  # " the"


class IdleEngine:
    """Gives every row as many tokens as it asks for, all its rows in one step."""

    def __init__(self, wants_rows: int) -> None:
        self.wants_rows = wants_rows
        self._rows: list[Sequence] = []
        self._new_tokens = 0

    @property
    def is_idle(self) -> bool:
        return not self._rows

    @property
    def stats(self) -> EngineStats:
        return EngineStats("idle", new_tokens=self._new_tokens)

    def add(self, sequences: Iterable[Sequence]) -> None:
        self._rows += sequences

    def step(self) -> list[Sequence]:
        rows, self._rows = self._rows, []
        for row in rows:
            row.output_ids, row.finish_reason = [TOKEN] * row.sampling.max_new_tokens, "length"
            self._new_tokens += len(row.output_ids)
        return rows

    def close(self) -> None:
        self._rows = []
