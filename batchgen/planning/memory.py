"""How many bytes rows that run together need, as far as it is the same for every engine: arithmetic only, no probing.

Each engine provides the rest as a `RowMemory`. Every factor was measured as live tensor bytes (docs/memory.md, made by
`benchmarks/memory_sweep.py`).
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Hashable, Iterable
from collections.abc import Sequence as Rows
from dataclasses import dataclass, replace
from typing import Protocol

from batchgen.model.shape import Footprint
from batchgen.records import MemoryEstimate, SamplingParams, Sequence

FLOAT32_BYTES = 4
# What a process holds on top of live tensors: the heap of small ones, scratch memory of the matrix kernels (measured:
# 0 to 5%, docs/memory.md).
WORKSPACE_BYTES, WORKSPACE_SHARE = 6 * 2**20, 0.06
# A batch may take this share of what is free besides the weights; the rest is for what no formula predicts.
BUDGET_SHARE = 0.8
# A batch that needs less than this share of its budget has plenty of memory: it may take half as much again.
PLENTY_SHARE = 0.6


class RowMemory(Protocol):
    """An engine's own memory arithmetic."""

    @property
    def footprint(self) -> Footprint: ...

    def estimate(self, rows: int, columns: int, sampling: SamplingParams) -> MemoryEstimate:
        """Return the peak bytes above the weights of `rows` such rows together, their prompts padded to `columns`."""
        ...

    def rows_at_once(self, columns: int) -> int | None:
        """Return the maximum number of prompts of `columns` in one forward pass; None if only memory limits them."""
        ...


@dataclass(frozen=True, slots=True)
class BatchLimits:
    """The limits on rows that run together: their number (fixed by `num_rows`), and bytes above the weights.

    `plenty_memory` is the arithmetic of what rows take while memory is plentiful, if that is more than they need.
    """

    memory: RowMemory
    budget_bytes: int
    most_rows: int
    num_rows: int | None = None
    plenty_memory: RowMemory | None = None


def kinds_of(samplings: Iterable[SamplingParams]) -> list[SamplingParams]:
    """Return one sampling of each kind that needs a different amount of memory: rows may differ only in their seeds."""
    different = {id(sampling): sampling for sampling in samplings}.values()

    def kind_of(s: SamplingParams) -> Hashable:
        cuts = s.is_greedy, s.top_k > 0, s.top_p < 1, s.min_p > 0
        return s.max_new_tokens, s.num_beams, cuts, _keeps_logits(s)

    return list({kind_of(sampling): sampling for sampling in different}.values())


def logits_factor(sampling: SamplingParams, element_bytes: int, *, copies: bool = True) -> float:
    """Return the work space for choosing a token, in units of B * V * 4 bytes (one float32 copy of the logits).

    `copies` says whether to count the copies that transformers' `generate` makes.

    >>> logits_factor(SamplingParams(), element_bytes=4), logits_factor(SamplingParams(), element_bytes=2)
    (3.0, 2.5)
    >>> logits_factor(SamplingParams(), element_bytes=4, copies=False)
    1.0
    """
    if copies:  # the model's logits, generate's float32 copy, and the scores of the step before
        held = element_bytes / FLOAT32_BYTES + 2
    else:  # the model's logits, and a float32 copy if they have another dtype
        held = element_bytes / FLOAT32_BYTES + (element_bytes != FLOAT32_BYTES)
    chooses = 1 if sampling.num_beams > 1 else _sampling_factor(sampling)  # beams: log-probabilities
    return held + _keeps_logits(sampling) + chooses


def _keeps_logits(sampling: SamplingParams) -> bool:
    """Whether logits are copied before they are modified, for the log-probability of the chosen token."""
    return sampling.logprobs is not None and sampling.moves_logits


def _sampling_factor(sampling: SamplingParams) -> float:
    if sampling.is_greedy:
        return 0
    # Logits over temperature, the booleans of unsure tokens, the CDF in float64; a cut keeps its own copy of the logits
    # and masks; top-p sorts them, with int64 indices. Each figure was measured separately.
    cuts = {"top_k": 4.5 if sampling.top_k else 0, "min_p": 5 if sampling.min_p else 0}
    factors = [3.25, *cuts.values(), 7.25 if sampling.top_p < 1 else 0]
    num_cuts = sum(factor > 0 for factor in factors[1:])
    return max(factors) + (1 if num_cuts > 1 else 0)


def with_workspace(*, kv_cache: int, attention_mask: int, logits: int, activations: int = 0) -> MemoryEstimate:
    tensors = kv_cache + attention_mask + logits + activations
    return MemoryEstimate(
        weights=0,
        kv_cache=kv_cache,
        attention_mask=attention_mask,
        logits=logits,
        activations=activations,
        workspace=WORKSPACE_BYTES + int(WORKSPACE_SHARE * tensors),
    )


def as_it_was(estimate: MemoryEstimate, footprint: Footprint) -> MemoryEstimate:
    """Add to an estimate what rows of this model were found to take beyond it; that counts as workspace."""
    beyond = int((footprint.overrun - 1) * estimate.total)
    return replace(estimate, workspace=estimate.workspace + beyond) if beyond else estimate


def budget_bytes(available_bytes: int) -> int:
    """Return how many of the available bytes a batch may take."""
    return int(BUDGET_SHARE * available_bytes)


def batch_estimate(limits: BatchLimits, sequences: Rows[Sequence]) -> MemoryEstimate:
    """Estimate the memory that these sequences take as one batch: more than they need, if memory is plentiful."""
    needed = padded_estimate(limits.memory, sequences)
    if limits.plenty_memory and needed.total < PLENTY_SHARE * limits.budget_bytes:
        return padded_estimate(limits.plenty_memory, sequences)
    return needed


def padded_estimate(memory: RowMemory, sequences: Rows[Sequence]) -> MemoryEstimate:
    """Estimate the memory of these sequences as one batch by an engine's arithmetic."""
    padded_length = max(sequence.num_prompt_tokens for sequence in sequences)
    needs = [
        memory.estimate(len(sequences), padded_length, kind)
        for kind in kinds_of(sequence.sampling for sequence in sequences)
    ]
    return max(needs, key=lambda need: need.total)


def batch_bytes(limits: BatchLimits, sequences: Rows[Sequence]) -> int:
    """Return the bytes above the weights that these sequences take as one batch."""
    return batch_estimate(limits, sequences).total


def largest_batch(limits: BatchLimits, padded_length: int, kinds: Iterable[SamplingParams], most: int) -> int:
    """Return the maximum number of rows, up to `most`, of `padded_length` columns that fit the budget; at least one.

    One row is always tried. If rows are of several `kinds`, the kind that needs the most memory counts.
    """

    def needed_bytes(rows: int) -> int:
        return max(limits.memory.estimate(rows, padded_length, kind).total for kind in kinds)

    return max(1, bisect_right(range(1, most + 1), limits.budget_bytes, key=needed_bytes))
