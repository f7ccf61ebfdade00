"""How many bytes rows in slots take: pages of the KV cache, prefills of a bounded size, the sampler's workspace."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence as Rows
from dataclasses import dataclass

from batchgen.engines.compiled.support import why_not_compiled
from batchgen.model.shape import Footprint, ModelShape, int8_weights
from batchgen.planning.memory import FLOAT32_BYTES, BatchLimits, as_it_was, kinds_of, logits_factor
from batchgen.records import MemoryEstimate, SamplingParams

# Added once, on top of tensors: kernels and scratch memory for recently seen batch sizes, and the heap of small blocks
# (measured, as all figures here: docs/memory.md).
KERNELS_BYTES = 32 * 2**20
# If memory is plentiful, freed blocks of up to 32 MiB are kept, and leave holes in the heap: glibc often cannot give an
# aligned block back for the same size. In a prefill each layer leaves some: these shares of the activations, once and
# per layer. Prefills of one row leave more, since each has a size of its own. Logits leave two as large as themselves.
HOLES_SHARE, HOLES_SHARE_PER_LAYER, MOST_HOLES_BYTES = 0.4, 1 / 30, 96 * 2**20
TIMES_ALONE = 1.5
MOST_LOGITS_HOLES_BYTES = 32 * 2**20
# With less than this, those kernels and prefills of many rows do not fit; static batches need less.
LEAST_SLOTS_BYTES = 128 * 2**20
# Columns of a page of the KV cache, and the maximum number of tokens, including pads, of one prefill. Both were
# measured; see docs/decisions.md.
PAGE = 32
PREFILL_TOKENS = 1024

# One entry per row: its prompt length and its options.
Lengths = list[tuple[int, SamplingParams]]


@dataclass(frozen=True, slots=True)
class SlotMemory:
    """The memory formula of slots: rows come in by prefills, and each row keeps its own pages until it ends."""

    footprint: Footprint

    def estimate(self, rows: int, columns: int, sampling: SamplingParams) -> MemoryEstimate:
        """Return the peak bytes above the weights with `rows` such rows in slots that are all about to end."""
        held = _held(self.footprint, [last_column(columns, sampling)])
        return _peak(self.footprint, rows, (rows * held[0], rows * held[1]), columns, sampling)

    def rows_at_once(self, columns: int) -> int:
        """Return how many rows of `columns` columns one prefill takes."""
        return _rows_at_once(self.footprint, columns)

    def of_rows(self, rows: Rows[tuple[int, SamplingParams]], prefix_tokens: int = 0) -> MemoryEstimate:
        """Return the peak bytes above the weights for rows in slots, given by prompt length and options.

        A prefix is kept once for all rows that share it: its tokens count in `prefix_tokens`, not in the rows' lengths.
        """
        longest = max(length for length, _ in rows)
        held = _held(self.footprint, [last_column(length, sampling) for length, sampling in rows])
        kinds = kinds_of(sampling for _, sampling in rows)
        peaks = (_peak(self.footprint, len(rows), held, longest, kind, prefix_tokens) for kind in kinds)
        return max(peaks, key=lambda peak: peak.total)


def _held(footprint: Footprint, ends: Rows[int]) -> tuple[int, int]:
    """Return the bytes of the pages and of their masks, for rows that end at these columns."""
    kept, masks = 0.0, 0
    for window, column_bytes in footprint.windows:
        num_pages = sum(pages_for(end, window) for end in ends)
        kept += num_pages * PAGE * column_bytes
        masks += num_pages * PAGE * FLOAT32_BYTES
    return int(kept + len(ends) * footprint.cache_row), masks


def _peak(
    footprint: Footprint,
    rows: int,
    held: tuple[int, int],
    columns: int,
    sampling: SamplingParams,
    prefix_tokens: int = 0,
) -> MemoryEstimate:
    """Return the higher one of a prefill's peak and a step's, including pages, masks and the prefix."""
    cache = held[0] + int(footprint.cache_column * prefix_tokens)
    filled = min(rows, _rows_at_once(footprint, columns))
    prefill = max(_prompt_bytes(footprint, filled, columns, prefix_tokens), _prompt_bytes(footprint, 1, prefix_tokens))
    again = _again_bytes(footprint, prefix_tokens + last_column(columns, sampling), prefill)
    # The last step, and a prefill.
    moments = (_logits_bytes(footprint, rows, sampling), again), (_logits_bytes(footprint, filled, sampling), prefill)
    logits, activations = max(moments, key=sum)
    holes = (HOLES_SHARE + HOLES_SHARE_PER_LAYER * footprint.num_layers) * prefill
    holes *= TIMES_ALONE if _rows_at_once(footprint, columns) == 1 else 1
    of_states = rows * footprint.cache_row if footprint.prefills_alone else 0  # a scan's step makes all states anew
    workspace = KERNELS_BYTES + min(MOST_HOLES_BYTES, int(holes)) + int(of_states)
    peak = MemoryEstimate(
        weights=0,
        kv_cache=cache,
        attention_mask=held[1],
        logits=logits,
        activations=activations,
        workspace=workspace,
    )
    return as_it_was(peak, footprint)


def _rows_at_once(footprint: Footprint, columns: int) -> int:
    return 1 if footprint.prefills_alone else prefill_rows(columns)


def _logits_bytes(footprint: Footprint, rows: int, sampling: SamplingParams) -> int:
    """Return the bytes of logits, of choosing tokens from them, and of the holes that earlier ones left in the heap."""
    numbers = rows * footprint.vocab_size
    held = logits_factor(sampling, footprint.element_bytes, copies=False) * numbers * FLOAT32_BYTES
    return int(held) + min(MOST_LOGITS_HOLES_BYTES, 2 * numbers * footprint.element_bytes)


def _again_bytes(footprint: Footprint, columns: int, prefill_bytes: int) -> int:
    """Return the bytes of deciding a near tie of one row again, which only happens in float32.

    The weights are restored as they were loaded, one by one. That of an output layer comes last, when the heap has kept
    the other activations' blocks; they fill what those of prefills left there.
    """
    if footprint.element_bytes != FLOAT32_BYTES:
        return 0
    forward = footprint.prefill_bytes(1, columns)
    return max(forward + footprint.largest_weight, max(0, forward - prefill_bytes) + footprint.output_weight)


def _prompt_bytes(footprint: Footprint, rows: int, columns: int, prefix_tokens: int = 0) -> int:
    """Return the activations of a prefill, whose attention takes a page of queries at a time and makes no mask.

    One layer's keys and values of the prefix are copied for each row.
    """
    layer = max(column for column, _ in footprint.prefill) * columns
    scores = footprint.scores * PAGE * (prefix_tokens + columns)
    return int(rows * (layer + scores + 2 * footprint.decode_column * prefix_tokens))


def last_column(num_prompt_tokens: int, sampling: SamplingParams) -> int:
    """Return the columns of a row at its end: its last token is chosen but never fed."""
    return num_prompt_tokens + sampling.max_new_tokens - 1


def pages_for(num_columns: int, window: int | None = None) -> int:
    """Return the most pages that a row of `num_columns` holds at once, if a query sees `window` columns, or all.

    >>> pages_for(32), pages_for(33), pages_for(1000, window=32), pages_for(1000, window=34)
    (1, 2, 2, 3)
    """
    most = -(-num_columns // PAGE)
    return most if window is None else min(most, -(-(window - 1) // PAGE) + 1)


def prefill_rows(padded_length: int) -> int:
    """Return how many rows of this length the slot engine prefills at once."""
    return max(1, PREFILL_TOKENS // padded_length)


def quantized_bytes(footprint: Footprint, shape: ModelShape) -> int:
    """Return the bytes of the weights in 8-bit integers, in the layout that this machine multiplies."""
    return int8_weights(footprint, shape, in_tiles=why_not_compiled() is None)


def packed_bytes(shape: ModelShape, element_bytes: int, device_type: str) -> int:
    """Return the bytes of the packed output layer (`linear`) if the embedding keeps its own copy, else 0."""
    return shape.vocab_size * shape.n_embd * element_bytes if shape.is_tied and device_type == "cpu" else 0


def room_beside(
    limits: BatchLimits, running: Lengths, waiting: Lengths, prefix_tokens: int = 0, held_bytes: int = 0
) -> int:
    """Return how many of the first `waiting` rows fit with the running ones; the cache already has `held_bytes`."""
    memory = SlotMemory(limits.memory.footprint)
    budget_bytes = limits.budget_bytes + held_bytes

    def needed_bytes(num_rows: int) -> int:
        return memory.of_rows(running + waiting[:num_rows], prefix_tokens).total

    return bisect_right(range(1, len(waiting) + 1), budget_bytes, key=needed_bytes)
