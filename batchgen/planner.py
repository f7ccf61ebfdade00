"""Which rows run together: windows over a stream, and batches inside a window.

A plan is a pure function of the rows' lengths, the shape and the budget: same input, same plan. Knows nothing of
models or tokens.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, TypeVar

from batchgen.errors import UsageError
from batchgen.memory import BatchLimits, Footprint, budget_bytes, largest_batch
from batchgen.probes import MemoryLimit, available_bytes
from batchgen.records import Sequence

if TYPE_CHECKING:
    import torch

    from batchgen.model import Model

T = TypeVar("T")

LAST_WINDOW = 4096
PATIENCE_S = 0.2
# A decode step of B rows costs about as much as B + 48 tokens in a prefill: 45 ms + 0.85 ms a row were measured with
# GPT-2 124M in float32 on two cores. The fixed part reads the weights.
STEP_OVERHEAD = 48
# Beyond this many rows `generate` gains little on a CPU, and every row waits for the slowest one longer.
MOST_ROWS = {"cpu": 64}
MOST_ROWS_ACCELERATOR = 256


def limits_for(model: Model, num_rows: int | None = None, memory: MemoryLimit | None = None) -> BatchLimits:
    """Limits from what this machine has left beside the loaded model; `num_rows` fixes the rows of a batch."""
    from batchgen.model.footprint import footprint_of

    footprint = footprint_of(model.checkpoint.config, model.dtype)
    return make_limits(footprint, model.device, available_bytes(model.device, memory), num_rows)


def make_limits(
    footprint: Footprint, device: torch.device, available_bytes: int, num_rows: int | None = None
) -> BatchLimits:
    """Limits for batches on a device that has so much left beside the weights. Raises `UsageError` for `num_rows`."""
    if num_rows is not None and (not isinstance(num_rows, int) or num_rows < 1):
        raise UsageError(f"--batch-size {num_rows}: give auto or a number from 1 up")
    most_rows = MOST_ROWS.get(device.type, MOST_ROWS_ACCELERATOR)
    return BatchLimits(footprint, budget_bytes(available_bytes), most_rows, num_rows)


def plan_batches(sequences: Iterable[Sequence], limits: BatchLimits) -> list[list[Sequence]]:
    """Sequences to batches of like length, the longest first.

    Of all ways to cut the rows, sorted by length, into batches that fit, takes the cheapest (dynamic programming from
    the short end). With `--batch-size N` every batch but the last has N rows.
    """
    rows = sorted(sequences, key=lambda s: (-s.num_prompt_tokens, s.request.index, s.sample_index))
    if limits.num_rows is not None:
        return [rows[start : start + limits.num_rows] for start in range(0, len(rows), limits.num_rows)]
    return [rows[start:end] for start, end in _cheapest_cuts(rows, limits)]


def _cheapest_cuts(rows: list[Sequence], limits: BatchLimits) -> Iterator[tuple[int, int]]:
    """Start and end of each batch of the cheapest plan; `rows` come longest first.

    A batch of n rows of S columns costs n * S in the prefill and `step_work(n)` for each new token.
    """
    kinds = {row.sampling for row in rows}
    max_new_tokens = max((kind.max_new_tokens for kind in kinds), default=0)
    rooms = {length: largest_batch(limits, length, kinds, limits.most_rows) for length in _lengths(rows)}
    cheapest: list[int] = [0] * (len(rows) + 1)  # cost of running rows[start:]
    ends = [0] * len(rows)
    for start in range(len(rows) - 1, -1, -1):
        length = rows[start].num_prompt_tokens
        a_row = length + max_new_tokens
        after = cheapest[start + 1 : start + 1 + rooms[length]]
        costs = [a_row * num_rows + rest for num_rows, rest in enumerate(after, 1)]
        least = min(costs)
        cheapest[start] = least + STEP_OVERHEAD * max_new_tokens
        ends[start] = start + len(costs) - costs[::-1].index(least)  # of equal cuts the longest batch
    start = 0
    while start < len(rows):
        yield start, ends[start]
        start = ends[start]


def _lengths(rows: Iterable[Sequence]) -> set[int]:
    return {row.num_prompt_tokens for row in rows}


def step_work(rows: int) -> int:
    """Work of one decode step, in tokens through the model."""
    return rows + STEP_OVERHEAD


_END = object()


def windows(
    items: Iterable[T], first: int, last: int = LAST_WINDOW, patience_s: float = PATIENCE_S
) -> Iterator[list[T]]:
    """Cuts a stream into lists of `first`, 2 `first`, 4 `first`, … items, up to `last` or what of it is whole batches.

    A source that stays silent for `patience_s` closes the window it was filling, so that a slow producer gets its
    answers at once. A thread reads ahead by at most one window; its errors are raised here, after the items before.
    """
    last = max(first, last // first * first)
    ahead: queue.Queue[object] = queue.Queue(maxsize=last)
    closed = threading.Event()
    threading.Thread(target=_read_ahead, args=(items, ahead, closed), daemon=True).start()
    size = first
    try:
        while window := _fill(ahead, size, patience_s):
            size = min(2 * size, last)
            ended = window[-1] is _END or isinstance(window[-1], BaseException)
            if rows := window[:-1] if ended else window:
                yield rows  # type: ignore[misc]
            if isinstance(window[-1], BaseException):
                raise window[-1]
            if ended:
                return
    finally:
        closed.set()


def _read_ahead(items: Iterable[object], ahead: queue.Queue[object], closed: threading.Event) -> None:
    try:
        for item in items:
            if not _put(ahead, item, closed):
                return
        _put(ahead, _END, closed)
    except BaseException as error:  # noqa: BLE001 - raised again where the windows are read
        _put(ahead, error, closed)


def _put(ahead: queue.Queue[object], item: object, closed: threading.Event) -> bool:
    """Waits for room; False when nobody reads any more."""
    while not closed.is_set():
        try:
            ahead.put(item, timeout=PATIENCE_S)
        except queue.Full:
            continue
        return True
    return False


def _fill(ahead: queue.Queue[object], size: int, patience_s: float) -> list[object]:
    """Up to `size` items; fewer when the source falls silent. The end or an error comes as the last item."""
    window: list[object] = []
    while len(window) < size:
        try:
            item = ahead.get(timeout=patience_s)
        except queue.Empty:
            if window:
                break
            continue
        window.append(item)
        if item is _END or isinstance(item, BaseException):
            break
    return window
