"""What a run would do, without doing it: lengths, batches, padding, memory, time. Loads no weights, draws nothing."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from functools import cache
from itertools import islice
from operator import attrgetter
from typing import TYPE_CHECKING, Any, Protocol

from batchgen.machine.limits import Bound, MemoryLimit, memory_bounds
from batchgen.machine.speeds import Speed, kept_rows
from batchgen.model.padding import encode
from batchgen.planning.backoff import Backoff
from batchgen.planning.batches import (
    STEP_OVERHEAD,
    longest_first,
    make_limits,
    plan_batches,
    plan_prefills,
    step_work,
    windows,
)
from batchgen.planning.memory import (
    BatchLimits,
    ModelShape,
    batch_estimate,
    filled_slots_estimate,
    largest_batch,
    prefill_rows,
)
from batchgen.records import MemoryEstimate, Request, RowId, SamplingParams, Sequence, TooLong

if TYPE_CHECKING:
    import torch

    from batchgen.model import Checkpoint

# Of more rows that cannot run than these only the number is kept: there may be millions.
MOST_LISTED = 1000


@dataclass(frozen=True, slots=True)
class Room:
    """A model that is not loaded yet, and what memory there is for it: `bounds` are all in force, tightest first.

    `packed_bytes` is the output layer again, where the slot engine may pack it into a copy of its own.
    """

    model: str
    device: str
    dtype: str
    weights_bytes: int
    packed_bytes: int
    bounds: tuple[Bound, ...]
    limits: BatchLimits

    def to_dict(self) -> dict[str, Any]:
        names = ("model", "device", "dtype", "weights_bytes", "packed_bytes")
        return {name: getattr(self, name) for name in names} | {
            "engine": "continuous" if self.limits.has_slots else "reference",
            "available_bytes": self.bounds[0].available_bytes,
            "bounds": [asdict(bound) for bound in self.bounds],
            "batch_budget_bytes": self.limits.budget_bytes,
        }


def make_room(
    checkpoint: Checkpoint,
    device: str,
    dtype: str,
    *,
    has_slots: bool = False,
    num_rows: int | None = None,
    memory: MemoryLimit | None = None,
) -> Room:
    """What `run` would find with these options, before it loads the weights."""
    from batchgen.model.footprint import footprint_of
    from batchgen.model.weights import choose_device, choose_dtype, name_of_dtype

    on = choose_device(device)
    as_dtype = choose_dtype(dtype, on, checkpoint.config)
    footprint = footprint_of(checkpoint.config, as_dtype)
    shape = ModelShape.from_config(checkpoint.config)
    packed_bytes = _packed_bytes(shape, on, as_dtype) if has_slots else 0
    bounds = tuple(memory_bounds(on, memory))
    available_bytes = max(0, bounds[0].available_bytes - footprint.weights - packed_bytes)
    names = (checkpoint.name, str(on), name_of_dtype(as_dtype))
    best_rows = kept_rows(*names) if has_slots else None
    limits = make_limits(footprint, on, available_bytes, num_rows, has_slots=has_slots, most_rows=best_rows)
    return Room(*names, footprint.weights, packed_bytes, bounds, limits)


def _packed_bytes(shape: ModelShape, device: torch.device, dtype: torch.dtype) -> int:
    """Bytes of the output layer once it is packed (`engines.linear`), where the embedding keeps its own."""
    return shape.vocab_size * shape.n_embd * dtype.itemsize if shape.is_tied and device.type == "cpu" else 0


@dataclass(frozen=True, slots=True)
class Bin:
    """Prompts of `low` to `high` tokens."""

    low: int
    high: int
    rows: int


@dataclass(frozen=True, slots=True)
class Padding:
    """What a way to cut rows into batches pads: `columns` is the sum of rows * padded length, pads included.

    A batch of the slot engine is a prefill.
    """

    batches: int
    columns: int
    pads: int

    @property
    def share(self) -> float:
        return self.pads / self.columns if self.columns else 0.0


@dataclass(frozen=True, slots=True)
class BadRow:
    """A row that `run` would turn into an error record."""

    id: RowId | None
    source: str | None
    num_prompt_tokens: int
    error: str


@dataclass(frozen=True, slots=True)
class LargestBatch:
    """The batch, or the filling of the slots, that needs most memory. Its bytes are those above the weights.

    `columns` are those of its longest prompt.
    """

    rows: int
    columns: int
    memory: MemoryEstimate


@dataclass(frozen=True, slots=True)
class Forecast:
    """What `run` would do with some prompts. `rows` counts all of them, `num_bad_rows` those that cannot run."""

    rows: int
    prompt_tokens: int
    histogram: tuple[Bin, ...]
    planned: Padding
    in_input_order: Padding
    largest: LargestBatch | None
    bad_rows: tuple[BadRow, ...]
    num_bad_rows: int
    decode_work: int

    def seconds(self, speed: Speed) -> float:
        """Time at a speed, if every row makes all the tokens that it may."""
        return speed.seconds(self.planned.columns, self.decode_work)

    def to_dict(self) -> dict[str, Any]:
        """For JSON: the fields of the records, and the shares that they imply."""
        facts = asdict(self)
        for name, padding in (("planned", self.planned), ("in_input_order", self.in_input_order)):
            facts[name]["share"] = padding.share
        if self.largest:
            facts["largest"]["memory"]["total"] = self.largest.memory.total
        return facts


def forecast(
    checkpoint: Checkpoint,
    requests: Iterable[Request],
    limits: BatchLimits,
    *,
    too_long: TooLong = "error",
    parse_special: bool = False,
) -> Forecast:
    """Plans requests as `run` does, window by window; memory stays flat however many there are."""
    tally = _Tally(limits)
    # Unlike in a run, nobody waits for the first answers: the plan must not depend on how fast the input comes.
    weigh = attrgetter("weight")
    for window in windows(requests, first=limits.first_window, patience_s=threading.TIMEOUT_MAX, weigh=weigh):
        sequences = encode(
            window,
            checkpoint.tokenizer,
            n_positions=checkpoint.n_positions,
            vocab_size=checkpoint.vocab_size,
            too_long=too_long,
            parse_special=parse_special,
        )
        tally.count_rows(sequences)
    return tally.forecast()


class _Schedule(Protocol):
    """How an engine runs rows, and what that costs."""

    largest: LargestBatch | None

    @property
    def decode_work(self) -> int: ...

    def plan(self, rows: list[Sequence]) -> Iterator[list[Sequence]]:
        """A window's rows, as they are prefilled together."""
        ...


