"""An engine without a model, the engine with slots, and limits for the rows of a tiny model."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from batchgen.engines import Engine, make_engine
from batchgen.engines.continuous.engine import ContinuousEngine
from batchgen.engines.continuous.memory import SlotMemory
from batchgen.engines.reference.memory import BatchMemory
from batchgen.model import Model
from batchgen.model.shape import Footprint, ModelShape
from batchgen.planning.memory import BatchLimits
from batchgen.records import EngineOptions, EngineStats, Sequence
from tests.support.models import ARCHITECTURES

FOOTPRINT = Footprint.of_shape(ModelShape.from_config(ARCHITECTURES["gpt2"]), element_bytes=4)


def limits_of(
    budget_bytes: int = 1 << 50, num_rows: int | None = None, *, most_rows: int = 64, has_slots: bool = False
) -> BatchLimits:
    memory = SlotMemory(FOOTPRINT) if has_slots else BatchMemory(FOOTPRINT)
    return BatchLimits(memory, budget_bytes, most_rows, num_rows)


def slots_of(model: Model, num_rows: int | None = None, *, share: bool = True, **options: Any) -> ContinuousEngine:
    chosen = EngineOptions("continuous", batch_size=num_rows, share_prefixes=share)
    engine = make_engine(model, chosen, **options)
    assert isinstance(engine, ContinuousEngine)
    return engine


def drive(engine: Engine, windows: Iterable[Iterable[Sequence]]) -> Iterator[Sequence]:
    """Run windows of rows through an engine, as the pipeline does; rows that are already finished come straight out."""
    source = iter(windows)
    has_more = True
    while has_more or not engine.is_idle:
        if has_more and engine.wants_rows:
            window = next(source, None)
            has_more, rows = window is not None, list(window or ())
            yield from (row for row in rows if row.is_finished)
            engine.add([row for row in rows if not row.is_finished])
        yield from engine.step()


class FakeEngine:
    """Finishes each row with the tokens of its own prompt, all rows in one step, in reverse order."""

    def __init__(self, first_window: int = 16) -> None:
        self.first_window = first_window
        self.windows: list[int] = []  # the number of rows of each `add`
        self.is_closed = False
        self._rows: list[Sequence] = []
        self._new_tokens = self._batches = 0

    @property
    def wants_rows(self) -> int:
        return self.first_window if self.is_idle else 0

    @property
    def is_idle(self) -> bool:
        return not self._rows

    @property
    def stats(self) -> EngineStats:
        return EngineStats("fake", batches=self._batches, new_tokens=self._new_tokens)

    def add(self, sequences: Iterable[Sequence]) -> None:
        self._rows += sequences
        self.windows.append(len(self._rows))

    def step(self) -> list[Sequence]:
        rows, self._rows = self._rows[::-1], []
        self._batches += bool(rows)
        for row in rows:
            row.output_ids = list(row.input_ids)
            row.finish_reason = "length"
            row.batch_index, row.padded_length = self._batches, len(row.input_ids)
            self._new_tokens += len(row.output_ids)
        return rows

    def close(self) -> None:
        self.is_closed = True
        self._rows = []
