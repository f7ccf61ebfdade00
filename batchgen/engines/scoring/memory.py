"""How many bytes rows that are scored together take: a prefill, and logits of a bounded number of columns."""

from __future__ import annotations

from dataclasses import dataclass

from batchgen.model.shape import Footprint
from batchgen.planning.memory import FLOAT32_BYTES, as_it_was, with_workspace
from batchgen.records import MemoryEstimate, SamplingParams

MOST_LOGITS = 2**24  # `network.PIECE_NUMBERS`; that module needs torch
LEAST_ROWS = 64
# A piece of logits, a family's temporary copies of it (a soft cap makes two), and its exponentials.
LOGITS_COPIES = 4
# Tokens of a forward, including pads, by device type: more are not faster.
MOST_TOKENS, MOST_TOKENS_ACCELERATOR = 4096, 32768


@dataclass(frozen=True, slots=True)
class ScoringMemory:
    """The memory formula of one forward over rows, whose keys and values are kept only that long."""

    footprint: Footprint

    def estimate(self, rows: int, columns: int, sampling: SamplingParams) -> MemoryEstimate:
        """Bytes above the weights at the peak, if each column may be scored, and keys and values may be kept."""
        return self.of_forward(rows, columns, rows * columns, keeps_keys=True)

    def of_forward(self, rows: int, columns: int, num_scored: int, *, keeps_keys: bool) -> MemoryEstimate:
        """The same of a forward that is known: so many of its columns are scored, and only prompts keep their keys."""
        vocab_size = self.footprint.vocab_size
        num_logits = min(max(num_scored, LEAST_ROWS), max(LEAST_ROWS, MOST_LOGITS // vocab_size)) * vocab_size
        estimate = with_workspace(
            kv_cache=self.footprint.cache_bytes(rows, columns) if keeps_keys else 0,
            attention_mask=rows * columns**2,
            logits=LOGITS_COPIES * num_logits * FLOAT32_BYTES,
            activations=self.footprint.prefill_bytes(rows, columns),
        )
        return as_it_was(estimate, self.footprint)

    def rows_at_once(self, columns: int) -> int | None:
        """Return None: all rows of a forward run at once."""
        return None


def most_rows(columns: int, device_type: str) -> int:
    """Return how many rows of `columns` columns a forward of the best size has.

    >>> most_rows(64, "cpu"), most_rows(10_000, "cpu")
    (64, 1)
    """
    most = MOST_TOKENS if device_type == "cpu" else MOST_TOKENS_ACCELERATOR
    return max(1, most // columns)
