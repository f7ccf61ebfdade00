"""Which rows run together: windows over a stream, and batches inside a window.

A plan is a pure function of the rows' lengths, the shape and the budget: same input, same plan. Knows nothing of
models or tokens.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import islice
from typing import TYPE_CHECKING, Any, TypeVar

from batchgen.errors import UsageError
from batchgen.machine.limits import MemoryLimit, available_bytes
from batchgen.planning.memory import BatchLimits, Footprint, budget_bytes, kinds_of, largest_batch, prefill_rows
from batchgen.records import Sequence

if TYPE_CHECKING:
    import torch

    from batchgen.model import Model

T = TypeVar("T")

LAST_WINDOW = 4096
PATIENCE_S = 0.2
HEAVIEST_WINDOW = 2**24  # characters of its rows: few have rows so long that it matters
# A decode step of B rows costs about as much as B + 48 tokens in a prefill: 45 ms + 0.85 ms a row were measured with
# GPT-2 124M in float32 on two cores. The fixed part reads the weights.
STEP_OVERHEAD = 48
# Beyond this many rows `generate` gains little on a CPU, and every row waits for the slowest one longer.
# Slots refill, so nobody waits, and more of them cost only memory.
MOST_ROWS = {"cpu": 64}
MOST_SLOTS = {"cpu": 128}
MOST_ROWS_ACCELERATOR = 256


def limits_for(
    model: Model,
    num_rows: int | None = None,
    memory: MemoryLimit | None = None,
    *,
    has_slots: bool = False,
    most_rows: int | None = None,
) -> BatchLimits:
    """Limits from what this machine has left beside the loaded model; `num_rows` fixes the rows of a batch."""
    from batchgen.model.footprint import footprint_of

    footprint = footprint_of(model.checkpoint.config, model.dtype)
    available = available_bytes(model.device, memory)
    return make_limits(footprint, model.device, available, num_rows, has_slots=has_slots, most_rows=most_rows)


def make_limits(
    footprint: Footprint,
    device: torch.device,
    available_bytes: int,
    num_rows: int | None = None,
    *,
    has_slots: bool = False,
    most_rows: int | None = None,
) -> BatchLimits:
    """Limits for batches on a device that has so much left beside the weights; `most_rows` is what `bench` found best.

    Raises `UsageError` for `num_rows`.
    """
    if num_rows is not None and (not isinstance(num_rows, int) or num_rows < 1):
        raise UsageError(f"--batch-size {num_rows}: give auto or a number from 1 up")
    most_rows = most_rows or (MOST_SLOTS if has_slots else MOST_ROWS).get(device.type, MOST_ROWS_ACCELERATOR)
    return BatchLimits(footprint, budget_bytes(available_bytes), most_rows, num_rows, has_slots)


def plan_batches(sequences: Iterable[Sequence], limits: BatchLimits) -> list[list[Sequence]]:
    """Sequences to batches of like length, the longest first.

    Of all ways to cut the rows, sorted by length, into batches that fit, takes the cheapest (dynamic programming from
    the short end). With `--batch-size N` every batch but the last has N rows.
    """
    rows = longest_first(sequences)
    if limits.num_rows is not None:
        return [rows[start : start + limits.num_rows] for start in range(0, len(rows), limits.num_rows)]
    kinds = kinds_of(row.sampling for row in rows)
    max_new_tokens = max((kind.max_new_tokens for kind in kinds), default=0)
    lengths = [len(row.token_ids) for row in rows]
    rooms = {length: largest_batch(limits, length, kinds, limits.most_rows) for length in set(lengths)}
    # A batch of n rows of S columns costs n * S in the prefill and `step_work(n)` for each new token.
    remaining = iter(rows)
    sizes = cheapest_cuts(lengths, rooms, max_new_tokens, STEP_OVERHEAD * max_new_tokens)
    return [list(islice(remaining, size)) for size in sizes]


def plan_prefills(lengths: list[int]) -> list[int]:
    """Rows of these lengths, the longest first, to the cheapest prefills: how many rows each takes.

    A prefill of n rows of S columns costs n * S, and reads the weights once.
    """
    return cheapest_cuts(lengths, {length: prefill_rows(length) for length in set(lengths)}, 0, STEP_OVERHEAD)


def longest_first(sequences: Iterable[Sequence]) -> list[Sequence]:
    """Sequences by how many tokens they have; ties in input order."""
    return sorted(sequences, key=lambda s: (-len(s.token_ids), s.request.index, s.sample_index))


def cheapest_cuts(lengths: list[int], rooms: Mapping[int, int], row_work: int, batch_work: int) -> list[int]:
    """Rows of these lengths, the longest first, cut into batches at the least cost: how many rows each takes.

    At most `rooms[S]` rows where the longest has S tokens. A batch of n rows of S columns costs
    n * (S + row_work) + batch_work, in tokens through the model.

    >>> cheapest_cuts([9, 9, 1, 1], {9: 4, 1: 4}, 0, 5)
    [2, 2]
    """
    cheapest: list[int] = [0] * (len(lengths) + 1)  # cost of running rows[start:]
    sizes = [0] * len(lengths)  # of the batch that begins at a row
    for start in range(len(lengths) - 1, -1, -1):
        a_row = lengths[start] + row_work
        after = cheapest[start + 1 : start + 1 + rooms[lengths[start]]]
        costs = [a_row * num_rows + rest for num_rows, rest in enumerate(after, 1)]
        least = min(costs)
        cheapest[start] = least + batch_work
        sizes[start] = len(costs) - costs[::-1].index(least)  # of equal cuts the longest batch
    batches = []
    start = 0
    while start < len(sizes):
        batches.append(sizes[start])
        start += sizes[start]
    return batches


def step_work(rows: int) -> int:
    """Work of one decode step, in tokens through the model."""
    return rows + STEP_OVERHEAD


_END = object()


class _Ahead(queue.Queue[object]):
    """Items that were read ahead; full also where they weigh too much together."""

    def __init__(self, maxsize: int, weigh: Callable[[Any], int]) -> None:
        super().__init__(maxsize)
        self.weight = 0
        self._weigh = weigh

    def weigh(self, item: object) -> int:
        return 0 if item is _END or isinstance(item, BaseException) else self._weigh(item)

    def _qsize(self) -> int:
        return self.maxsize if self.weight > HEAVIEST_WINDOW else super()._qsize()

    def _put(self, item: object) -> None:
        super()._put(item)
        self.weight += self.weigh(item)

    def _get(self) -> object:
        item = super()._get()
        self.weight -= self.weigh(item)
        return item


def windows(
    items: Iterable[T],
    first: int,
    last: int = LAST_WINDOW,
    patience_s: float = PATIENCE_S,
    is_busy: Callable[[], bool] = lambda: False,
    weigh: Callable[[T], int] = lambda item: 0,
) -> Iterator[list[T]]:
    """Cuts a stream into lists of `first`, 2 `first`, 4 `first`, … items, up to `last` or what of it is whole batches.

    A source that stays silent for `patience_s` closes the window it was filling, so that a slow producer gets its
    answers at once; for a reader that `is_busy` a window is what is there, even nothing. A window closes too when its
    items `weigh` enough. A thread reads ahead by at most one window; its errors are raised here, after the items
    before.
    """
    last = max(first, last // first * first)
    ahead = _Ahead(last, weigh)
    closed = threading.Event()
    threading.Thread(target=_read_ahead, args=(items, ahead, closed), daemon=True).start()
    size = first
    try:
        while True:
            window = _fill(ahead, size, None if is_busy() else patience_s)
            ended = bool(window) and (window[-1] is _END or isinstance(window[-1], BaseException))
            if ended:
                end = window.pop()
            if window or not ended:
                yield window  # type: ignore[misc]
            if ended:
                if isinstance(end, BaseException):
                    raise end
                return
            size = min(2 * size, last) if window else size
    finally:
        closed.set()


def _read_ahead(items: Iterable[object], ahead: _Ahead, closed: threading.Event) -> None:
    try:
        for item in items:
            if not _put(ahead, item, closed):
                return
        _put(ahead, _END, closed)
    except BaseException as error:  # noqa: BLE001 - raised again where the windows are read
        _put(ahead, error, closed)


def _put(ahead: _Ahead, item: object, closed: threading.Event) -> bool:
    """Waits for room; False when nobody reads any more."""
    while not closed.is_set():
        try:
            ahead.put(item, timeout=PATIENCE_S)
        except queue.Full:
            continue
        return True
    return False


def _fill(ahead: _Ahead, size: int, patience_s: float | None) -> list[object]:
    """Up to `size` items; fewer when the source falls silent, without patience only those that are there.

    The end or an error comes as the last item.
    """
    window: list[object] = []
    weight = 0
    while len(window) < size and weight <= HEAVIEST_WINDOW:
        try:
            item = ahead.get(block=patience_s is not None, timeout=patience_s)
        except queue.Empty:
            if window or patience_s is None:
                break
            continue
        window.append(item)
        weight += ahead.weigh(item)
        if item is _END or isinstance(item, BaseException):
            break
    return window
