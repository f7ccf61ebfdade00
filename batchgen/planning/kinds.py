"""What can be known of an engine without weights: its arithmetic, and how it would run rows."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from batchgen.errors import UsageError
from batchgen.model.shape import Footprint, ModelShape
from batchgen.planning.memory import BatchLimits, RowMemory, budget_bytes
from batchgen.records import MemoryEstimate, Sequence

MOST_ROWS_ACCELERATOR = 256


@dataclass(frozen=True, slots=True)
class LargestBatch:
    """The batch, or the filling of the slots, that needs most memory. Its bytes are those above the weights.

    `columns` are those of its longest prompt.
    """

    rows: int
    columns: int
    memory: MemoryEstimate


class Schedule(Protocol):
    """How an engine runs rows, and what that costs."""

    largest: LargestBatch | None

    @property
    def decode_work(self) -> int: ...

    def plan(self, rows: list[Sequence]) -> Iterator[list[Sequence]]:
        """A window's rows, as they are prefilled together."""
        ...


def no_copies(shape: ModelShape, element_bytes: int, device_type: str) -> int:
    """An engine that runs the network as it was loaded."""
    return 0


@dataclass(frozen=True, slots=True)
class EngineKind:
    """An engine by its name; `most_rows` are by the type of the device, `copied_bytes` what it holds of weights twice.

    Where `takes_best_rows`, the rows that `bench` found best on this machine go before `most_rows`.
    """

    name: str
    memory: Callable[[Footprint], RowMemory]
    schedule: Callable[[BatchLimits], Schedule]
    first_window: Callable[[BatchLimits], int]
    most_rows: Mapping[str, int] = field(default_factory=dict)
    copied_bytes: Callable[[ModelShape, int, str], int] = no_copies
    takes_best_rows: bool = False

    def limits(
        self,
        footprint: Footprint,
        device_type: str,
        available_bytes: int,
        num_rows: int | None = None,
        best_rows: int | None = None,
    ) -> BatchLimits:
        """Limits on a device that has so much left beside the weights; `best_rows` is what `bench` found best there."""
        if num_rows is not None and (not isinstance(num_rows, int) or num_rows < 1):
            raise UsageError(f"batch_size {num_rows}: give auto or a number of at least 1")
        most_rows = best_rows or self.most_rows.get(device_type, MOST_ROWS_ACCELERATOR)
        return BatchLimits(self.memory(footprint), budget_bytes(available_bytes), most_rows, num_rows)


def larger(one: LargestBatch | None, other: LargestBatch) -> LargestBatch:
    """The one that needs more memory."""
    return one if one and one.memory.total >= other.memory.total else other


def num_steps(row: Sequence) -> int:
    """Decode steps of a row, if it makes all the tokens that it may: the first comes from its prefill."""
    return row.sampling.max_new_tokens - 1
