"""An engine without a model, the engine with slots, and what bounds the batches of a tiny one."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from batchgen.engines import make_engine
from batchgen.engines.continuous.engine import ContinuousEngine
from batchgen.model import Model
from batchgen.planning.backoff import Backoff
from batchgen.planning.memory import BatchLimits, Footprint, ModelShape
from batchgen.records import Sequence
from tests.support.models import ARCHITECTURES

FOOTPRINT = Footprint.of_shape(ModelShape.from_config(ARCHITECTURES["gpt2"]), element_bytes=4)


def limits_of(
    budget_bytes: int = 1 << 50, num_rows: int | None = None, *, most_rows: int = 64, has_slots: bool = False
) -> BatchLimits:
    return BatchLimits(FOOTPRINT, budget_bytes, most_rows, num_rows, has_slots)


def slots_of(model: Model, num_rows: int | None = None, **options: Any) -> ContinuousEngine:
    engine = make_engine(model, name="continuous", num_rows=num_rows, **options)
    assert isinstance(engine, ContinuousEngine)
    return engine


class FakeEngine:
    """Finishes each row with the tokens of its own prompt, in reverse of the order given."""

    name = "fake"
    is_busy = False
    num_batches = decode_work = 0
    prefill_s = decode_s = 0.0

    def __init__(self, first_window: int = 16) -> None:
        self.backoff = Backoff(limits_of(num_rows=first_window))
        self.windows: list[int] = []  # rows of each that ran

    def generate(self, windows: Iterable[list[Sequence]]) -> Iterator[Sequence]:
        for window in windows:
            yield from (sequence for sequence in window if sequence.is_finished)
            rows = [sequence for sequence in window if not sequence.is_finished]
            self.windows.append(len(rows))
            self.num_batches += bool(rows)
            for sequence in reversed(rows):
                sequence.output_ids = list(sequence.input_ids)
                sequence.finish_reason = "length"
                sequence.batch_index, sequence.padded_length = self.num_batches, len(sequence.input_ids)
                yield sequence
