"""What is known about an engine without weights: its memory arithmetic, and how it would run rows."""

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
    """The batch, or the set of filled slots, that needs the most memory, in bytes above the weights.

    `columns` is the length of its longest prompt.
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
        """Yield a window's rows in groups that are prefilled together."""
        ...


def no_copies(shape: ModelShape, element_bytes: int, device_type: str) -> int:
    """Return 0, for engines that run the network as loaded."""
    return 0


def loaded_weights(footprint: Footprint, shape: ModelShape) -> int:
    """Return the bytes of the weights as they are loaded, for engines that do not quantize them."""
    return footprint.weights


@dataclass(frozen=True, slots=True)
class EngineKind:
    """A kind of engine. `most_rows` is keyed by device type; `copied_bytes` returns the bytes of weights it copies,
    `quantized_bytes` those of its weights in 8-bit integers.

    If `takes_best_rows`, the number of rows that `bench` found best on this machine overrides `most_rows`.
    `plenty_memory` is for rows on a CPU while memory is plentiful, if they then take more.
    """

    name: str
    memory: Callable[[Footprint], RowMemory]
    schedule: Callable[[BatchLimits], Schedule]
    first_window: Callable[[BatchLimits], int]
    most_rows: Mapping[str, int] = field(default_factory=dict)
    copied_bytes: Callable[[ModelShape, int, str], int] = no_copies
    quantized_bytes: Callable[[Footprint, ModelShape], int] = loaded_weights
    takes_best_rows: bool = False
    plenty_memory: Callable[[Footprint], RowMemory] | None = None

    def limits(
        self,
        footprint: Footprint,
        device_type: str,
        available_bytes: int,
        num_rows: int | None = None,
        best_rows: int | None = None,
    ) -> BatchLimits:
        """Return the limits on a device with `available_bytes` free besides the weights.

        `best_rows` is what `bench` found best there. Raises `UsageError` if `num_rows` is invalid.
        """
        if num_rows is not None and (not isinstance(num_rows, int) or num_rows < 1):
            raise UsageError(f"batch_size {num_rows}: give auto or a number of at least 1")
        most_rows = best_rows or self.most_rows.get(device_type, MOST_ROWS_ACCELERATOR)
        plenty = self.plenty_memory(footprint) if self.plenty_memory and device_type == "cpu" else None
        return BatchLimits(self.memory(footprint), budget_bytes(available_bytes), most_rows, num_rows, plenty)


def larger(one: LargestBatch | None, other: LargestBatch) -> LargestBatch:
    """Return the batch that needs more memory."""
    return one if one and one.memory.total >= other.memory.total else other


def num_steps(row: Sequence) -> int:
    """Return the maximum number of decode steps of a row; its first token comes from the prefill."""
    return row.sampling.max_new_tokens - 1
