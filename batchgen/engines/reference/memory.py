"""How many bytes a batch of `reference` takes: transformers' own cache and `generate`, and our sampler's workspace."""

from __future__ import annotations

from dataclasses import dataclass, replace

from batchgen.model.shape import Footprint
from batchgen.planning.memory import FLOAT32_BYTES, as_it_was, logits_factor, with_workspace
from batchgen.records import MemoryEstimate, SamplingParams

# Added once per process, on top of live tensors: what `generate` imports, kernels and their scratch memory (measured:
# docs/memory.md).
LIBRARIES_BYTES = 40 * 2**20
# Blocks of the cache grow by a column in each step. Freed blocks that are kept leave holes: this share of the cache,
# the middle of what was measured (0.4 to 1).
HOLES_SHARE = 0.6


@dataclass(frozen=True, slots=True)
class BatchMemory:
    """The memory formula of whole batches, each padded to its longest prompt.

    If steps keep freed blocks (`keeps_blocks`), as they do while memory is plentiful, these take memory too.
    """

    footprint: Footprint
    keeps_blocks: bool = False

    def estimate(self, rows: int, columns: int, sampling: SamplingParams) -> MemoryEstimate:
        """Return the peak bytes above the weights for one batch of `rows` rows padded to `columns` columns.

        The peak is that of the prefill or of the last decode step, whichever is higher; the parts are those at that
        moment.
        """
        rows *= sampling.num_beams
        prefill = _prefill(self.footprint, rows, columns)
        decode = _last_step(self.footprint, rows, columns + sampling.max_new_tokens - 1, sampling)
        if self.keeps_blocks:
            decode = replace(decode, workspace=decode.workspace + int(HOLES_SHARE * decode.kv_cache))
        peak = max(prefill, decode, key=lambda moment: moment.total)
        return as_it_was(replace(peak, workspace=peak.workspace + LIBRARIES_BYTES), self.footprint)

    def rows_at_once(self, columns: int) -> int | None:
        """Return None: a batch is one forward, limited only by memory."""
        return None


def _prefill(footprint: Footprint, rows: int, columns: int) -> MemoryEstimate:
    return with_workspace(
        kv_cache=footprint.cache_bytes(rows, columns),
        attention_mask=rows * columns**2,
        logits=0,
        activations=footprint.prefill_bytes(rows, columns),
    )


def _last_step(footprint: Footprint, rows: int, columns: int, sampling: SamplingParams) -> MemoryEstimate:
    """Return the estimate for the last step, with the longest cache: the last token is chosen but never fed."""
    logits = int(logits_factor(sampling, footprint.element_bytes) * rows * footprint.vocab_size * FLOAT32_BYTES)
    previous = rows * footprint.vocab_size * FLOAT32_BYTES  # the previous step's scores stay alive through the forward
    copying = int(rows * columns * footprint.decode_column)
    # Deciding a near tie again takes a forward of one unpadded row without a cache; in float32 only.
    again = footprint.prefill_bytes(1, columns) if footprint.element_bytes == FLOAT32_BYTES else 0
    cache, mask = footprint.cache_bytes(rows, columns), rows * columns
    growing = with_workspace(kv_cache=cache + copying, attention_mask=mask, logits=previous)
    choosing = with_workspace(kv_cache=cache, attention_mask=mask, logits=logits, activations=again)
    return max(growing, choosing, key=lambda moment: moment.total)