class _Batches:
    """`reference`: every batch runs to its last row's end."""

    def __init__(self, limits: BatchLimits) -> None:
        self.limits = limits
        self.largest: LargestBatch | None = None
        self.decode_work = 0

    def plan(self, rows: list[Sequence]) -> Iterator[list[Sequence]]:
        for batch in plan_batches(rows, self.limits):
            self.decode_work += max(map(num_steps, batch)) * step_work(len(batch))
            memory = batch_estimate(self.limits, batch)
            self.largest = _larger(self.largest, LargestBatch(len(batch), batch[0].num_prompt_tokens, memory))
            yield batch


class _Slots:
    """`continuous`: rows come in by prefills, and leave their slots to others. Shared prefixes are not counted on."""

    def __init__(self, limits: BatchLimits) -> None:
        self.limits = limits
        self.num_slots = limits.num_rows or limits.most_rows
        self.largest: LargestBatch | None = None
        self._filling: list[Sequence] = []
        self._most_rows = 1  # that were ever in the slots
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
            yield from (list(islice(filling, size)) for size in plan_prefills(lengths))

    def _fill(self, rows: list[Sequence]) -> None:
        """The first windows run side by side until the slots are full; then a window's longest rows are together."""
        beside = self._filling if len(self._filling) < self.num_slots else []
        self._filling = longest_first([*beside, *rows])[: self.num_slots]
        lengths = [(row.num_prompt_tokens, row.sampling) for row in self._filling]
        room = max(1, Backoff(self.limits).room_beside([], lengths, prefix_tokens=0, held_columns=0))
        memory = filled_slots_estimate(self.limits.footprint, lengths[:room])
        self.largest = _larger(self.largest, LargestBatch(room, lengths[0][0], memory))
        self._most_rows = max(self._most_rows, room)

    @property
    def decode_work(self) -> int:
        """A slot never waits while there are rows, but no row ends before its own steps."""
        return self._row_steps + STEP_OVERHEAD * max(self._longest, -(-self._row_steps // self._most_rows))


def num_steps(row: Sequence) -> int:
    """Decode steps of a row, if it makes all the tokens that it may: the first comes from its prefill."""
    return row.sampling.max_new_tokens - 1


def _larger(one: LargestBatch | None, other: LargestBatch) -> LargestBatch:
    return one if one and one.memory.total >= other.memory.total else other


class _Tally:
    """Counts rows and batches as they pass; keeps none of them but those in the slots."""

    def __init__(self, limits: BatchLimits) -> None:
        self.limits = limits
        self.schedule: _Schedule = _Slots(limits) if limits.has_slots else _Batches(limits)
        self.lengths: Counter[int] = Counter()
        self.rows = 0
        self.planned = [0, 0, 0]  # batches, columns, pads
        self.input_order = [0, 0, 0]
        self.bad_rows: list[BadRow] = []
        self.num_bad_rows = 0

    def count_rows(self, sequences: list[Sequence]) -> None:
        for sequence in sequences:
            self.rows += sequence.sample_index == 0
            if sequence.num_prompt_tokens and sequence.sample_index == 0:
                self.lengths[sequence.num_prompt_tokens + sequence.num_truncated_tokens] += 1
            if sequence.is_finished:
                self._count_bad(sequence)
        runnable = [sequence for sequence in sequences if not sequence.is_finished]
        for batch in self.schedule.plan(runnable):
            _add(self.planned, batch)
        for batch in in_input_order(runnable, self.limits):
            _add(self.input_order, batch)

    def _count_bad(self, sequence: Sequence) -> None:
        self.num_bad_rows += 1
        if len(self.bad_rows) < MOST_LISTED:
            request = sequence.request
            error = sequence.error or ""
            self.bad_rows.append(BadRow(request.id, request.source, sequence.num_prompt_tokens, error))

    def forecast(self) -> Forecast:
        return Forecast(
            rows=self.rows,
            prompt_tokens=sum(length * rows for length, rows in self.lengths.items()),
            histogram=tuple(histogram(self.lengths)),
            planned=Padding(*self.planned),
            in_input_order=Padding(*self.input_order),
            largest=self.schedule.largest,
            bad_rows=tuple(self.bad_rows),
            num_bad_rows=self.num_bad_rows,
            decode_work=self.schedule.decode_work,
        )


def _add(totals: list[int], batch: list[Sequence]) -> None:
    columns = len(batch) * max(row.num_prompt_tokens for row in batch)
    totals[0] += 1
    totals[1] += columns
    totals[2] += columns - sum(row.num_prompt_tokens for row in batch)


def in_input_order(rows: Iterable[Sequence], limits: BatchLimits) -> Iterator[list[Sequence]]:
    """What a loop without a plan makes of rows: as many together as are allowed and fit, as they come."""
    most = limits.num_rows or limits.most_rows

    @cache
    def room(length: int, kind: SamplingParams) -> int:
        fit = largest_batch(limits, length, [kind], most)
        return min(fit, prefill_rows(length)) if limits.has_slots else fit

    batch: list[Sequence] = []
    longest = 0
    for row in rows:
        longest = max(longest, row.num_prompt_tokens)
        if batch and len(batch) >= min(most, room(longest, row.sampling)):
            yield batch
            batch, longest = [], row.num_prompt_tokens
        batch.append(row)
    if batch:
        yield batch


def histogram(lengths: Counter[int]) -> Iterator[Bin]:
    """Rows by prompt length, in bins that double: 1, 2-3, 4-7, …; from the shortest to the longest prompt.

    >>> [(bin.low, bin.high, bin.rows) for bin in histogram(Counter({3: 2, 9: 1}))]
    [(2, 3, 2), (4, 7, 0), (8, 15, 1)]
    """
    if not lengths:
        return
    for power in range(min(lengths).bit_length() - 1, max(lengths).bit_length()):
        low, high = 1 << power, (2 << power) - 1
        yield Bin(low, high, sum(rows for length, rows in lengths.items() if low <= length <= high))
