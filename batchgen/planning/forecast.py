"""What a run would do, without doing it: lengths, batches, padding, memory, time. Loads no weights, draws nothing."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from functools import cache
from operator import attrgetter
from typing import TYPE_CHECKING, Any

from batchgen.machine.speeds import Speed
from batchgen.model.chat import Chat, begin_answers
from batchgen.model.padding import encode
from batchgen.planning.kinds import EngineKind, LargestBatch
from batchgen.planning.memory import BatchLimits, largest_batch
from batchgen.planning.windows import Windows
from batchgen.records import Request, RowId, SamplingParams, Sequence, TooLong

if TYPE_CHECKING:
    from batchgen.model import Checkpoint

# At most this many rows that cannot run are kept, of others only the number: there may be millions.
MOST_LISTED = 1000


@dataclass(frozen=True, slots=True)
class Bin:
    """Prompts with `low` to `high` tokens."""

    low: int
    high: int
    rows: int


@dataclass(frozen=True, slots=True)
class Padding:
    """The padding of one way to divide rows into batches.

    `columns` is the sum of rows * padded length, pads included. With slots, a batch is a prefill.
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
        """Return the time at a given speed, if every row generates its maximum number of tokens."""
        return speed.seconds(self.planned.columns, self.decode_work)

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON values, together with shares and totals derived from them."""
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
    kind: EngineKind,
    *,
    too_long: TooLong = "error",
    parse_special: bool = False,
    chat: Chat | None = None,
) -> Forecast:
    """Plan requests as `run` does, window by window; memory use does not grow with their number."""
    tally = _Tally(limits, kind)
    # Unlike in a run, nobody waits for the first answers: the plan must not depend on how fast the input arrives.
    weigh = attrgetter("weight")
    first = kind.first_window(limits)
    windows = Windows(requests, first=first, patience_s=threading.TIMEOUT_MAX, weigh=weigh)
    for window in iter(windows.take, None):
        sequences = encode(
            window,
            checkpoint.codec,
            n_positions=checkpoint.n_positions,
            vocab_size=checkpoint.vocab_size,
            too_long=too_long,
            parse_special=parse_special,
            chat=chat,
        )
        if chat:
            begin_answers(chat, sequences)
        tally.count_rows(sequences)
    return tally.forecast()


class _Tally:
    """Counts rows and batches as they pass; keeps no rows except those in the slots."""

    def __init__(self, limits: BatchLimits, kind: EngineKind) -> None:
        self.limits = limits
        self.schedule = kind.schedule(limits)
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
    """Yield batches as a loop without a plan makes them: in input order, each with as many rows as allowed and fit."""
    most = limits.num_rows or limits.most_rows

    @cache
    def room(length: int, kind: SamplingParams) -> int:
        fit = largest_batch(limits, length, [kind], most)
        return min(fit, limits.memory.rows_at_once(length) or fit)

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
    """Yield numbers of rows by prompt length, in bins that double: 1, 2-3, 4-7, …; from shortest to longest prompt.

    >>> [(bin.low, bin.high, bin.rows) for bin in histogram(Counter({3: 2, 9: 1}))]
    [(2, 3, 2), (4, 7, 0), (8, 15, 1)]
    """
    if not lengths:
        return
    for power in range(min(lengths).bit_length() - 1, max(lengths).bit_length()):
        low, high = 1 << power, (2 << power) - 1
        yield Bin(low, high, sum(rows for length, rows in lengths.items() if low <= length <= high))
