"""How many bytes a batch of `reference` takes: transformers' own cache and `generate`, and our sampler's work space.

In the formulas e is bytes an element, B rows, S padded length, C columns (prompt and new tokens), L layers, H hidden
size.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from batchgen.model.shape import Footprint
from batchgen.planning.memory import FLOAT32_BYTES, as_it_was, logits_factor, with_workspace
from batchgen.records import MemoryEstimate, SamplingParams

# Once in a process, on top of live tensors: what `generate` imports, kernels and their scratch (measured:
# docs/memory.md).
LIBRARIES_BYTES = 40 * 2**20


@dataclass(frozen=True, slots=True)
class BatchMemory:
    """The arithmetic of whole batches, each padded to its longest prompt."""

    footprint: Footprint

    def estimate(self, rows: int, columns: int, sampling: SamplingParams) -> MemoryEstimate:
        """Bytes above the weights at the peak of one batch of `rows` rows padded to `columns` columns.

        The peak is the prefill's or that of the last decode step, whichever is higher; the parts are those of that
        moment.
        """
        rows *= sampling.num_beams
        prefill = _prefill(self.footprint, rows, columns)
        decode = _last_step(self.footprint, rows, columns + sampling.max_new_tokens - 1, sampling)
        peak = max(prefill, decode, key=lambda moment: moment.total)
        return as_it_was(replace(peak, workspace=peak.workspace + LIBRARIES_BYTES), self.footprint)

    def rows_at_once(self, columns: int) -> int | None:
        """A batch is one forward: memory alone bounds it."""
        return None


def _prefill(footprint: Footprint, rows: int, columns: int) -> MemoryEstimate:
    return with_workspace(
        kv_cache=footprint.cache_bytes(rows, columns),
        attention_mask=rows * columns**2,
        logits=0,
        activations=footprint.prefill_bytes(rows, columns),
    )


def _last_step(footprint: Footprint, rows: int, columns: int, sampling: SamplingParams) -> MemoryEstimate:
    """The cache is as long as it gets: the last token is chosen, but never fed."""
    logits = int(logits_factor(sampling, footprint.element_bytes) * rows * footprint.vocab_size * FLOAT32_BYTES)
    previous = rows * footprint.vocab_size * FLOAT32_BYTES  # the last step's scores live on through the forward
    copying = int(rows * columns * footprint.decode_column)
    # A near tie is decided again by one unpadded row without a cache, beside all that; in float32 only.
    again = footprint.prefill_bytes(1, columns) if footprint.element_bytes == FLOAT32_BYTES else 0
    cache, mask = footprint.cache_bytes(rows, columns), rows * columns
    growing = with_workspace(kv_cache=cache + copying, attention_mask=mask, logits=previous)
    choosing = with_workspace(kv_cache=cache, attention_mask=mask, logits=logits, activations=again)
    return max(growing, choosing, key=lambda moment: moment.total)
